"""Figures and facts as a person says them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from easydistill.engine.progress import duration
from easydistill.report.charts import rate_text
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
    lower_is_better: bool
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
    "rouge_l": MetricKind("ROUGE-L against the teacher's answers", "ROUGE-L", "F1", False, ".3f", 1.0),
}


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
    if kind is not None and row.pair is not None and row.pair[0] != row.pair[1]:
        verdict = "better" if (row.pair[1] < row.pair[0]) == kind.lower_is_better else "worse"
    return MetricWords(
        label=kind.label if kind else row.name.replace("_", " "),
        unit=kind.unit if kind else "",
        better_when="" if kind is None else "lower is better" if kind.lower_is_better else "higher is better",
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
        if kind is None or row.pair is None:
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
    where = f"On {heldout:,} prompts that the student never saw, " if heldout else "On held-out prompts, "
    return f"{where}{text}."


# --- models -----------------------------------------------------------------------------------------------------


def short_model(reference: str) -> str:
    """A model's name without where it lies."""
    if "://" in reference and not reference.startswith("pkg://"):
        return reference
    name = re.split(r"[\\/]", reference.rstrip("/\\"))[-1]
    return name.removesuffix(".gguf") or reference


def teacher_was_asked(facts: Facts) -> bool:
    """Whether the job's rows are labelled by its teacher, rather than before."""
    return facts.setting("inference") is not None and facts.setting("dataset.instruction_path") is not None


def teacher_words(facts: Facts) -> tuple[str, str]:
    """(name, where it is) of the teacher."""
    if not facts.config:
        return MISSING, "no config was kept"
    url, model = as_text(facts.setting("inference.base_url")), as_text(facts.setting("inference.model"))
    if url:
        return model or "the API's default model", url
    reference = as_text(facts.setting("models.teacher"))
    if not reference:
        return "labelled rows", "no teacher was asked"
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
        how = "LoRA adapters" if facts.setting("training.lora") else "all weights"
        made = "" if student[1] in {"as it is", ""} or "/" in student[1] else f" ({student[1]})"
        steps = as_int(facts.train.get("steps"))
        pace = f" in {steps:,} optimiser steps" if steps is not None else ""
        parts.append(f"The student, {student[0]}{made}, learned from {rows:,} rows{pace} ({how} trained).")
    return " ".join(parts)


# --- settings ---------------------------------------------------------------------------------------------------


def settings(facts: Facts) -> list[tuple[str, str]]:
    """The settings that matter most, in words."""
    found = [
        ("Data", _data(facts)),
        ("Synthesis", _synthesis(facts)),
        ("Asking the teacher", _sampling(facts)),
        ("Distillation", _distillation(facts)),
        ("Teacher's signals", _signals(facts)),
        ("Training", _training(facts)),
        ("Evaluation", _evaluation(facts)),
        ("Seeds", _seeds(facts)),
    ]
    parameters, trained = as_int(facts.train.get("parameters")), as_int(facts.train.get("trainable_parameters"))
    if parameters:
        share = "" if trained is None else f", {trained:,} of them trained ({trained / parameters:.1%})"
        found.insert(3, ("Student's size", f"{parameters:,} parameters{share}"))
    return [(name, text) for name, text in found if text]


def _data(facts: Facts) -> str:
    prompts, labelled = (as_text(facts.setting(f"dataset.{name}")) for name in ("instruction_path", "labeled_path"))
    if facts.setting("synthesis") is not None:
        text = f"rows from {prompts or MISSING}"
        text += f"; accepted rows also written to {labelled}" if labelled else ""
    elif prompts and labelled:
        text = f"prompts from {prompts}; labels written to {labelled}"
    else:
        text = f"prompts from {prompts}" if prompts else f"labelled rows from {labelled}" if labelled else ""
    most = as_int(facts.setting("dataset.max_samples"))
    return f"{text}; at most {most:,} rows" if text and most is not None else text


def _synthesis(facts: Facts) -> str:
    """The operator's own settings, those that are one value each."""
    found = as_dict(facts.setting("synthesis"))
    told = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {plain(value)}" for name, value in told.items())


