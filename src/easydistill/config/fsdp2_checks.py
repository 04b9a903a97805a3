"""What a training asks for that parts of each weight (`launch.strategy: "fsdp2"`) cannot do as whole copies do."""

from __future__ import annotations

from easydistill.config.launch import LaunchConfig
from easydistill.config.training import TrainerConfig
from easydistill.errors import ConfigIssue

IN_PARTS = frozenset({"adamw_torch", "adamw_torch_fused", "adamw_8bit", "sgd"})
"""Optimisers that step on the parts of a weight. Adafactor's (transformers) mixes them with whole tensors, and
bitsandbytes has no operator for them."""


def fsdp2_issues(launch: LaunchConfig | None, training: TrainerConfig | None) -> list[ConfigIssue]:
    """What of `training` does not go with fsdp2; nothing without it."""
    if launch is None or launch.strategy != "fsdp2" or training is None:
        return []
    found = []
    if training.optim not in IN_PARTS:
        problem = f"fsdp2 keeps a part of each weight in each process, on which {training.optim} cannot step"
        hint = 'set training.optim="adamw_torch_fused" (or "adamw_8bit"), or launch.strategy="ddp"'
        found.append(ConfigIssue("config", "training.optim", problem, hint))
    if getattr(training, "compile", None) is True:
        problem = "fsdp2 gathers each layer's weights while it runs, which compiled layers do not let it"
        found.append(ConfigIssue("config", "training.compile", problem, "remove training.compile, or use zero2 or ddp"))
    return found
