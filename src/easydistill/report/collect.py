"""Facts of a run from its directory, as plain frozen records. Missing files give missing facts, never made-up ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json

EXAMPLES_PER_REASON = 5
RAW_LIMIT = 2000
CURVE_POINTS = 600
ANSWERS_SHOWN = 200

LABELS: dict[str, tuple[str, str, bool]] = {
    # name: (label, unit, lower is better)
    "cross_entropy": ("Cross-entropy on the teacher's answers", "nats / token", True),
    "kl": ("KL divergence from the teacher", "nats / token", True),
    "agreement": ("Top-1 agreement with the teacher", "share of tokens", False),
    "rouge_l": ("ROUGE-L to the teacher's answers", "F1", False),
}


@dataclass(frozen=True)
class MetricRow:
    """A metric before and after training."""

    name: str
    label: str
    unit: str
    before: float | None
    after: float | None
    note: str
    lower_is_better: bool | None

    @property
    def change(self) -> float | None:
        if self.before is None or self.after is None or self.before == 0:
            return None
        return (self.after - self.before) / abs(self.before)

    @property
    def better(self) -> bool | None:
        if self.change is None or self.lower_is_better is None or self.change == 0:
            return None
        return (self.change < 0) == self.lower_is_better


@dataclass(frozen=True)
class RejectedReason:
    """One reason for rejecting rows, how often it struck, and some of the rows."""

    reason: str
    count: int
    examples: list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """A held-out prompt and the answers to it."""

    prompt: str
    teacher: str
    before: str | None
    after: str | None
    score_before: float | None
    score_after: float | None


@dataclass(frozen=True)
class Facts:
    """Everything the report shows."""

    directory: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[MetricRow]
    curve: list[dict[str, float]]
    rejected: list[RejectedReason]
    answers: list[Answer]
    stages: list[dict[str, Any]]
    train: dict[str, Any]
    has_student: bool


def collect(directory: Path) -> Facts:
    """Read what a run has left in its directory so far."""
    summary = _json(directory / "summary.json")
    stages = [{"name": name, **stage} for name, stage in (summary.get("stages") or {}).items()]
    train = next((stage.get("metrics") or {} for stage in stages if stage["name"] == "train"), {})
    return Facts(
        directory=directory,
        summary=summary,
        config=_json(directory / "config.resolved.json"),
        environment=_json(directory / "environment.json"),
        metrics=_metrics(summary.get("metrics") or {}),
        curve=_thin(_curve(directory / "metrics.jsonl")),
        rejected=_rejected(directory),
        answers=_answers(directory),
        stages=stages,
        train=train,
        has_student=(directory / "student" / "config.json").is_file(),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON Lines file; a torn last line is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _metrics(metrics: dict[str, Any]) -> list[MetricRow]:
    before, after, notes = (metrics.get(name) or {} for name in ("before", "after", "notes"))
    rows = []
    for name in [*(name for name in LABELS if name in after), *(name for name in after if name not in LABELS)]:
        label, unit, lower = LABELS.get(name, (name.replace("_", " "), "", None))
        rows.append(MetricRow(name, label, unit, before.get(name), after[name], str(notes.get(name, "")), lower))
    return rows


def _curve(path: Path) -> list[dict[str, float]]:
    """Training steps in order; where a step occurs twice (after a resume), the later entry counts."""
    steps: dict[int, dict[str, float]] = {}
    for line in _lines(path):
        step, loss = line.get("step"), line.get("loss")
        if line.get("stage") != "train" or not isinstance(step, int) or not isinstance(loss, int | float):
            continue
        # A smaller step than before: training began anew, and what came after it then is void.
        if steps and step <= max(steps):
            steps = {number: entry for number, entry in steps.items() if number < step}
        rate = line.get("learning_rate")
        steps[step] = {"step": step, "loss": float(loss), "lr": float(rate) if isinstance(rate, int | float) else 0.0}
    return [steps[number] for number in sorted(steps)]


def _thin(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most `CURVE_POINTS` points; each stands for the mean loss of its neighbours."""
    size = -(-len(curve) // CURVE_POINTS)
    if size <= 1:
        return curve
    groups = (curve[at : at + size] for at in range(0, len(curve), size))
    return [{**group[-1], "loss": sum(point["loss"] for point in group) / len(group)} for group in groups]


def _rejected(directory: Path) -> list[RejectedReason]:
    counts: dict[str, int] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    for path in sorted(directory.glob("stages/*/rejected.jsonl")):
        for row in _lines(path):
            reason = str(row.get("reason"))
            counts[reason] = counts.get(reason, 0) + 1
            kept = examples.setdefault(reason, [])
            if len(kept) < EXAMPLES_PER_REASON:
                raw = row.get("raw")
                text = raw if isinstance(raw, str) else "" if raw is None else json.dumps(raw, ensure_ascii=False)
                shown = text if len(text) <= RAW_LIMIT else f"{text[:RAW_LIMIT]}…"
                kept.append({"id": str(row.get("id")), "detail": str(row.get("detail", "")), "raw": shown})
    ordered = sorted(counts, key=lambda reason: -counts[reason])
    return [RejectedReason(reason, counts[reason], examples[reason]) for reason in ordered]


def _answers(directory: Path) -> list[Answer]:
    found: list[Answer] = []
    for path in sorted(directory.glob("stages/*-evaluate/answers.jsonl")):
        for row in _lines(path):
            if len(found) >= ANSWERS_SHOWN:
                break
            messages = [message for message in row.get("prompt") or [] if isinstance(message, dict)]
            alone = len(messages) == 1
            prompt = "\n\n".join(
                str(message.get("content")) if alone else f"[{message.get('role')}] {message.get('content')}"
                for message in messages
            )
            scores = (row.get("rouge_l_before"), row.get("rouge_l_after"))
            found.append(Answer(prompt, str(row.get("teacher") or ""), row.get("before"), row.get("after"), *scores))
    return found
