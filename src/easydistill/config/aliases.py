"""EasyDistill 1 names: job types and keys that old configs use, and what they are called now."""

from __future__ import annotations

from typing import Any

from easydistill.config.document import Document, KeyPath, dotted
from easydistill.errors import ConfigIssue

JOB_TYPE_ALIASES: dict[str, str] = {
    "kd_black_box_api": "black_box_kd_api",
    "kd_black_box_local": "black_box_kd_local",
    "kd_black_box_train_only": "black_box_kd_local",
    "kd_white_box": "white_box_kd_local",
    "kd_white_box_train_only": "white_box_kd_local",
    **{
        f"{name}_{way}": name
        for name in (
            "instruction_expansion",
            "instruction_refinement",
            "instruction_response_extraction",
            "cot_generation",
            "cot_long2short",
            "cot_short2long",
        )
        for way in ("api", "batch")
    },
    "cot_eval_api": "cot_scoring",
    "instruct_eval_api": "instruction_scoring",
    "instruct_sample_api": "task_balancing",
    **{f"rank_dpo_{way}": "dpo" for way in ("api", "local")},
    **{f"rl_reward_{way}": "reward_model" for way in ("api", "local")},
    "rl_ppo": "ppo",
    "rl_grpo": "grpo",
}

_PAIRS = "`preference_data` makes pairs from prompts; both jobs go into one file: examples/pipeline/"
SEVERAL_JOBS: dict[str, str] = {
    "rank_dpo_api": f"{_PAIRS}sft_dpo.json",
    "rank_dpo_local": f"{_PAIRS}sft_dpo.json",
    "rl_reward_api": f"{_PAIRS}sft_reward_ppo.json",
    "rl_reward_local": f"{_PAIRS}sft_reward_ppo.json",
    "rl_ppo": 'the reward model is `"rewards": {"reward_model": {"model": …}}`: examples/pipeline/sft_reward_ppo.json',
    "rl_grpo": 'the reward model is `"rewards": {"reward_model": {"model": …}}`: examples/reinforcement/grpo.json',
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


def apply_aliases(document: Document) -> dict[KeyPath, ConfigIssue]:
    """Rename old names in place. Returns an issue for each key given under both names."""
    issues: dict[KeyPath, ConfigIssue] = {}
    job_type = document.data.get("job_type")
    if isinstance(job_type, str):
        document.data["job_type"] = JOB_TYPE_ALIASES.get(job_type, job_type)
        if job_type in SEVERAL_JOBS:
            document.old_job_type = job_type
    for old, new in KEY_ALIASES.items():
        section: Any = document.at(old[:-1])
        old_key, new_key = str(old[-1]), str(new[-1])
        if not isinstance(section, dict) or old_key not in section:
            continue
        value = section.pop(old_key)
        if new_key in section:
            problem = f"{old_key} is another name of {new_key}, and both are given"
            issues[old] = ConfigIssue(document.where(old), dotted(old), problem, f"keep {new_key}")
            continue
        section[new_key] = value
        document.renamed[new] = old
        if old in document.lines:
            document.lines[new] = document.lines[old]
    return issues
