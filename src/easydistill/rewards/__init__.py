"""Rewards for PPO and GRPO: one per file, named as in the `rewards` section.

A module declares what `contracts.reward.RewardModule` says (`Config`, `make(config, context) -> Reward`) and may
declare what `RewardDefaults` lists. Importing one loads neither torch nor another heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydistill.config.extensions import section_of
from easydistill.contracts.reward import REWARD, UNJUDGED, Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import ConfigIssue
from easydistill.plain_files import short_names
from easydistill.registry import Registry
from easydistill.rewards._section import RewardsConfig
from easydistill.rewards._weighted import RewardScores, WeightedRewards, close_all

__all__ = [
    "REWARDS",
    "UNJUDGED",
    "Reward",
    "RewardContext",
    "RewardScores",
    "Rollout",
    "WeightedRewards",
    "blindness",
    "build",
    "files",
    "issues",
    "malformed",
    "models",
    "rewards_section",
    "unjudged",
]

REWARDS = Registry("rewards", __name__, REWARD, f"{__name__}._function")


def rewards_section() -> Any:
    """The type of a job's `rewards` section: one key per registered reward, with the reward's own config."""
    return section_of(REWARDS, RewardsConfig, RewardConfig, "RewardsSection", __name__)


def build(section: RewardsConfig, context: RewardContext) -> WeightedRewards:
    """Make every reward of a section. The caller closes the result.

    Raises:
        ConfigError: a reward cannot work with the context, for example without a judge, or with a teacher that has
            other tokens than the policy.
        MissingExtra, ModelError, DataError: as documented by each reward.
    """
    made: dict[str, Reward] = {}
    chosen = section.chosen()
    shown = short_names(list(chosen))
    try:
        for name, config in chosen.items():
            made[shown[name]] = REWARDS.module(name).make(config, context)
    except BaseException:
        close_all(list(made.values()))
        raise
    return WeightedRewards(made, {shown[name]: config.weight for name, config in chosen.items()})


def files(section: RewardsConfig) -> dict[str, str]:
    """The files that a section names, by dotted key below `rewards`, such as `{"judge.prompt": "mine.txt"}`."""
    return _named("files", section)


def models(section: RewardsConfig) -> dict[str, str]:
    """The models that a section names, by dotted key below `rewards`."""
    return _named("models", section)


def issues(section: RewardsConfig) -> list[ConfigIssue]:
    """What is wrong with the models that a section names, as far as their files show it."""
    modules = ((REWARDS.module(name), config) for name, config in section.chosen().items())
    return [issue for module, config in modules for issue in module.issues(config)]


def blindness(section: RewardsConfig) -> tuple[str, str] | None:
    """(dotted key, what is blind there) if a reward of a section cannot judge answers to prompts with images."""
    for name, config in section.chosen().items():
        blind: str | None = REWARDS.module(name).blindness(config)
        if blind is not None:
            return f"rewards.{name}", blind
    return None


def unjudged(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """Why none of a section's rewards with a non-zero weight could judge any answer to a row; None if one could."""
    weighted = {name: config for name, config in section.chosen().items() if config.weight}
    for name, config in weighted.items():
        if REWARDS.module(name).knows(config, meta):
            return None
    names = " and ".join(f"rewards.{name}" for name in weighted)
    return f"{names} cannot judge any answer: the row has no field that they need"


def malformed(section: RewardsConfig, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of a row that a section's rewards read; None if nothing is.

    Call this for every row before training: later, a reward that meets such a row raises DataError.
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
