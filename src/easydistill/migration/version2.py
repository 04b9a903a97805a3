"""EasyDistill 2's configs: a backend, and one stage or a pipeline of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from easydistill.config.reading.nodes import Node
from easydistill.config.reading.old_jobs import UNAVAILABLE
from easydistill.config.values import KeyPath, show
from easydistill.errors import ConfigError
from easydistill.migration.backend2 import env, sampling, server
from easydistill.migration.draft import Draft, Old, of_kind, pop
from easydistill.migration.stages2 import STAGES, Job, Stage, length_limits, readable_keys

_PIPELINES = {
    "augmented_instruct_distill",
    "advanced_instruct_distill",
    "balanced_instruct_distill",
    "advanced_cot_distill",
}
_OWN_SECTION = {
    "instruct_distill": "generation",
    **dict.fromkeys(("instruct_eval", "cot_eval"), "eval"),
    **dict.fromkeys(("cot_distill", "cot_long2short", "cot_short2long"), "cot"),
}
"""Job of one stage → the section with its settings; others have `synthesis`."""
_NAMES = {
    "instruction_expansion": "expand",
    "instruction_refinement": "refine",
    "instruction_response_extraction": "extract",
    "cot_generation": "think",
    "cot_long2short": "shorten",
    "cot_short2long": "lengthen",
    "label": "answer",
    "instruction_scoring": "score",
    "cot_scoring": "score",
    "instruction_selection": "select",
    "cot_selection": "select",
    "task_labelling": "classify",
    "task_balancing": "balance",
}
"""Job type → the job's name in a pipeline."""
_SHARED_SECTION = {
    **dict.fromkeys(("generate", "instruct_distill"), "generation"),
    **dict.fromkeys(("instruct_eval", "cot_eval", "cot_rvcd_score"), "eval"),
}
"""Stage → the section of the file whose settings it has too."""
_ROWS = ("instruction_key", "problem_key", "answer_key", "output_key", "text_key", "system_key")
_LAST = {"build_sft", "build_preference_dataset"}
_PREFERENCE_STAGES = {"generate_candidates", "score_candidates", "build_preference_pairs", "build_preference_dataset"}
"""Of dpo_data_build."""


@dataclass
class _Made:
    """A job that a stage became."""

    job: Job
    output: Any
    """File that the stage wrote."""
    comments: dict[KeyPath, str]


def draft(document: Node) -> Draft:
    """The config anew.

    Raises:
        ConfigError: something has no equal here.
    """
    old = Old(document)
    job_type = of_kind(old.take("job_type", default="instruct_distill"), str, "job_type")
    made = Draft({})
    made.comment((), f"From an EasyDistill 2 config, {job_type}. `easydistill validate` checks it; docs/migration.md.")
    if job_type == "dpo_data_build":
        _preference(old, made)
    elif job_type in _PIPELINES:
        _pipeline(old, made)
    elif job_type in STAGES:
        _one_stage(old, made, job_type)
    else:
        known = ", ".join(sorted({*_PIPELINES, *STAGES, "dpo_data_build"}))
        raise ConfigError(
            document.issue(("job_type",), f"{show(job_type)} is no job of EasyDistill 2", f"read are {known}")
        )
    old.close()
    made.config = env(made.config)
    return made


def _dataset(old: Old, made: Draft) -> tuple[Any, Any]:
    """Where rows come from and where they go."""
    dataset = old.section("dataset")
    source, target = dataset.pop("input_path", None), dataset.pop("output_path", None)
    dataset.pop("output_format", None)
    readable_keys(dataset, old, "dataset", *_ROWS)
    length_limits(dataset, made, "dataset")
    old.refuse_unread(dataset, "dataset")
    made.mapped.append("dataset.input_path and output_path are dataset.instruction_path and labeled_path")
    return source, target


def _with_paths(job: Job, source: Any, target: Any) -> Job:
    dataset = {"instruction_path": source, **({} if target is None else {"labeled_path": target})}
    kind, rest = job["job_type"], {name: value for name, value in job.items() if name != "job_type"}
    return {"job_type": kind, "dataset": dataset, **rest}


