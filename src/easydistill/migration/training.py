"""EasyDistill 1's `training` section, which went to Hugging Face's and TRL's trainers as it was."""

from __future__ import annotations

from typing import Any

from easydistill.config.values import KeyPath
from easydistill.methods.sft.config import TrainingConfig
from easydistill.migration.draft import Draft, Old

_HUGGING_FACE: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "linear",
}
SUPERVISED: dict[str, Any] = {**_HUGGING_FACE, "num_train_epochs": 3, "learning_rate": 2e-5}
PAIRS: dict[str, Any] = {**_HUGGING_FACE, "num_train_epochs": 3, "learning_rate": 1e-6}
REWARD: dict[str, Any] = {**_HUGGING_FACE, "num_train_epochs": 1, "learning_rate": 1e-4}
GRPO: dict[str, Any] = {**_HUGGING_FACE, "num_train_epochs": 3, "learning_rate": 1e-6}
PPO: dict[str, Any] = {**_HUGGING_FACE, "learning_rate": 3e-6}
"""What the trainers took where a config said nothing; this version has other defaults."""

_NO_EFFECT = frozenset(
    {
        *("report_to", "run_name", "logging_dir", "logging_strategy", "logging_first_step", "disable_tqdm"),
        *(
            "save_strategy",
            "save_safetensors",
            "save_only_model",
            "overwrite_output_dir",
            "push_to_hub",
            "hub_model_id",
        ),
        *("remove_unused_columns", "dataloader_pin_memory", "dataloader_drop_last", "ddp_timeout", "ddp_backend"),
        *("eval_strategy", "evaluation_strategy", "eval_steps", "per_device_eval_batch_size", "do_train", "do_eval"),
        *("deepspeed", "fsdp", "fsdp_config", "resume_from_checkpoint", "ignore_data_skip", "dataset_num_proc"),
    }
)
"""Keys of theirs that steer a run and not what is learned."""


def training(old: Old, draft: Draft, path: KeyPath, defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The section as it is now.

    Args:
        path: where it will stand.
        defaults: what the old trainer took where the config says nothing.
        given: the old section, without what belongs elsewhere.
    """
    known = TrainingConfig.model_fields
    made = {name: value for name, value in given.items() if name in known}
    for name in set(given) - set(known):
        if name in _NO_EFFECT:
            draft.left_out.append(f"training.{name}: there is no such setting; it does not change what is learned")
        elif not given[name]:
            draft.left_out.append(f"training.{name}: there is no such setting, and it was off")
        else:
            problem = "this setting of the old trainer has no equal here, and may change what the student learns"
            old.refuse(("training", name), problem, "remove it from the old file to migrate without it")
    missing = {name: value for name, value in defaults.items() if name not in made}
    if "warmup_steps" in made:
        missing.pop("warmup_ratio", None)
    for name, value in missing.items():
        made[name] = value
        draft.comment((*path, name), "What the old trainer took where nothing was said.")
    if missing:
        names = ", ".join(missing)
        draft.changed.append(f"training: {names} had the old trainer's defaults, which are written out now")
    return made
