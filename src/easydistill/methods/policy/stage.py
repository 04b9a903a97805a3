"""Training by rewards: prompts and a student in; the student out, trained on the rewards of its own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easydistill.asking.answers import count_earlier
from easydistill.asking.model import AskedModel
from easydistill.config.deepspeed_checks import rollout_issues
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainerConfig
from easydistill.data.files import hash_file, write_jsonl
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.numbers import as_float
from easydistill.data.records import Rejection, Sample
from easydistill.data.row_files import MALFORMED
from easydistill.engine.checks import missing_file, needs_extra, unreadable_rows
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.policy.config import PolicyConfig, PpoConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.outlook import Steps
from easydistill.methods.shared.rendering import student_renderer
from easydistill.methods.shared.rows import PromptRows, fitting_prompt, nothing_left
from easydistill.methods.shared.sharded_memory import Besides
from easydistill.methods.shared.sight import hash_of_images, sees_images, vision_of, vllm_images_issues
from easydistill.methods.shared.student import (
    MODEL,
    checkpoints_of,
    loaded_student,
    save_student,
    show_student,
    training_result,
)
from easydistill.models.checks import reference_issues
from easydistill.models.limits import Limits
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.models.student import Student
from easydistill.rewards import RewardContext, WeightedRewards, build, malformed, unjudged, verify
from easydistill.rewards import files as reward_files
from easydistill.rewards import issues as reward_issues
from easydistill.rewards import models as reward_models
from easydistill.rewards._section import RewardsConfig

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.methods.policy.rows import PolicyRow
    from easydistill.methods.policy.watch import Explorer
    from easydistill.models.multimodal import Vision
    from easydistill.rewards import Reward

ANSWER = "answer"
"""Field of a row with the known answer; the row's own answer is put there too."""
PASS_RATE = "pass_rate"
UNJUDGED = "unjudged"
JUDGED = "judge-0.jsonl"
"""File of a judge's replies."""
ANSWERS = "answers.jsonl"
"""File of the held-out answers before and after training, which the report shows."""


def _all_see() -> None:
    """Nobody is blind."""


@dataclass(frozen=True)
class ExplorationRows(PromptRows):
    """Prompts to explore, with their rows' known answers."""

    labelled: ClassVar[bool | None] = None

    blind: Callable[[], tuple[str, str] | None] = field(default=_all_see, kw_only=True)
    """(config key, words) of what judges answers without seeing images, if something does."""

    def blind_setting(self) -> str:
        """The config key because of which rows with images are refused."""
        blind = None if super().refuses_images is not None else self.blind()
        return "models.student" if blind is None else blind[0]

    @property
    def refuses_images(self) -> str | None:
        if (why := super().refuses_images) is not None:
            return why
        if (blind := self.blind()) is None:
            return None
        key, words = blind
        return f"{words} reads text alone and would not see it: set {key} to one that sees, or remove it"

    def fingerprint(self) -> dict[str, Any]:
        held = {"heldout": self.evaluation.heldout, "max_heldout": self.evaluation.max_heldout}
        return {**super().fingerprint(), **(held if self.evaluation.enabled else {})}


