"""Reward: pairs of answers and a student in; a reward model made of the student out, with held-out figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.manifest import RowCounts
from easydistill.data.numbers import as_float
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection, count_reasons
from easydistill.data.row_files import MALFORMED
from easydistill.engine.stage import StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.methods.dpo.stage import GAP, PairRows, PairStage
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.shared.student import MODEL, outcome_metrics, save_student, show_student
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.methods.reward_model.trainer import RewardRow

MARGIN = "margin"
"""Field of a pair that tells how far apart its scores should be."""
TRUTHS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
"""Fields of a pair that tell how good its answers are known to be; the latter are UltraFeedback's."""
LARGEST_MARGIN = 1e6
"""Far beyond any difference of scores, and yet a number that the loss can take."""
LARGEST_TRUTH = 1e30
"""Of larger ones no mean can be taken."""
TOO_LONG = "too_long"
NOTES = {
    "shorter_accuracy": "no held-out pair has a shorter chosen answer",
    "length_pearson": "all lengths or all scores are the same",
    "length_spearman": "all lengths or all scores are the same",
    "best_of_n_gain": "no held-out pair tells how good its answers are (chosen_score, rejected_score)",
}
"""Why a figure is not there."""


class RewardStage(PairStage):
    """Training of a reward model on pairs, measured on held-out ones before and after."""

    classifies = True
    _training: RewardTrainingConfig
    """What it makes judges texts, and writes none."""

    def __init__(
        self, rows: PairRows, models: ModelsConfig, training: RewardTrainingConfig, reward: RewardModelConfig
    ) -> None:
        super().__init__(rows, models, training)
        self._reward = reward

    def examine(self) -> list[ConfigIssue]:
        from easydistill.models.scalar_head import scalar_issues

        return scalar_issues(self._models)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "reward_model": self._reward.identity()}

    def run(self, context: StageContext) -> StageResult:
        from easydistill.methods.reward_model.trainer import describe, measure, measure_gaps, score_rows
        from easydistill.methods.reward_model.trl_trainer import train
        from easydistill.models.loading import choose_dtype, device, load_classifier
        from easydistill.models.scalar_head import set_padding, with_scalar_head
        from easydistill.models.student import build_student

        train_pairs, heldout, unreadable = self._rows.read(context)
        float32 = choose_dtype("float32", device())
        student = build_student(self._models, float32)
        renderer = self._renderer(student)
        student = with_scalar_head(student, self._training.seed)
        rows, train_rejected = self._tokenise(renderer, train_pairs)
        held_rows, held_rejected = self._tokenise(renderer, heldout)
        if self._reward.use_margin and not any(row.margin for row in rows):
            raise DataError("reward_model.use_margin: no pair has a `margin`\n    → turn it off, or give pairs theirs")
        pad = set_padding(student, {chat[-1] for row in (*rows, *held_rows) for chat in (row.chosen, row.rejected)})

        def scores(model: Any) -> Any:
            return score_rows(model.to(device()), held_rows, pad, context.stop)

        before = scores(student.model)
        outcome = train(
            student,
            rows,
            self._training,
            self._reward,
            context.directory / "checkpoints" / context.fingerprint[:12],
            context.reporter,
            context.stop,
        )
        context.stop.raise_if_requested()
        files = save_student(student, renderer, self._rows.dataset.template, context.directory / MODEL)
        metrics: dict[str, Any] = {}
        if held_rows:
            # What is measured is what is saved, its weights rounded to their number type.
            after = scores(load_classifier(str(context.directory / MODEL), float32))
            metrics = {"before": measure(held_rows, before), "after": measure(held_rows, after)}
            missing = [name for name, value in metrics["after"].items() if value is None]
            metrics |= {
                "gaps": measure_gaps(held_rows, after),
                "heldout_pairs": describe(held_rows, after),
                "notes": {name: NOTES[name] for name in missing},
            }
        show_student(context)
        rejected = [*unreadable, *train_rejected, *held_rejected]
        return StageResult(
            outputs=files,
            rows=RowCounts(
                len(train_pairs) + len(heldout) + len(unreadable),
                len(rows) + len(held_rows),
                count_reasons(rejected),
            ),
            rejected=rejected,
            tokens={"trained": outcome.trained_tokens, "read": sum(2 * row.prompt_tokens for row in rows)},
            metrics={
                **outcome_metrics(outcome),
                "train_rows": len(rows),
                "heldout_rows": len(held_rows),
                "truncated_rows": 0,
                "student": student.description,
                **metrics,
            },
        )

    def _renderer(self, student: Student) -> ChatRenderer:
        from easydistill.data.chat import ChatRenderer

        template = self._rows.dataset.template
        renderer = ChatRenderer.from_file(student.tokenizer, student.eos_ids, template)
        if template is not None and renderer.single_turn:
            problem = f"{template} is an EasyDistill 1 template, which cannot be saved with the reward model"
            mend = "write it as a chat template, over `messages`, or leave it out"
            raise ConfigError(ConfigIssue("config", "dataset.template", problem, mend))
        return renderer

    def _tokenise(self, renderer: ChatRenderer, pairs: Sequence[Preference]) -> tuple[list[RewardRow], list[Rejection]]:
        return tokenise(renderer, pairs, self._training.max_length, self.name, use_margin=self._reward.use_margin)


