"""Reward model training: pairs of answers and a student in; a reward model and its held-out figures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.config.models import ModelsConfig
from easydistill.data.manifest import RowCounts
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection
from easydistill.engine.stage import StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.rows import RewardRow, tokenise
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
    training_result,
)
from easydistill.models.limits import Limits
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.models.multimodal import Vision

NOTES = {
    "shorter_accuracy": "no held-out pair has a shorter chosen answer",
    "length_pearson": "all lengths or all scores are the same",
    "length_spearman": "all lengths or all scores are the same",
    "best_of_n_gain": "no held-out pair states the quality of its answers (chosen_score, rejected_score)",
}
"""Why a figure is missing."""


class RewardStage(PairStage):
    """Train a reward model on pairs; measure it on held-out pairs before and after."""

    classifies = True
    """The model scores texts and generates none."""
    cuts = False
    loss = "none"
    _training: RewardTrainingConfig

    def __init__(
        self, rows: PairRows, models: ModelsConfig, training: RewardTrainingConfig, reward: RewardModelConfig
    ) -> None:
        super().__init__(rows, models, training)
        self._reward = reward

    def examine(self) -> list[ConfigIssue]:
        from easydistill.models.scalar_head import scalar_issues

        return [*super().examine(), *scalar_issues(self._models)]

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "reward_model": self._reward.identity()}

    def run(self, context: StageContext) -> StageResult:
        from easydistill.methods.reward_model.measure import RowScore, describe, measure, measure_gaps, score_rows
        from easydistill.methods.reward_model.trl_trainer import train
        from easydistill.methods.shared.ranks import together, whole_student_device
        from easydistill.models.loading import choose_dtype, device, load_classifier
        from easydistill.models.scalar_head import set_padding, with_scalar_head

        train_pairs, heldout, unreadable = self._rows.read(context)
        float32 = choose_dtype("float32", device())
        student = loaded_student(self._models, self._training.max_length, context)
        limits = student.limits
        vision = vision_of(student, context)
        renderer = self._renderer(student, context, vision)
        self._refuse_lost_thoughts(renderer, [*train_pairs, *heldout])
        student = with_scalar_head(student, self._training.seed)
        rows, train_rejected = self._tokenise(renderer, train_pairs, limits)
        held_rows, held_rejected = self._tokenise(renderer, heldout, limits)
        rejected = [*unreadable, *train_rejected, *held_rejected]
        keep_rejected(rejected, rows, context)
        if self._reward.use_margin and not any(row.margin for row in rows):
            raise DataError(
                "reward_model.use_margin: no pair has a `margin`\n    → turn it off, or give the pairs margins"
            )
        pad = set_padding(student, {chat[-1] for row in (*rows, *held_rows) for chat in (row.chosen, row.rejected)})

        scored_on = whole_student_device(context.reporter.say) if held_rows and context.rank == 0 else None

        def scores(model: Any) -> list[RowScore]:
            if scored_on is None:
                return []
            return score_rows(model.to(scored_on), held_rows, pad, context.stop, vision)

        # The others wait for the first rank.
        before = together(lambda: scores(student.model))[0]
        outcome = train(
            student,
            rows,
            self._training,
            self._reward,
            checkpoints_of(context, hash_of_images((row.id, row.images) for row in rows)),
            context.reporter,
            context.stop,
            vision,
        )
        context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        files = save_student(student, renderer, self._rows.dataset, context.directory / MODEL)
        metrics: dict[str, Any] = {}
        figures: dict[str, dict[str, float]] = {}
        if held_rows:
            # Measure what is saved: the weights are rounded to their dtype.
            after = scores(load_classifier(str(context.directory / MODEL), float32))
            metrics = {"before": measure(held_rows, before), "after": measure(held_rows, after)}
            missing = [name for name, value in metrics["after"].items() if value is None]
            metrics |= {
                "gaps": measure_gaps(held_rows, after),
                "heldout_pairs": describe(held_rows, after),
                "notes": {name: NOTES[name] for name in missing},
            }
            figures = {
                row.id: {"learned_score_chosen": score.chosen, "learned_score_rejected": score.rejected}
                for row, score in zip(held_rows, after, strict=True)
            }
        shown = self._show_pairs([*heldout, *train_pairs], figures, context)
        files += [SHOWN_PAIRS] if shown else []
        show_student(context)
        return training_result(
            outcome,
            files,
            RowCounts(len(train_pairs) + len(heldout) + len(unreadable), len(rows) + len(held_rows)),
            rejected,
            read=sum(2 * row.prompt_tokens for row in rows),
            train_rows=len(rows),
            heldout_rows=len(held_rows),
            truncated_rows=0,
            student=student.description,
            **shown,
            **metrics,
        )

    def _renderer(self, student: Student, context: StageContext, vision: Vision | None) -> ChatRenderer:
        template = self._rows.dataset.template
        renderer = student_renderer(self._rows.dataset, student.tokenizer, student.eos_ids, context, vision)
        if template is not None and renderer.single_turn:
            problem = f"{template} is an EasyDistill 1 template, which cannot be saved with the reward model"
            hint = "write it as a chat template, over `messages`, or leave it out"
            raise ConfigError(ConfigIssue("config", "dataset.template", problem, hint))
        return renderer

    def _tokenise(
        self, renderer: ChatRenderer, pairs: Sequence[Preference], limits: Limits
    ) -> tuple[list[RewardRow], list[Rejection]]:
        margin = self._reward.use_margin
        return tokenise(renderer, pairs, self._training.max_length, self.name, use_margin=margin, limits=limits)
