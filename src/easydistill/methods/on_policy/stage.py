"""On-policy training: prompts, a student and a teacher that scores tokens in; the trained student out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.asking.row_teachers import RowTeachers
from easydistill.config.deepspeed_checks import rollout_issues
from easydistill.config.inference import ApiInferenceConfig, LocalInferenceConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import endpoint_name
from easydistill.data.manifest import RowCounts
from easydistill.data.messages import images_of
from easydistill.data.records import Rejection, Sample
from easydistill.engine.checks import needs_extra, unreadable_rows
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue, MissingExtra, ModelError
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.outlook import Steps
from easydistill.methods.shared.rendering import LostThoughts, RenderingFigures, student_renderer
from easydistill.methods.shared.rows import (
    LabelledRows,
    PromptRows,
    fitting_prompt,
    keep_rejected,
    render_all,
)
from easydistill.methods.shared.sharded_memory import Besides
from easydistill.methods.shared.sight import hash_of_images, other_sight, teachers_vision, vision_of, vllm_images_issues
from easydistill.methods.shared.student import (
    MODEL,
    checkpoints_of,
    loaded_student,
    save_student,
    show_student,
    training_result,
)
from easydistill.models.checks import model_issues
from easydistill.models.limits import Limits
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered
    from easydistill.methods.shared.rollouts import ListingScores, PromptRow, Writer
    from easydistill.methods.shared.watch import TrainingOutcome
    from easydistill.models.multimodal import Vision


COLD_START, ON_POLICY = "cold_start", "on_policy"
"""Folders of the checkpoints of the two parts of a training."""


class OnPolicyStage(TrainStage):
    """On-policy distillation of the student, under the same name and with the same outputs as `TrainStage`."""

    _training: TrainingConfig

    def __init__(
        self,
        rows: LabelledRows,
        models: ModelsConfig,
        training: TrainingConfig,
        on_policy: OnPolicyConfig,
        inference: LocalInferenceConfig | ApiInferenceConfig,
    ) -> None:
        super().__init__(rows, models, training)
        self._on_policy = on_policy
        self._inference = inference
        self._own = RowTeachers.of(models)
        if not on_policy.learns_answers:
            # Answers in the file do not matter then.
            self._foresight = replace(self._foresight, read=rows.preview_prompts)

    @property
    def _server(self) -> ApiInferenceConfig | None:
        return self._inference if isinstance(self._inference, ApiInferenceConfig) else None

    def preflight(self) -> list[ConfigIssue]:
        issues = super().preflight() + rollout_issues(self.launch, self._on_policy.rollouts)
        if isinstance(self._rows, PromptRows):
            issues += unreadable_rows("dataset.instruction_path", self._rows.dataset.instruction_path)
        if self._server is None:
            issues += [issue for named in self._models.teachers_by_key.items() for issue in model_issues(*named)]
        if self._server is not None and "ENDPOINT" in self._server.base_urls:
            problem = '"ENDPOINT" is a placeholder for the address of your vLLM server'
            issues.append(ConfigIssue("config", "inference.base_url", problem, "e.g. http://localhost:8000/v1"))
        if self._on_policy.rollouts == "vllm":
            issues += needs_extra("vllm", "vllm") + vllm_images_issues(self._models, "on_policy.rollouts")
        return issues

    def examine(self) -> list[ConfigIssue]:
        """Also compare how teacher and student read images, and several teachers' vocabularies with the student's."""
        return super().examine() or self._image_issues() or self._own_issues()

    def _own_issues(self) -> list[ConfigIssue]:
        """Teachers, if they are several, that the student cannot be compared with: found before any is asked."""
        from easydistill.models.compatibility import student_side
        from easydistill.models.loading import load_tokenizer, same_vocabulary

        if self._own is None:
            return []
        try:
            assert isinstance(self._inference, LocalInferenceConfig)
            ours, trust = student_side(self._models).tokenizer, self._inference.trust_remote_code
            return [
                _unlike(key)
                for key, reference in self._models.teachers_by_key.items()
                if not same_vocabulary(ours, load_tokenizer(reference, trust_remote_code=trust))
            ]
        except MissingExtra:
            # Told by the stage's other checks.
            return []
        except ModelError as error:
            problem, _, hint = str(error).partition("\n    → ")
            return [ConfigIssue("config", "models.teachers", problem, hint)]

    def _image_issues(self) -> list[ConfigIssue]:
        reference = self._models.teacher
        if self._server is not None or reference is None:
            return []
        if self._rows.refuses_images is not None or not self._rows.show_images():
            return []
        return [
            ConfigIssue("config", "models.teacher", f"{reference}: {problem}", hint)
            for problem, hint in other_sight(self._models, reference)
        ]

    @property
    def besides(self) -> Besides:
        return Besides(answers=True)

    @property
    def steps(self) -> Steps:
        return Steps(
            of="answers",
            outlook=self._rows_ahead(prompts=True),
            answer=self._on_policy.max_new_tokens,
            loss="distribution",
        )

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "on_policy": self._on_policy.identity(), "teacher": self._teacher_identity()}

    def _teacher_identity(self) -> dict[str, Any]:
        if isinstance(self._inference, ApiInferenceConfig):
            return {"base_url": endpoint_name(self._inference.base_urls), "model": self._inference.model}
        if self._own is not None:
            return {**self._own.identity(), "dtype": self._inference.dtype}
        assert self._models.teacher is not None
        return {**resolve(self._models.teacher).identity(), "dtype": self._inference.dtype}

    def estimate(self, directory: Path) -> Estimate:
        own = super().estimate(directory)
        if own.memory_bytes is None or self._server is not None or not self._models.teachers_by_key:
            return own
        # A model of several names is loaded once.
        sizes = [model_parameters(reference) for reference in set(self._models.teachers_by_key.values())]
        known = sum(size for size in sizes if size is not None)
        if None in sizes:
            return replace(own, memory_bytes=None, memory_parts=None)
        parts = {**(own.memory_parts or {}), "teacher": 2 * known}
        return replace(own, memory_bytes=own.memory_bytes + 2 * known, memory_parts=parts)

    def prepare(self, context: StageContext) -> None:
        """Remove what an earlier attempt left unfinished, of the cold start and of what follows it."""
        for part in (COLD_START, ON_POLICY):
            last_whole_checkpoint(checkpoints_of(context) / part)

    def run(self, context: StageContext) -> StageResult:
        from easydistill.methods.shared.restored import trimmed_vocabulary

        samples, heldout, unreadable = self._rows.read(context)
        taught = self._taught(samples, heldout, context)
        student = loaded_student(self._models, self._training.max_length, context)
        vision = vision_of(student, context)
        renderer = student_renderer(self._rows.dataset, student.tokenizer, student.eos_ids, context, vision)
        rows, labels, rejected = self._prepare(renderer, samples, self._limits(student))
        rejected = [*unreadable, *rejected]
        keep_rejected(rejected, rows, context)
        figures = RenderingFigures.of(labels.values())
        if self._on_policy.learns_answers:
            chats = ((sample, labels[sample.id].missing) for sample in samples if sample.id in labels)
            LostThoughts.of(chats).refuse(self._rows.dataset, made=self._rows.from_stage)
            for line in figures.lines():
                context.reporter.say(line)
        size = max(student.tokenizer.get_vocab().values()) + 1
        with trimmed_vocabulary(student.model, size):
            outcome = self._train(student, rows, labels, size, vision, context)
            context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        files = save_student(student, renderer, self._rows.dataset, context.directory / MODEL)
        show_student(context)
        return training_result(
            outcome,
            files,
            RowCounts(len(samples) + len(unreadable), len(rows)),
            rejected,
            read=sum(len(row.prompt) for row in rows),
            train_rows=len(rows),
            heldout_rows=len(heldout),
            truncated_rows=figures.truncated,
            **figures.metrics(),
            **taught,
            student=student.description,
        )

    def _taught(self, samples: Iterable[Sample], heldout: Iterable[Sample], context: StageContext) -> dict[str, Any]:
        """How many training rows each teacher has, as a metric, if there are several.

        Raises:
            DataError: a row names a teacher that is not known.
        """
        if self._own is None:
            return {}
        counts = self._own.counts(samples)
        every = counts + self._own.counts(heldout)
        for line in self._own.lines(every):
            context.reporter.say(f"  {line}")
        return {"rows_by_teacher": dict(counts)}

    def _limits(self, student: Student) -> Limits:
        """Of rows that the student writes and the teacher scores."""
        limits = student.limits
        if self._server is None:
            trust = self._models.trust_remote_code
            for reference in self._models.teachers_by_key.values():
                limits = limits.joined(Limits.of_reference(reference, trust_remote_code=trust))
        return limits

    def _prepare(
        self, renderer: ChatRenderer, samples: Sequence[Sample], limits: Limits
    ) -> tuple[list[PromptRow], dict[str, Rendered], list[Rejection]]:
        """Prompts with room for an answer, their labels by id, and the rejected rows."""
        labels: dict[str, Rendered] = {}
        rejected: list[Rejection] = []
        if not isinstance(self._rows, PromptRows):
            rendered, rejected = render_all(renderer, samples, self._training.max_length, self.name, limits)
            labels = {sample.id: row for sample, row in rendered}
            samples = [sample for sample, _ in rendered]
        rows: list[PromptRow] = []
        for sample in samples:
            row = self._prompt_row(renderer, sample, labels.get(sample.id), limits)
            if isinstance(row, Rejection):
                rejected.append(row)
                labels.pop(sample.id, None)
            else:
                rows.append(row)
        return rows, labels, rejected

    def _prompt_row(
        self, renderer: ChatRenderer, sample: Sample, label: Rendered | None, limits: Limits
    ) -> PromptRow | Rejection:
        from easydistill.methods.shared.rollouts import PromptRow

        prompt = fitting_prompt(
            renderer, sample, self._training.max_length, self._on_policy.max_new_tokens, self.name, limits
        )
        if isinstance(prompt, Rejection):
            return prompt
        return PromptRow(
            sample.id,
            prompt,
            None if label is None else split_label(label),
            images_of(*sample.prompt_chat.messages),
            "" if self._own is None else self._own.name_of(sample),
        )

    def _train(
        self,
        student: Student,
        rows: list[PromptRow],
        labels: dict[str, Rendered],
        vocabulary: int,
        vision: Vision | None,
        context: StageContext,
    ) -> TrainingOutcome:
        """The cold start, unless there is none or it is done; then on-policy training."""
        from easydistill.methods.on_policy import trainer as sampled
        from easydistill.methods.sft.batching import TokenRow
        from easydistill.methods.sft.trainer import train as fine_tune

        checkpoints = checkpoints_of(context, hash_of_images((row.id, row.images) for row in rows))
        following = checkpoints / ON_POLICY
        # Checkpoints of the second part hold all weights. With LoRA they hold only the adapters, so the cold start is
        # replayed from its own last checkpoint.
        cold_start_done = self._training.lora is None and last_whole_checkpoint(following) is not None
        if self._on_policy.sft_steps and not cold_start_done:
            context.reporter.say(f"  cold start: {self._on_policy.sft_steps} steps on the teacher's answers")
            fine_tune(
                student,
                [TokenRow(name, row.ids_T, row.mask_T, images=row.images) for name, row in labels.items()],
                self._training.model_copy(update={"max_steps": self._on_policy.sft_steps}),
                checkpoints / COLD_START,
                context.reporter,
                context.stop,
                stage="cold_start",
                vision=vision,
            )
            context.stop.raise_if_requested()
        shared = (self._training, self._on_policy, following, context.reporter, context.stop)
        with contextlib.closing(self._writer(student, vision)) as writer:
            if self._on_policy.objective == "generalized_jsd":
                from easydistill.methods.on_policy import generalized_jsd

                teachers = self._local_teachers(student, rows, vocabulary)
                visions = vision, self._teachers_visions(teachers, rows, vision, context)
                return generalized_jsd.train(student, rows, teachers, *shared, writer, visions)
            scores = self._scores(student, rows, vocabulary, vision, context)
            if self._on_policy.objective == "top_k_reverse_kl":
                from easydistill.methods.on_policy import top_k

                return top_k.train(student, rows, scores, *shared, writer, vision)
            return sampled.train(student, rows, scores, *shared, writer, vision)

    def _teachers_visions(
        self, names: Iterable[str], rows: Sequence[PromptRow], student: Vision | None, context: StageContext
    ) -> dict[str, Vision | None]:
        """What each of some teachers sees of images."""
        return {name: self._teachers_vision(self._reference(name), rows, student, context) for name in names}

    def _reference(self, name: str) -> str:
        """The model of a teacher on this machine."""
        reference = self._models.teacher if self._own is None else self._own.references[name]
        assert reference is not None
        return reference

    def _teachers_vision(
        self, reference: str, rows: Sequence[PromptRow], student: Vision | None, context: StageContext
    ) -> Vision | None:
        """What a teacher on this machine sees of images.

        Raises:
            ConfigError: it sees none, or reads some as other tokens than the student.
        """
        images = {image for row in rows for image in row.images}
        problem = "the teacher reads text alone, and rows have images"
        found = teachers_vision(self._models, reference, context.images.path)
        if found is not None:
            if student is None or all(found.image_tokens(one) == student.image_tokens(one) for one in images):
                return found
            problem = "the teacher reads images of the rows as other tokens than the student"
        if not images:
            return None
        raise ConfigError(ConfigIssue("config", "models.teacher", problem, "take a teacher of the student's family"))

    def _writer(self, student: Student, vision: Vision | None) -> Writer:
        """What generates the student's answers."""
        if self._on_policy.rollouts == "transformers":
            from easydistill.methods.shared.rollouts import ModelWriter

            return ModelWriter(vision)
        from easydistill.methods.shared.vllm_rollouts import VllmWriter

        return VllmWriter(
            student,
            self._training.max_length,
            self._on_policy.vllm_gpu_memory_utilization,
            trust_remote_code=self._models.trust_remote_code,
        )

    def _scores(
        self,
        student: Student,
        rows: Sequence[PromptRow],
        vocabulary: int,
        vision: Vision | None,
        context: StageContext,
    ) -> ListingScores | Mapping[str, ListingScores]:
        if self._server is not None:
            from easydistill.teachers.openai.scores import ServerScores

            tokenizer = student.tokenizer
            return ServerScores(
                self._server, context.redactor, lambda token: tokenizer.decode([token]), vision, context.images
            )
        from easydistill.methods.shared.rollouts import LocalScores

        teachers, pad = self._local_teachers(student, rows, vocabulary), min(student.eos_ids, default=0)
        sights = self._teachers_visions(teachers, rows, vision, context)
        chunk = self._training.loss_chunk_bytes
        return {name: LocalScores(model, pad, chunk, sights[name]) for name, model in teachers.items()}

    def _local_teachers(self, student: Student, rows: Sequence[PromptRow], vocabulary: int) -> dict[str, Any]:
        """The teachers of the rows, by name; a model that has several names is loaded once.

        Raises:
            ConfigError: the vocabulary of one differs.
        """
        models: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for name in sorted({row.taught_by for row in rows}):
            reference = self._reference(name)
            if reference not in models:
                models[reference] = self._local_teacher(reference, student, vocabulary)
            found[name] = models[reference]
        return found

    def _local_teacher(self, reference: str, student: Student, vocabulary: int) -> Any:
        """A teacher on this machine's device, its vocabulary trimmed to the student's.

        Raises:
            ConfigError: its vocabulary differs.
        """
        from easydistill.methods.shared.restored import trim_vocabulary
        from easydistill.models.loading import choose_dtype, device, load_model, load_tokenizer, same_vocabulary

        assert isinstance(self._inference, LocalInferenceConfig)
        trust = self._inference.trust_remote_code
        if not same_vocabulary(student.tokenizer, load_tokenizer(reference, trust_remote_code=trust)):
            raise ConfigError(_unlike("models"))
        teacher = load_model(reference, choose_dtype(self._inference.dtype, device()), trust_remote_code=trust)
        trim_vocabulary(teacher, vocabulary)
        return teacher.to(device())


def _unlike(key: str) -> ConfigIssue:
    """Why a teacher is refused whose tokens are not the student's."""
    problem = "teacher and student have different vocabularies, but on-policy distillation compares token by token"
    hint = "use models of one family, or black_box_kd_local, which learns from text"
    return ConfigIssue("config", key, problem, hint)


def split_label(label: Rendered) -> tuple[list[int], list[int]]:
    """(context, final answer) of a tokenised chat, without what follows the answer's end token."""
    mask, ids = label.mask, label.ids
    end = max(at for at, on in enumerate(mask) if on) + 1
    start = next((at + 1 for at in range(end - 1, -1, -1) if not mask[at]), 1)
    return ids[:start], ids[start:end]
