"""Figures and facts as a person says them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from easydistill.engine.progress import duration
from easydistill.report.collect import Facts, MetricRow
from easydistill.report.values import as_dict, as_float, as_int, as_text, shown

MISSING = "n/a"


@dataclass(frozen=True)
class MetricKind:
    """How a known metric is shown."""

    label: str
    short: str
    """Inside a sentence."""
    unit: str
    lower_is_better: bool | None
    """None: neither is better in itself."""
    form: str
    """Format specification of its values."""
    full: float | None = None
    """Where its values end, if they do: the length of a full bar."""


KINDS = {
    "cross_entropy": MetricKind(
        "Cross-entropy on the teacher's answers", "cross-entropy", "nats per token", True, ".3f"
    ),
    "kl": MetricKind("KL divergence from the teacher", "KL divergence", "nats per token", True, ".3f"),
    "agreement": MetricKind(
        "Top-1 agreement with the teacher", "top-1 agreement", "share of tokens", False, ".1%", 1.0
    ),
    "preferred": MetricKind("Chosen answer likelier per token", "preference", "share of pairs", False, ".1%", 1.0),
    "reward_accuracy": MetricKind(
        "Implicit reward larger for the chosen answer", "reward accuracy", "share of pairs", False, ".1%", 1.0
    ),
    "margin": MetricKind("Margin of the implicit rewards", "margin", "nats", False, ".3f"),
    "pair_accuracy": MetricKind(
        "Chosen answer scores higher", "accuracy on pairs", "share of pairs", False, ".1%", 1.0
    ),
    "shorter_accuracy": MetricKind(
        "The same, where it is the shorter one", "accuracy where it is shorter", "share of pairs", False, ".1%", 1.0
    ),
    "score_margin": MetricKind("Score of the chosen answer, less the other's", "margin", "log-odds", False, ".3f"),
    "mean_score": MetricKind("Mean score of all answers", "mean score", "log-odds", None, ".3f"),
    "length_pearson": MetricKind("Correlation of score and length (Pearson)", "correlation", "r, tokens", None, ".3f"),
    "length_spearman": MetricKind(
        "Correlation of score and length (Spearman)", "rank correlation", "ρ, tokens", None, ".3f"
    ),
    "best_of_n_gain": MetricKind(
        "True score gained by choosing the best of a prompt's answers", "best-of-n gain", "true score", False, ".3f"
    ),
    "reward": MetricKind("Reward of the most probable answers", "reward", "weighted sum", False, ".3f"),
    "verified_accuracy": MetricKind(
        "Right final answers", "share of right answers", "share of prompts", False, ".1%", 1.0
    ),
    "verified": MetricKind("… of so many with a known answer", "known answers", "prompts", None, ".0f"),
    "length": MetricKind("Length of answers", "length", "tokens", None, ".1f"),
    "ended": MetricKind("Answers that end by themselves", "ended answers", "share of answers", None, ".1%", 1.0),
    "repetition": MetricKind("Repeated 4-grams", "repetition", "share", None, ".1%", 1.0),
    "rouge_l": MetricKind("ROUGE-L against the teacher's answers", "ROUGE-L", "F1", False, ".3f", 1.0),
}
_BETTER = {True: "lower is better", False: "higher is better", None: ""}


@dataclass(frozen=True)
class MetricWords:
    """A metric's line in the report."""

    label: str
    unit: str
    better_when: str
    before: str
    after: str
    arrow: str
    change: str
    verdict: str
    """`better`, `worse`, or nothing."""
    why_missing: str
    bars: tuple[float, float] | None
    """Lengths, as shares of a full bar, where both values are comparable as lengths."""


def plain(value: Any) -> str:
    """A value whose meaning is unknown."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value, 80)


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def time_of(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def moment(text: str) -> str:
    """An ISO time, shortened."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(.*)", text)
    if found is None:
        return text
    zone = " UTC" if found[3].endswith(("+00:00", "Z")) else ""
    return f"{found[1]} {found[2]}{zone}"


