"""EasyDistill 1's configs: one JSON file a job, some of which are two jobs here."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from easydistill.config.reading.aliases import JOB_TYPE_ALIASES, current_job_type, read_old_jobs, use_current_names
from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.reading.version1 import GREEDY, QUESTIONS_LEARNED, TEMPLATE_COUNTS, WITH_IMAGES
from easydistill.config.values import KeyPath
from easydistill.errors import ConfigError
from easydistill.migration import alignment1
from easydistill.migration.draft import Draft, Old, of_kind, without_key
from easydistill.migration.training import SUPERVISED, training

Make = Callable[[Old, Draft], None]

_CHECKS: dict[str, dict[str, Any]] = {
    "instruction_refinement": {"veto": False, "keep_numbers": False, "max_growth": 100},
    "instruction_response_extraction": {"pairs_per_chunk": 1, "evidence_score": 0, "check_answers": False},
    "cot_generation": {"verify": "never"},
    "cot_long2short": {"ratio": 1, "require_answer": False},
    "cot_short2long": {"ratio": 1, "require_answer": False},
}
"""Settings with which an operator refuses no more than the old one did."""
CHECKS_OFF = "The old job did not check this; remove the key to have it checked."
COUNTS_ACCEPTED = (
    "counts instructions that are kept: those that repeat others are refused, and asked for again within `budget`. "
    "The old one counted requests."
)
TRAINS_ON_ROW = "rows hold the problem itself as the prompt; the old job's held the whole request to the teacher"
CHUNKED = "long texts are cut into `chunks`, and the words that prove an answer are copied; the old job did neither"


def checks_off(names: Iterable[str]) -> str:
    """What is said of settings with which no more is refused than before."""
    return f"{', '.join(names)}: set so that no more is refused than before; remove the keys to have it checked"


def draft(document: Node) -> Draft:
    """The config anew.

    Raises:
        ConfigError: something has no equal here.
    """
    job_type = document.at(("job_type",))
    for name in ("dataset", "inference", "models", "distillation", "training"):
        if name in document.value:
            of_kind(document.at((name,)), dict, name)
    made = Draft({})
    made.comment((), f"From an EasyDistill 1 config, {job_type}. `easydistill validate` checks it; docs/migration.md.")
    if job_type in SEVERAL:
        old = Old(document)
        old.take("job_type")
        SEVERAL[job_type](old, made)
        old.close()
    else:
        _one_job(document, made)
    return made


# --- jobs that are one job here too ------------------------------------------------------------------------------


def _one_job(document: Node, made: Draft) -> None:
    """Old names and places exchanged, as they are when such a config is run, and old behaviour written out."""
    old_type = document.at(("job_type",))
    read, issues = copy.deepcopy(document), Issues()
    use_current_names(read, issues)
    read_old_jobs(read, issues)
    if found := issues.in_order():
        raise ConfigError(found)
    made.config = {**read.plain(), "job_type": current_job_type(old_type)}
    made.mapped += [note.split(": ", 1)[1] for note in issues.notes if " is read as " in note]
    old = Old(document)
    config = made.config
    if isinstance(config.get("training"), dict):
        config["training"] = training(old, made, ("training",), SUPERVISED, config["training"])
        made.changed.append("the trained model is in student/ inside training.output_dir, beside report and data")
    greedy(made, old_type, config.get("inference"), ("inference",))
    if isinstance(config.get("inference"), dict):
        without_key(config["inference"], made, ("inference",))
    if config["job_type"] == "white_box_kd_local":
        # The teacher of the job with images answered first, as it does here.
        _white_box(made, answers_there=old_type != "mmkd_white_box")
    if old_type in WITH_IMAGES:
        made.changed.append(f"training {QUESTIONS_LEARNED}")
        if config.get("dataset", {}).get("template") is not None:
            made.change(("dataset", "template"), TEMPLATE_COUNTS)
    _operator(made)
    if old.issues:
        raise ConfigError(old.issues)


def greedy(made: Draft, old_type: str, inference: Any, path: KeyPath) -> None:
    """Have a local teacher take the most probable token, as it did whatever the temperature."""
    if old_type in GREEDY and isinstance(inference, dict) and "top_k" not in inference:
        inference["top_k"] = 1
        made.comment((*path, "top_k"), "The old job always took the most probable token; remove this to sample.")


def _operator(made: Draft) -> None:
    job_type = made.config["job_type"]
    section: KeyPath = ("synthesis",)
    if job_type in _CHECKS:
        synthesis = made.config.setdefault("synthesis", {})
        for name, value in _CHECKS[job_type].items():
            if name not in synthesis:
                synthesis[name] = value
                made.comment((*section, name), CHECKS_OFF)
        made.changed.append(f"synthesis: {checks_off(_CHECKS[job_type])}")
    if job_type == "instruction_expansion":
        made.change((*section, "num_output_samples"), COUNTS_ACCEPTED)
    if job_type.startswith("cot_") and job_type != "cot_scoring":
        made.changed.append(TRAINS_ON_ROW)
    if job_type == "instruction_response_extraction":
        made.changed.append(CHUNKED)


def _white_box(made: Draft, *, answers_there: bool = True) -> None:
    config = made.config
    dataset, distillation = config.get("dataset", {}), config.get("distillation", {})
    path = dataset.get("logits_path")
    if isinstance(path, str) and re.search(r"\.jsonl?$", path):
        dataset["logits_path"] = re.sub(r"\.jsonl?$", "", path)
        made.change(
            ("dataset", "logits_path"),
            "a directory: the teacher's distributions are stored another way, and old files of them are not read",
        )
    length, longest = distillation.get("max_seq_length"), config.get("training", {}).get("max_length")
    if length is not None and longest is not None and length != longest:
        del distillation["max_seq_length"]
        said = f"training.max_length is the one limit of a row; distillation.max_seq_length {length} was another"
        made.change(("training", "max_length"), said)
    if answers_there and "instruction_path" in dataset and "labeled_path" in dataset:
        prompts = dataset.pop("instruction_path")
        made.change(
            ("dataset", "labeled_path"),
            "these answers are learned and scored by the teacher, as the old job had it. With "
            f'"instruction_path": {json.dumps(prompts)} the teacher answers first, and its answers are written here.',
        )


def _several_teachers(old: Old, made: Draft) -> None:
    """kd_white_box_train_only_multi: answers that are there, distributions of several teachers."""
    teachers = old.take("models", "teacher")
    teachers = teachers if isinstance(teachers, list) else [teachers]
    stores = old.take("dataset", "logits_path")
    old.take("dataset", "instruction_path")
    inference = old.section("inference")
    kept = {"kind": "top_k", "k": inference.get("top_logits_num", 10)}
    distillation = old.section("distillation")
    made.config = {
        "job_type": "white_box_kd_local",
        "dataset": old.section("dataset"),
        "models": {"teacher": teachers[0], **old.section("models")},
        "signals": {**kept, "teachers": [{"model": each, "weight": 1} for each in teachers]},
        "distillation": distillation,
        "training": training(old, made, ("training",), SUPERVISED, old.section("training")),
    }
    if distillation.get("max_seq_length") == made.config["training"].get("max_length"):
        distillation.pop("max_seq_length", None)
    _white_box(made)
    made.mapped.append("models.teacher, a list, is signals.teachers")
    count, ratio = len(teachers), distillation.get("kd_ratio")
    if isinstance(ratio, int | float) and count > 1:
        distillation["kd_ratio"] = round(count * ratio / (1 - ratio + count * ratio), 4)
        said = f"it was {ratio}: the divergences from {count} teachers were added, and are averaged now"
        made.change(("distillation", "kd_ratio"), said)
    if distillation.get("distillation_type") not in (None, "forward_kld") and count > 1:
        made.change(("distillation", "distillation_type"), "the divergence is from the teachers' mixture")
    made.left_out.append(f"dataset.logits_path {stores}: old files of distributions are not read; teachers score again")
    if inference:
        made.left_out.append("inference: no answers are asked for; signals say how the teachers are read")


# --- jobs that are several here ----------------------------------------------------------------------------------


def _sampling(old: Old, made: Draft) -> None:
    """instruct_sample_api: a label for every row, then rows by label."""
    source, target = old.take("dataset", "input_path"), old.take("dataset", "output_path")
    inference = old.section("inference")
    old.refuse_unread(old.section("dataset"), "dataset")
    without_key(inference, made, ("jobs", "label", "inference"))
    balanced: dict[str, Any] = {"instruction_path": "@label/labeled"}
    if target is not None:
        balanced["labeled_path"] = target
    made.config = {
        "job_type": "pipeline",
        "jobs": {
            "label": {"job_type": "task_labelling", "dataset": {"instruction_path": source}, "inference": inference},
            "balance": {"job_type": "task_balancing", "dataset": balanced, "synthesis": {"max_copies": 100}},
        },
    }
    made.mapped.append("instruct_sample_api is two jobs: task_labelling names each row's task, task_balancing draws")
    made.change(
        ("jobs", "balance", "synthesis", "max_copies"),
        "rows of rare tasks are repeated at most so often; the old job repeated them without limit",
    )
    made.changed.append("a row whose task is not understood is a rejected row; the old job counted it as Others")


SEVERAL: dict[str, Make] = {
    "kd_white_box_train_only_multi": _several_teachers,
    "instruct_sample_api": _sampling,
    **alignment1.JOBS,
}
"""Jobs that are written anew from the ground; all others are read as they are."""

assert set(SEVERAL) <= {*JOB_TYPE_ALIASES, "kd_white_box_train_only_multi"}
