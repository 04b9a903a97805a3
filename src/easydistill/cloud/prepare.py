"""A config and a target's settings → a `JobSpec`, with everything checked that can be checked before money is spent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from easydistill import api
from easydistill.cloud.secrets import check_references, environment_of_job, referred, refuse_inline_secrets
from easydistill.cloud.settings import Mount, TargetConfig
from easydistill.cloud.spec import CONFIG_FOLDER, JobSpec
from easydistill.config.job import JobConfig
from easydistill.config.reading import LoadedConfig
from easydistill.config.reading.files import placed_elsewhere
from easydistill.config.reading.given import in_folder
from easydistill.config.reading.syntax import read_file
from easydistill.engine.secrets import credentials_named
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.jobs._row_paths import paths_of
from easydistill.launch.place import check_shared, place_of, sections_of
from easydistill.recipes import PREFIX

_LONGEST_NAME = 40
"""Targets add to it: the number of a submission, that of a machine."""


@dataclass(frozen=True)
class Prepared:
    """A job that may be rendered."""

    spec: JobSpec
    run_directory: Path
    """On this machine: what is submitted is recorded in it, and `fetch` fills it."""
    notes: tuple[str, ...]
    config: str
    """The config as JSON."""
    number: int
    """Which submission of the run it is."""
    store: dict[str, Any] | None
    """`storage.options` of a run that is kept in an object store."""


def prepare(
    config: Path, overrides: Sequence[str], settings: TargetConfig, *, name: str | None = None, number: int = 1
) -> Prepared:
    """Check a job and say what it needs.

    Args:
        name: of the job; by default made of the run directory's.
        number: which submission of this run it is.

    Raises:
        ConfigError: with what is wrong with the config, with the settings, or with both together.
    """
    _refuse_recipe(str(config))
    source = read_file(config).plain()
    check_references(referred(source, overrides), settings)
    with environment_of_job(settings):
        loaded = api.load(config, overrides)
        refuse_inline_secrets(loaded, settings)
        api.check_row_paths(loaded.job)
    nodes = _nodes(loaded.job, settings)
    _check_processes(loaded.job, settings)
    remote = loaded.job.remote
    run_directory = remote or _inside(settings, str(loaded.run_directory))
    issues = _issues_of_places(loaded, settings, run_directory)
    if issues:
        raise ConfigError(issues)
    text = json.dumps(_sent(loaded.source, config.parent, settings), indent=2, ensure_ascii=False) + "\n"
    file = f"{config.stem}.json"
    spec = JobSpec(
        name=f"{_slug(name or loaded.run_directory.name)}-{number}",
        config_name=file,
        config=text if settings.config_path is None else None,
        config_path=settings.config_path or f"{CONFIG_FOLDER}/{file}",
        run_directory=run_directory,
        workdir=settings.workdir,
        image=settings.image,
        overrides=tuple(overrides),
        nodes=nodes,
        gpus=settings.gpus,
        cpus=settings.cpus,
        memory=settings.memory,
        env=dict(settings.env),
        secrets=dict(settings.secrets),
        mounts=settings.mounts,
        retries=settings.retries,
        max_seconds=None if settings.max_hours is None else round(settings.max_hours * 3600),
        port=settings.port,
    )
    here = _run_directory_here(loaded, settings)
    store = None if remote is None else loaded.job.storage.options
    return Prepared(spec, here, tuple(_notes(loaded, settings)), text, number, store)


def _refuse_recipe(config: str) -> None:
    """A recipe's rows are files of this machine's installation."""
    if config.startswith(PREFIX):
        name = config.removeprefix(PREFIX).partition(":")[0]
        hint = f"easydistill init --recipe {name}, and submit the config in that folder"
        raise ConfigError(ConfigIssue("command line", "config", "a recipe is not sent with its files", hint))


def _sent(source: dict[str, Any], folder: Path, settings: TargetConfig) -> dict[str, Any]:
    """A config as it is sent. A pipeline's `data`, and plain files of extensions, are relative to the folder of its
    file, which is elsewhere there."""
    source = placed_elsewhere(
        source, lambda file: replace(file, path=_inside(settings, file.beside(folder).path.removeprefix("./")))
    )
    data = source.get("data")
    if source.get("job_type") != "pipeline" or not isinstance(data, dict):
        return source
    moved = dict(data)
    for name, path in data.items():
        if isinstance(path, str) and (placed := in_folder(path, folder)) != path:
            moved[name] = _inside(settings, placed)
    return {**source, "data": moved}


def _run_directory_here(loaded: LoadedConfig, settings: TargetConfig) -> Path:
    """Where this machine keeps what it knows of the run. An absolute path of the config is one of the job's."""
    path = loaded.run_directory
    if loaded.job.remote is not None:
        return Path("runs") / PurePosixPath(loaded.job.remote).name
    if not path.is_absolute():
        return path
    return _local(settings, str(path)) or Path("runs") / path.name


