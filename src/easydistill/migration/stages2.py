"""EasyDistill 2's stages, each as the jobs that do the same here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from easydistill.config.values import KeyPath, dotted
from easydistill.migration.backend2 import sampling
from easydistill.migration.draft import Draft, Old, WrongValue, of_kind, pop
from easydistill.migration.prompts2 import own_prompt
from easydistill.migration.version1 import CHECKS_OFF, CHUNKED, COUNTS_ACCEPTED, checks_off

_COT_TOKENS = 4096
_SCORING_TOKENS = 512
_SCORES = {
    "instruction_scoring": {
        "informativeness": "informativeness",
        "helpfulness": "helpfulness",
        "generalization": "generalisation",
        "correctness": "correctness",
    },
    "cot_scoring": {"reasoning_verbosity": "rv", "cognitive_difficulty": "cd", "logical_correctness": "correct"},
}
"""Job → metric of old → score."""
_TARGETS = {"low": 2, "medium": 5, "high": 8}
_HIGHEST = 9


@dataclass
class Stage:
    """A stage of the old file while it is read."""

    where: str
    """Its place, for messages."""
    config: dict[str, Any]
    """What it says, shared sections included; what is understood is taken out."""
    old: Old
    draft: Draft
    job_types: list[str] = field(default_factory=list)
    """Job types of what came before."""
    comments: dict[tuple[int, KeyPath], str] = field(default_factory=dict)
    """Number of the job among those that the stage becomes, and path in it → comment."""

    def change(self, path: KeyPath, text: str, job: int = 0) -> None:
        """Say that something works otherwise: on screen, and in the file above the key at `path` of the job."""
        self.draft.changed.append(f"{self.where}: {dotted(path)}: {text}")
        self.comments[job, path] = text

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Take out a setting; see `pop`."""
        return pop(self.config, name, kind, self.where, default)

    def left(self, name: str, why: str) -> None:
        """Take out a setting that has no equal, and say so."""
        if self.config.pop(name, None) is not None:
            self.draft.left_out.append(f"{self.where}.{name}: {why}")


Job = dict[str, Any]
Read = Callable[[Stage], list[Job]]


def _synthesis(job_type: str, tokens: int, settings: dict[str, Any], keep: tuple[str, ...] = ()) -> Read:
    """A stage that asks with one prompt and reads the reply.

    Args:
        tokens: longest reply where the stage says nothing.
        settings: with which the operator refuses no more than the old one did.
        keep: settings of the same name and meaning.
    """

    def read(stage: Stage) -> list[Job]:
        prompt = own_prompt(stage.config, job_type, stage.old, stage.draft, stage.where)
        inference = sampling(stage.config, stage.draft, stage.where, tokens)
        kept = {name: stage.config.pop(name) for name in keep if stage.config.get(name) is not None}
        if job_type == "instruction_expansion":
            kept.setdefault("num_output_samples", 10)
            stage.change(("synthesis", "num_output_samples"), COUNTS_ACCEPTED)
        if job_type == "instruction_response_extraction":
            stage.change(("synthesis",), CHUNKED)
        if settings:
            stage.draft.changed.append(f"{stage.where}: {checks_off(settings)}")
        for name in settings:
            stage.comments[0, ("synthesis", name)] = CHECKS_OFF
        return [{"job_type": job_type, "inference": inference, "synthesis": {**settings, **kept, **prompt}}]

    return read


def _answers(stage: Stage) -> list[Job]:
    for name in ("prompt_template", "prompt_template_file"):
        if name in stage.config:
            hint = "a cot_generation job with a prompt of your own in synthesis.prompts asks that way"
            stage.old.refuse((stage.where, name), "label sends prompts as they are", hint)
            del stage.config[name]
    stage.config.update(stage.take("generation", dict, {}))
    length_limits(stage.take("sft", dict, {}), stage.draft, f"{stage.where}.sft")
    inference = sampling(stage.config, stage.draft, stage.where)
    if inference.get("system_prompt"):
        said = "it is sent to the teacher and not written into rows; the old rows held it, and were trained on with it"
        stage.change(("inference", "system_prompt"), said)
    return [{"job_type": "label", "inference": inference}]


