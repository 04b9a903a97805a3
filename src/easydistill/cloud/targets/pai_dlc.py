"""PAI-DLC, Alibaba Cloud's training jobs: a CreateJob request for a PyTorchJob, sent by its SDK.

DLC tells each node RANK, WORLD_SIZE (both count nodes), MASTER_ADDR and MASTER_PORT, which `launch` reads as numbers of
nodes and hides from every library. The SDK's `validate()` accepts anything, so what the service would refuse is checked
here. Secrets are files on a mount, read when the job starts: a request has no references to secrets.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.cloud import alibaba
from easydistill.cloud.settings import Mount, TargetConfig
from easydistill.cloud.spec import JobSpec, script
from easydistill.cloud.target import Client, Document, NotKnown, State
from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Unfit
from easydistill.errors import CloudError, ConfigError, ConfigIssue

MOST_BYTES = 65_536
"""Of a request."""
_SDK = "alibabacloud_pai_dlc20201203"
_CONFIG_FOLDER = "/tmp/easydistill"
_PHASES = {
    **dict.fromkeys(("Creating", "Queuing", "Bidding", "EnvPreparing", "SanityChecking"), "waiting"),
    **dict.fromkeys(("Running", "Restarting", "Stopping"), "running"),
    **dict.fromkeys(("Succeeded", "SucceededReserving"), "done"),
    **dict.fromkeys(("Failed", "FailedReserving"), "failed"),
    "Stopped": "cancelled",
}


class Vpc(Section):
    """A network of yours that the job joins, as it has to for storage of the kinds NAS and CPFS."""

    vpc_id: NonEmptyStr
    """The VPC."""
    switch_id: NonEmptyStr
    """The vSwitch."""
    security_group_id: NonEmptyStr
    """The security group."""


class Config(TargetConfig):
    """A workspace of PAI, and what in it runs the job: a quota, or an instance type that is paid as it is used."""

    name: ClassVar[str] = "pai-dlc"
    mount_sources: ClassVar[tuple[str, ...]] = ("oss://", "nas://", "cpfs://", "bmcpfs://", "d-")
    secret_pattern: ClassVar[str] = r"/[^\n]*[^\n/]"
    secret_example: ClassVar[str] = "/mnt/secrets/api_key"

    target: Literal["pai-dlc"] | None = None
    """Which target the file is for; `--to` says it too."""
    region: NonEmptyStr
    """Such as `cn-hangzhou`."""
    workspace_id: Annotated[str, Field(pattern=r"^[0-9]+\Z")]
    """The workspace."""
    endpoint: NonEmptyStr | None = None
    """Of the service, if it is not the region's public one: a host, or `https://host`."""
    quota_id: NonEmptyStr | None = None
    """The resource quota in which the job runs; then `cpus` and `memory` are needed too."""
    instance_type: NonEmptyStr | None = None
    """The type of public instance for each node. It decides cores, memory and GPUs."""
    priority: Annotated[PositiveInt, Field(le=9)] = 1
    """From 1 to 9, the most urgent."""
    vpc: Vpc | None = None
    """A network of yours that the job joins."""
    shared_memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)\Z")] | None = None
    """Size of /dev/shm, with a quota."""
    private: bool = True
    """Only its owner and administrators see the job; otherwise the workspace's members do."""
    grace_seconds: PositiveInt = 300
    """Seconds that a node has to write a checkpoint when it is to end."""

    @model_validator(mode="after")
    def _says_what_runs_it(self) -> Config:
        if (self.quota_id is None) == (self.instance_type is None):
            both = "both quota_id and instance_type are" if self.quota_id else "neither quota_id nor instance_type is"
            raise Unfit(f"{both} given", "give the one that pays for the job")
        if self.quota_id is not None and (self.cpus is None or self.memory is None):
            raise Unfit("a quota is shared, so each node must say what it needs", "set cpus and memory, and gpus")
        if self.instance_type is not None and (self.cpus or self.memory or self.shared_memory):
            raise Unfit(
                "the instance type decides cores and memory", "remove cpus, memory and shared_memory, or use quota_id"
            )
        return self

    @model_validator(mode="after")
    def _secrets_are_on_mounts(self) -> Config:
        for variable, path in self.secrets.items():
            if self.mount_of(path) is None:
                hint = "mount the storage that holds it; the file holds nothing but the secret"
                raise Unfit(f"secrets.{variable} is a file on no mount", hint)
        if self.port != type(self).model_fields["port"].default:
            raise Unfit("DLC says the port of a job", "remove port")
        return self