def ordered_metrics(metrics: tuple[MetricRow, ...]) -> list[MetricRow]:
    """Known metrics in their usual order, then the others as they came."""
    known = {row.name: row for row in metrics if row.name in KINDS}
    return [*(known[name] for name in KINDS if name in known), *(row for row in metrics if row.name not in KINDS)]


def metric_value(name: str, value: Any) -> str:
    """A metric's value in its own unit."""
    number = as_float(value)
    if number is None or name not in KINDS:
        return plain(value)
    return format(number, KINDS[name].form)


def change_words(row: MetricRow) -> tuple[str, str]:
    """Arrow and relative change."""
    if row.pair is None:
        return "", ""
    before, after = row.pair
    arrow = "→" if after == before else "↓" if after < before else "↑"
    if row.change is None or after == before:
        return arrow, "unchanged" if after == before else ""
    if before > 0 and after / before >= 3:
        return arrow, f"×{after / before:.1f}"
    size = f"{row.change:+.0%}" if abs(row.change) >= 0.1 else f"{row.change:+.1%}"
    return arrow, size.replace("-", "−")


def metric_words(row: MetricRow) -> MetricWords:
    kind = KINDS.get(row.name)
    arrow, change = change_words(row)
    verdict = ""
    lower_is_better = kind.lower_is_better if kind is not None else None
    if lower_is_better is not None and row.pair is not None and row.pair[0] != row.pair[1]:
        verdict = "better" if (row.pair[1] < row.pair[0]) == lower_is_better else "worse"
    return MetricWords(
        label=kind.label if kind else row.name.replace("_", " ").replace("reward/", "Reward "),
        unit=kind.unit if kind else "",
        better_when=_BETTER[lower_is_better],
        before=metric_value(row.name, row.before),
        after=metric_value(row.name, row.after),
        arrow=arrow,
        change=change,
        verdict=verdict,
        why_missing=_why_missing(row),
        bars=_bars(row),
    )


def _why_missing(row: MetricRow) -> str:
    absent = [name for name, value in (("before", row.before), ("after", row.after)) if value is None]
    if not absent:
        return row.note
    reason = row.note or "the evaluation gave no reason"
    return f"{MISSING}: {reason}" if len(absent) == 2 else f"{MISSING} {absent[0]} training: {reason}"


def _bars(row: MetricRow) -> tuple[float, float] | None:
    if row.pair is None or min(row.pair) < 0 or max(row.pair) == 0:
        return None
    kind = KINDS.get(row.name)
    longest = kind.full if kind is not None and kind.full is not None else max(row.pair)
    return row.pair[0] / longest, row.pair[1] / longest


def verdict(facts: Facts) -> str:
    """The outcome in a sentence, from the known metrics that were measured before and after."""
    parts = []
    for row in ordered_metrics(facts.metrics):
        kind = KINDS.get(row.name)
        if kind is None or kind.lower_is_better is None or row.pair is None:
            continue
        before, after = (metric_value(row.name, value) for value in row.pair)
        if row.pair[0] == row.pair[1]:
            parts.append(f"{kind.short} stayed at {after}")
        else:
            parts.append(f"{kind.short} {'fell' if row.pair[1] < row.pair[0] else 'rose'} from {before} to {after}")
    if not parts:
        return ""
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    heldout = as_int(facts.train.get("heldout_rows"))
    what = "pairs" if on_pairs(facts) else "prompts"
    where = f"On {heldout:,} {what} that the student never saw, " if heldout else f"On held-out {what}, "
    return f"{where}{text}."