def _scoring(job_type: str) -> Read:
    def read(stage: Stage) -> list[Job]:
        stage.left("prompts_file", "all scores are asked for in one prompt; synthesis.prompts takes your own, in Jinja")
        stage.left("prompts", "all scores are asked for in one prompt; synthesis.prompts takes your own, in Jinja")
        known = _SCORES[job_type]
        for name in stage.take("metrics", list, []):
            if str(name) not in known:
                stage.draft.left_out.append(
                    f"{stage.where}.metrics: there is no score {name}; there are {_list(known)}"
                )
        _keys(stage, "instruction_key", "output_key")
        tokens = stage.config.get("max_tokens")
        if isinstance(tokens, int) and tokens < _SCORING_TOKENS:
            stage.config["max_tokens"] = _SCORING_TOKENS
            stage.change(
                ("inference", "max_new_tokens"), f"{tokens} was for one score; one reply gives all of them now"
            )
        stage.config.setdefault("temperature", 0.0)
        inference = sampling(stage.config, stage.draft, stage.where, _SCORING_TOKENS)
        stage.draft.mapped.append(f"{stage.where}: scores are called {_list(known.values())}")
        return [{"job_type": job_type, "inference": inference}]

    return read


def _balance(stage: Stage) -> list[Job]:
    config = stage.config
    labels, targets = stage.take("categories", list), stage.take("target_distribution", dict)
    seed, label_key = stage.take("seed", int, 42), stage.take("category_key", str)
    if label_key not in (None, "task"):
        stage.draft.mapped.append(f"{stage.where}: the label stands in `task`, not in `{label_key}`")
    _keys(stage, "instruction_key")
    prompt = own_prompt(config, "task_labelling", stage.old, stage.draft, stage.where, "category_prompt")
    config.setdefault("temperature", 0.0)
    inference = sampling(config, stage.draft, stage.where, _SCORING_TOKENS)
    labelling = dict(prompt)
    if labels is not None:
        # What fits no category was counted as Others.
        words = [of_kind(label, str, f"{stage.where}.categories") for label in labels]
        labelling["labels"] = list(dict.fromkeys([*words, "Others"]))
    balancing: dict[str, Any] = {"seed": seed, "max_copies": 100}
    if targets is not None:
        balancing["targets"] = targets
    stage.change(("synthesis", "max_copies"), "rows of rare tasks were repeated without limit", job=1)
    return [
        {"job_type": "task_labelling", "inference": inference, "synthesis": labelling},
        {"job_type": "task_balancing", "synthesis": balancing},
    ]


def _quality(stage: Stage) -> list[Job]:
    config = stage.config
    least = stage.take("min_scores", dict, {})
    config.pop("require_all_metrics", None)
    top = "rows are chosen by thresholds alone: raise them to keep fewer"
    for name in ("keep_top_ratio", "keep_top_k", "per_scene"):
        if config.get(name):
            stage.comments[0, ("synthesis",)] = f"Without {name} {config[name]}: {top}."
        stage.left(name, top)
    chains = "cot_scoring" in stage.job_types
    known = _SCORES["cot_scoring" if chains else "instruction_scoring"]
    scores: dict[str, Any] = {}
    for name, low in least.items():
        if name in known:
            scores[known[name]] = low
        else:
            stage.draft.left_out.append(f"{stage.where}.min_scores.{name}: there is no such score")
    if chains:
        if not scores.pop("correct", 0):
            stage.draft.changed.append(f"{stage.where}: chains of thought that were judged wrong are always dropped")
        return [{"job_type": "cot_selection", "synthesis": {name: [low, _HIGHEST] for name, low in scores.items()}}]
    right = bool(scores.pop("correctness", False))
    lowest = {name: scores.get(name, 0) for name in known.values() if name != "correctness"}
    return [{"job_type": "instruction_selection", "synthesis": {**lowest, "correct_only": right}}]


