"""Rewards for PPO and GRPO: one a file, named as the `rewards` section names it.

A module offers `Config`, a `RewardConfig` with the reward's own parameters, and `make(config, context) -> Reward`; see
`contracts/reward.py`. Where its config names files, `files(config)` tells them by key, and where it names models, `models(config)`
does: they must be there before a run, and what is in them is part of what the run learns from; what else is wrong
with them and can be told without loading them, `issues(config)` tells. Where a reward reads fields of rows,
`check(config, meta)` tells what is wrong with a row's, or None, and `knows(config, meta)` whether the row holds what
the reward judges by. Importing a module loads neither torch nor any other heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from typing import Any

from pydantic import Field, create_model

from easydistill.contracts.reward import UNJUDGED, Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import ConfigIssue
from easydistill.registry import Registry
from easydistill.rewards._composite import Composite, Scored, close_all
from easydistill.rewards._section import RewardsConfig

__all__ = [
    "REWARDS",
    "UNJUDGED",
    "Composite",
    "Reward",
    "RewardContext",
    "Rollout",
    "Scored",
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
    """The type of a job's `rewards` section: a key for every registered reward, which holds its own config."""
    fields: dict[str, Any] = {}
    for name in REWARDS.names():
        config: type[RewardConfig] = REWARDS.module(name).Config
        fields[name] = (config | None, Field(default=None, description=getdoc(config)))
    section: Any = create_model("RewardsSection", __base__=RewardsConfig, __module__=__name__, **fields)
    section.__doc__ = RewardsConfig.__doc__
    return section


def build(section: RewardsConfig, context: RewardContext) -> Composite:
    """Make every reward of a section. Close what it returns.

    Raises:
        ConfigError: a reward cannot work with what there is: no judge, a teacher with other tokens.
        MissingExtra, ModelError, DataError: as each reward says.
    """
    made: dict[str, Reward] = {}
    chosen = section.chosen()
    try:
        for name, config in chosen.items():
            made[name] = REWARDS.module(name).make(config, context)
    except BaseException:
        close_all(list(made.values()))
        raise
    return Composite(made, {name: config.weight for name, config in chosen.items()})


def files(section: RewardsConfig) -> dict[str, str]:
    """The files that a section names, by dotted key below `rewards`: `{"judge.prompt": "mine.txt"}`."""
    return _named("files", section)


def models(section: RewardsConfig) -> dict[str, str]:
    """The models that a section names, by dotted key below `rewards`."""
    return _named("models", section)


def issues(section: RewardsConfig) -> list[ConfigIssue]:
    """What is wrong with the models that a section names, as far as their files tell."""
    modules = ((REWARDS.module(name), config) for name, config in section.chosen().items())
    return [issue for module, config in modules if hasattr(module, "issues") for issue in module.issues(config)]


def unjudged(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """Why none of a section's rewards that count could judge any answer to a row; None where one may."""
    counted = {name: config for name, config in section.chosen().items() if config.weight}
    for name, config in counted.items():
        module = REWARDS.module(name)
        if not hasattr(module, "knows") or module.knows(config, meta):
            return None
    who = " and ".join(f"rewards.{name}" for name in counted)
    return f"{who} cannot judge any answer: the row holds nothing to go by"


def malformed(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """What a section's rewards could not read of a row's fields; None where they can.

    Ask it of every row before training: later, a reward that meets such a row raises DataError.
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
