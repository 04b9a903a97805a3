"""A run's main settings in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, plain, plural, rate_text
from easydistill.report.values import as_int, as_text, shown

Section = dict[str, Any]


def settings(facts: Facts) -> list[tuple[str, str]]:
    """(name, value) of the settings that matter most; a section that the job lacks is left out."""

    def of(path: str, words: Callable[[Section], str]) -> str:
        return words(facts.section(path)) if facts.section(path) else ""

    found = [
        ("Data", _data(facts)),
        ("Synthesis", of("synthesis", _synthesis)),
        ("Asking the teacher", of("inference", _sampling) if facts.asks_teacher else ""),
        ("Student's size", _size(facts.train)),
        ("Asking the student", of("student_inference", _sampling)),
        ("Distillation", of("distillation", _distillation)),
        ("Teacher's signals", _signals(facts)),
        ("Chats", of("dataset", _chats)),
        ("Preferences", of("preference", _preference)),
        ("Reward model", of("reward_model", _reward_model)),
        ("Training", of("training", _training)),
        ("Evaluation", _evaluation(facts)),
        ("Seeds", _seeds(facts)),
    ]
    return [(name, text) for name, text in found if text]


def _phrases(section: Section, forms: dict[str, str]) -> list[str]:
    """A phrase for each field that is a number, in its form."""
    numbers = ((form, section.get(name)) for name, form in forms.items())
    return [form.format(value) for form, value in numbers if as_float(value) is not None]


def _size(train: Section) -> str:
    parameters, trained = as_int(train.get("parameters")), as_int(train.get("trainable_parameters"))
    if not parameters:
        return ""
    part = "" if trained is None else f", {trained:,} of them trained ({trained / parameters:.1%})"
    return f"{parameters:,} parameters{part}"


def _data(facts: Facts) -> str:
    prompts, labelled = (as_text(facts.setting(f"dataset.{name}")) for name in ("instruction_path", "labeled_path"))
    if facts.setting("synthesis") is not None:
        text = f"rows from {prompts or MISSING}"
        text += f"; accepted rows also written to {labelled}" if labelled else ""
    elif prompts:
        text = f"prompts from {prompts}"
        text += f"; labels written to {labelled}" if labelled else ""
    else:
        text = f"labelled rows from {labelled}" if labelled else ""
    most = as_int(facts.setting("dataset.max_samples"))
    return f"{text}; at most {most:,} rows" if text and most is not None else text


def _synthesis(section: Section) -> str:
    """The operator's own settings, without those that hold several values."""
    single = {name: value for name, value in section.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {plain(value)}" for name, value in single.items())


def _sampling(section: Section) -> str:
    heat = as_float(section.get("temperature"))
    words = ["the server's temperature" if heat is None else "greedy" if heat == 0 else f"temperature {heat:g}"]
    forms = {"top_p": "top-p {:g}", "top_k": "top-k {:g}", "max_new_tokens": "answers of at most {:,} tokens"}
    words += _phrases(section, forms)
    if section.get("system_prompt"):
        words.append("with a system prompt")
    if isinstance(section.get("backend"), str):
        words.append(f"backend {section['backend']}")
    return ", ".join(words)


def _training(section: Section) -> str:
    lora = section.get("lora")
    words = [f"LoRA of rank {plain(lora.get('r'))}" if isinstance(lora, dict) and lora else "all weights"]
    words += _phrases(section, {"max_steps": "{:,} steps"}) or _phrases(
        section, {"num_train_epochs": "{:g} epoch" if section.get("num_train_epochs") == 1 else "{:g} epochs"}
    )
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens_per_batch")
    batch, accumulated, budget = (as_int(section.get(name)) for name in names)
    if budget is not None:
        how = f" × {accumulated} accumulated" if accumulated is not None and accumulated > 1 else ""
        words.append(f"batch of {budget:,} tokens{how} per device")
    elif batch is not None and accumulated is not None:
        how = f" ({batch} × {accumulated} accumulated)" if accumulated > 1 else ""
        words.append(f"batch of {batch * accumulated} per device{how}")
    rate, schedule = as_float(section.get("learning_rate")), as_text(section.get("lr_scheduler_type"))
    if rate is not None:
        words.append(f"learning rate {rate_text(rate)}{f', {schedule}' if schedule else ''}")
    words += _phrases(section, {"max_length": "rows of at most {:,} tokens"})
    if section.get("packing"):
        words.append("packed")
    return ", ".join(words)


def _distillation(section: Section) -> str:
    described = {"distillation_type", "kd_ratio", "max_seq_length", "temperature", "tail", "align"}
    words = [as_text(section.get("distillation_type"))]
    words += [f"{name} {plain(value)}" for name, value in section.items() if name not in described]
    words += _phrases(section, {"kd_ratio": "{:.0%} of the loss, the rest cross-entropy"})
    if section.get("temperature") not in (None, 1.0):
        words.append(f"temperature {plain(section['temperature'])}")
    aligned = {"bytes": "tokens matched by their bytes", "answers": "chats in the teacher's own form"}
    words.append(aligned.get(as_text(section.get("align")), ""))
    return ", ".join(word for word in words if word)


def _signals(facts: Facts) -> str:
    score = facts.stage("score")
    if score is None:
        return ""
    forms = {"bytes_per_token": "{:.1f} bytes per token", "head_mass": "{:.1%} of the teacher's mass kept exactly"}
    words = [as_text(score.metrics.get("signal")), *_phrases(score.metrics, forms)]
    return ", ".join(word for word in words if word)


def _preference(section: Section) -> str:
    loss = section.get("loss_type")
    names = ", ".join(map(str, loss)) if isinstance(loss, list) else as_text(loss)
    return f"{names} loss, β {plain(section.get('beta'))} for pairs without their own"


def _chats(section: Section) -> str:
    """How chats were rendered, where that was not the default."""
    variables = section.get("template_kwargs")
    words: list[str] = []
    if isinstance(variables, dict):
        words += [f"{name}={shown(json.dumps(value, ensure_ascii=False), 80)}" for name, value in variables.items()]
    thoughts = {"inline": "thoughts written into the answers as <think>…</think>", "drop": "thoughts left out"}
    words += [text for name, text in thoughts.items() if section.get("thoughts") == name]
    return ", ".join(words)


def _reward_model(section: Section) -> str:
    margins = ", with the pairs' margins" if section.get("use_margin") else ""
    return f"Bradley–Terry loss{margins}, centring {plain(section.get('center_rewards_coefficient'))}"


def _evaluation(facts: Facts) -> str:
    section = facts.section("evaluation")
    if section.get("enabled") is False:
        return "off"
    heldout = as_float(section.get("heldout"))
    if heldout is None:
        return ""
    rows = f"{heldout:.0%} of the rows" if heldout < 1 else plural(round(heldout), "row")
    if as_int(facts.train.get("heldout_rows")) == 0:
        return f"{rows} requested, but none could be held out" if heldout else "no rows held out"
    if "generate" not in section:
        return f"{rows} held out"
    answers = "the student answers them too" if section["generate"] else "without answers by the student"
    return f"{rows} held out; {answers}"


def _seeds(facts: Facts) -> str:
    places = {"dataset.seed": "held-out rows", "inference.seed": "answers"}
    if facts.section("student_inference") and not facts.asks_teacher:
        del places["inference.seed"]
    places |= {"student_inference.seed": "the student's answers", "training.seed": "training"}
    found = ((name, as_int(facts.setting(path))) for path, name in places.items())
    return ", ".join(f"{name} {seed}" for name, seed in found if seed is not None)
