"""A typed job, such as `validate` returns, as a config to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PipelineConfig
from easydistill.errors import ConfigError, ConfigIssue


def as_source(config: str | Path | Mapping[str, Any] | JobConfig) -> str | Path | Mapping[str, Any]:
    """A config as `load_config` reads it; a typed job as the mapping of what is set in it.

    Raises:
        ConfigError: it is a pipeline's, whose jobs have been put together already.
    """
    if not isinstance(config, JobConfig):
        return config
    if isinstance(config, PipelineConfig):
        hint = "give the mapping or the file that it was made from"
        raise ConfigError(ConfigIssue("config", "", "a pipeline is not read again from its typed config", hint))
    found: dict[str, Any] = _revealed(config.model_dump(by_alias=True, exclude_unset=True))
    return found


def _revealed(value: Any) -> Any:
    """A typed config's values with the secrets in them, which the run's files hide again."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {name: _revealed(item) for name, item in value.items()}
    return [_revealed(item) for item in value] if isinstance(value, list | tuple) else value