def _one_stage(old: Old, made: Draft, job_type: str) -> None:
    source, target = _dataset(old, made)
    asked = server(old, made)
    section = _OWN_SECTION.get(job_type, "synthesis")
    stage = Stage(section, old.section(section), old, made)
    (job,) = STAGES[job_type](stage)
    length_limits(sft := old.section("sft"), made, "sft")
    old.refuse_unread(sft, "sft")
    old.refuse_unread(stage.config, section)
    job["inference"] = {**asked, **job["inference"]}
    made.config = _with_paths(job, source, target)
    for (_, path), text in stage.comments.items():
        made.comment(path, text)
    if job_type != job["job_type"]:
        made.mapped.append(f"{job_type} is {job['job_type']}")


def _pipeline(old: Old, made: Draft) -> None:
    source, target = _dataset(old, made)
    asked = server(old, made)
    shared = {name: old.section(name) for name in ("generation", "eval", "sft")}
    length_limits(shared["sft"], made, "sft")
    old.refuse_unread(shared["sft"], "sft")
    jobs: list[_Made] = []
    for number, name, entry in _entries(old):
        jobs += _stage(old, made, name, entry, number, shared, [each.job["job_type"] for each in jobs])
    if not jobs:
        old.refuse(("pipeline",), "there is no stage that makes rows", "name at least one")
        return
    if target is not None:
        jobs[-1].output = target
    named: dict[str, Job] = {}
    for number, each in enumerate(jobs, start=1):
        name = _NAMES[each.job["job_type"]]
        name = name if name not in named else f"{name}{number}"
        before = f"@{list(named)[-1]}/labeled" if named else source
        named[name] = _with_paths(each.job, before, each.output)
        for path, text in each.comments.items():
            made.comment(("jobs", name, *path), text)
    made.config = {"job_type": "pipeline", "shared": {"inference": asked}, "jobs": named}
    if any(job["job_type"] == "instruction_selection" for job in named.values()):
        made.mapped.append("generalization is called generalisation")


