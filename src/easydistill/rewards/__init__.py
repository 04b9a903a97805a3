"""Rewards for PPO and GRPO: one per file, named as in the `rewards` section.

A module has `Config`, a `RewardConfig` with the reward's own parameters, and `make(config, context) -> Reward`; see
`_base.py`. It may also have these functions:

- `files(config)` and `models(config)`: the files and models that its config names, by key. They must exist before a
  run, and their contents are part of what the run depends on.
- `issues(config)`: what else is wrong with them, as far as that can be found without loading them.
- `check(config, meta)`: what is wrong with the fields of a row that the reward reads, or None.
- `knows(config, meta)`: whether the row has what the reward needs in order to judge an answer.

Importing a module loads neither torch nor any other heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from typing import Any

from pydantic import Field, create_model

from easydistill.config.rewards import RewardConfig, RewardsConfig
from easydistill.errors import ConfigIssue
from easydistill.registry import Registry
from easydistill.rewards._base import UNJUDGED, Reward, RewardContext, Rollout
from easydistill.rewards._weighted import RewardScores, WeightedRewards, close_all

__all__ = [
    "REWARDS",
    "UNJUDGED",
    "Reward",
    "RewardContext",
    "RewardScores",
    "Rollout",
    "WeightedRewards",
    "build",
    "files",
    "issues",
    "malformed",
    "models",
    "rewards_section",
    "unjudged",
]

REWARDS = Registry("rewards", __name__)


def rewards_section() -> Any:
    """The type of a job's `rewards` section: one key per registered reward, with the reward's own config."""
    fields: dict[str, Any] = {}
    for name in REWARDS.names():
        config: type[RewardConfig] = REWARDS.module(name).Config
        fields[name] = (config | None, Field(default=None, description=getdoc(config)))
    section: Any = create_model("RewardsSection", __base__=RewardsConfig, __module__=__name__, **fields)
    section.__doc__ = RewardsConfig.__doc__
    return section


def build(section: RewardsConfig, context: RewardContext) -> WeightedRewards:
    """Make every reward of a section. The caller closes the result.

    Raises:
        ConfigError: a reward cannot work with the context, for example without a judge, or with a teacher that has
            other tokens than the policy.
        MissingExtra, ModelError, DataError: as documented by each reward.
    """
    made: dict[str, Reward] = {}
    chosen = section.chosen()
    try:
        for name, config in chosen.items():
            made[name] = REWARDS.module(name).make(config, context)
    except BaseException:
        close_all(list(made.values()))
        raise
    return WeightedRewards(made, {name: config.weight for name, config in chosen.items()})


def files(section: RewardsConfig) -> dict[str, str]:
    """The files that a section names, by dotted key below `rewards`, such as `{"judge.prompt": "mine.txt"}`."""
    return _named("files", section)


def models(section: RewardsConfig) -> dict[str, str]:
    """The models that a section names, by dotted key below `rewards`."""
    return _named("models", section)


def issues(section: RewardsConfig) -> list[ConfigIssue]:
    """What is wrong with the models that a section names, as far as their files show it."""
    modules = ((REWARDS.module(name), config) for name, config in section.chosen().items())
    return [issue for module, config in modules if hasattr(module, "issues") for issue in module.issues(config)]


def unjudged(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """Why none of a section's rewards with a non-zero weight could judge any answer to a row; None if one could."""
    weighted = {name: config for name, config in section.chosen().items() if config.weight}
    for name, config in weighted.items():
        module = REWARDS.module(name)
        if not hasattr(module, "knows") or module.knows(config, meta):
            return None
    names = " and ".join(f"rewards.{name}" for name in weighted)
    return f"{names} cannot judge any answer: the row has no field that they need"


def malformed(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of a row that a section's rewards read; None if nothing is.

    Call this for every row before training: later, a reward that meets such a row raises DataError.
    """
    for name, config in section.chosen().items():
        module = REWARDS.module(name)
        problem: str | None = module.check(config, meta) if hasattr(module, "check") else None
        if problem:
            return f"rewards.{name}: {problem}"
    return None


def _named(kind: str, section: RewardsConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, config in section.chosen().items():
        module = REWARDS.module(name)
        if hasattr(module, kind):
            found.update({f"{name}.{key}": value for key, value in getattr(module, kind)(config).items()})
    return found
