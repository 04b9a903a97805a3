"""Job types of EasyDistill 1 and 2 that this version does not have: why, or that `migrate` writes their equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydistill.config.job import JobConfig
from easydistill.config.reading.aliases import current_job_type
from easydistill.config.reading.nodes import Node
from easydistill.errors import ConfigError

_GROUNDING = "grpo does not take rows with images yet; the reward for boxes and points is there: rewards.grounding"
_IMAGES = (
    "its stages are not written anew; label, black_box_kd_api, black_box_kd_local, white_box_kd_local and cot_scoring "
    "take rows with images"
)
_VIDEO = "videos and pictures are not generated or judged here: teacher and student see text alone"
_AGENTS = (
    "agents are written anew here: the job agent_trajectories plays tasks with tools, a mock user and a rubric, and "
    "its rows are trained on as they are (examples/agent_trajectories)"
)
_SEARCH = "search agents are not here yet: no searches are made while rows are made"
_DRAFT = (
    "draft models are students of white_box_kd_local or on_policy_kd here, measured by evaluation.metrics.acceptance "
    "(examples/draft)"
)
_REWRITING = (
    "prompts for pictures are not planned, rewritten and reviewed in steps; instruction_refinement rewrites "
    "instructions in one"
)
_SEEDWISE = (
    "seeds are not expanded one by one in rounds; instruction_expansion shows several at once, and its variant "
    '"evolve" starts from one'
)
_DECISIONS = (
    "probabilities that a teacher states in words are not learned; white_box_kd_local learns its own distributions"
)

_NAMES = {
    _GROUNDING: "mmkd_rl_grounding rl_grounding",
    _IMAGES: "mm_instruct_distill mm_cot_distill mm_cot_long2short mm_cot_short2long mm_instruct_eval mm_cot_eval "
    "advanced_mm_distill advanced_mm_cot_distill",
    _VIDEO: "t2i_distill prompt_optimize t2i_generation t2i_eval advanced_t2i_distill t2i_single_model_eval "
    "t2i_multi_model_eval ti2i_single_model_eval ti2i_multi_model_eval t2v_distill t2v_prompt_optimize t2v_generation "
    "t2v_eval advanced_t2v_distill",
    _AGENTS: "agentkd_local agentkd_data_gen agentkd_solve_task agentkd_rubrics_filter agentkd_distill agent_distill",
    _SEARCH: "search_agent_distill",
    _DRAFT: "speckd_local",
    _REWRITING: "agentic_rewrite pe_rewrite_eval pe_rewrite_filter pe_rewrite_build_sft pe_rewrite_distill",
    _SEEDWISE: "seed_anchored_expansion",
    _DECISIONS: "system1_distill system1_build_cases system1_elicit system1_aggregate system1_build_dataset",
}
UNAVAILABLE: dict[str, str] = {name: reason for reason, names in _NAMES.items() for name in names.split()}
"""Job type → why there is no equal."""

WRITTEN_ANEW: dict[str, int] = {
    "kd_white_box_train_only_multi": 1,
    **dict.fromkeys(
        (
            *("instruct_distill", "cot_distill", "instruct_eval", "cot_eval", "dpo_data_build"),
            *("augmented_instruct_distill", "advanced_instruct_distill", "balanced_instruct_distill"),
            "advanced_cot_distill",
        ),
        2,
    ),
}
"""Job types whose equal `migrate` writes → the version that they are of."""


_MIGRATE = "let `easydistill migrate FILE -o new.json` write its equal"


def why_not_here(job_type: str) -> tuple[str, str] | None:
    """Problem and hint for an old job type that cannot be read as it is; None for one that is not old."""
    if job_type in UNAVAILABLE:
        return f"{job_type} has no equal here: {UNAVAILABLE[job_type]}", "docs/migration.md lists what there is"
    if job_type in WRITTEN_ANEW:
        problem = f"{job_type} is a job of EasyDistill {WRITTEN_ANEW[job_type]}, written otherwise here"
        return problem, _MIGRATE
    return None


def refuse_old(document: Node, classes: Mapping[str, type[JobConfig]]) -> None:
    """Stop at a config of another version with that alone: what else differs would only bury it.

    Raises:
        ConfigError: it is one.
    """
    data: dict[str, Any] = document.plain()
    job_type = current_job_type(data.get("job_type", "instruct_distill" if "backend" in data else None))
    if job_type in classes:
        if "backend" in data and "backend" not in classes[job_type].model_fields:
            problem = f"a {job_type} job with a `backend` is one of EasyDistill 2, written otherwise here"
            raise ConfigError(document.issue(("backend",), problem, _MIGRATE))
    elif why := why_not_here(job_type):
        raise ConfigError(document.issue(("job_type",), *why))