def render(spec: JobSpec, config: TargetConfig) -> Document:
    assert isinstance(config, Config)
    if spec.config is not None:
        # Not every image lets the job write to /etc.
        spec = replace(spec, config_path=f"{_CONFIG_FOLDER}/{spec.config_name}")
    body = _body(spec, config)
    text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    size = len(json.dumps(body).encode())
    if size > MOST_BYTES:
        problem = f"the request has {size:,} bytes, and DLC takes {MOST_BYTES:,}"
        hint = "put the config on a mount, and set config_path"
        raise ConfigError(ConfigIssue("settings of the target", "config_path", problem, hint))
    notes = []
    if spec.run_source.startswith("oss://"):
        notes.append(
            f"the run directory is on {spec.run_source}, an object store: a kill may cost more than the last "
            "line of its journal, and nothing keeps two jobs out of it; NAS and CPFS have neither flaw"
        )
    return Document(text, ".json", notes)


def _body(spec: JobSpec, config: Config) -> dict[str, Any]:
    node: dict[str, Any] = {"Type": "Worker", "PodCount": spec.nodes, "Image": spec.image}
    if config.instance_type is not None:
        node["EcsSpec"] = config.instance_type
    else:
        node["ResourceConfig"] = _resources(spec, config)
    body: dict[str, Any] = {
        "DisplayName": spec.name,
        "JobType": "PyTorchJob",
        "WorkspaceId": config.workspace_id,
        "Accessibility": "PRIVATE" if config.private else "PUBLIC",
        "Priority": config.priority,
        "JobSpecs": [node],
        "UserCommand": script(spec, tuple(_secrets(spec))),
        "Settings": _settings(spec, config),
    }
    if config.quota_id is not None:
        body["ResourceId"] = config.quota_id
    if spec.env:
        body["Envs"] = dict(sorted(spec.env.items()))
    if spec.mounts:
        body["DataSources"] = [_data_source(mount) for mount in spec.mounts]
    if spec.max_seconds is not None:
        body["JobMaxRunningTimeMinutes"] = max(1, round(spec.max_seconds / 60))
    if config.vpc is not None:
        vpc = config.vpc
        body["UserVpc"] = {
            "VpcId": vpc.vpc_id,
            "SwitchId": vpc.switch_id,
            "SecurityGroupId": vpc.security_group_id,
        }
    return body


def _resources(spec: JobSpec, config: Config) -> dict[str, str]:
    found = {"CPU": str(spec.cpus), "Memory": str(spec.memory)}
    if spec.gpus:
        found["GPU"] = str(spec.gpus)
    if config.shared_memory is not None:
        found["SharedMemory"] = config.shared_memory
    return found


def _settings(spec: JobSpec, config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"TerminationGracePeriodSeconds": config.grace_seconds}
    if spec.retries:
        # All nodes are started again together: the commands of a run end together.
        arguments = f"--job-execution-mode=Sync --enable-job-restart=True --max-num-of-job-restart={spec.retries}"
        found |= {"EnableErrorMonitoringInAIMaster": True, "ErrorMonitoringArgs": arguments}
    if spec.run_source.startswith("oss://"):
        # Journals grow at their end, which a mounted bucket refuses otherwise.
        found["EnableOssAppend"] = True
    return found


def _data_source(mount: Mount) -> dict[str, str]:
    where = {"DataSourceId": mount.source} if mount.source.startswith("d-") else {"Uri": mount.source}
    return {**where, "MountPath": mount.path, "MountAccess": "RO" if mount.read_only else "RW"}


def _secrets(spec: JobSpec) -> Iterator[str]:
    for name, path in sorted(spec.secrets.items()):
        yield f'{name}="$(cat {shlex.quote(path)})"'
        yield f"export {name}"