def _sampling(facts: Facts) -> str:
    if not teacher_was_asked(facts):
        return ""
    inference = as_dict(facts.setting("inference"))
    heat = as_float(inference.get("temperature"))
    words = ["the server's temperature" if heat is None else "greedy" if heat == 0 else f"temperature {heat:g}"]
    for name in ("top_p", "top_k"):
        if _number(inference, name):
            words.append(f"{name.replace('_', '-')} {inference[name]:g}")
    if _number(inference, "max_new_tokens"):
        words.append(f"answers of at most {inference['max_new_tokens']:,} tokens")
    if inference.get("system_prompt"):
        words.append("with a system prompt")
    if isinstance(inference.get("backend"), str):
        words.append(f"backend {inference['backend']}")
    return ", ".join(words)


def _number(section: dict[str, Any], name: str) -> bool:
    return as_float(section.get(name)) is not None


def _training(facts: Facts) -> str:
    training = as_dict(facts.setting("training"))
    if not training:
        return ""
    lora = as_dict(training.get("lora"))
    words = [f"LoRA of rank {plain(lora.get('r'))}" if lora else "all weights"]
    if _number(training, "max_steps"):
        words.append(f"{training['max_steps']:,} steps")
    elif _number(training, "num_train_epochs"):
        epochs = training["num_train_epochs"]
        words.append(f"{epochs:g} epoch{'' if epochs == 1 else 's'}")
    batch, accumulated = (
        as_int(training.get(name)) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if batch is not None and accumulated is not None:
        how = f" ({batch} × {accumulated} accumulated)" if accumulated > 1 else ""
        words.append(f"batch of {batch * accumulated} per device{how}")
    if _number(training, "learning_rate"):
        schedule = as_text(training.get("lr_scheduler_type"))
        words.append(f"learning rate {rate_text(training['learning_rate'])}{f', {schedule}' if schedule else ''}")
    if _number(training, "max_length"):
        words.append(f"rows of at most {training['max_length']:,} tokens")
    if training.get("packing"):
        words.append("packed")
    return ", ".join(words)


def _distillation(facts: Facts) -> str:
    distillation = as_dict(facts.setting("distillation"))
    if not distillation:
        return ""
    words = [as_text(distillation.get("distillation_type"))]
    plain_fields = {"distillation_type", "kd_ratio", "max_seq_length", "temperature", "tail", "align"}
    words += [f"{name} {plain(value)}" for name, value in distillation.items() if name not in plain_fields]
    share = as_float(distillation.get("kd_ratio"))
    if share is not None:
        words.append(f"{share:.0%} of the loss, the rest cross-entropy")
    if distillation.get("temperature") not in {None, 1.0}:
        words.append(f"temperature {plain(distillation['temperature'])}")
    if distillation.get("align") == "bytes":
        words.append("tokens matched by their bytes")
    return ", ".join(word for word in words if word)


def _signals(facts: Facts) -> str:
    score = facts.stage("score")
    if score is None:
        return ""
    words = [as_text(score.metrics.get("signal"))]
    taken, head = (as_float(score.metrics.get(name)) for name in ("bytes_per_token", "head_mass"))
    if taken is not None:
        words.append(f"{taken:.1f} bytes a token")
    if head is not None:
        words.append(f"{head:.1%} of the teacher's mass kept exactly")
    return ", ".join(word for word in words if word)


def _evaluation(facts: Facts) -> str:
    evaluation = as_dict(facts.setting("evaluation"))
    if evaluation.get("enabled") is False:
        return "off"
    heldout = as_float(evaluation.get("heldout"))
    if heldout is None:
        return ""
    rows = f"{heldout:.0%} of the rows" if heldout < 1 else f"{heldout:,.0f} rows"
    answers = "the student answers them too" if evaluation.get("generate") else "without answers by the student"
    return f"{rows} held out; {answers}"


def _seeds(facts: Facts) -> str:
    places = (("held-out rows", "dataset.seed"), ("answers", "inference.seed"), ("training", "training.seed"))
    found = [(name, as_int(facts.setting(path))) for name, path in places]
    return ", ".join(f"{name} {seed}" for name, seed in found if seed is not None)
