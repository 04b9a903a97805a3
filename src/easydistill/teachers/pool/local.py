"""Workers on this machine: how many there are, which GPUs each has, and what of that is impossible."""

from __future__ import annotations

import importlib.util
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
from easydistill.models.spread import map_issue, spread_note, spread_of, visible_gpus
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
    gpus = visible_gpus()
    if engine == "transformers" and config.device_map is not None:
        found = map_issue(config.device_map, len(gpus) // (_stated(config) or 1))
        if found is not None:
            return [found]
    if config.workers is None or not gpus:
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


def worker_notes(engine: Engine, config: WorkersOptions, weights: int | None = None) -> list[str]:
    """How many workers there will be, and what the devices of a copy hold, in words; nothing of one copy on one device.

    Args:
        weights: bytes of a copy, if that is known.
    """
    if importlib.util.find_spec("torch") is None:
        return []
    notes = []
    if engine == "transformers" and (spread := spread_of(config.device_map, _stated(config) or 1)) is not None:
        notes = [spread_note(spread, weights, len(visible_gpus()), None)]
    return notes if config.workers is None else [_workers_note(engine, config), *notes]


def _workers_note(engine: Engine, config: WorkersOptions) -> str:
    devices = devices_of(engine, config)
    each = len(devices[0]) if devices else 0
    where = f"{each} GPU{'s' if each > 1 else ''} each" if each else "without GPUs"
    return f"{len(devices)} worker{'s' if len(devices) > 1 else ''} of the teacher, {where}"


def worker_count(engine: Engine, config: WorkersOptions) -> int:
    """Copies of the teacher on this machine."""
    if config.workers is None:
        return config.replicas or 1
    return max(1, len(devices_of(engine, config)))


def _gpus_each(engine: Engine, config: WorkersOptions, gpus: int) -> int:
    stated = _stated(config)
    if engine != "vllm":
        spread = config.device_map is not None
        return max(1, gpus // (stated or 1)) if spread else 1
    return config.tensor_parallel_size or (max(1, gpus // stated) if stated else 1)


def _stated(config: WorkersOptions) -> int | None:
    """The number of workers, if the config says it."""
    return config.workers if isinstance(config.workers, int) else None