def tokenise(
    renderer: ChatRenderer, pairs: Sequence[Preference], max_length: int, stage: str, *, use_margin: bool
) -> tuple[list[RewardRow], list[Rejection]]:
    """Tokenise pairs; those that the template refuses, that are too long, or whose margin is none, are rejected."""
    rows: list[RewardRow] = []
    rejected: list[Rejection] = []
    for pair in pairs:
        try:
            row = _row(renderer, pair, use_margin)
        except _NoRow as problem:
            rejected.append(Rejection(pair.id, stage, problem.reason, str(problem)))
            continue
        if row.longest > max_length:
            detail = f"{row.longest} tokens, and training.max_length is {max_length}"
            rejected.append(Rejection(pair.id, stage, TOO_LONG, detail))
        else:
            rows.append(row)
    return rows, rejected


class _NoRow(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _row(renderer: ChatRenderer, pair: Preference, use_margin: bool) -> RewardRow:
    from easydistill.methods.dpo.trainer import PLAIN
    from easydistill.methods.reward_model.trainer import RewardRow

    try:
        prompt = renderer.prompt_ids(pair.prompt)
        chosen, rejected = (renderer.chat_ids((*pair.prompt, answer)) for answer in (pair.chosen, pair.rejected))
    except DataError as error:
        raise _NoRow(TEMPLATE_REFUSED, str(error)) from None
    if chosen == rejected:
        raise _NoRow(TEMPLATE_REFUSED, "the template shows both answers alike")
    given = pair.meta.get(MARGIN, 0.0) if use_margin else 0.0
    margin = as_float(given)
    if margin is None or not 0 <= margin <= LARGEST_MARGIN:
        problem = f"`{MARGIN}` is {str(given)[:40]!r}, not a number from 0 to {LARGEST_MARGIN:g}"
        raise _NoRow(MALFORMED, problem)
    gap = pair.meta.get(GAP)
    return RewardRow(
        pair.id,
        pair.prompt_hash,
        chosen,
        rejected,
        len(prompt),
        margin,
        _truth(pair),
        gap if isinstance(gap, str) else PLAIN,
    )


def _truth(pair: Preference) -> tuple[float, float] | None:
    for names in TRUTHS:
        # Right and wrong are a truth too.
        chosen, rejected = (
            float(value) if isinstance(value, bool) else as_float(value, LARGEST_TRUTH)
            for value in map(pair.meta.get, names)
        )
        if chosen is not None and rejected is not None:
            return chosen, rejected
    return None