def plural(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


# --- models -----------------------------------------------------------------------------------------------------


def short_model(reference: str) -> str:
    """A model's name without where it lies."""
    if "://" in reference and not reference.startswith("pkg://"):
        return reference
    name = re.split(r"[\\/]", reference.rstrip("/\\"))[-1]
    return name.removesuffix(".gguf") or reference


def teacher_was_asked(facts: Facts) -> bool:
    """Whether the job's rows are labelled by its teacher, rather than before."""
    if facts.setting("synthesis") is not None and facts.setting("student_inference") is not None:
        # Made without a teacher, where the student alone is asked.
        named = (facts.setting(path) for path in ("inference.base_url", "models.teacher"))
        return any(name is not None for name in named)
    return facts.setting("inference") is not None and facts.setting("dataset.instruction_path") is not None


def on_pairs(facts: Facts) -> bool:
    """Whether the student learned from pairs of answers."""
    return bool(as_dict(facts.setting("preference"))) or is_reward_model(facts)


def by_rewards(facts: Facts) -> bool:
    """Whether the student learned from what its own answers are worth."""
    return bool(as_dict(facts.setting("rewards")))


def is_reward_model(facts: Facts) -> bool:
    """Whether the student was made a reward model, which scores answers and writes none."""
    return bool(as_dict(facts.setting("reward_model")))


def loss_unit(facts: Facts) -> str:
    """What the training loss is a mean of."""
    if by_rewards(facts):
        return "clipped objective, per answer token"
    return "per pair" if on_pairs(facts) else "nats per answer token"


def teacher_words(facts: Facts) -> tuple[str, str]:
    """(name, where it is) of the teacher."""
    if not facts.config:
        return MISSING, "no config was kept"
    url, model = as_text(facts.setting("inference.base_url")), as_text(facts.setting("inference.model"))
    if url:
        return model or "the API's default model", url
    if by_rewards(facts):
        given = [name for name, reward in as_dict(facts.setting("rewards")).items() if reward is not None]
        return f"rewards: {', '.join(given)}", "what the student's own answers are worth"
    reference = as_text(facts.setting("models.teacher"))
    if not reference:
        return "pairs of answers" if on_pairs(facts) else "labelled rows", "no teacher was asked"
    name = short_model(reference)
    place = reference if reference != name else ""
    if teacher_was_asked(facts):
        return name, place
    role = {
        "white_box_kd_local": "the rows came labelled, and it marked every token of them",
        "on_policy_kd": "it marked what the student wrote",
    }.get(as_text(facts.setting("job_type")), "for comparison only: the rows came labelled")
    return name, f"{place}{', ' if place else ''}{role}"


def student_words(facts: Facts) -> tuple[str, str]:
    """(name, how it was made) of the student."""
    student = facts.setting("models.student")
    if isinstance(student, dict):
        if isinstance(student.get("from"), str):
            return short_model(student["from"]), _layers(facts, student)
        kind = as_text(as_dict(student.get("config")).get("model_type")) or "model"
        return f"a new {kind}", "random weights"
    reference = as_text(student)
    if not reference:
        return MISSING, "no student is in the config" if facts.config else "no config was kept"
    name = short_model(reference)
    return name, reference if reference != name else "as it is"


def _layers(facts: Facts, student: dict[str, Any]) -> str:
    kept = as_int(student.get("keep_layers"))
    # Where training is complete its description tells how many layers there were.
    told = re.search(r"\d+ of \d+ layers", as_text(facts.train.get("student")))
    return f"{told[0]} kept" if told else f"{count(kept)} layers kept"


def lede(facts: Facts) -> str:
    """What was done, in a sentence or two; only what is complete."""
    label, train = facts.stage("label"), facts.stage("train")
    teacher, student = teacher_words(facts)[0], student_words(facts)
    parts = []
    if label is not None and label.left is not None and label.entered is not None:
        parts.append(f"{teacher} answered {label.left:,} of {label.entered:,} prompts.")
    score = facts.stage("score")
    if score is not None and score.tokens.get("scored"):
        subject = "It" if parts else teacher
        parts.append(f"{subject} said how probable it finds each of {score.tokens['scored']:,} answer tokens.")
    rows = as_int(facts.train.get("train_rows"))
    if train is not None and rows is not None:
        what = "pair" if on_pairs(facts) else "prompt" if by_rewards(facts) else "row"
        how = "LoRA adapters" if facts.setting("training.lora") else "all weights"
        made = "" if student[1] in {"as it is", ""} or "/" in student[1] else f" ({student[1]})"
        steps = as_int(facts.train.get("steps"))
        pace = f" in {plural(steps, 'optimiser step')}" if steps is not None else ""
        parts.append(f"The student, {student[0]}{made}, learned from {plural(rows, what)}{pace} ({how} trained).")
    return " ".join(parts)
