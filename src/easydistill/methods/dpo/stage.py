"""Prefer: pairs of answers and a student in; the student, trained to tell them apart, out, with held-out figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig, PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.files import hash_file
from easydistill.data.formats import read_samples
from easydistill.data.manifest import RowCounts
from easydistill.data.preferences import Preference, read_preferences
from easydistill.data.records import Rejection, Sample, answer_message, count_reasons, split_heldout
from easydistill.engine.checks import missing_file, needs_extra
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, DataError
from easydistill.methods.dpo.config import DpoTrainingConfig, PairTrainingConfig, PreferenceConfig
from easydistill.methods.shared.rows import LabelledRows, heldout_rows
from easydistill.methods.shared.student import (
    MODEL,
    outcome_metrics,
    save_student,
    show_student,
    student_of_stage,
    training_estimate,
)
from easydistill.models.checks import student_issues
from easydistill.models.student import check_student, student_identity

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.methods.dpo.trainer import PairRow

GAP = "gap"
"""Field of a pair that tells its kind."""


@dataclass(frozen=True)
class PairRows:
    """Pairs of a file, or of an earlier stage, and which are held out. Pairs of one prompt stay on one side."""

    dataset: PairsConfig | DatasetConfig
    evaluation: HeldoutConfig
    stage: str | None = None
    """The stage that makes them; by default they are those of `dataset.labeled_path`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return () if self.stage is None else (self.stage,)

    @property
    def _path(self) -> Path:
        assert self.dataset.labeled_path is not None
        return Path(self.dataset.labeled_path)

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the file."""
        return [] if self.stage is not None else missing_file("dataset.labeled_path", str(self._path))

    def fingerprint(self) -> dict[str, Any]:
        of_file = {"pairs": hash_file(self._path), "max_samples": self.dataset.max_samples}
        return {
            **(of_file if self.stage is None else {}),
            "seed": self.dataset.seed,
            "heldout": self.evaluation.heldout if self.evaluation.enabled else 0,
            "max_heldout": self.evaluation.max_heldout,
        }

    def read(self, context: StageContext | None = None) -> tuple[list[Preference], list[Preference], list[Rejection]]:
        """(pairs to train on, held-out pairs, rows of the file that are no pairs).

        Args:
            context: of a stage that has `inputs` among its own; not needed where pairs are in a file.
        """
        if self.stage is None:
            pairs, rejected = read_preferences(self._path, limit=self.dataset.max_samples)
        else:
            assert context is not None, "a stage's pairs are found through the context"
            pairs, rejected = read_preferences(context.input_path(self.stage, LABELED_PARQUET))
        train, heldout = split_heldout(pairs, heldout_rows(self.evaluation, len(pairs)), self.dataset.seed)
        return train, heldout, rejected


@dataclass(frozen=True)
class RowsBesidePairs(LabelledRows):
    """Rows that a synthesis stage made beside its pairs, to fine-tune on before. Those of held-out pairs' prompts are
    held out too, so that neither training sees what is measured on."""

    pairs: PairRows
    kind: str
    """Their name among the kinds of rows that the operator makes."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pairs.inputs

    def fingerprint(self) -> dict[str, Any]:
        return self.pairs.fingerprint() | {"kind": self.kind}

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        assert self.pairs.stage is not None
        _, heldout, _ = self.pairs.read(context)
        held = {pair.prompt_hash for pair in heldout}
        path = context.input_path(self.pairs.stage, f"{self.kind}.parquet")
        rows, rejected = read_samples(path, labelled=True)
        return (
            [row for row in rows if row.prompt_hash not in held],
            [row for row in rows if row.prompt_hash in held],
            rejected,
        )


class PairStage:
    """What stages that train on pairs share."""

    offers: tuple[str, ...] = ("student",)
    classifies = False

    def __init__(self, rows: PairRows, models: ModelsConfig, training: PairTrainingConfig, name: str = "train") -> None:
        self.name = name
        self._rows, self._models, self._training = rows, models, training
        self.inputs = rows.inputs

    def preflight(self) -> list[ConfigIssue]:
        issues = missing_file("dataset.template", self._rows.dataset.template)
        issues += self._rows.issues()
        issues += student_issues(self._models) + check_student(self._models)
        return issues + needs_extra("train", "torch", "transformers", "accelerate") + needs_extra("trl", "trl")

    def fingerprint(self) -> dict[str, Any]:
        template = self._rows.dataset.template
        return {
            "rows": self._rows.fingerprint(),
            "student": student_identity(self._models),
            "training": self._training.identity(),
            "template": hash_file(Path(template)) if template else None,
        }

    def estimate(self, directory: Path) -> Estimate:
        return training_estimate(self._models, self._training)


