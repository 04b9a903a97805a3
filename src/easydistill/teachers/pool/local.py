"""Workers on this machine: how many there are, which GPUs each has, and what of that is impossible."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from easydistill.config.inference import (
    AnyLocalOptions,
    TransformersInferenceConfig,
    VllmInferenceConfig,
    WorkersOptions,
)
from easydistill.contracts.teacher import Teacher
from easydistill.engine.determinism import is_deterministic
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.teachers.pool.messages import Engine, TeacherSpec

Devices = list[tuple[str, ...]]
"""The GPUs of each worker, by the names of CUDA_VISIBLE_DEVICES; none for a worker without a GPU."""


def spec_of(
    engine: Engine, model: str, config: AnyLocalOptions, template: str | None, context: StageContext
) -> TeacherSpec:
    """The teacher that each worker makes."""
    values: dict[str, Any] = {name: getattr(config, name) for name in AnyLocalOptions.model_fields if name != "backend"}
    plain = VllmInferenceConfig if engine == "vllm" else TransformersInferenceConfig
    # Not the section itself, whose class may have been made at run time and cannot be sent.
    inference = plain(backend=engine, **values)  # type: ignore[arg-type]
    return TeacherSpec(engine, model, inference, template, context.started, is_deterministic(), context.images.folder)


def local_pool(
    spec: TeacherSpec, config: WorkersOptions, identity: Callable[[], dict[str, Any]], context: StageContext
) -> Teacher:
    """A teacher in `inference.workers` processes of this machine."""
    from easydistill.teachers.pool.processes import ProcessCrew
    from easydistill.teachers.pool.teacher import PooledTeacher

    crew = ProcessCrew(spec, devices_of(spec.engine, config), context.directory / "workers")
    return PooledTeacher(crew, identity, context, streams=spec.engine == "vllm", most=config.chunk_size)


def devices_of(engine: Engine, config: WorkersOptions) -> Devices:
    """The GPUs of each worker."""
    gpus = visible_gpus()
    if not gpus:
        return [() for _ in range(_stated(config) or 1)]
    each = _gpus_each(engine, config, len(gpus))
    count = _stated(config) or len(gpus) // each
    return [tuple(gpus[worker * each : (worker + 1) * each]) for worker in range(count)]


def worker_issues(engine: Engine, config: WorkersOptions) -> list[ConfigIssue]:
    """An issue if the workers need more GPUs than there are."""
    if config.workers is None or not (gpus := visible_gpus()):
        return []
    each = _gpus_each(engine, config, len(gpus))
    count = _stated(config) or 1
    if count * each <= len(gpus):
        return []
    needed = (
        f"{count} of them need {count * each} GPUs ({each} each)" if each > 1 else f"{count} of them need as many GPUs"
    )
    hint = 'set it to "auto", or to fewer'
    if engine == "vllm" and config.tensor_parallel_size:
        hint += ", or lower inference.tensor_parallel_size"
    problem = f"{needed}, and this machine has {len(gpus)}"
    return [ConfigIssue("this machine", "inference.workers", problem, hint)]


def worker_notes(engine: Engine, config: WorkersOptions) -> list[str]:
    """How many workers there will be, in words; nothing without `inference.workers`."""
    if config.workers is None or importlib.util.find_spec("torch") is None:
        return []
    devices = devices_of(engine, config)
    each = len(devices[0]) if devices else 0
    where = f"{each} GPU{'s' if each > 1 else ''} each" if each else "without GPUs"
    return [f"{len(devices)} worker{'s' if len(devices) > 1 else ''} of the teacher, {where}"]


def worker_count(engine: Engine, config: WorkersOptions) -> int:
    """Copies of the teacher on this machine."""
    if config.workers is None:
        return config.replicas or 1
    return max(1, len(devices_of(engine, config)))


def _gpus_each(engine: Engine, config: WorkersOptions, gpus: int) -> int:
    if engine != "vllm":
        return 1
    stated = _stated(config)
    return config.tensor_parallel_size or (max(1, gpus // stated) if stated else 1)


def _stated(config: WorkersOptions) -> int | None:
    """The number of workers, if the config says it."""
    return config.workers if isinstance(config.workers, int) else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Does not start CUDA."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else list(map(str, range(count)))
