"""A run's settings in words."""

from __future__ import annotations

from typing import Any

from easydistill.report.charts import rate_text
from easydistill.report.collect import Facts
from easydistill.report.values import as_dict, as_float, as_int, as_text
from easydistill.report.words import MISSING, plain, teacher_was_asked


def settings(facts: Facts) -> list[tuple[str, str]]:
    """The settings that matter most, in words."""
    found = [
        ("Data", _data(facts)),
        ("Synthesis", _synthesis(facts)),
        ("Asking the teacher", _sampling(as_dict(facts.setting("inference"))) if teacher_was_asked(facts) else ""),
        ("Asking the student", _sampling(as_dict(facts.setting("student_inference")))),
        ("Distillation", _distillation(facts)),
        ("Teacher's signals", _signals(facts)),
        ("Preferences", _preference(facts)),
        ("Reward model", _reward_model(facts)),
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


def _sampling(inference: dict[str, Any]) -> str:
    if not inference:
        return ""
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


def _preference(facts: Facts) -> str:
    preference = as_dict(facts.setting("preference"))
    if not preference:
        return ""
    loss = preference.get("loss_type")
    names = ", ".join(map(str, loss)) if isinstance(loss, list) else as_text(loss)
    return f"{names} loss, β {plain(preference.get('beta'))} where a pair has none of its own"


def _reward_model(facts: Facts) -> str:
    reward = as_dict(facts.setting("reward_model"))
    if not reward:
        return ""
    margins = ", with the pairs' margins" if reward.get("use_margin") else ""
    return f"Bradley–Terry loss{margins}, centring {plain(reward.get('center_rewards_coefficient'))}"


def _evaluation(facts: Facts) -> str:
    evaluation = as_dict(facts.setting("evaluation"))
    if evaluation.get("enabled") is False:
        return "off"
    heldout = as_float(evaluation.get("heldout"))
    if heldout is None:
        return ""
    rows = f"{heldout:.0%} of the rows" if heldout < 1 else f"{heldout:,.0f} rows"
    held = as_int(facts.train.get("heldout_rows"))
    if held == 0:
        return f"{rows} wanted, but none could be held out" if heldout else "no rows held out"
    if "generate" not in evaluation:
        return f"{rows} held out"
    answers = "the student answers them too" if evaluation["generate"] else "without answers by the student"
    return f"{rows} held out; {answers}"


def _seeds(facts: Facts) -> str:
    places = [
        ("held-out rows", "dataset.seed"),
        ("answers", "inference.seed"),
        ("the student's answers", "student_inference.seed"),
        ("training", "training.seed"),
    ]
    if as_dict(facts.setting("student_inference")) and not teacher_was_asked(facts):
        places.remove(("answers", "inference.seed"))
    found = [(name, as_int(facts.setting(path))) for name, path in places]
    return ", ".join(f"{name} {seed}" for name, seed in found if seed is not None)