class PreferStage(PairStage):
    """Training of the student on pairs, measured on held-out ones before and after."""

    _training: DpoTrainingConfig

    def __init__(
        self,
        rows: PairRows,
        models: ModelsConfig,
        training: DpoTrainingConfig,
        preference: PreferenceConfig,
        *,
        name: str = "train",
        start: str | None = None,
        thoughts: bool = False,
    ) -> None:
        """
        Args:
            name: the stage's, where a job trains more than once.
            start: an earlier train stage, whose student goes on learning; by default the student as it is made.
            thoughts: whether the pairs' thoughts are what is learned: a template that leaves them out is refused.
        """
        super().__init__(rows, models, training, name)
        self._preference, self._start, self._thoughts = preference, start, thoughts
        self.inputs = (*self.inputs, *((start,) if start else ()))

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "preference": self._preference.identity()}

    def run(self, context: StageContext) -> StageResult:
        from easydistill.data.chat import ChatRenderer
        from easydistill.methods.dpo.trainer import measure, measure_gaps, score_pairs
        from easydistill.methods.dpo.trl_trainer import train
        from easydistill.methods.shared.rollouts import LocalScores
        from easydistill.models.loading import choose_dtype, device
        from easydistill.models.student import build_student

        train_pairs, heldout, unreadable = self._rows.read(context)
        models = student_of_stage(self._models, self._start, context)
        student = build_student(models, choose_dtype("float32", device()))
        renderer = ChatRenderer.from_file(student.tokenizer, student.eos_ids, self._rows.dataset.template)
        if self._thoughts:
            check_thoughts(renderer, [*train_pairs, *heldout])
        rows, too_long = render_pairs(renderer, train_pairs, self._training.max_length, self.name)
        held_rows, held_rejected = render_pairs(renderer, heldout, self._training.max_length, self.name)
        rejected = [*unreadable, *too_long, *held_rejected]
        pad = min(student.eos_ids, default=0)

        def scores() -> Any:
            model = student.model.to(device()).eval()
            return score_pairs(LocalScores(model, pad, self._training.loss_chunk_bytes), held_rows, context.stop)

        # The reference: the student as it starts.
        start = scores()
        outcome = train(
            student,
            rows,
            self._training,
            self._preference,
            context.directory / "checkpoints" / context.fingerprint[:12],
            context.reporter,
            context.stop,
            self.name,
        )
        context.stop.raise_if_requested()
        metrics: dict[str, Any] = {}
        if held_rows:
            now = scores()
            metrics = {
                "before": measure(held_rows, start, start),
                "after": measure(held_rows, now, start),
                "gaps": measure_gaps(held_rows, now, start),
            }
        files = save_student(student, renderer, self._rows.dataset.template, context.directory / MODEL)
        show_student(context)
        return StageResult(
            outputs=files,
            rows=RowCounts(
                len(train_pairs) + len(heldout) + len(unreadable),
                len(rows) + len(held_rows),
                count_reasons(rejected),
            ),
            rejected=rejected,
            tokens={"trained": outcome.trained_tokens, "read": sum(2 * len(row.prompt) for row in rows)},
            metrics={
                **outcome_metrics(outcome),
                "train_rows": len(rows),
                "heldout_rows": len(held_rows),
                "truncated_rows": sum(row.cut for row in rows),
                "student": student.description,
                **metrics,
            },
        )


def render_pairs(
    renderer: ChatRenderer, pairs: Sequence[Preference], max_length: int, stage: str
) -> tuple[list[PairRow], list[Rejection]]:
    """Tokenise pairs; those that the template refuses, or of whose answers or difference nothing is left, are
    rejected."""
    from easydistill.methods.dpo.trainer import PLAIN, PairRow

    rows: list[PairRow] = []
    rejected: list[Rejection] = []
    for pair in pairs:
        try:
            sides = [renderer.render((*pair.prompt, answer)) for answer in (pair.chosen, pair.rejected)]
        except DataError as error:
            rejected.append(Rejection(pair.id, stage, TEMPLATE_REFUSED, str(error)))
            continue
        (start, chosen_end), (other_start, rejected_end) = (_final_span(side.mask) for side in sides)
        if start != other_start or sides[0].ids[:start] != sides[1].ids[:start]:
            rejected.append(
                Rejection(pair.id, stage, TEMPLATE_REFUSED, "the template shows the two prompts differently")
            )
        elif start >= max_length:
            detail = f"the prompt alone fills max_length ({max_length} tokens)"
            rejected.append(Rejection(pair.id, stage, "no_trainable_tokens", detail))
        else:
            chosen = sides[0].ids[start : min(chosen_end, max_length)]
            worse = sides[1].ids[start : min(rejected_end, max_length)]
            if chosen == worse:
                detail = f"the template shows both answers alike within max_length ({max_length} tokens)"
                rejected.append(Rejection(pair.id, stage, "same_tokens", detail))
                continue
            gap = pair.meta.get(GAP)
            kind = gap if isinstance(gap, str) else PLAIN
            cut = max(chosen_end, rejected_end) > max_length
            rows.append(PairRow(pair.id, sides[0].ids[:start], chosen, worse, pair.beta, kind, cut))
    return rows, rejected


def check_thoughts(renderer: ChatRenderer, pairs: Iterable[Preference]) -> None:
    """Make sure that the template shows the separate thoughts of chosen answers, where there are any.

    Raises:
        DataError: it leaves them out.
    """
    for pair in pairs:
        if not pair.chosen.get("reasoning_content"):
            continue
        answers = pair.chosen, answer_message(pair.chosen["content"])
        try:
            shown, bare = (renderer.text((*pair.prompt, answer), add_generation_prompt=False) for answer in answers)
        except DataError:
            # Such pairs are rejected one by one.
            continue
        if shown == bare:
            raise DataError(
                f"the chat template leaves out `reasoning_content` (pair {pair.id}), so no chain of thought would be "
                "learned\n    → set dataset.template to one that shows it"
            )
        return


def _final_span(mask: Sequence[bool]) -> tuple[int, int]:
    """Where the last answer starts and ends: earlier turns of the assistant's are context here."""
    end = len(mask)
    while not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start, end
