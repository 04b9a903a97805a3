"""Warning signs in the logged figures of a student's own answers.

Reverse KL on a student's own text measures what its teacher thinks of the text, not whether the text is any good: a
teacher likes a loop more the longer it lasts. So a fall of it counts only beside entropy, repetition and ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easydistill.methods.shared.watch import mean_figures

WEAK_ENTROPY = 3.5
"""Nats a token at temperature 1; models that answer well have less than 3 on their own text."""
COMPARED = 3
"""Logged entries that are averaged, at the start and now."""
BETTER = 0.9
"""Share of its first value below which reverse KL has fallen."""
MORE_REPEATED = 0.1
FEWER_ENDED = 0.15
ENTROPY_LEFT = 0.3
"""What counts as worse: how far repetition rose and the share that ended fell, and what share of entropy is left."""


@dataclass
class Alarms:
    """Signs that training on own answers goes wrong, each reported once. Takes what goes into `metrics.jsonl`.

    Not every entry has all figures: between two rounds of rollouts nothing new is known of their length and ends.
    """

    temperature: float = 1.0
    """Of the distributions whose entropy is given. How large it is says something at 1 alone."""
    fits_beta: bool = False
    """Whether β is chosen to suit the student, so that nothing about it need be advised."""
    whole: bool = True
    """Whether whole distributions are compared. Other objectives have no β, and draw at temperature 1 alone."""
    mixes: bool = False
    """Whether α (`kl_mix`) is given in place of β."""
    raised: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Alarm → its step, and its sentence under `told`."""
    _first: list[dict[str, float]] = field(default_factory=list)
    _last: list[dict[str, float]] = field(default_factory=list)

    def step(self, step: int, figures: Mapping[str, float], *, comparable: bool = True) -> list[str]:
        """Figures of the rollouts of some steps; returns new alarms as sentences.

        Args:
            comparable: whether those of later steps can be compared with these.
        """
        figures = dict(figures)
        known = len(self._first)
        if not comparable:
            return self._weak(step, figures)
        if known < COMPARED:
            self._first.append(figures)
        else:
            self._last = [*self._last, figures][-COMPARED:]
        found = self._weak(step, figures) if known == 0 else []
        if len(self._last) == COMPARED:
            found += self._gamed(step)
        return found

    def _weak(self, step: int, figures: Mapping[str, float]) -> list[str]:
        entropy = figures.get("entropy", 0.0)
        if entropy <= WEAK_ENTROPY or self.temperature != 1.0:
            return []
        return self._raise(
            "weak_student",
            step,
            f"the student's own answers have {entropy:.1f} nats of entropy a token: it cannot write yet, and they "
            f"teach it little → {self._rescue}",
        )

    @property
    def _rescue(self) -> str:
        """What helps a student that cannot write, among what the objective has."""
        if not self.whole:
            return "let it learn the teacher's answers first (on_policy.sft_steps)"
        forward = "" if self.fits_beta else f"on_policy.{'kl_mix to 1' if self.mixes else 'beta to 0'} and "
        first = "distil it offline first (white_box_kd_local, or on_policy.kd_steps)"
        return f"{first}, or set {forward}on_policy.rollout_temperature below 1"

    def _gamed(self, step: int) -> list[str]:
        """Whether reverse KL has fallen while the answers became worse."""
        before, now = mean_figures(self._first), mean_figures(self._last)
        both = before.keys() & now.keys()
        if "reverse_kl" not in both or now["reverse_kl"] > BETTER * before["reverse_kl"]:
            return []
        worse = []
        if "repetition" in both and now["repetition"] > before["repetition"] + MORE_REPEATED:
            worse.append(f"repeated 4-grams rose from {before['repetition']:.0%} to {now['repetition']:.0%}")
        if "ended" in both and now["ended"] < before["ended"] - FEWER_ENDED:
            worse.append(f"answers that end by themselves fell from {before['ended']:.0%} to {now['ended']:.0%}")
        if "entropy" in both and now["entropy"] < ENTROPY_LEFT * before["entropy"]:
            worse.append(f"entropy fell from {before['entropy']:.2f} to {now['entropy']:.2f} nats")
        if not worse:
            return []
        milder = ("raise on_policy.kl_mix, " if self.mixes else "lower on_policy.beta, ") if self.whole else ""
        fell = f"reverse KL fell from {before['reverse_kl']:.3f} to {now['reverse_kl']:.3f}"
        return self._raise(
            "gamed",
            step,
            f"{fell}, but {' and '.join(worse)}: the student finds text that its teacher likes, not answers → "
            f"{milder}lower on_policy.rollout_share, or stop here",
        )

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"raised": self.raised, "first": self._first, "last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.raised, self._first, self._last = dict(state["raised"]), list(state["first"]), list(state["last"])

    def _raise(self, name: str, step: int, sentence: str) -> list[str]:
        if name in self.raised:
            return []
        self.raised[name] = {"step": step, "told": sentence}
        return [sentence]