def _mix(stage: Stage) -> list[Job]:
    config = stage.config
    mode, bins = stage.take("mode", str, "sft"), stage.take("cd_bins", list, [0, 3, 6, 10])
    target, count = config.pop("rv_target", "matched"), stage.take("samples_per_bin", int)
    _keys(stage, "instruction_key", "output_key")
    if mode != "sft":
        stage.old.refuse((stage.where, "mode"), f"there is no mode {mode!r}", "sft is the only one")
    if not config.pop("min_correctness", 1):
        stage.draft.changed.append(f"{stage.where}: chains of thought that were judged wrong are always dropped")
    bins = [round(of_kind(edge, float, f"{stage.where}.cd_bins")) for edge in bins]
    if len(bins) < 2:
        raise WrongValue(f"{stage.where}.cd_bins", bins, "a list of two bounds or more")
    number = len(list(pairwise(bins)))
    if not count:
        selection: dict[str, Any] = {"cd": [bins[0], min(bins[-1], _HIGHEST)]}
    else:
        selection = {"mix": {"bins": bins, "rv": _targets(target, number, stage), "counts": [count] * number}}
    return [{"job_type": "cot_selection", "synthesis": selection}]


def _targets(target: Any, number: int, stage: Stage) -> list[int]:
    """The verbosity wanted of each bin."""
    if target == "matched":
        steps = [2 + 8 * each / (number - 1) for each in range(number)] if number > 1 else [5]
        return [min(_HIGHEST, round(each)) for each in steps]
    if isinstance(target, str) and target in _TARGETS:
        return [_TARGETS[target]] * number
    return [min(_HIGHEST, round(of_kind(target, float, f"{stage.where}.rv_target")))] * number


def _list(words: Any) -> str:
    return ", ".join(words)


_READABLE = {
    "instruction_key": ("instruction", "prompt", "question", "query", "problem"),
    "problem_key": ("problem", "instruction", "prompt", "question", "query"),
    "answer_key": ("answer", "output", "response", "completion"),
    "output_key": ("output", "response", "answer", "completion"),
    "text_key": ("text", "data"),
    "system_key": ("system",),
}


def _keys(stage: Stage, *names: str) -> None:
    readable_keys(stage.config, stage.old, stage.where, *names)


def readable_keys(section: dict[str, Any], old: Old, where: str, *names: str) -> None:
    """Take the names of rows' fields out of a section; refuse those that are not read here."""
    for name in names:
        value = section.pop(name, None)
        if value is not None and str(value) not in _READABLE[name]:
            hint = f"rename it in the file; read are {_list(_READABLE[name])}"
            old.refuse((where, name), f"the field {value!r} of rows is not read", hint)


def length_limits(section: dict[str, Any], draft: Draft, where: str) -> None:
    """Take out what the old builder of training rows said of their length."""
    section.pop("skip_empty", None)
    limits = {name: value for name in ("min_length", "max_length") if (value := section.pop(name, None)) is not None}
    if limits:
        said = " and ".join(f"{name} {value}" for name, value in limits.items())
        draft.left_out.append(
            f"{where}: {said}: answers are not dropped by their number of characters (empty ones always are); training "
            "cuts rows at training.max_length tokens"
        )
    if section.pop("dedup_key", None) is not None:
        draft.left_out.append(f"{where}.dedup_key: a deduplicate job does that")


_REWRITING = {"ratio": 1, "require_answer": False}
_SAMPLES = ("num_in_context_samples", "num_output_samples", "seed")
STAGES: dict[str, Read] = {
    "instruction_expansion": _synthesis("instruction_expansion", 2048, {}, _SAMPLES),
    "instruction_refinement": _synthesis(
        "instruction_refinement", 2048, {"veto": False, "keep_numbers": False, "max_growth": 100}
    ),
    "instruction_response_extraction": _synthesis(
        "instruction_response_extraction", 2048, {"pairs_per_chunk": 1, "evidence_score": 0, "check_answers": False}
    ),
    "cot_distill": _synthesis("cot_generation", _COT_TOKENS, {"verify": "never"}),
    "cot_long2short": _synthesis("cot_long2short", _COT_TOKENS, _REWRITING),
    "cot_short2long": _synthesis("cot_short2long", _COT_TOKENS, _REWRITING),
    **dict.fromkeys(("generate", "instruct_distill"), _answers),
    "instruct_eval": _scoring("instruction_scoring"),
    **dict.fromkeys(("cot_eval", "cot_rvcd_score"), _scoring("cot_scoring")),
    "instruction_balance": _balance,
    "quality_filter": _quality,
    "cot_mix_by_rv_cd": _mix,
}
"""Stage, or job of one stage → how it is read."""
