"""Plain Kubernetes: an indexed Job, a headless Service by which its pods find the first one, and a ConfigMap.

Each pod runs the same command. Kubernetes gives a pod its number as an annotation, which becomes RANK; the first pod's
name in the Service is MASTER_ADDR. A pod that is evicted or preempted is replaced, without being counted, and resumes;
one that fails is replaced `retries` times. Exit codes 2 (bad config) and 3 (too many rejected rows) end the job, for
the same command would end in the same way.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from easydistill.cloud import manifests
from easydistill.cloud.kubectl import Kubectl, KubernetesClient
from easydistill.cloud.manifests import KubernetesSettings
from easydistill.cloud.settings import TargetConfig
from easydistill.cloud.spec import JobSpec
from easydistill.cloud.target import Client, Document, State
from easydistill.config.base import NonNegativeInt
from easydistill.errors import EXIT_BAD_CONFIG, EXIT_TOO_MANY_REJECTED

INDEX = "batch.kubernetes.io/job-completion-index"


class Config(KubernetesSettings):
    """A cluster that kubectl reaches."""

    name: ClassVar[str] = "kubernetes"

    target: Literal["kubernetes"] | None = None
    """Which target the file is for; `--to` says it too."""
    keep_seconds: NonNegativeInt | None = Field(default=None)
    """Seconds after which a Job that has ended is removed from the cluster; by default it stays."""


def render(spec: JobSpec, config: TargetConfig) -> Document:
    assert isinstance(config, Config)
    objects = manifests.config_map(spec, config)
    if spec.nodes > 1:
        objects.append(_service(spec, config))
    objects.append(_job(spec, config))
    return Document(manifests.to_yaml(objects), ".yaml")


def _service(spec: JobSpec, config: Config) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": manifests.metadata(spec, config),
        "spec": {
            "clusterIP": "None",
            "selector": {"job-name": spec.name},
            # The others look for the first pod before it has started.
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": spec.port}],
        },
    }


def _job(spec: JobSpec, config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": spec.nodes,
        "parallelism": spec.nodes,
        # When one pod fails the others end with its exit code: all of them count.
        "backoffLimit": spec.retries * spec.nodes,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "easydistill",
                        "operator": "In",
                        "values": [EXIT_BAD_CONFIG, EXIT_TOO_MANY_REJECTED],
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
    }
    if spec.max_seconds is not None:
        found["activeDeadlineSeconds"] = spec.max_seconds
    if config.keep_seconds is not None:
        found["ttlSecondsAfterFinished"] = config.keep_seconds
    found["template"] = {"metadata": {"labels": manifests.labels(spec)}, "spec": _pod(spec, config)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": manifests.metadata(spec, config), "spec": found}


def _pod(spec: JobSpec, config: Config) -> dict[str, Any]:
    volumes, seen = manifests.volumes(spec, config)
    container: dict[str, Any] = {
        "name": "easydistill",
        "image": spec.image,
        "command": [manifests.plain(word) for word in spec.command],
        "workingDir": spec.workdir,
        "env": [*_rank(spec), *manifests.environment(spec)],
        "resources": manifests.resources(spec, config),
        "volumeMounts": seen,
    }
    # A Service called vllm would set VLLM_PORT, which vLLM takes for its own.
    found = {"restartPolicy": "Never", "enableServiceLinks": False, **manifests.placing(config)}
    if spec.nodes > 1:
        found["subdomain"] = spec.name
    return {**found, "containers": [container], "volumes": volumes}


def _rank(spec: JobSpec) -> list[dict[str, Any]]:
    """What a pod of several is told, under the names that `launch` reads."""
    if spec.nodes == 1:
        return []
    return [
        {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}},
        {"name": "WORLD_SIZE", "value": str(spec.nodes)},
        {"name": "MASTER_ADDR", "value": f"{spec.name}-0.{spec.name}"},
        {"name": "MASTER_PORT", "value": str(spec.port)},
    ]


def state(found: dict[str, Any]) -> State:
    """Of a Job as the cluster shows it."""
    status = found.get("status") or {}
    facts = {name: str(status[name]) for name in ("active", "succeeded", "failed") if status.get(name)}
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            phase = "done" if condition["type"] == "Complete" else "failed"
            reason = " ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return State(phase, condition["type"], reason if phase == "failed" else "", facts)
    ready = status.get("ready")
    return State("running" if ready else "waiting", "Active" if status.get("active") else "Pending", "", facts)


def connect(config: TargetConfig) -> Client:
    assert isinstance(config, Config)
    kubectl = Kubectl(config.namespace, config.context)
    return KubernetesClient(kubectl, "jobs.batch", "job-name={}", INDEX, state, ("services", "configmaps"))
