"""SkyPilot: a managed job, which is started again elsewhere when its machines are taken away.

Clouds, prices and credentials are SkyPilot's; it has no Alibaba Cloud. Its variables say which machine this is and
where the first one is; `run` gives them the names that `launch` reads. Secrets are taken from the environment of
`submit` by `sky` itself; the YAML has their names alone.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from easydistill.cloud import tools
from easydistill.cloud.manifests import to_yaml
from easydistill.cloud.settings import Mount, TargetConfig
from easydistill.cloud.spec import JobSpec, script
from easydistill.cloud.target import Client, Document, NotKnown, State
from easydistill.config.base import NonEmptyStr, PositiveInt, Unfit
from easydistill.errors import EXIT_INTERRUPTED, CloudError

_CONFIG_FOLDER = "/tmp/easydistill"
_INSTALL = "pip install skypilot with your clouds, e.g. 'skypilot[aws]'"
_HINTS = {
    "not enabled": "run `sky check`: it says which clouds can be used, and what the others lack",
    "no cloud access": "run `sky check`: it says which clouds can be used, and what the others lack",
    "credential": "run `sky check`: it says which clouds can be used, and what the others lack",
    "quota": "ask the cloud for more, or set infra to another place",
    "could not connect": "start SkyPilot's server: `sky api start`",
    "connection refused": "start SkyPilot's server: `sky api start`",
}
_KILLED = (EXIT_INTERRUPTED, 137, 143)
"""Exit codes of a command that was told to end, by SIGINT or SIGTERM, or was killed."""
_PHASES = {
    **dict.fromkeys(("PENDING", "SUBMITTED", "STARTING"), "waiting"),
    **dict.fromkeys(("RUNNING", "RECOVERING", "CANCELLING", "WINDING_DOWN"), "running"),
    "SUCCEEDED": "done",
    "CANCELLED": "cancelled",
}
_SUBMIT_SECONDS = 1800.0
"""The first managed job starts a controller, which takes minutes."""


class Config(TargetConfig):
    """What SkyPilot chooses machines by."""

    name: ClassVar[str] = "skypilot"
    mount_sources: ClassVar[tuple[str, ...]] = ("s3://", "gs://", "r2://", "https://", "cos://", "nebius://", "volume:")
    secret_pattern: ClassVar[str] = "environment"
    secret_example: ClassVar[str] = "environment"

    target: Literal["skypilot"] | None = None
    """Which target the file is for; `--to` says it too."""
    accelerator: NonEmptyStr | None = None
    """The kind of GPU, such as `H100`; needed where `gpus` is not 0."""
    infra: NonEmptyStr | None = None
    """Where: `aws`, `gcp/us-central1`, `k8s/my-context`. By default the cheapest place that is open to you."""
    spot: bool = False
    """Machines that may be taken away at any time, and are cheaper."""
    disk_gb: PositiveInt | None = None
    """Size of each machine's disk."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if bool(self.gpus) != (self.accelerator is not None):
            raise Unfit("gpus and accelerator belong together", 'set both, e.g. "gpus": 8, "accelerator": "H100"')
        if self.max_hours is not None:
            raise Unfit("a managed job of SkyPilot's has no time limit", "remove max_hours")
        for mount in self.mounts:
            if mount.source.startswith("volume:") and mount.read_only:
                raise Unfit(f"SkyPilot does not mount {mount.source} for reading alone", "remove read_only")
        return self


def render(spec: JobSpec, config: TargetConfig) -> Document:
    assert isinstance(config, Config)
    if spec.config is not None:
        spec = replace(spec, config_path=f"{_CONFIG_FOLDER}/{spec.config_name}")
    task: dict[str, Any] = {"name": spec.name, "num_nodes": spec.nodes, "resources": _resources(spec, config)}
    if spec.env:
        task["envs"] = dict(sorted(spec.env.items()))
    if spec.secrets:
        task["secrets"] = dict.fromkeys(sorted(spec.secrets))
    buckets = {mount.path: _bucket(mount) for mount in spec.mounts if not mount.source.startswith("volume:")}
    if buckets:
        task["file_mounts"] = buckets
    volumes = {m.path: m.source.removeprefix("volume:") for m in spec.mounts if m.source.startswith("volume:")}
    if volumes:
        task["volumes"] = volumes
    task["run"] = script(spec, _rank(spec))
    notes = []
    if spec.run_source and not spec.run_source.startswith("volume:"):
        notes.append(
            f"the run directory is on {spec.run_source}: what is written goes there with a delay, so a machine "
            "that is taken away may lose its last minutes, and replies in them are asked for again; a volume does not"
        )
    return Document(to_yaml([task]), ".yaml", notes)


