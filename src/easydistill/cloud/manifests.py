"""Parts of Kubernetes' manifests: what the targets `kubernetes` and `kubeflow` have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from easydistill.cloud.settings import Mount, TargetConfig
from easydistill.cloud.spec import CONFIG_FOLDER, JobSpec
from easydistill.config.base import NonEmptyStr, PositiveInt, Unfit
from easydistill.errors import ConfigError, ConfigIssue

LABEL = "app.kubernetes.io/managed-by"
MANAGER = "easydistill"
MOST_CONFIG = 1_000_000
"""Bytes of a ConfigMap; the API server takes 1 MiB of everything in it."""
_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
ObjectName = Annotated[str, Field(pattern=rf"^{_NAME}\Z")]


class KubernetesSettings(TargetConfig):
    """Keys of every target on Kubernetes."""

    mount_sources: ClassVar[tuple[str, ...]] = ("pvc:", "nfs://", "host:")
    secret_pattern: ClassVar[str] = rf"{_NAME}/[-._a-zA-Z0-9]+"
    secret_example: ClassVar[str] = "name-of-the-secret/key"

    namespace: ObjectName = "default"
    """Namespace of all objects."""
    context: NonEmptyStr | None = None
    """kubectl's context; by default the current one."""
    gpu_resource: NonEmptyStr = "nvidia.com/gpu"
    """The resource by which the cluster counts GPUs."""
    node_selector: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Labels that machines must have."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that are tolerated, as Kubernetes writes them."""
    service_account: ObjectName | None = None
    """Service account of the pods."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets with which the image is pulled."""
    shared_memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)\Z")] = "16Gi"
    """Size of /dev/shm on machines with GPUs, which NCCL and data loaders use."""
    grace_seconds: PositiveInt = 300
    """Seconds that a pod has to write a checkpoint when it is to end."""

    @field_validator("mounts")
    @classmethod
    def _sources_are_complete(cls, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
        for mount in mounts:
            volume_source(mount)
        return mounts

    def mounts_sub_paths(self, mount: Mount) -> bool:
        return True


def volume_source(mount: Mount) -> dict[str, Any]:
    """`pvc:NAME`, `nfs://SERVER/PATH` or `host:/PATH` as a volume's source.

    Raises:
        Unfit: the source is none of them.
    """
    source = mount.source
    if match := re.fullmatch(rf"pvc:({_NAME})", source):
        claim: dict[str, Any] = {"claimName": match[1]}
        return {"persistentVolumeClaim": claim | ({"readOnly": True} if mount.read_only else {})}
    if match := re.fullmatch(r"nfs://([^/\s]+)(/\S*)", source):
        return {"nfs": {"server": match[1], "path": match[2]} | ({"readOnly": True} if mount.read_only else {})}
    if match := re.fullmatch(r"host:(/\S+)", source):
        return {"hostPath": {"path": match[1], "type": "Directory"}}
    raise Unfit(f"{source} names no volume", "write pvc:NAME, nfs://SERVER/PATH or host:/PATH")


def labels(spec: JobSpec) -> dict[str, str]:
    return {LABEL: MANAGER, "app.kubernetes.io/name": spec.name}


def metadata(spec: JobSpec, settings: KubernetesSettings) -> dict[str, Any]:
    """Of an object of the job."""
    return {"name": spec.name, "namespace": settings.namespace, "labels": labels(spec)}


def config_map(spec: JobSpec, settings: KubernetesSettings) -> list[dict[str, Any]]:
    """The config, if it is sent along.

    Raises:
        ConfigError: it is too large.
    """
    if spec.config is None:
        return []
    if len(spec.config.encode()) > MOST_CONFIG:
        problem = f"the config has {len(spec.config.encode()):,} bytes, and a ConfigMap takes {MOST_CONFIG:,}"
        raise ConfigError(ConfigIssue("config", "", problem, "put it on a mount, and set config_path"))
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(spec, settings),
            "immutable": True,
            "data": {spec.config_name: spec.config},
        }
    ]


def plain(text: str) -> str:
    """A word of a command or a variable's value, in which Kubernetes would put a variable in the place of `$(NAME)`."""
    return text.replace("$(", "$$(")


def environment(spec: JobSpec) -> list[dict[str, Any]]:
    """Variables, those of secrets as references to them."""
    found: list[dict[str, Any]] = [{"name": name, "value": plain(value)} for name, value in sorted(spec.env.items())]
    for name, reference in sorted(spec.secrets.items()):
        secret, _, key = reference.partition("/")
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def volumes(spec: JobSpec, settings: KubernetesSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes of the pod, where its container sees them)."""
    found: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for mount in spec.mounts:
        name = names.setdefault(mount.source, f"storage-{len(names)}")
        if all(volume["name"] != name for volume in found):
            found.append({"name": name, **volume_source(mount)})
        place: dict[str, Any] = {"name": name, "mountPath": mount.path}
        place |= {"subPath": mount.sub_path} if mount.sub_path is not None else {}
        seen.append(place | ({"readOnly": True} if mount.read_only else {}))
    if spec.config is not None:
        found.append({"name": "config", "configMap": {"name": spec.name}})
        seen.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    if spec.gpus:
        found.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}})
        seen.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return found, seen


def resources(spec: JobSpec, settings: KubernetesSettings) -> dict[str, Any]:
    """What each pod needs."""
    asked: dict[str, str] = {}
    if spec.cpus is not None:
        asked["cpu"] = str(spec.cpus)
    if spec.memory is not None:
        asked["memory"] = spec.memory
    # Cores beyond those that are asked for may be used while they are free; memory cannot be taken back.
    limits = {"memory": spec.memory} if spec.memory is not None else {}
    if spec.gpus:
        limits[settings.gpu_resource] = str(spec.gpus)
        asked[settings.gpu_resource] = str(spec.gpus)
    return ({"requests": asked} if asked else {}) | ({"limits": limits} if limits else {})


def placing(settings: KubernetesSettings) -> dict[str, Any]:
    """Where pods may run, as keys of a pod's spec."""
    found: dict[str, Any] = {"terminationGracePeriodSeconds": settings.grace_seconds}
    if settings.node_selector:
        found["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        found["tolerations"] = [dict(one) for one in settings.tolerations]
    if settings.service_account is not None:
        found["serviceAccountName"] = settings.service_account
    if settings.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return found


def to_yaml(manifests: list[dict[str, Any]]) -> str:
    """Manifests as one stream of YAML, keys in the order in which they were written."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    shown = (yaml.dump(one, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000) for one in manifests)
    return "---\n".join(shown)