def typed_request(document: Document) -> Any:
    """The SDK's request, which is sent as the document shows it.

    Raises:
        CloudError: the SDK would send something else.
    """
    from alibabacloud_pai_dlc20201203.models import CreateJobRequest, JobSpec

    class AsShown(JobSpec):  # type: ignore[misc]
        """Nodes, without the empty lists that the SDK adds to what a request says of them."""

        def to_map(self) -> Any:
            return _without_empty_lists(super().to_map())

    body = json.loads(document.text)
    request = CreateJobRequest().from_map(body)
    request.job_specs = [AsShown().from_map(node) for node in body.get("JobSpecs", ())]
    request.custom_envs = None
    if _without_empty_lists(request.to_map()) != body:
        raise CloudError("this release of the SDK drops a part of the request\n    → install another one")
    return request


def _without_empty_lists(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item != []}


class DlcClient:
    """Jobs by their ids."""

    def __init__(self, sdk: Any, config: Config) -> None:
        self._sdk, self._config = sdk, config

    def submit(self, spec: JobSpec, document: Document) -> str:
        request = typed_request(document)
        try:
            answer = alibaba.call("CreateJob", lambda: self._sdk.create_job(request), repeatable=False)
        except NotKnown as error:
            return self._made(spec.name, error)
        return str(answer.body.job_id)

    def _made(self, name: str, error: NotKnown) -> str:
        """The id of a job that was made although the answer was lost.

        Raises:
            NotKnown: that cannot be found out now.
            CloudError: none was made.
        """
        try:
            found = self.find(name)
        except CloudError:
            raise error from None
        if found is None:
            raise CloudError(f"{error}\n    → no job called {name} was made: the same command again") from error
        return found

    def find(self, name: str) -> str | None:
        from alibabacloud_pai_dlc20201203.models import ListJobsRequest

        request = ListJobsRequest(display_name=name, workspace_id=self._config.workspace_id, page_size=50)
        answer = alibaba.call("ListJobs", lambda: self._sdk.list_jobs(request))
        # The service looks for names that contain it.
        return next((str(job.job_id) for job in answer.body.jobs or () if job.display_name == name), None)

    def status(self, id: str) -> State:
        job = self._job(id)
        if job is None:
            return State("gone", reason="the service does not know it")
        pods = {str(pod.pod_id): str(pod.status) for pod in job.pods or ()}
        reason = " ".join(str(part) for part in (job.reason_code, job.reason_message) if part)
        return State(_PHASES.get(job.status, "running"), job.status, reason, pods)

    def _job(self, id: str) -> Any:
        from alibabacloud_pai_dlc20201203.models import GetJobRequest

        try:
            return alibaba.call("GetJob", lambda: self._sdk.get_job(id, GetJobRequest())).body
        except CloudError as error:
            cause = error.__cause__
            if getattr(cause, "status_code", None) == 404 or "notfound" in str(getattr(cause, "code", "")).lower():
                return None
            raise

    def logs(self, id: str, node: int | None, lines: int | None, follow: bool) -> Iterator[str]:
        from alibabacloud_pai_dlc20201203.models import GetPodLogsRequest

        if follow:
            raise CloudError("DLC's interface gives logs as they are, and does not follow\n    → without --follow")
        job = self._job(id)
        pods = [] if job is None else sorted(job.pods or (), key=lambda pod: str(pod.pod_id))
        for number, pod in enumerate(pods):
            if node is None or node == number:
                request = GetPodLogsRequest(pod_uid=pod.pod_uid, max_lines=lines)
                ask = partial(self._sdk.get_pod_logs, id, pod.pod_id, request)
                found = alibaba.call("GetPodLogs", ask).body.logs or ()
                yield from (f"[{pod.pod_id}] {line}" for line in found)

    def cancel(self, id: str) -> None:
        alibaba.call("StopJob", lambda: self._sdk.stop_job(id))


def connect(config: TargetConfig) -> Client:
    assert isinstance(config, Config)
    return DlcClient(alibaba.client(_SDK, config.region, config.endpoint), config)