def _entries(old: Old) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, stage, all that is said of it) of each entry of the old pipeline."""
    for number, entry in enumerate(of_kind(old.take("pipeline", default=[]), list, "pipeline")):
        where = f"pipeline.{number}"
        yield number, pop(dict(of_kind(entry, dict, where)), "stage", str, where, ""), entry


def _refuse_stage(old: Old, number: int, name: str) -> None:
    why = UNAVAILABLE.get(name, "it is not known here")
    old.refuse(("pipeline", number), f"the stage {show(name)} has no equal: {why}", "docs/migration.md")


def _stage(
    old: Old,
    made: Draft,
    name: str,
    entry: dict[str, Any],
    number: int,
    shared: dict[str, dict[str, Any]],
    before: list[str],
) -> list[_Made]:
    """The jobs of one stage, the last with the file that the stage wrote."""
    where = f"pipeline.{number}"
    if name in _LAST:
        made.mapped.append(f"{where}: {name}: rows are written as messages by every job")
        return []
    if name not in STAGES:
        _refuse_stage(old, number, name)
        return []
    config = {**shared.get(_SHARED_SECTION.get(name, ""), {}), **_config(entry, where)}
    stage = Stage(f"pipeline.{number} ({name})", config, old, made, before)
    jobs = STAGES[name](stage)
    old.refuse_unread(stage.config, "pipeline", number, "config")
    becomes = " and ".join(job["job_type"] for job in jobs)
    if becomes != name:
        made.mapped.append(f"{where}: {name} is {becomes}")
    return [
        _Made(
            job,
            entry.get("output_path") if job is jobs[-1] else None,
            {path: text for (of, path), text in stage.comments.items() if of == index},
        )
        for index, job in enumerate(jobs)
    ]


def _config(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """What an entry of the pipeline says of its stage."""
    config: dict[str, Any] = pop(dict(entry), "config", dict, where, {})
    return config


# --- pairs -----------------------------------------------------------------------------------------------------


def _preference(old: Old, made: Draft) -> None:
    """dpo_data_build: candidates, scores, pairs and files are one job here."""
    source, target = _dataset(old, made)
    asked = server(old, made)
    preference, generation = old.section("preference"), old.section("generation")
    stages = _preference_stages(old, made, preference)
    candidates = {**generation, **stages.get("generate_candidates", {})}
    scoring, pairs = stages.get("score_candidates", {}), stages.get("build_preference_pairs", {})
    dataset = {**generation, **stages.get("build_preference_dataset", {})}
    scorer = scoring.get("scorer") or preference.get("scorer") or "llm_judge"
    n = pop(candidates, "n", int, "generate_candidates", 2)
    for section, where in (
        (candidates, "generate_candidates"),
        (scoring, "score_candidates"),
        (pairs, "pairs"),
        (dataset, "dataset"),
    ):
        readable_keys(section, old, where, *_ROWS)
        for name in ("scorer", "n", "format"):
            section.pop(name, None)
    length_limits(dataset, made, "build_preference_dataset")
    job: Job = {
        "job_type": "preference_data",
        "inference": {**asked, **sampling(candidates, made, "generate_candidates")},
    }
    if scorer == "cot":
        job["synthesis"] = _verified(scoring, n, made)
    else:
        job["judge"], job["synthesis"] = _judged(scoring, n, asked, made)
    limit, margin = pairs.pop("max_pairs_per_prompt", None), pairs.pop("min_margin", None)
    if limit is not None:
        job["synthesis"]["max_pairs"] = limit
    if margin:
        made.left_out.append(f"min_margin {margin}: scores are of another scale (synthesis.min_margin, 1 to 10)")
    if pairs.pop("require_chosen_correct", False) and scorer != "cot":
        made.left_out.append("require_chosen_correct: a judge decides here; the scorer cot compares answers")
    for section, where in (
        (candidates, "generate_candidates"),
        (scoring, "score_candidates"),
        (pairs, "build_preference_pairs"),
    ):
        old.refuse_unread(section, where)
    made.config = _with_paths(job, source, target)
    made.mapped.append("four stages are one job, preference_data; its rows are prompt, chosen, rejected, as messages")


def _preference_stages(old: Old, made: Draft, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is said of each stage by name, `shared` included."""
    stages: dict[str, dict[str, Any]] = {}
    for number, name, entry in _entries(old):
        if name not in _PREFERENCE_STAGES:
            _refuse_stage(old, number, name)
            continue
        stages[name] = {**shared, **_config(entry, f"pipeline.{number}")}
        if entry.get("output_path") is not None:
            made.left_out.append(f"pipeline.{number}.output_path: what lies between is in the run directory's stages/")
    return stages


def _verified(scoring: dict[str, Any], n: int, made: Draft) -> dict[str, Any]:
    for name in ("alpha", "normalize_answer", "show_progress", "max_workers"):
        scoring.pop(name, None)
    for name in ("answer_extractor_pattern", "reasoning_tag_start", "reasoning_tag_end"):
        if scoring.pop(name, None) is not None:
            made.left_out.append(f"score_candidates.{name}: final answers are found by synthesis.strategies")
    made.change(
        ("synthesis",),
        "the scorer cot is the method verifiable: a right answer above a wrong one. Of two right ones no pair is made, "
        "where the old job took the longer one for the worse (alpha).",
    )
    strategies = ["boxed", "hashes", "phrase", "last_number"]
    return {"method": "verifiable", "teacher_samples": n, "student_samples": 0, "strategies": strategies}


def _judged(scoring: dict[str, Any], n: int, asked: dict[str, Any], made: Draft) -> tuple[Job, dict[str, Any]]:
    scoring.setdefault("temperature", 0.0)
    metrics = scoring.pop("metrics", None)
    for name in ("prompts", "prompts_file"):
        if scoring.pop(name, None) is not None:
            made.left_out.append(f"score_candidates.{name}: synthesis.prompts takes a prompt of your own, in Jinja")
    judge = {"inference": {**asked, **sampling(scoring, made, "score_candidates", 512)}}
    before = f"; {', '.join(map(str, metrics))} were averaged before" if isinstance(metrics, list) else ""
    made.change(
        ("synthesis",),
        f"the judge compares two answers side by side, in both orders, by one score of 1 to 10{before}. Answers "
        "that are equally good make no pair.",
    )
    method = {"method": "rank", "teacher_samples": n, "student_samples": 0, "given_answers": False, "max_pairs": 1}
    return judge, method
