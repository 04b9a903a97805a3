"""The student's metrics before and after training: names and units, their table, and the result in a sentence."""

from __future__ import annotations

from dataclasses import replace

from easydistill.report.collect import Facts, MetricRow
from easydistill.report.document import Cell, Column, Table, compared, row
from easydistill.report.figures import MISSING, Figure, percentage, plain
from easydistill.report.values import as_int

KINDS = {
    "cross_entropy": Figure("Cross-entropy on the teacher's answers", "nats per token", "lower", short="cross-entropy"),
    "kl": Figure("KL divergence from the teacher", "nats per token", "lower", short="KL divergence"),
    "agreement": percentage("Top-1 agreement with the teacher", "share of tokens", "higher", "top-1 agreement"),
    "acceptance": percentage("Drafts that the teacher would accept", "share of tokens", "higher", "acceptance"),
    "preferred": percentage("Chosen answer likelier per token", "share of pairs", "higher", "preference"),
    "reward_accuracy": percentage(
        "Implicit reward larger for the chosen answer", "share of pairs", "higher", "reward accuracy"
    ),
    "margin": Figure("Margin of the implicit rewards", "nats", "higher", short="margin"),
    "pair_accuracy": percentage("Chosen answer scores higher", "share of pairs", "higher", "accuracy on pairs"),
    "shorter_accuracy": percentage(
        "Chosen answer scores higher, where it is the shorter one",
        "share of pairs",
        "higher",
        "accuracy where it is shorter",
    ),
    "score_margin": Figure("Score of the chosen answer minus the other's", "log-odds", "higher", short="margin"),
    "mean_score": Figure("Mean score of all answers", "log-odds", short="mean score"),
    "length_pearson": Figure("Correlation of score and length (Pearson)", "r, tokens", short="correlation"),
    "length_spearman": Figure("Correlation of score and length (Spearman)", "ρ, tokens", short="rank correlation"),
    "best_of_n_gain": Figure(
        "True score gained by choosing the best of a prompt's answers", "true score", "higher", short="best-of-n gain"
    ),
    "reward": Figure("Reward of the most probable answers", "weighted sum", "higher", short="reward"),
    "verified_accuracy": percentage("Right final answers", "share of prompts", "higher", "share of right answers"),
    "verified": Figure("Prompts with a known answer", "prompts", form=".0f", short="known answers"),
    "length": Figure("Length of answers", "tokens", form=".1f", short="length"),
    "ended": percentage("Answers that end by themselves", "share of answers", short="ended answers"),
    "repetition": percentage("Repeated 4-grams", "share", short="repetition"),
    "rouge_l": Figure("ROUGE-L against the teacher's answers", "F1", "higher", full=1.0, short="ROUGE-L"),
    "exact_match": percentage("Same answer as the teacher's", "share of answers", "higher", "exact match"),
    "image_gain": Figure(
        "Cross-entropy with another row's image minus that with its own",
        "nats per token",
        "higher",
        short="gain from the image",
    ),
}

OF_TEACHERS = ("kl", "agreement", "acceptance")
"""Metrics that there may also be of the rows of each of several teachers, as `kl/math`."""


def figure_of(name: str) -> Figure:
    """How a metric is shown; a metric that is not known has its own name and no unit."""
    kind, _, teacher = name.partition("/")
    if teacher and kind in OF_TEACHERS:
        return replace(KINDS[kind], label=f"{KINDS[kind].label}: {teacher}")
    return KINDS.get(name) or Figure(name.replace("_", " ").replace("reward/", "Reward "), form="")


def value_text(name: str, value: object) -> str:
    kind = name.partition("/")[0]
    name = kind if kind in OF_TEACHERS else name
    return KINDS[name].text(value) if name in KINDS else plain(value)


def ordered_metrics(metrics: tuple[MetricRow, ...]) -> list[MetricRow]:
    """Known metrics in the order of `KINDS`, then the others in their own."""
    order = list(KINDS)
    return sorted(metrics, key=lambda found: order.index(found.name) if found.name in KINDS else len(order))


def change_words(found: MetricRow) -> tuple[str, str]:
    """Arrow and relative change."""
    if found.pair is None:
        return "", ""
    before, after = found.pair
    arrow = "→" if after == before else "↓" if after < before else "↑"
    if found.change is None or after == before:
        return arrow, "unchanged" if after == before else ""
    if before > 0 and after / before >= 3:
        return arrow, f"×{after / before:.1f}"
    size = f"{found.change:+.0%}" if abs(found.change) >= 0.1 else f"{found.change:+.1%}"
    return arrow, size.replace("-", "−")


def judgement(found: MetricRow) -> str:
    """`better` or `worse`; empty where the metric did not change or neither direction is better."""
    better = figure_of(found.name).better
    if not better or found.pair is None or found.pair[0] == found.pair[1]:
        return ""
    return "better" if (found.pair[1] < found.pair[0]) == (better == "lower") else "worse"


def why_missing(found: MetricRow) -> str:
    absent = [name for name, value in (("before", found.before), ("after", found.after)) if value is None]
    if not absent:
        return found.note
    reason = found.note or "the evaluation gave no reason"
    return f"{MISSING}: {reason}" if len(absent) == 2 else f"{MISSING} {absent[0]} training: {reason}"


def metrics_table(facts: Facts) -> Table:
    """Every metric before and after training."""
    rows = []
    for found in ordered_metrics(facts.metrics):
        figure = figure_of(found.name)
        better = f"{figure.better} is better" if figure.better else ""
        unit, why = " · ".join(part for part in (figure.unit, better) if part), why_missing(found)
        (arrow, change), verdict = change_words(found), judgement(found)
        before, after = (value_text(found.name, value) for value in (found.before, found.after))
        change_cell = Cell(change, verdict, arrow, verdict)
        bars = compared(found.pair, figure.full) if found.pair is not None else ()
        rows.append(row(figure.label, unit, before, after, change_cell, why, notes=(unit, why), bars=bars))
    columns = [
        Column("Unit", "", "md"),
        Column("Before", "num before"),
        Column("After", "num after"),
        Column("Change", "num change"),
    ]
    if any(map(why_missing, facts.metrics)):
        columns.append(Column("Note", "", "md"))
    return Table("Metric", tuple(columns), tuple(rows), bars="bars")


def verdict(facts: Facts) -> str:
    """The result in a sentence: the known metrics that were measured before and after training."""
    parts = []
    for found in ordered_metrics(facts.metrics):
        figure = KINDS.get(found.name)
        if figure is None or not figure.better or found.pair is None:
            continue
        before, after = map(figure.text, found.pair)
        if found.pair[0] == found.pair[1]:
            parts.append(f"{figure.short} stayed at {after}")
        else:
            moved = "fell" if found.pair[1] < found.pair[0] else "rose"
            parts.append(f"{figure.short} {moved} from {before} to {after}")
    if not parts:
        return ""
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    heldout = as_int(facts.train.get("heldout_rows"))
    what = "pairs" if facts.on_pairs else "prompts"
    where = f"On {heldout:,} {what} that the student never saw, " if heldout else f"On held-out {what}, "
    return f"{where}{text}."
