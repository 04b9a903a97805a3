"""The state of training by rewards, and the callback that logs it, measures held-out prompts and raises alarms."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerControl, TrainerState

from easydistill.config.training import TrainerConfig
from easydistill.contracts.reward import Reward
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.policy.alarms import Alarms
from easydistill.methods.policy.config import PolicyConfig
from easydistill.methods.policy.measure import without_zero_abstentions
from easydistill.methods.policy.rows import PolicyRow
from easydistill.methods.shared.checkpoints import step_of
from easydistill.methods.shared.ranks import any_rank, from_first
from easydistill.methods.shared.watch import Watch, mean_figures
from easydistill.rewards import WeightedRewards

_KEPT = {
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "kl": "kl",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "completions/mean_length": "length",
    "completions/max_length": "length_max",
    "completions/mean_terminated_length": "length_of_ended",
}
"""TRL's figures to log, and our names for them."""
ALARMS = "alarms.json"
"""The alarms until a checkpoint, in its directory."""
_CUT_OFF = "completions/clipped_ratio"


class Watched(Protocol):
    """What the callback asks of the trainer."""

    def step_critic(self) -> None:
        """Update the critic, if the method has one."""

    def remember(self) -> None:
        """A round ends here, and the run can resume from here even if it fails later."""

    def measure(self) -> dict[str, Any]:
        """Answer the held-out prompts and score the answers."""


class Explorer:
    """Prompts, rewards, held-out measurements and alarms of one training."""

    def __init__(
        self,
        rows: Sequence[PolicyRow],
        heldout: Sequence[PolicyRow],
        rewards: WeightedRewards,
        verify: Reward | None,
        *,
        by_first: bool = False,
    ) -> None:
        """
        Args:
            verify: verifies held-out answers, 1 for right and 0 for wrong; None if that is impossible.
            by_first: whether the first of several processes scores all answers, because it keeps the judge's journal.
        """
        self.by_first = by_first
        self.rows, self.heldout, self.rewards, self.verify = rows, heldout, rewards, verify
        self.measured: dict[int, dict[str, Any]] = {}
        """Held-out figures, by step."""
        self.said: dict[int, list[str]] = {}
        """Held-out answers, by step; in the first process."""
        self.alarms = Alarms()


class PolicyWatch(Watch):
    """Also logs rewards and exploration, measures on held-out prompts, and stops only between rounds."""

    def __init__(
        self,
        reporter: Reporter,
        stop: StopSignal,
        config: TrainerConfig,
        policy: PolicyConfig,
        explorer: Explorer,
        journal: Journal | None,
    ) -> None:
        """
        Args:
            journal: of held-out figures, in the first process.
        """
        super().__init__(reporter, stop, config)
        self._policy, self._explorer, self._journal = policy, explorer, journal
        self.trainer: Watched | None = None
        self.rewards: list[dict[str, float]] = []
        """Means of each reward and other figures of a round, since the last entry."""
        self.figures: list[dict[str, float]] = []
        """Other figures since the last entry."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0 or self._due(state.global_step):
            self.measure_now(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer is not None:
            self.trainer.step_critic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        round_ends = state.global_step % self._policy.steps_per_round == 0
        # A run that stops here measures when it resumes.
        if round_ends and self.trainer is not None:
            self.trainer.remember()
        # All processes or none measure, and stop.
        if any_rank(self._stop.requested):
            self._stop.request()
        if self._due(state.global_step) and not (round_ends and self._stop.requested):
            self.measure_now(state.global_step)
        requested, self._stop = self._stop, self._stop if round_ends else StopSignal()
        try:
            return super().on_step_end(args, state, control, **kwargs)
        finally:
            self._stop = requested

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if not logs or "loss" not in logs:
            return
        found = {ours: logs[theirs] for theirs, ours in _KEPT.items() if logs.get(theirs) is not None}
        if logs.get(_CUT_OFF) is not None:
            found["ended"] = 1 - logs[_CUT_OFF]
        found = mean_figures(self.figures) | mean_figures(self.rewards) | found
        self.rewards, self.figures = [], []
        # Means are not finite for a round without any reward.
        found = {name: value for name, value in without_zero_abstentions(found).items() if math.isfinite(value)}
        self._reporter.metric("policy", step=state.global_step, **found)
        self._warn(self._explorer.alarms.step(state.global_step, found))

    def _due(self, step: int) -> bool:
        """Whether a round ends here that contains a multiple of `eval_steps`.

        Measurements wait for the end of a round because a run whose judge fails can resume from there.
        """
        every, length = self._policy.eval_steps, self._policy.steps_per_round
        return every > 0 and step % length == 0 and step % every < length

    def measure_now(self, step: int) -> None:
        """Measure the policy on the held-out prompts, unless this step was measured already."""
        if not self._explorer.heldout or self.trainer is None or step in self._explorer.measured:
            return
        figures = self.trainer.measure()
        if self._journal is not None:
            self._journal.append({"key": str(step), "figures": figures, "answers": self._explorer.said.get(step)})
        self._explorer.measured[step] = figures
        self._reporter.metric("heldout", step=step, **figures)
        self._warn(self._explorer.alarms.heldout(step, figures))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / ALARMS).write_text(json.dumps(self._explorer.alarms.state()), encoding="utf-8")
        super().on_save(args, state, control, **kwargs)

    def recall(self, checkpoint: Path | None) -> None:
        """Restore alarms and measurements up to the checkpoint that training resumes from."""
        if checkpoint is None:
            return
        alarms = self._explorer.alarms
        alarms.restore(json.loads((checkpoint / ALARMS).read_text(encoding="utf-8")))
        journal = self._journal
        lines = {} if journal is None else {int(step): journal.get(step) for step in journal}
        # Older runs kept no answers.
        self._explorer.said = {step: line["answers"] for step, line in lines.items() if line.get("answers")}
        known = {step: line["figures"] for step, line in lines.items()}
        for step, figures in sorted(from_first(known).items()):
            if step <= step_of(checkpoint):
                self._explorer.measured[step] = figures
                alarms.heldout(step, figures)

    def _warn(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._reporter.say(f"  warning: {sentence}")
