"""What a run's sinks show, read back from their own files: tag → steps, in the order in which they stand there."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Steps = dict[str, list[int]]


def installed(*names: str) -> list[str]:
    """The sinks whose libraries are here."""
    return [name for name in names if importlib.util.find_spec(name) is not None]


def steps_in(run: Path, sink: str) -> Steps:
    """Every tag that a sink's record holds, with its steps."""
    folder = run / "tracking" / sink
    return {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}[sink](folder)


def assert_each_once(found: Steps, tag: str, steps: list[int]) -> None:
    assert found[tag] == steps, tag
    twice = {name: told for name, told in found.items() if len(told) != len(set(told)) or told != sorted(told)}
    assert not twice


def _tensorboard(folder: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [event.step for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def _trackio(folder: Path) -> Steps:
    found: Steps = {}
    with sqlite3.connect(folder / "easydistill.db") as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            for name in json.loads(metrics):
                found.setdefault(name, []).append(step)
    database.close()
    return found


def _mlflow(folder: Path) -> Steps:
    return steps_of_mlflow(f"sqlite:///{folder / 'mlflow.db'}")


def steps_of_mlflow(uri: str) -> Steps:
    """The same of the one run in a store of MLflow's."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("easydistill")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    of = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted(item.step for item in history) for name, history in of.items()}


def _wandb(folder: Path) -> Steps:
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: Steps = {}
    for data in _log_records(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        pairs = ((item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item)
        values = {name: json.loads(value) for name, value in pairs}
        group = next(name.removesuffix("/step") for name in values if name.endswith("/step"))
        for name in values:
            if name.startswith(f"{group}/") and name != f"{group}/step":
                found.setdefault(name, []).append(values[f"{group}/step"])
    return found


def _log_records(data: bytes, block: int = 32_768, head: int = 7) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind W&B's own head of seven bytes."""
    at, part = head, b""
    while at + head <= len(data):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + head : at + head + length]
        at += head + length
        # Whole, first, middle, last.
        if kind in (1, 4):
            yield part
            part = b""
