"""A stage's task as JSON, for the commands on other machines.

Secrets are not sent: each is replaced by an HMAC of it, by which the other command, which has read the same config with
its own environment, finds its own copy.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Artifact
from easydistill.errors import EasyDistillError
from easydistill.launch.messages import Task

_SECRET = "secret hmac"


def task_to_json(task: Task, key: bytes) -> dict[str, Any]:
    """A task as JSON types.

    Args:
        key: the run's.
    """
    return {
        "job_type": task.job_type,
        "job": _plain(task.job, key),
        "launch": task.launch.model_dump(mode="json", exclude_unset=True),
        "stage": task.stage,
        "directory": str(task.directory.absolute()),
        "run_directory": str(task.run_directory.absolute()),
        "inputs": {
            name: {"directory": str(artifact.directory.absolute()), "manifest": asdict(artifact.manifest)}
            for name, artifact in task.inputs.items()
        },
        "fingerprint": task.fingerprint,
        "started": task.started.isoformat() if task.started else None,
        "said": sorted(task.said),
        "deterministic": task.deterministic,
    }


def task_from_json(value: Mapping[str, Any], key: bytes, job: JobConfig) -> Task:
    """The task again, for processes that show and log nothing.

    Args:
        job: as read here; has the secrets.

    Raises:
        EasyDistillError: a secret is not known here.
    """
    redactor = Redactor()
    redactor.register_config(job)
    known = {_name(secret, key): secret for secret in _secrets(job)}
    return Task(
        job_type=value["job_type"],
        job=_filled(value["job"], known, ""),
        launch=LaunchConfig.model_validate(value["launch"]),
        stage=value["stage"],
        directory=Path(value["directory"]),
        run_directory=Path(value["run_directory"]),
        inputs={name: _artifact(artifact) for name, artifact in value["inputs"].items()},
        fingerprint=value["fingerprint"],
        started=datetime.datetime.fromisoformat(value["started"]) if value["started"] else None,
        redactor=redactor,
        said=frozenset(value["said"]),
        metrics=None,
        quiet=True,
        deterministic=value["deterministic"],
    )


def _artifact(value: Mapping[str, Any]) -> Artifact:
    manifest = {**value["manifest"], "rows": RowCounts(**value["manifest"]["rows"])}
    return Artifact(Path(value["directory"]), Manifest(**manifest))


def _name(secret: SecretStr, key: bytes) -> str:
    return hmac.new(key, b"secret\0" + secret.get_secret_value().encode(), hashlib.sha256).hexdigest()


def _plain(value: Any, key: bytes) -> Any:
    if isinstance(value, SecretStr):
        return {_SECRET: _name(value, key)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item, key) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, key) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path | datetime.date):
        return str(value)
    raise TypeError(f"a config's {type(value).__name__} is not sent to other machines")


def _filled(value: Any, known: Mapping[str, SecretStr], path: str) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_SECRET}:
            if value[_SECRET] not in known:
                raise EasyDistillError(
                    f"{path[1:]} is another here than on the first machine\n"
                    "    → start the same command with the same environment on all machines"
                )
            return known[value[_SECRET]]
        return {name: _filled(item, known, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, known, f"{path}.{number}") for number, item in enumerate(value)]
    return value


def _secrets(value: Any) -> Iterator[SecretStr]:
    """Every secret inside a config."""
    if isinstance(value, SecretStr):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item)
