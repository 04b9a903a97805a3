"""The file that describes a target: image, machines, storage, secrets. Not part of a job's config.

Each module of `targets/` adds the keys of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeInt, PositiveFloat, PositiveInt, Section, Unfit

MEETING_PORT = 29400
"""Where the first machine awaits the others, unless the settings say otherwise."""
_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"\b(sk-(?=\S*\d)[\w-]{16,}|(hf_|ghp_)[A-Za-z0-9]{20,}|glpat-[\w-]{16,}|(LTAI|AKIA)[A-Za-z0-9]{12,})"
)
_BY_LAUNCH = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE"}
)


def looks_secret(text: str) -> bool:
    """Whether a text contains what looks like a well-known service's key."""
    return _SECRET_VALUE.search(text) is not None


def secret_variable(env: Mapping[str, str]) -> str | None:
    """A variable whose name or value looks like a secret; None if there is none."""
    return next((name for name, value in env.items() if _SECRET_NAME.search(name) or looks_secret(value)), None)


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise Unfit(f"{path} is not an absolute path", "write a path inside the job's machines, such as /mnt/shared")
    return str(PurePosixPath(path))


AbsolutePath = Annotated[NonEmptyStr, AfterValidator(_absolute)]
"""A path on the job's machines."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)\Z")]
"""An amount of memory: `64Gi`."""


class Mount(Section):
    """Storage that every machine of the job sees under the same path."""

    path: AbsolutePath
    """Where the job's machines see it."""
    source: NonEmptyStr
    """What is mounted, in the target's notation: docs/cloud.md lists what each takes."""
    sub_path: NonEmptyStr | None = None
    """A folder inside the source that is mounted instead of its root; only of Kubernetes' volumes."""
    read_only: bool = False
    """Mounted for reading."""
    local: NonEmptyStr | None = None
    """Where this machine sees the same storage, if it does: paths are then checked before a job is sent, and `fetch`
    copies from there."""


class TargetConfig(Section):
    """What every target needs to know."""

    name: ClassVar[str]
    """As in `--to`."""
    mount_sources: ClassVar[tuple[str, ...]] = ()
    """Beginnings of what `mounts.source` may be."""
    secret_pattern: ClassVar[str]
    """What a reference to a secret looks like."""
    secret_example: ClassVar[str]

    schema_uri: str | None = Field(default=None, alias="$schema")
    """Used by editors only."""
    target: str | None = None
    """Which target the file is for; `--to` says it too."""
    image: NonEmptyStr
    """Container image in which `easydistill` is installed, with the extras that the job needs."""
    nodes: PositiveInt | None = None
    """Machines; by default `launch.nodes` of the job, else one."""
    gpus: NonNegativeInt = 0
    """GPUs of each machine; 0 for a job that only asks an API."""
    cpus: PositiveInt | None = None
    """CPU cores of each machine."""
    memory: Memory | None = None
    """Memory of each machine, such as `64Gi`."""
    env: dict[VariableName, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Environment variables that are not secret, among them all that the config refers to by `${env:NAME}`."""
    secrets: dict[VariableName, NonEmptyStr] = {}  # noqa: RUF012
    """Environment variable → where the target keeps its value. The value itself is never written here, nor sent."""
    mounts: tuple[Mount, ...] = ()
    """Storage. The run directory has to be on one that the job may write."""
    workdir: AbsolutePath = "/workspace"
    """The folder in which the command runs: relative paths of the config are relative to it."""
    config_path: AbsolutePath | None = None
    """Where the job finds its config, on a mount. By default the config is sent along."""
    retries: NonNegativeInt = 3
    """How often the job is started again after it has failed. Preemptions do not count where the target tells them
    apart. Each start is the same command, which resumes."""
    max_hours: PositiveFloat | None = None
    """The job is ended after so many hours."""
    port: Annotated[PositiveInt, Field(le=65535)] = MEETING_PORT
    """Where the first machine awaits the others."""

    @model_validator(mode="after")
    def _holds_no_secrets(self) -> Self:
        if (name := secret_variable(self.env)) is not None:
            hint = f'move it to secrets, as a reference: "{name}": "{self.secret_example}"'
            raise Unfit(f"env.{name} looks like a secret, and env is sent as it is written", hint)
        for name in self.env.keys() & self.secrets.keys():
            raise Unfit(f"{name} is in env and in secrets", "remove one of them")
        for name in sorted((self.env.keys() | self.secrets.keys()) & _BY_LAUNCH):
            raise Unfit(f"{name} is set by the target, for each machine", f"remove {name}")
        return self

    @model_validator(mode="after")
    def _references_are_of_the_target(self) -> Self:
        for name, reference in self.secrets.items():
            if not re.fullmatch(self.secret_pattern, reference) or looks_secret(reference):
                # The reference itself is not shown: it may be the secret.
                hint = f'write where {self.name} keeps it: "{name}": "{self.secret_example}"'
                raise Unfit(f"secrets.{name} is no reference to a secret of {self.name}", hint)
        return self

    @model_validator(mode="after")
    def _mounts_are_of_the_target(self) -> Self:
        paths = [mount.path for mount in self.mounts]
        if len(set(paths)) < len(paths):
            raise Unfit("two mounts have the same path", "give each its own")
        for mount in self.mounts:
            if not mount.source.startswith(self.mount_sources):
                known = ", ".join(f"{start}…" for start in self.mount_sources)
                raise Unfit(f"{self.name} does not mount {mount.source}", f"use one of {known}")
            if mount.sub_path is not None and not self.mounts_sub_paths(mount):
                raise Unfit(f"{self.name} does not mount a sub_path of {mount.source}", "write it into source")
        if self.config_path is not None and self.mount_of(self.config_path) is None:
            raise Unfit(f"{self.config_path} is on no mount", "put it on one, or leave config_path out")
        return self

    def mounts_sub_paths(self, mount: Mount) -> bool:
        """Whether a mount may name a folder inside its source."""
        return False

    def mount_of(self, path: str) -> Mount | None:
        """The mount on which a path of the job's machines is; of nested ones the innermost."""
        place = PurePosixPath(path)
        found = [mount for mount in self.mounts if place.is_relative_to(mount.path)]
        return max(found, key=lambda mount: len(PurePosixPath(mount.path).parts), default=None)

    def recorded(self) -> dict[str, Any]:
        """The settings as JSON, to be read again by `status` and the other commands. There are no secrets in them."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
