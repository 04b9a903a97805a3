"""Kubeflow Trainer: a TrainJob of the runtime `torch-distributed`, and a ConfigMap.

The runtime says by PET_* variables, torchrun's, which node this is. They become those that `launch` reads, and each
node runs our command once, which starts its own processes: torchrun is not in between. How often a node is started
again is the runtime's to say (its JobSet's failure policy), for a TrainJob has no word for it.
"""

from __future__ import annotations

import shlex
from typing import Any, ClassVar, Literal

from easydistill.cloud import manifests
from easydistill.cloud.kubectl import Kubectl, KubernetesClient
from easydistill.cloud.manifests import KubernetesSettings, ObjectName
from easydistill.cloud.settings import TargetConfig
from easydistill.cloud.spec import JobSpec
from easydistill.cloud.target import Client, Document, State
from easydistill.config.base import NonNegativeInt
from easydistill.errors import ConfigError, ConfigIssue

_INDEX = "batch.kubernetes.io/job-completion-index"
_NODE = "node"
"""The name of the runtime's group of machines, and of its container."""


class Config(KubernetesSettings):
    """A cluster with Kubeflow Trainer (version 2) that kubectl reaches."""

    name: ClassVar[str] = "kubeflow"

    target: Literal["kubeflow"] | None = None
    """Which target the file is for; `--to` says it too."""
    runtime: ObjectName = "torch-distributed"
    """The ClusterTrainingRuntime. Its replicated job and its container are to be called `node`, as in those that
    Kubeflow ships."""
    retries: NonNegativeInt = 0
    """Must stay 0: a TrainJob's runtime says how often a node is started again."""


def render(spec: JobSpec, config: TargetConfig) -> Document:
    assert isinstance(config, Config)
    _check(spec, config)
    notes = (f"how often nodes are started again is the failure policy of the runtime {config.runtime}",)
    objects = [*manifests.config_map(spec, config), _train_job(spec, config)]
    return Document(manifests.to_yaml(objects), ".yaml", notes)


def _check(spec: JobSpec, config: Config) -> None:
    where = "settings of the target"
    if spec.retries:
        hint = f"leave it out, and set the failure policy of the runtime {config.runtime}"
        raise ConfigError(ConfigIssue(where, "retries", "a TrainJob cannot say it", hint))
    if spec.port != type(config).model_fields["port"].default:
        raise ConfigError(ConfigIssue(where, "port", "the runtime says the port of a TrainJob", "leave it out"))


def _train_job(spec: JobSpec, config: Config) -> dict[str, Any]:
    volumes, seen = manifests.volumes(spec, config)
    pod: dict[str, Any] = {**manifests.placing(config), "containers": [{"name": _NODE, "volumeMounts": seen}]}
    job: dict[str, Any] = {"name": _NODE, "template": {"spec": {"template": {"spec": {**pod, "volumes": volumes}}}}}
    trainer = {
        "image": spec.image,
        "command": ["sh", "-c", manifests.plain(_script(spec))],
        "numNodes": spec.nodes,
        "resourcesPerNode": manifests.resources(spec, config),
        "env": manifests.environment(spec),
    }
    found: dict[str, Any] = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": config.runtime},
        "trainer": {name: value for name, value in trainer.items() if value},
        "runtimePatches": [
            {
                "manager": "easydistill.submit/job",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
            }
        ],
    }
    if spec.max_seconds is not None:
        found["activeDeadlineSeconds"] = spec.max_seconds
    api = "trainer.kubeflow.org/v1alpha1"
    return {"apiVersion": api, "kind": "TrainJob", "metadata": manifests.metadata(spec, config), "spec": found}


def _script(spec: JobSpec) -> str:
    told = ["set -eu"]
    if spec.nodes > 1:
        names = {
            "RANK": "PET_NODE_RANK",
            "WORLD_SIZE": "PET_NNODES",
            "MASTER_ADDR": "PET_MASTER_ADDR",
            "MASTER_PORT": "PET_MASTER_PORT",
        }
        told.append("export " + " ".join(f'{ours}="${theirs}"' for ours, theirs in names.items()))
    folder = shlex.quote(spec.workdir)
    return "\n".join([*told, f"mkdir -p {folder}", f"cd {folder}", f"exec {shlex.join(spec.command)}", ""])


def state(found: dict[str, Any]) -> State:
    """Of a TrainJob as the cluster shows it."""
    status = found.get("status") or {}
    facts: dict[str, str] = {}
    for job in status.get("jobsStatus") or ():
        facts |= {name: str(job[name]) for name in ("active", "succeeded", "failed") if job.get(name)}
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            phase = "done" if condition["type"] == "Complete" else "failed"
            reason = " ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return State(phase, condition["type"], reason if phase == "failed" else "", facts)
    active = any(job.get("ready") for job in status.get("jobsStatus") or ())
    return State("running" if active else "waiting", "Running" if active else "Created", "", facts)


def connect(config: TargetConfig) -> Client:
    assert isinstance(config, Config)
    kubectl = Kubectl(config.namespace, config.context)
    selector = "jobset.sigs.k8s.io/jobset-name={}"
    return KubernetesClient(kubectl, "trainjobs.trainer.kubeflow.org", selector, _INDEX, state, ("configmaps",))
