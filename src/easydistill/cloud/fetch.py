"""`fetch`: the files of a run that took place elsewhere, copied into the run directory of this machine.

Where they are is where the job's storage is: a folder that this machine sees too (`local` of a mount), a volume of a
cluster, a bucket that was mounted, which its own tool copies, or a store in which the run was kept. Checkpoints stay
behind unless they are asked for.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from easydistill.cloud import manifests, tools
from easydistill.cloud.kubectl import Kubectl, copy_from_pod
from easydistill.cloud.manifests import KubernetesSettings
from easydistill.cloud.prepare import local_path
from easydistill.cloud.records import FOLDER, Submission, chosen
from easydistill.cloud.settings import Mount, TargetConfig
from easydistill.config.location import is_remote
from easydistill.engine.copies import MARK, copying
from easydistill.errors import CloudError

CHECKPOINTS = "checkpoint-*"
_ALWAYS_LEFT = (FOLDER, ".lock", MARK)
_HOURS = 6 * 3600.0
_BUCKET_TOOLS = {
    "oss://": ("ossutil", "install ossutil, and configure it"),
    "s3://": ("aws", "pip install awscli, and `aws configure`"),
    "gs://": ("gcloud", "install gcloud, and `gcloud auth login`"),
}


def fetch(directory: Path, number: int | None = None, *, checkpoints: bool = False) -> Submission:
    """Copy the run's files here. Files that were fetched before are replaced; none is removed.

    Args:
        directory: the run directory from which the job was submitted.
        number: which submission; by default the last.
        checkpoints: copy them too.

    Raises:
        CloudError: the storage cannot be reached from here.
        DataError: a run took place here, or fetched files have been changed here.
        RunDirectoryBusy: a job is running here in the same directory.
    """
    submission = chosen(directory, number)
    settings = submission.typed_settings()
    left = (*_ALWAYS_LEFT, *(() if checkpoints else (CHECKPOINTS,)))
    if is_remote(submission.run_directory):
        from easydistill.remote.fetch import fetch as fetch_from_store

        fetch_from_store(
            submission.run_directory,
            directory,
            options=submission.store,
            wanted=lambda path: (
                not any(fnmatch.fnmatch(part, left_out) for part in path.split("/") for left_out in left)
            ),
        )
        return submission
    mount = settings.mount_of(submission.run_directory)
    assert mount is not None, "checked before it was submitted"
    here = local_path(mount, submission.run_directory)
    if here is not None and here.resolve() == directory.resolve():
        raise CloudError(f"{directory} is the job's own run directory: there is nothing to copy")
    with copying(directory):
        if here is not None:
            _copy(here, directory, left)
        elif isinstance(settings, KubernetesSettings):
            pod = reader_pod(submission, settings, mount)
            kubectl = Kubectl(settings.namespace, settings.context)
            copy_from_pod(kubectl, pod, submission.run_directory, left, directory)
        else:
            _copy_bucket(settings, mount, submission.run_directory, left, directory)
    return submission


def _copy(source: Path, target: Path, left: tuple[str, ...]) -> None:
    if not source.is_dir():
        raise CloudError(
            f"{source}: nothing is there\n    → the job has not started yet, or the mount's `local` is wrong"
        )

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names for pattern in left if fnmatch.fnmatch(name, pattern)}

    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)


def _copy_bucket(settings: TargetConfig, mount: Mount, folder: str, left: tuple[str, ...], target: Path) -> None:
    scheme = next((start for start in _BUCKET_TOOLS if mount.source.startswith(start)), None)
    if scheme is None:
        raise CloudError(
            f"{mount.source} cannot be read from here\n"
            "    → mount it on this machine, and say where in the mount's `local`"
        )
    tool, install = _BUCKET_TOOLS[scheme]
    inside = PurePosixPath(folder).relative_to(mount.path)
    # DLC writes the bucket's endpoint behind its name, which the tools do not take.
    bucket, _, rest = mount.source.removeprefix(scheme).partition("/")
    place = PurePosixPath(bucket.partition(".")[0] if scheme == "oss://" else bucket) / rest / inside
    tools.call(_bucket_command(tool, f"{scheme}{place}/", left, target), install=install, hints={}, timeout=_HOURS)


def _bucket_command(tool: str, source: str, left: tuple[str, ...], target: Path) -> list[str]:
    if tool == "ossutil":
        return ["ossutil", "cp", "-r", "-f", source, f"{target}/", *(f"--exclude=*{name}*" for name in left)]
    if tool == "aws":
        return ["aws", "s3", "sync", source, str(target), *(f"--exclude=*{name}*" for name in left)]
    pattern = "|".join(f".*{name.replace('.', '[.]').replace('*', '[^/]*')}.*" for name in left)
    return ["gcloud", "storage", "rsync", "--recursive", f"--exclude={pattern}", source, str(target)]


def reader_pod(submission: Submission, settings: KubernetesSettings, mount: Mount) -> dict[str, Any]:
    """A pod of the job's image that sees the storage and does nothing."""
    # Of the job's own name two fetches at once would be one.
    digest = hashlib.sha256(f"{submission.name}{submission.submitted}".encode()).hexdigest()[:6]
    place = {"name": "storage", "mountPath": mount.path, "readOnly": True}
    container: dict[str, Any] = {
        "name": "reader",
        "image": settings.image,
        "command": ["sleep", "21600"],
        "volumeMounts": [place | ({"subPath": mount.sub_path} if mount.sub_path is not None else {})],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{submission.name}-fetch-{digest}",
            "namespace": settings.namespace,
            "labels": {manifests.LABEL: manifests.MANAGER},
        },
        "spec": {
            "restartPolicy": "Never",
            **{key: value for key, value in manifests.placing(settings).items() if key != "nodeSelector"},
            "containers": [container],
            "volumes": [{"name": "storage", **manifests.volume_source(mount)}],
        },
    }