class PolicyStage(TrainStage):
    """PPO or GRPO, by the class of `policy`; under the same name and with the same outputs as `TrainStage`."""

    def __init__(
        self,
        rows: ExplorationRows,
        models: ModelsConfig,
        training: TrainerConfig,
        policy: PolicyConfig,
        rewards: RewardsConfig,
        judge: AskedModel | None,
    ) -> None:
        super().__init__(rows, models, training)
        self._policy, self._rewards, self._judge = policy, rewards, judge
        self._foresight = replace(self._foresight, blind=rows.blind_setting)
        # Held-out answers are verified whether or not verification is a reward.
        self._verification: Any = getattr(rewards, "verify", None) or verify.Config()

    def preflight(self) -> list[ConfigIssue]:
        issues = super().preflight() + rollout_issues(self.launch, self._policy.rollouts) + needs_extra("trl", "trl")
        issues += unreadable_rows("dataset.instruction_path", self._rows.dataset.instruction_path)
        for key, path in reward_files(self._rewards).items():
            issues += missing_file(f"rewards.{key}", path)
        for key, reference in reward_models(self._rewards).items():
            issues += reference_issues(f"rewards.{key}", reference)
        issues += reward_issues(self._rewards)
        if self._rewards.needs_judge and self._judge is None:
            hint = "set models.judge with judge.inference, or judge.inference.base_url"
            issues.append(ConfigIssue("config", "rewards.judge", "no judge model is configured", hint))
        if self._judge is not None:
            issues += self._judge.plan.preflight()
        if self._policy.rollouts == "vllm":
            issues += needs_extra("vllm", "vllm") + vllm_images_issues(self._models, "policy.rollouts")
        return issues + self._critic_issues()

    def _critic_issues(self) -> list[ConfigIssue]:
        if not isinstance(self._policy, PpoConfig) or self._policy.critic != "reward_model":
            return []
        if not sees_images(self._models):
            return []
        return [_seeing_critic()]

    @property
    def besides(self) -> Besides:
        return Besides(answers=True, reference=self._policy.needs_reference and self._training.lora is None)

    @property
    def steps(self) -> Steps:
        policy = self._policy
        return Steps(
            of="answers",
            outlook=self._rows_ahead(prompts=True),
            answer=policy.max_new_tokens,
            answers_each=policy.num_generations,
            rounds=policy.steps_per_rollout,
            loss="tiles",
        )

    def fingerprint(self) -> dict[str, Any]:
        named = reward_files(self._rewards).items()
        return {
            **super().fingerprint(),
            "policy": self._policy.identity(),
            "rewards": self._rewards.identity(),
            "reward_files": {key: hash_file(Path(path)) for key, path in named if Path(path).is_file()},
            "reward_models": {key: resolve(name).identity() for key, name in reward_models(self._rewards).items()},
            **({"judge": self._judge.identity()} if self._judge is not None else {}),
        }

    def estimate(self, directory: Path) -> Estimate:
        own = super().estimate(directory)
        if own.memory_bytes is None:
            return own
        sizes = [model_parameters(name) for name in reward_models(self._rewards).values()]
        if None in sizes:
            return replace(own, memory_bytes=None, memory_parts=None)
        more = 4 * sum(size for size in sizes if size is not None)
        if (
            isinstance(self._policy, PpoConfig)
            and self._policy.critic != "value_head"
            and not sees_images(self._models)
        ):
            # The critic's gradients and moments.
            more *= 5
        parts = {**(own.memory_parts or {}), **({"reward model": more} if more else {})}
        return replace(own, memory_bytes=own.memory_bytes + more, memory_parts=parts)

    def run(self, context: StageContext) -> StageResult:
        samples, heldout, unreadable = self._rows.read(context)
        student = loaded_student(self._models, self._training.max_length, context)
        vision = vision_of(student, context)
        renderer = student_renderer(self._rows.dataset, student.tokenizer, student.eos_ids, context, vision)
        rows, train_rejected = self._prepare(renderer, samples, student.limits)
        held_rows, held_rejected = self._prepare(renderer, heldout, student.limits, all_rates=True)
        rejected = [*unreadable, *train_rejected, *held_rejected]
        context.keep_rejected(rejected)
        if train_rejected and not rows:
            raise nothing_left("train on", train_rejected)
        with ExitStack() as opened:
            explorer = self._explorer(student, rows, held_rows, context, opened)
            outcome = self._train_policy(student, explorer, vision, context)
        context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        files = save_student(student, renderer, self._rows.dataset, context.directory / MODEL)
        if answers := answer_rows(explorer):
            write_jsonl(context.directory / ANSWERS, answers)
            files.append(ANSWERS)
        show_student(context)
        steps = sorted(explorer.measured)
        measured: dict[str, Any] = (
            {"before": explorer.measured[steps[0]], "after": explorer.measured[steps[-1]]} if steps else {}
        )
        return training_result(
            outcome,
            files,
            RowCounts(len(samples) + len(heldout) + len(unreadable), len(rows) + len(held_rows)),
            rejected,
            train_rows=len(rows),
            heldout_rows=len(held_rows),
            student=student.description,
            **measured,
            course=[{"step": step, **explorer.measured[step]} for step in steps],
            alarms=explorer.alarms.raised,
        )

    def _prepare(
        self, renderer: ChatRenderer, samples: Sequence[Sample], limits: Limits, all_rates: bool = False
    ) -> tuple[list[PolicyRow], list[Rejection]]:
        """(prompts with room for an answer and a pass rate in range, the rejected rows).

        Args:
            all_rates: accept every pass rate.
        """
        rows: list[PolicyRow] = []
        rejected: list[Rejection] = []
        for sample in samples:
            row = self._policy_row(renderer, sample, limits, all_rates)
            (rejected if isinstance(row, Rejection) else rows).append(row)  # type: ignore[arg-type]
        return rows, rejected

    def _policy_row(
        self, renderer: ChatRenderer, sample: Sample, limits: Limits, all_rates: bool
    ) -> PolicyRow | Rejection:
        from easydistill.methods.policy.rows import PolicyRow

        low, high = self._policy.pass_rate
        rate = as_float(sample.meta.get(PASS_RATE))
        if not all_rates and rate is not None and not low <= rate <= high:
            detail = f"{rate:.0%} of the attempts at it succeed; policy.pass_rate is [{low:g}, {high:g}]"
            return Rejection(sample.id, self.name, "pass_rate", detail)
        prompt = fitting_prompt(
            renderer, sample, self._training.max_length, self._policy.max_new_tokens, self.name, limits
        )
        if isinstance(prompt, Rejection):
            return prompt
        known = {ANSWER: sample.answer} if sample.answer else {}
        meta = {**known, **sample.meta}
        if problem := malformed(self._rewards, meta) or verify.check(self._verification, meta):
            return Rejection(sample.id, self.name, MALFORMED, problem)
        if problem := unjudged(self._rewards, meta):
            return Rejection(sample.id, self.name, UNJUDGED, problem)
        return PolicyRow(sample.id, prompt, tuple(sample.prompt), meta, sample.tools)

    def _explorer(
        self,
        student: Student,
        rows: Sequence[PolicyRow],
        heldout: Sequence[PolicyRow],
        context: StageContext,
        opened: ExitStack,
    ) -> Explorer:
        """The rows with their rewards; everything opened here is closed by `opened`."""
        from easydistill.methods.policy.watch import Explorer

        by_first = self._judge is not None
        if by_first and context.rank > 0:
            return Explorer(rows, heldout, WeightedRewards({}, {}), None, by_first=True)
        judge = None
        if self._judge is not None:
            judge = self._judge.plan.make(context)
            opened.callback(judge.close)
            journal = context.directory / JUDGED
            if journal.is_file():
                # Answers of earlier attempts count for its budget.
                with Journal(journal) as earlier:
                    count_earlier(judge, earlier)
        given = RewardContext(
            tokenizer=student.tokenizer,
            eos_ids=student.eos_ids,
            judge=judge,
            judge_sampling=self._judge.inference.sampling() if self._judge is not None else {},
            judge_system_prompt=self._judge.inference.system_prompt if self._judge is not None else None,
            judge_image=self._judge.inference.image_identity() if self._judge is not None else {},
            journal=context.directory / JUDGED if judge is not None else None,
            redact=context.redactor.value,
            images=context.images.path,
        )
        rewards = opened.enter_context(build(self._rewards, given))
        return Explorer(rows, heldout, rewards, self._verifier(heldout, given, opened), by_first=by_first)

    def _verifier(self, heldout: Sequence[PolicyRow], given: RewardContext, opened: ExitStack) -> Reward | None:
        """A verifier of held-out answers (1 right, 0 wrong), like `rewards.verify`; None without known answers."""
        config = self._verification
        if not any(row.meta.get(config.field) is not None for row in heldout):
            return None
        cut_off = "verify" if config.cut_off == "verify" else "wrong"
        plain = config.model_copy(update={"right": 1.0, "wrong": 0.0, "cut_off": cut_off})
        made = verify.make(plain, given)
        opened.callback(made.close)
        return made

    def _train_policy(self, student: Student, explorer: Explorer, vision: Vision | None, context: StageContext) -> Any:
        from easydistill.methods.policy import trl_trainer as policy_trl

        images = hash_of_images((row.id, row.images) for row in (*explorer.rows, *explorer.heldout))
        shared = (
            student,
            explorer,
            self._training,
            self._policy,
            checkpoints_of(context, images),
            context.reporter,
            context.stop,
        )
        if not isinstance(self._policy, PpoConfig):
            return policy_trl.train(*shared, vision=vision)
        from easydistill.methods.policy.ppo_trl_trainer import PpoTrainer

        critic = self._critic(student, self._policy)
        return policy_trl.train(*shared, trainer_class=PpoTrainer, vision=vision, critic=critic)

    def _critic(self, student: Student, policy: PpoConfig) -> Any:
        """The reward model that the critic starts from; None for a value head.

        Raises:
            ConfigError: one was requested, but there is none with the student's tokens.
        """
        from easydistill.models.loading import device, load_tokenizer, same_vocabulary
        from easydistill.rewards.reward_model import load_classifier

        config = getattr(self._rewards, "reward_model", None)
        if policy.critic == "value_head" or (policy.critic is None and config is None):
            return None
        if student.processor is not None:
            # The reward model would have to be shown the images with every token.
            if policy.critic is None:
                return None
            # `preflight` does not know that of a student that was not on this machine then.
            raise ConfigError(_seeing_critic())
        problem = "no rewards.reward_model is configured"
        if config is not None:
            if same_vocabulary(student.tokenizer, load_tokenizer(config.model)):
                return load_classifier(config.model_copy(update={"dtype": "float32"}), device())
            problem = "the reward model's vocabulary differs from the student's"
        if policy.critic is None:
            return None
        hint = 'name a reward model made of the student\'s family, or set "critic": "value_head"'
        raise ConfigError(ConfigIssue("config", "policy.critic", problem, hint))


def _seeing_critic() -> ConfigIssue:
    """Why a student that sees images has no critic from a reward model."""
    problem = "a reward model does not value the answers of a student that sees images token by token"
    return ConfigIssue("config", "policy.critic", problem, 'set "critic": "value_head", or leave it out')


def answer_rows(explorer: Explorer) -> list[dict[str, Any]]:
    """Each held-out prompt with its known answer, if it is a text, and the student's answers before and after training;
    none if they were not kept."""
    steps = sorted(explorer.measured)
    if not steps or steps[0] not in explorer.said or steps[-1] not in explorer.said:
        return []
    sides = explorer.said[steps[0]], explorer.said[steps[-1]]
    found = []
    for row, before, after in zip(explorer.heldout, *sides, strict=True):
        known = row.meta.get(ANSWER)
        reference = known if isinstance(known, str) else None
        found.append(
            {"id": row.id, "prompt": list(row.messages), "teacher": reference, "before": before, "after": after}
        )
    return found
