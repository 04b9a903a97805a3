"""What of a config is secret, and where it must come from: never from the document that is sent."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SecretStr

from easydistill.cloud.settings import TargetConfig, looks_secret
from easydistill.config.reading import LoadedConfig
from easydistill.config.values import KeyPath, dotted
from easydistill.engine.environment import restored
from easydistill.errors import ConfigError, ConfigIssue

_REFERENCE = re.compile(r"\$\{env:\s*([^}\s]+)\s*\}")
_INSTEAD = "easydistill-stands-for-{}"
"""Stands for a secret while the config is checked on a machine that may not have it."""


def referred(value: Any, overrides: Sequence[str]) -> list[str]:
    """Names of environment variables to which a config and its overrides refer, in the order of their first use."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, str):
            found.update(dict.fromkeys(_REFERENCE.findall(value)))
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(inner)

    look(value)
    look(list(overrides))
    return list(found)


def check_references(names: Sequence[str], settings: TargetConfig) -> None:
    """Every variable that the config names must be given to the job.

    Raises:
        ConfigError: some are not.
    """
    hint = f'add it to env, or, if it is secret, to secrets: "{{}}": "{settings.secret_example}"'
    missing = [name for name in names if name not in settings.env and name not in settings.secrets]
    if missing:
        problem = "the config refers to ${{env:{0}}}, and the job would not have it"
        raise ConfigError(
            [ConfigIssue("settings of the target", "env", problem.format(name), hint.format(name)) for name in missing]
        )


@contextlib.contextmanager
def environment_of_job(settings: TargetConfig) -> Iterator[None]:
    """The variables that the job will have, with placeholders for secrets: a config is resolved from the environment,
    and the machine that submits it need not have the secrets."""
    given = {**settings.env, **{name: _INSTEAD.format(name) for name in settings.secrets}}
    with restored(given):
        os.environ.update(given)
        yield


def refuse_inline_secrets(loaded: LoadedConfig, settings: TargetConfig) -> None:
    """A loaded config must have references where it has secrets: it was loaded in `environment_of_job`.

    Raises:
        ConfigError: it has secrets themselves, or takes them from variables that are sent openly.
    """
    placeholders = {_INSTEAD.format(name) for name in settings.secrets}
    open_values = {value: name for name, value in settings.env.items()}
    issues: list[ConfigIssue] = []
    where = str(loaded.path or "config")
    hint = (
        'write "${env:NAME}" in the config, and in the secrets of the target where it is kept: '
        f'"NAME": "{settings.secret_example}"'
    )
    for path, secret in _secrets_in(loaded.job, ()):
        if secret in placeholders or secret == "EMPTY":
            continue
        if secret in open_values:
            problem = f"it comes from {open_values[secret]}, which is in env and would be sent openly"
        else:
            problem = "it is a secret, and the config would be sent with it"
        issues.append(ConfigIssue(where, dotted(path), problem, hint))
    known = {issue.path for issue in issues}
    for path, text in _texts([loaded.source, *loaded.overrides], ()):
        shown = dotted(path[1:]) if path[0] == 0 else "--set"
        if looks_secret(text) and shown not in known:
            issues.append(ConfigIssue(where, shown, "it looks like a secret", hint))
    if issues:
        raise ConfigError(issues)


def _secrets_in(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Secrets of a config, with their places: values of secret fields, and passwords in URLs."""
    if isinstance(value, SecretStr):
        yield path, value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets_in(item, (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _secrets_in(item, (*path, index))
    elif isinstance(value, str) and "://" in value and "@" in value:
        password = urllib.parse.urlsplit(value).password
        if password:
            yield path, urllib.parse.unquote(password)


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
