"""Preference training: pairs of answers and a student in; the trained student and held-out figures out."""

from __future__ import annotations

from typing import Any

from easydistill.config.models import ModelsConfig
from easydistill.data.manifest import RowCounts
from easydistill.engine.stage import StageContext, StageResult
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.rows import render_pairs
from easydistill.methods.shared.pairs import SHOWN_PAIRS, PairRows, PairStage
from easydistill.methods.shared.rendering import student_renderer
from easydistill.methods.shared.rows import keep_rejected
from easydistill.methods.shared.sight import hash_of_images, vision_of
from easydistill.methods.shared.student import (
    MODEL,
    checkpoints_of,
    loaded_student,
    save_student,
    show_student,
    student_of_stage,
    training_result,
)


class DpoStage(PairStage):
    """Train the student on pairs; measure it on held-out pairs before and after."""

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
    ) -> None:
        """
        Args:
            name: the stage's name, for jobs that train more than once.
            start: an earlier train stage whose student is trained further; by default a new student.
        """
        super().__init__(rows, models, training, name)
        self._preference, self._start = preference, start
        self.inputs = (*self.inputs, *((start,) if start else ()))

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "preference": self._preference.identity()}

    def run(self, context: StageContext) -> StageResult:
        from easydistill.methods.dpo.measure import PairScore, measure, measure_gaps, score_pairs
        from easydistill.methods.dpo.trl_trainer import train
        from easydistill.methods.shared.ranks import together, whole_student_device
        from easydistill.methods.shared.rollouts import LocalScores

        train_pairs, heldout, unreadable = self._rows.read(context)
        models = student_of_stage(self._models, self._start, context)
        student = loaded_student(models, self._training.max_length, context)
        limits = student.limits
        vision = vision_of(student, context)
        renderer = student_renderer(self._rows.dataset, student.tokenizer, student.eos_ids, context, vision)
        self._refuse_lost_thoughts(renderer, [*train_pairs, *heldout])
        rows, too_long = render_pairs(renderer, train_pairs, self._training.max_length, self.name, limits)
        held_rows, held_rejected = render_pairs(renderer, heldout, self._training.max_length, self.name, limits)
        rejected = [*unreadable, *too_long, *held_rejected]
        keep_rejected(rejected, rows, context)
        pad = min(student.eos_ids, default=0)

        scored_on = whole_student_device(context.reporter.say) if held_rows and context.rank == 0 else None

        def scores() -> list[PairScore]:
            if scored_on is None:
                return []
            model = student.model.to(scored_on).eval()
            local = LocalScores(model, pad, self._training.loss_chunk_bytes, vision)
            return score_pairs(local, held_rows, context.stop)

        # The reference is the untrained student. The others wait for it.
        start = together(scores)[0]
        outcome = train(
            student,
            rows,
            self._training,
            self._preference,
            checkpoints_of(context, hash_of_images((row.id, row.images) for row in rows)),
            context.reporter,
            context.stop,
            self.name,
            vision,
        )
        context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        trained_in = student.model.dtype
        files = save_student(student, renderer, self._rows.dataset, context.directory / MODEL)
        metrics: dict[str, Any] = {}
        figures: dict[str, dict[str, float]] = {}
        if held_rows:
            # Measure what is saved: the weights are rounded to their dtype.
            student.model.to(trained_in)
            now = scores()
            metrics = {
                "before": measure(held_rows, start, start),
                "after": measure(held_rows, now, start),
                "gaps": measure_gaps(held_rows, now, start),
            }
            figures = {
                row.id: {"margin_learned": after.chosen - after.rejected - before.chosen + before.rejected}
                for row, after, before in zip(held_rows, now, start, strict=True)
            }
        shown = self._show_pairs([*heldout, *train_pairs], figures, context)
        files += [SHOWN_PAIRS] if shown else []
        show_student(context)
        return training_result(
            outcome,
            files,
            RowCounts(len(train_pairs) + len(heldout) + len(unreadable), len(rows) + len(held_rows)),
            [*unreadable, *too_long, *held_rejected],
            read=sum(2 * len(row.prompt) for row in rows),
            train_rows=len(rows),
            heldout_rows=len(held_rows),
            truncated_rows=sum(row.cut for row in rows),
            student=student.description,
            **shown,
            **metrics,
        )
