"""Where a distillation's teacher signals come from, and the loss that learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.contracts.loss import DistillationConfig
from easydistill.data.files import hash_file, read_json
from easydistill.data.records import Rejection, Sample
from easydistill.data.spool import like
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.methods.distil.score_stage import SIGNALS, STORE
from easydistill.signals.config import DRAWN_KINDS


@dataclass(frozen=True)
class Teaching:
    """A store of teacher signals, and the loss that reads it."""

    distillation: DistillationConfig
    store: str | None = None
    """Directory of an existing store; by default the score stage's."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("score",) if self.store is None else ()

    def directory(self, context: StageContext) -> Path:
        return context.input_path("score", SIGNALS) if self.store is None else Path(self.store)

    def without_refused(
        self, samples: Sequence[Sample], context: StageContext, stage: str
    ) -> tuple[Sequence[Sample], list[Rejection]]:
        """The rows but for those that the teacher was not able to score, which the store names.

        Raises:
            DataError: there is no complete store.
        """
        from easydistill.signals.store import StoreManifest

        refused: dict[str, str] = StoreManifest.read(self.directory(context)).about.get("refused", {})
        if not refused:
            return samples, []
        kept = like(samples)
        kept.extend(sample for sample in samples if sample.id not in refused)
        detail = "the teacher does not read this row's answers as the student does; see rejected.jsonl of the scoring"
        return kept, [
            Rejection(sample.id, stage, refused[sample.id], detail) for sample in samples if sample.id in refused
        ]

    def preflight(self) -> list[ConfigIssue]:
        if self.store is None:
            return []
        if not (Path(self.store) / STORE).is_file():
            problem = f"{self.store} holds no complete signal store"
            hint = "name the directory of a store (it holds store.json), or set models.teacher to have one made"
            return [ConfigIssue("config", "dataset.logits_path", problem, hint)]
        return self._unsuited(Path(self.store))

    def _unsuited(self, store: Path) -> list[ConfigIssue]:
        """Mismatches between the existing signals and the loss."""
        try:
            about = read_json(store / STORE)["about"]
            made_at, kind = about["temperature"], about["signals"]["kind"]
        except (ValueError, KeyError, TypeError):
            problem = f"{store / STORE} does not say how the signals were made"
            return [ConfigIssue("config", "dataset.logits_path", problem, "let a teacher score again")]
        issues: list[ConfigIssue] = []
        if made_at != self.distillation.temperature:
            problem = f"{self.distillation.temperature}, but the signals in {store} were computed at {made_at}"
            issues.append(ConfigIssue("config", "distillation.temperature", problem, f"set it to {made_at}"))
        if kind in DRAWN_KINDS and not self.distillation.linear_in_teacher:
            problem = (
                f"{self.distillation.distillation_type} would be biased by the sampled signals ({kind}) in {store}"
            )
            hint = 'use "forward_kld", or let a teacher score again with signals of kind "top_k"'
            issues.append(ConfigIssue("config", "distillation.distillation_type", problem, hint))
        by_rank = bool(about.get("by_rank"))
        if about.get("align") == "bytes" and by_rank != self.distillation.by_rank:
            kept = "probabilities by rank" if by_rank else "probabilities by token"
            problem = f"{self.distillation.distillation_type} cannot read the signals in {store}, which are {kept}"
            hint = (
                'set distillation_type to "uld", or let a teacher score again'
                if by_rank
                else "let a teacher score again"
            )
            issues.append(ConfigIssue("config", "distillation.distillation_type", problem, hint))
        return issues

    def fingerprint(self) -> dict[str, Any]:
        of_store = hash_file(Path(self.store) / STORE) if self.store is not None else None
        return {"distillation": self.distillation.identity(), "store": of_store}