def _nodes(job: JobConfig, settings: TargetConfig) -> int:
    """How many machines, once the job agrees.

    Raises:
        ConfigError: its `launch` section says otherwise, or it does not train on several machines.
    """
    asked = {section.nodes for section in sections_of(job)} - {"auto"}
    nodes = settings.nodes or next((count for count in asked if isinstance(count, int)), 1)
    if nodes == 1 and asked - {1}:
        problem = f"it is {max(asked - {1}, key=str)}, and nodes of the target is 1"
        raise ConfigError(ConfigIssue("config", "launch.nodes", problem, "let both be the same"))
    for section in sections_of(job):
        if section.rendezvous is not None:
            problem = "it names a machine, and those of the job are not known before it runs"
            raise ConfigError(ConfigIssue("config", "launch.rendezvous", problem, "leave it out: the target says it"))
    check_shared(job, place_of(job, launcher_variables(nodes, settings.port) if nodes > 1 else {}))
    return nodes


def launcher_variables(nodes: int, port: int, rank: int = 0) -> dict[str, str]:
    """What a machine of a job of several is told: who it is, and where the first one is."""
    return {"RANK": str(rank), "WORLD_SIZE": str(nodes), "MASTER_ADDR": "node-0", "MASTER_PORT": str(port)}


def _check_processes(job: JobConfig, settings: TargetConfig) -> None:
    for section in sections_of(job):
        if isinstance(section.processes, int) and 0 < settings.gpus < section.processes:
            problem = f"it is {section.processes}, and each machine has {settings.gpus} GPUs"
            raise ConfigError(
                ConfigIssue("config", "launch.processes", problem, "set gpus of the target, or remove it")
            )


def _inside(settings: TargetConfig, path: str) -> str:
    """A path of the config as the job sees it."""
    return str(PurePosixPath(settings.workdir) / path)


def _issues_of_places(loaded: LoadedConfig, settings: TargetConfig, run_directory: str) -> list[ConfigIssue]:
    where = str(loaded.path)
    if loaded.job.remote is None:
        found = _issues_of_run_directory(settings, run_directory, where)
    else:
        found = _issues_of_working_directory(loaded.job, settings, where)
    for key, path in paths_of(loaded.job):
        local = _local(settings, _inside(settings, path))
        if local is not None and not any(mark in path for mark in "*?[") and not local.exists():
            found.append(ConfigIssue(where, key, f"{local}: nothing is there, where the job would look for it", ""))
    return found


def _issues_of_run_directory(settings: TargetConfig, run_directory: str, where: str) -> list[ConfigIssue]:
    mount = settings.mount_of(run_directory)
    if mount is None:
        problem = f"the run directory, {run_directory}, is on no mount: a job that is preempted would lose it"
        hint = "set workdir to a folder on a mount, output_dir to a path on one, or output_dir to a place in a store"
        return [ConfigIssue(where, "output_dir", problem, hint)]
    if mount.read_only:
        problem = f"the run directory, {run_directory}, is on {mount.path}, which is mounted for reading"
        return [ConfigIssue(where, "output_dir", problem, "remove read_only, or put it on another mount")]
    return []


def _issues_of_working_directory(job: JobConfig, settings: TargetConfig, where: str) -> list[ConfigIssue]:
    """Of a run in a store, whose machines share a directory if they are several."""
    own = job.storage.working_directory
    if own is None:
        return []
    path = _inside(settings, own)
    mount = settings.mount_of(path)
    if mount is not None and mount.read_only:
        problem = f"{path} is on {mount.path}, which is mounted for reading"
        return [ConfigIssue(where, "storage.working_directory", problem, "remove read_only, or name another")]
    if mount is None and (settings.nodes or 1) > 1:
        problem = f"{path} is on no mount, and each machine would have its own"
        return [ConfigIssue(where, "storage.working_directory", problem, "name a folder on a mount")]
    return []


def _local(settings: TargetConfig, path: str) -> Path | None:
    """Where this machine sees a path of the job's machines, if it does."""
    mount = settings.mount_of(path)
    return None if mount is None else local_path(mount, path)


def local_path(mount: Mount, path: str) -> Path | None:
    """Where this machine sees a path that is on a mount, if it does."""
    if mount.local is None:
        return None
    return Path(mount.local).expanduser() / PurePosixPath(path).relative_to(mount.path)


def _notes(loaded: LoadedConfig, settings: TargetConfig) -> list[str]:
    found = list(loaded.notes)
    for key, path in paths_of(loaded.job):
        inside = _inside(settings, path)
        if settings.mount_of(inside) is None:
            found.append(f"{key}: {inside} is on no mount, so it has to be in the image")
    if (remote := loaded.job.remote) is not None and not credentials_named({*settings.secrets, *settings.env}):
        found.append(f"the run is kept in {remote}: the job's machines need a role that may write there, or secrets")
    config = settings.config_path
    if config is not None and _local(settings, config) is None:
        found.append(f"the job reads its config at {config}: put this one there")
    return found


def _slug(name: str) -> str:
    """A name that every target takes: lower-case letters, digits, hyphens; a letter first."""
    kept = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not kept or not kept[0].isalpha():
        kept = f"run-{kept}".rstrip("-")
    if len(kept) > _LONGEST_NAME:
        kept = f"{kept[: _LONGEST_NAME - 7].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return kept


def same_config(path: Path, text: str) -> bool:
    """Whether a file holds a config, whatever its layout."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == json.loads(text))
