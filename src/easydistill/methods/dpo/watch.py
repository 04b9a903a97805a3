"""What is logged of a training on pairs."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any

from transformers import TrainerControl, TrainerState

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.dpo.config import DpoTrainingConfig
from easydistill.methods.shared.watch import Watch

_KEPT = {
    "entropy": "entropy",
    "rewards/margins": "reward_margin",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
    "mean_token_accuracy": "chosen_token_accuracy",
}
"""TRL's figures to log, and our names for them."""


class PairWatch(Watch):
    """Also logs margins and accuracy over the pairs since the last entry."""

    def __init__(self, reporter: Reporter, stop: StopSignal, config: DpoTrainingConfig, stage: str = "train") -> None:
        super().__init__(reporter, stop, config, stage=stage)
        self.margins: dict[str, list[float]] = defaultdict(list)
        """Margins without β, by kind of pair."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if not logs or "loss" not in logs:
            return
        found = {ours: logs[theirs] for theirs, ours in _KEPT.items() if theirs in logs}
        if len(self.margins) > 1:
            found |= {f"margin_{gap}": fmean(values) for gap, values in sorted(self.margins.items())}
        margins = [value for values in self.margins.values() for value in values]
        found["margin"] = fmean(margins)
        # TRL counts a tie as lost; here it counts half, as in the held-out figures.
        found["reward_accuracy"] = fmean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
        self._reporter.metric("preferences", step=state.global_step, **found)
        self.margins.clear()
