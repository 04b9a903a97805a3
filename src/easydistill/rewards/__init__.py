"""Rewards for PPO and GRPO: one a file, named as the `rewards` section names it.

A module declares what `contracts.reward.RewardModule` says (`Config`, `make(config, context) -> Reward`) and may
declare what `RewardDefaults` lists. Importing one loads neither torch nor another heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydistill.contracts._sections import section_of
from easydistill.contracts.reward import REWARD, UNJUDGED, Reward, RewardConfig, RewardContext, Rollout
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

REWARDS = Registry("rewards", __name__, REWARD)


def rewards_section() -> Any:
    """The type of a job's `rewards` section: a key for every registered reward, which holds its own config."""
    return section_of(REWARDS, RewardsConfig, RewardConfig, "RewardsSection", __name__)


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
    return [issue for module, config in modules for issue in module.issues(config)]


def unjudged(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """Why none of a section's rewards that count could judge any answer to a row; None where one may."""
    counted = {name: config for name, config in section.chosen().items() if config.weight}
    for name, config in counted.items():
        if REWARDS.module(name).knows(config, meta):
            return None
    who = " and ".join(f"rewards.{name}" for name in counted)
    return f"{who} cannot judge any answer: the row holds nothing to go by"


def malformed(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """What a section's rewards could not read of a row's fields; None where they can.

    Ask it of every row before training: later, a reward that meets such a row raises DataError.
    """
    for name, config in section.chosen().items():
        problem: str | None = REWARDS.module(name).check(config, meta)
        if problem:
            return f"rewards.{name}: {problem}"
    return None


def _named(kind: str, section: RewardsConfig) -> dict[str, str]:
    return {
        f"{name}.{key}": value
        for name, config in section.chosen().items()
        for key, value in getattr(REWARDS.module(name), kind)(config).items()
    }
