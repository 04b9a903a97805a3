"""Jobs of a Kubernetes cluster through kubectl, which has the user's credentials and knows how to renew them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from easydistill.cloud import tools
from easydistill.cloud.spec import JobSpec
from easydistill.cloud.target import Document, State
from easydistill.cloud.tools import ToolFailed
from easydistill.errors import CloudError

_INSTALL = "install kubectl, and let its config name the cluster"
_HINTS = {
    "exceeded quota": "the namespace has no room for it: ask for less, or wait for other jobs to end",
    "forbidden": "the account may not do this in the namespace: ask for the rights, or set namespace",
    "unauthorized": "log in to the cluster again",
    "you must be logged in": "log in to the cluster again",
    "context was not found": "name another context, or none, in the settings of the target",
    "does not exist": "name another context, or none, in the settings of the target",
    'no matches for kind "trainjob"': "install Kubeflow Trainer in the cluster, or use --to kubernetes",
    "the server doesn't have a resource type": "install what the target needs in the cluster",
    "already exists": "a job of this name is there: give another one with --name, or remove it",
    "connection refused": "no cluster answers: check kubectl's config, or the VPN",
    "unable to connect": "no cluster answers: check kubectl's config, or the VPN",
    "no such host": "no cluster answers: check kubectl's config, or the VPN",
}
_READY_SECONDS = 300


class Kubectl:
    """kubectl in a namespace."""

    def __init__(self, namespace: str, context: str | None) -> None:
        self._where = ["--namespace", namespace, *(["--context", context] if context is not None else [])]

    def command(self, verb: str, *arguments: str) -> list[str]:
        return ["kubectl", verb, *self._where, *arguments]

    def call(self, *arguments: str, stdin: str | None = None, timeout: float = tools.TIMEOUT) -> str:
        return tools.call(self.command(*arguments), install=_INSTALL, hints=_HINTS, stdin=stdin, timeout=timeout)

    def stream(self, *arguments: str) -> Iterator[str]:
        return tools.stream(self.command(*arguments), install=_INSTALL, hints=_HINTS)

    def create(self, manifests: str) -> None:
        """Create all objects, or none: those that were created before one was refused are removed.

        Raises:
            CloudError: one was refused.
        """
        try:
            self.call("create", "--filename", "-", "--output", "name", stdin=manifests)
        except ToolFailed as error:
            created = re.findall(r"^[a-z.]+/\S+$", error.printed, re.MULTILINE)
            if created:
                with contextlib.suppress(CloudError):
                    self.call("delete", "--ignore-not-found", "--wait=false", *created)
            raise


class KubernetesClient:
    """Jobs, or what makes jobs, by their names."""

    def __init__(
        self,
        kubectl: Kubectl,
        kind: str,
        selector: str,
        index_label: str,
        state: Callable[[dict[str, Any]], State],
        besides: Sequence[str],
    ) -> None:
        """
        Args:
            selector: of the pods, with a place for the name.
            index_label: of a pod, its number.
            state: of an object as the cluster shows it.
            besides: kinds of the other objects of the same name.
        """
        self._kubectl, self._kind, self._selector, self._index = kubectl, kind, selector, index_label
        self._state, self._besides = state, besides

    def submit(self, spec: JobSpec, document: Document) -> str:
        self._kubectl.create(document.text)
        return spec.name

    def find(self, name: str) -> str | None:
        return None if self.status(name).phase == "gone" else name

    def status(self, id: str) -> State:
        try:
            found = self._kubectl.call("get", self._kind, id, "--output", "json")
        except ToolFailed as error:
            if "notfound" in error.text.lower():
                return State("gone", reason="the cluster does not know it")
            raise
        return self._state(json.loads(found))

    def logs(self, id: str, node: int | None, lines: int | None, follow: bool) -> Iterator[str]:
        selector = self._selector.format(id) + (f",{self._index}={node}" if node is not None else "")
        tail = -1 if lines is None else lines
        options = ["--prefix", "--tail", str(tail), "--max-log-requests", "1000", "--ignore-errors"]
        return self._kubectl.stream("logs", "--selector", selector, *options, *(["--follow"] if follow else []))

    def cancel(self, id: str) -> None:
        for kind in (self._kind, *self._besides):
            self._kubectl.call("delete", kind, id, "--ignore-not-found", "--wait=false")


def copy_from_pod(kubectl: Kubectl, pod: dict[str, Any], folder: str, exclude: Sequence[str], target: Path) -> None:
    """Copy a folder of a volume here, through a pod that is started for it and removed afterwards.

    Raises:
        CloudError: the pod does not start, or the copy breaks off; what was copied whole stays.
    """
    name = f"pod/{pod['metadata']['name']}"
    kubectl.create(json.dumps(pod))
    try:
        kubectl.call("wait", "--for=condition=Ready", name, f"--timeout={_READY_SECONDS}s", timeout=_READY_SECONDS + 30)
        left_out = [f"--exclude={pattern}" for pattern in exclude]
        _unpack(kubectl.command("exec", name, "--", "tar", "-cf", "-", *left_out, "-C", folder, "."), target)
    finally:
        with contextlib.suppress(CloudError):
            kubectl.call("delete", name, "--ignore-not-found", "--wait=false", "--grace-period=0")


def _unpack(command: list[str], target: Path) -> None:
    # What tar complains of goes to a file: a pipe that nobody reads meanwhile would stop it.
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError:
            raise tools.missing(command[0], _INSTALL) from None
        with process:
            assert process.stdout is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    # The filter keeps an archive from writing outside of the folder.
                    archive.extractall(target, filter="data")
                broken = ""
            except (tarfile.TarError, OSError) as error:
                broken = str(error)
                process.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if broken or (process.returncode and not _only_moved(said)):
        raise ToolFailed(command, said or broken, _HINTS)


def _only_moved(said: str) -> bool:
    """Whether all that tar complains of is that a job that runs has written meanwhile."""
    harmless = ("file changed as we read it", "file removed before we read it", "command terminated with exit code 1")
    lines = [line for line in said.splitlines() if line.strip()]
    return bool(lines) and all(line.strip().lower().endswith(harmless) for line in lines)
