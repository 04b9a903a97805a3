"""PAI-EAS, Alibaba Cloud's services: vLLM over a student in a bucket, as a service's JSON, sent by the SDK.

Its endpoint, with `/v1` behind it, and its token are `base_url` and `api_key` of a teacher.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.cloud import alibaba
from easydistill.cloud.settings import AbsolutePath, VariableName, secret_variable
from easydistill.config.base import NonEmptyStr, NonNegativeInt, PositiveInt, Section, Unfit

_SDK = "alibabacloud_eas20210701"
_RESERVED = (8080, 9090)
_VLLM = frozenset({"host", "port", "served-model-name", "tensor-parallel-size", "max-model-len", "api-key"})


class Config(Section):
    """A service of PAI-EAS."""

    name: ClassVar[str] = "eas"

    schema_uri: str | None = Field(default=None, alias="$schema")
    """Used by editors only."""
    target: Literal["eas"] | None = None
    """Which target the file is for; `--to` says it too."""
    image: NonEmptyStr
    """A container image with vLLM."""
    region: NonEmptyStr
    """Such as `cn-hangzhou`."""
    endpoint: NonEmptyStr | None = None
    """Of EAS, if it is not the region's public one: a host, or `https://host`."""
    workspace_id: Annotated[str, Field(pattern=r"^[0-9]+\Z")]
    """The workspace."""
    service: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{2,62}\Z")] | None = None
    """The service's name: lower-case letters, digits, underscores; by default that of the run."""
    model: Annotated[str, Field(pattern=r"^oss://[^/\s]+/\S+\Z")]
    """The folder of the student in a bucket."""
    instance_type: NonEmptyStr | None = None
    """The type of public instance for each copy."""
    resource_id: NonEmptyStr | None = None
    """The dedicated resource group in which it runs; then `cpus`, `memory_mb` and `gpus` are needed too."""
    cpus: PositiveInt | None = None
    """Cores of each copy, in a resource group."""
    memory_mb: PositiveInt | None = None
    """Memory of each copy in MB, in a resource group."""
    gpus: NonNegativeInt = 1
    """GPUs of each copy, over which vLLM spreads the student."""
    instances: PositiveInt = 1
    """Copies."""
    served_name: NonEmptyStr | None = None
    """The name by which requests call the student; by default that of the run."""
    max_model_len: PositiveInt | None = None
    """Most tokens of a request with its answer; by default what the student takes."""
    vllm: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\Z")], str | int | float | bool] = {}  # noqa: RUF012
    """Other options of `vllm serve`, such as `{"gpu-memory-utilization": 0.95}`."""
    env: dict[VariableName, str] = {}  # noqa: RUF012
    """Environment variables of the service; not secret."""
    port: Annotated[PositiveInt, Field(le=65535)] = 8000
    """Where vLLM listens inside the container."""
    mount: AbsolutePath = "/model"
    """Where the container sees the student."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if (self.instance_type is None) == (self.resource_id is None):
            raise Unfit("either instance_type or resource_id pays for the service", "give one of them")
        if self.resource_id is not None and (self.cpus is None or self.memory_mb is None):
            raise Unfit("a resource group is shared, so each copy must say what it needs", "set cpus and memory_mb")
        if self.instance_type is not None and (self.cpus or self.memory_mb):
            raise Unfit("the instance type decides cores and memory", "remove cpus and memory_mb")
        if (name := secret_variable(self.env)) is not None:
            raise Unfit(f"env.{name} looks like a secret, and env is sent as it is written", "remove it")
        if self.port in _RESERVED:
            raise Unfit(f"EAS listens at port {self.port} itself", "choose another port")
        if taken := sorted(self.vllm.keys() & _VLLM):
            raise Unfit(f"vllm.{taken[0]} is set by another key, or by EAS", "remove it")
        return self


def render(config: Config, run: str) -> str:
    """The service as JSON: a pure function.

    Args:
        run: the run's name, which the service and the student have by default.
    """
    container: dict[str, Any] = {"image": config.image, "port": config.port, "script": _script(config, run)}
    if config.env:
        container["env"] = [{"name": name, "value": value} for name, value in sorted(config.env.items())]
    metadata: dict[str, Any] = {
        "name": config.service or _service_name(run),
        "instance": config.instances,
        "workspace_id": config.workspace_id,
    }
    service: dict[str, Any] = {"metadata": metadata}
    if config.resource_id is not None:
        needs = {"cpu": config.cpus, "memory": config.memory_mb, "gpu": config.gpus}
        metadata |= {"resource": config.resource_id, **needs}
    else:
        service["cloud"] = {"computing": {"instances": [{"type": config.instance_type}]}}
    service["containers"] = [container]
    place = config.model.rstrip("/") + "/"
    service["storage"] = [{"mount_path": config.mount, "oss": {"path": place, "readOnly": True}}]
    return json.dumps(service, indent=2, ensure_ascii=False) + "\n"


def _service_name(run: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", run.lower()).strip("_")
    return (name if re.match(r"[a-z]", name) and len(name) > 2 else f"student_{name}".rstrip("_"))[:63]


def _script(config: Config, run: str) -> str:
    options: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": config.port,
        "served-model-name": config.served_name or run,
        "tensor-parallel-size": max(1, config.gpus),
        "max-model-len": config.max_model_len,
        **config.vllm,
    }
    parts = ["vllm", "serve", config.mount]
    for name, value in options.items():
        if value is True:
            parts.append(f"--{name}")
        elif value is False:
            parts.append(f"--no-{name}")
        elif value is not None:
            parts += [f"--{name}", str(value)]
    return shlex.join(parts)


def create(config: Config, text: str) -> list[str]:
    """Make the service.

    Returns:
        What to tell the user.

    Raises:
        CloudError: it was refused, or what has become of it is not known.
    """
    sdk = alibaba.client(_SDK, config.region, config.endpoint)
    from alibabacloud_eas20210701.models import CreateServiceRequest

    asked = CreateServiceRequest(body=text, workspace_id=config.workspace_id)
    answer = alibaba.call("CreateService", lambda: sdk.create_service(asked), repeatable=False).body
    service = json.loads(text)
    called = shlex.split(service["containers"][0]["script"])
    name = called[called.index("--served-model-name") + 1]
    return [
        f"made the service {service['metadata']['name']}; it is ready once EAS shows it as Running",
        "as a teacher or a model to evaluate, with the token in EAS_TOKEN:",
        f'"inference": {{"base_url": "{_base_url(answer)}", "api_key": "${{env:EAS_TOKEN}}", "model": "{name}"}}',
    ]


def _base_url(answer: Any) -> str:
    endpoint = answer.internet_endpoint or answer.intranet_endpoint or "the service's endpoint"
    return f"{str(endpoint).rstrip('/')}/v1"
