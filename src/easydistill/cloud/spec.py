"""One job as every target understands it, and its command as a shell script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from easydistill.cloud.settings import Mount

CONFIG_FOLDER = "/etc/easydistill"
"""Where the config is seen that a target sends along as a file."""
_END = "EASYDISTILL_CONFIG_ENDS"
"""Ends the config in a script."""


@dataclass(frozen=True)
class JobSpec:
    """A job: the same command on every machine, storage that all of them see, and what they need."""

    name: str
    """Of lower-case letters, digits and hyphens; another one for each submission."""
    config_name: str
    """The config's file name, `kd.json`: the run directory may be named after it."""
    config: str | None
    """The config as JSON, with references in place of secrets; None if the job finds it at `config_path`."""
    config_path: str
    """Where the command finds it."""
    run_directory: str
    """Absolute, on the job's machines; or the place in a store where the run is kept."""
    workdir: str
    image: str
    overrides: tuple[str, ...] = ()
    """`--set` of the command."""
    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    memory: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment variable → a reference that the target resolves."""
    mounts: tuple[Mount, ...] = ()
    retries: int = 0
    max_seconds: int | None = None
    port: int = 29400

    @property
    def command(self) -> tuple[str, ...]:
        """What each machine runs, in `workdir`."""
        sets = (part for override in self.overrides for part in ("--set", override))
        return ("easydistill", "run", self.config_path, *sets)

    @property
    def run_source(self) -> str:
        """What is mounted where the run directory is; empty if the run is kept in a store."""
        place = PurePosixPath(self.run_directory)
        found = [mount for mount in self.mounts if place.is_relative_to(mount.path)]
        return max(found, key=lambda mount: len(mount.path)).source if found else ""


def script(spec: JobSpec, before: tuple[str, ...] = ()) -> str:
    """The command for targets that take a shell script: the config is written first where it is sent along.

    Args:
        before: lines that set what the command needs to know, such as which machine this is.
    """
    lines = ["set -eu", *before, f"mkdir -p {shlex.quote(spec.workdir)}", f"cd {shlex.quote(spec.workdir)}"]
    if spec.config is not None:
        folder, end = str(PurePosixPath(spec.config_path).parent), _END
        while end in spec.config:
            end += "_"
        lines += [
            f"mkdir -p {shlex.quote(folder)}",
            f"cat > {shlex.quote(spec.config_path)} <<'{end}'",
            spec.config.rstrip("\n"),
            end,
        ]
    return "\n".join([*lines, f"exec {shlex.join(spec.command)}", ""])
