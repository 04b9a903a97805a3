"""Names of job types and keys in EasyDistill 1, and what they are called now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.reading.version1 import (
    BATCH_JOBS,
    GREEDY,
    TRAIN_ONLY,
    WITH_IMAGES,
    drop_prompts,
    move_old_keys,
    note_images,
    note_labels,
    note_sampling,
)
from easydistill.config.values import KeyPath, dotted

JOB_TYPE_ALIASES: dict[str, str] = {
    "kd_black_box_api": "black_box_kd_api",
    "kd_black_box_local": "black_box_kd_local",
    "kd_black_box_train_only": "black_box_kd_local",
    "kd_white_box": "white_box_kd_local",
    "kd_white_box_train_only": "white_box_kd_local",
    "mmkd_black_box_api": "black_box_kd_api",
    "mmkd_black_box_local": "black_box_kd_local",
    "mmkd_white_box": "white_box_kd_local",
    **{f"{name}_{way}": name for name in BATCH_JOBS for way in ("api", "batch")},
    "cot_eval_api": "cot_scoring",
    "mmcot_eval_api": "cot_scoring",
    "instruct_eval_api": "instruction_scoring",
    "instruct_sample_api": "task_balancing",
    **{f"rank_dpo_{way}": "dpo" for way in ("api", "local")},
    **{f"rl_reward_{way}": "reward_model" for way in ("api", "local")},
    "rl_ppo": "ppo",
    "rl_grpo": "grpo",
}

_WRITES = "`easydistill migrate` writes it anew"
_PAIRS = f"{_WRITES}: `preference_data` makes pairs from prompts; both jobs go into one file: examples/pipeline/"
_REWARD = _WRITES + ': the reward model is `"rewards": {"reward_model": {"model": …}}`: examples/'
SEVERAL_JOBS: dict[str, str] = {
    "rank_dpo_api": f"{_PAIRS}sft_dpo.json",
    "rank_dpo_local": f"{_PAIRS}sft_dpo.json",
    "rl_reward_api": f"{_PAIRS}sft_reward_ppo.json",
    "rl_reward_local": f"{_PAIRS}sft_reward_ppo.json",
    "instruct_sample_api": f"{_WRITES}: `task_labelling` names each row's task, `task_balancing` draws from them",
    "rl_ppo": f"{_REWARD}pipeline/sft_reward_ppo.json",
    "rl_grpo": f"{_REWARD}reinforcement/grpo.json",
}
"""Old job types whose configs say more than the job does that they are now: where the rest belongs."""

KEY_ALIASES: dict[KeyPath, KeyPath] = {
    ("training", "max_seq_length"): ("training", "max_length"),
    ("training", "max_seq_len"): ("training", "max_length"),
    ("dataset", "labelled_path"): ("dataset", "labeled_path"),
    ("dataset", "input_path"): ("dataset", "instruction_path"),
    ("dataset", "output_path"): ("dataset", "labeled_path"),
    ("inference", "max_tokens"): ("inference", "max_new_tokens"),
    ("inference", "model_name"): ("inference", "model"),
    ("on_policy", "lambda"): ("on_policy", "rollout_share"),
    ("on_policy", "lmbda"): ("on_policy", "rollout_share"),
    ("synthesis", "prompts", "cot_simplification"): ("synthesis", "prompts", "cot_long2short"),
    ("synthesis", "prompts", "cot_extension"): ("synthesis", "prompts", "cot_short2long"),
    ("training", "lora", "lora_alpha"): ("training", "lora", "alpha"),
    ("training", "lora", "lora_dropout"): ("training", "lora", "dropout"),
}
"""Old path → path now; only the last part differs."""


def current_job_type(written: Any) -> str:
    """The current name of a job type; empty if it is not text."""
    return JOB_TYPE_ALIASES.get(written, written) if isinstance(written, str) else ""


def use_current_names(root: Node, issues: Issues) -> None:
    """Rename old keys in place, in single jobs and pipelines. A key given under both names is an issue."""
    for job in _jobs_in(root):
        job_type = job.find(("job_type",))
        if job_type is not None and current_job_type(job_type.value) not in ("", job_type.value):
            issues.note(job_type, f"{job_type.value} is read as {current_job_type(job_type.value)}")
        for old, new in KEY_ALIASES.items():
            section, name = job.section(old[:-1]), str(new[-1])
            given = section.pop(str(old[-1]), None)
            if given is None:
                continue
            if name in section:
                issues.add(given, f"{old[-1]} is another name of {name}, and both are given", f"keep {name}")
            else:
                section[name] = given
                issues.note(given, f"is read as {dotted(new)}")


def read_old_jobs(root: Node, issues: Issues) -> None:
    """What depends on a job's type in EasyDistill 1: keys that moved to other sections, and notes. After overrides."""
    for job in _jobs_in(root):
        written = job.at(("job_type",))
        if not isinstance(written, str):
            continue
        if written in TRAIN_ONLY:
            drop_prompts(job, issues)
        if written in GREEDY:
            note_sampling(job, issues)
        if written == "kd_white_box":
            note_labels(job, issues)
        if written in WITH_IMAGES:
            note_images(job, issues)
        move_old_keys(job, current_job_type(written), issues)


def _jobs_in(root: Node) -> Iterator[Node]:
    """The config itself; in a pipeline also each job and the shared sections."""
    yield root
    if root.section(("shared",)):
        yield root.value["shared"]
    yield from root.section(("jobs",)).values()