def _resources(spec: JobSpec, config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"image_id": f"docker:{spec.image}"}
    if config.infra is not None:
        found["infra"] = config.infra
    if config.accelerator is not None:
        found["accelerators"] = f"{config.accelerator}:{spec.gpus}"
    if spec.cpus is not None:
        found["cpus"] = f"{spec.cpus}+"
    if spec.memory is not None:
        found["memory"] = f"{_gigabytes(spec.memory)}+"
    if config.disk_gb is not None:
        found["disk_size"] = config.disk_gb
    if config.spot:
        found["use_spot"] = True
    # A command that was told to end has not failed, so that is not counted.
    found["job_recovery"] = {"max_restarts_on_errors": spec.retries, "recover_on_exit_codes": list(_KILLED)}
    return found


def _gigabytes(memory: str) -> int:
    """SkyPilot counts whole gigabytes."""
    number, unit = int(memory[:-2]), memory[-2:]
    return {"Mi": max(1, -(-number // 1024)), "Gi": number, "Ti": number * 1024}[unit]


def _bucket(mount: Mount) -> dict[str, str]:
    # MOUNT alone does not let a file grow, as journals do.
    return {"source": mount.source, "mode": "MOUNT" if mount.read_only else "MOUNT_CACHED"}


def _rank(spec: JobSpec) -> tuple[str, ...]:
    if spec.nodes == 1:
        return ()
    return (
        'export RANK="$SKYPILOT_NODE_RANK" WORLD_SIZE="$SKYPILOT_NUM_NODES"',
        f'export MASTER_ADDR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)" MASTER_PORT={spec.port}',
    )


class SkyClient:
    """Managed jobs by their ids, through `sky`."""

    def _sky(self, *arguments: str, timeout: float = tools.TIMEOUT) -> str:
        return tools.call(["sky", *arguments], install=_INSTALL, hints=_HINTS, timeout=timeout)

    def submit(self, spec: JobSpec, document: Document) -> str:
        missing = [name for name in spec.secrets if not os.environ.get(name)]
        if missing:
            raise CloudError(
                f"sky takes {', '.join(missing)} from the environment, which has not all of them\n    → export them"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "task.yaml"
            file.write_text(document.text, encoding="utf-8")
            given = [part for name in sorted(spec.secrets) for part in ("--secret", name)]
            self._sky("jobs", "launch", "--yes", "--detach-run", *given, str(file), timeout=_SUBMIT_SECONDS)
        # The job is sent: what fails from here on must not make it forgotten.
        try:
            found = self.find(spec.name)
        except CloudError as error:
            raise NotKnown(f"sky has taken {spec.name}, and does not tell its id: {error}") from error
        if found is None:
            raise NotKnown(f"sky has taken the job, and does not list {spec.name}\n    → look at `sky jobs queue`")
        return found

    def _jobs(self) -> list[dict[str, Any]]:
        printed = self._sky("jobs", "queue", "--all", "--output", "json", timeout=300)
        # A server that is being started is told of first.
        start = re.search(r"^\[", printed, re.MULTILINE)
        if start is None:
            raise CloudError(f"sky lists no jobs: {printed.strip()[-300:]}\n    → look at `sky jobs queue`")
        jobs: list[dict[str, Any]] = json.loads(printed[start.start() :])
        return jobs

    def find(self, name: str) -> str | None:
        ids = [job["job_id"] for job in self._jobs() if job.get("job_name") == name]
        return str(max(ids)) if ids else None

    def status(self, id: str) -> State:
        job = next((job for job in self._jobs() if str(job.get("job_id")) == id), None)
        if job is None:
            return State("gone", reason="sky does not list it")
        word = str(job.get("status"))
        phase = "failed" if word.startswith("FAILED") else _PHASES.get(word, "running")
        shown = ("infra", "recovery_count")
        facts = {name.replace("_", " "): str(job[name]) for name in shown if job.get(name)}
        return State(phase, word, str(job.get("failure_reason") or ""), facts)

    def logs(self, id: str, node: int | None, lines: int | None, follow: bool) -> Iterator[str]:
        if node is not None:
            raise CloudError("sky shows all machines' lines together, each with its name\n    → without --node")
        tail = [] if lines is None else ["--tail", str(lines)]
        command = ["sky", "jobs", "logs", id, "--follow" if follow else "--no-follow", *tail]
        return tools.stream(command, install=_INSTALL, hints=_HINTS)

    def cancel(self, id: str) -> None:
        self._sky("jobs", "cancel", "--yes", id)


def connect(config: TargetConfig) -> Client:
    return SkyClient()
