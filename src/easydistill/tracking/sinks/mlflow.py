"""MLflow: a database in the run directory, which `mlflow ui --backend-store-uri` opens, or a tracking server."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from easydistill.config.base import NonEmptyStr
from easydistill.contracts.sink import Figures, SinkConfig, SinkContext

NEEDS = ("mlflow",)
FILE = "mlflow.db"
_ID = "easydistill.run"
_LONGEST = 500
"""Characters of a parameter, which every kind of store accepts."""
T = TypeVar("T")


class Config(SinkConfig):
    """A run of MLflow."""

    experiment: NonEmptyStr = "easydistill"
    """The experiment that the run is part of."""
    tracking_uri: NonEmptyStr | None = None
    """A server or a database, such as `http://localhost:5000`; by default one in the run directory. Its password comes
    from `MLFLOW_TRACKING_PASSWORD`."""

    @property
    def rewritten(self) -> bool:
        return self.tracking_uri is None


class Mlflow:
    """A run in an experiment, found again by a tag."""

    def __init__(self, config: Config, context: SinkContext) -> None:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        own = _own_store(context) if config.tracking_uri is None else config.tracking_uri
        self._client = MlflowClient(tracking_uri=own)
        found = self._client.get_experiment_by_name(config.experiment)
        places = {"artifact_location": (context.directory / "artifacts").as_uri()} if config.rewritten else {}
        experiment = (
            self._client.create_experiment(config.experiment, **places) if found is None else found.experiment_id
        )
        earlier: Any = self._client.search_runs([experiment], f"tags.`{_ID}` = '{context.id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {_ID: context.id, "job_type": context.job_type}
        self._id = self._client.create_run(experiment, tags=tags, run_name=context.name).info.run_id
        params = [Param(name, str(value)[:_LONGEST]) for name, value in context.settings.items()]
        for batch in _batches(params, 100):
            self._client.log_batch(self._id, params=batch)
        self._client.log_batch(self._id, tags=[RunTag("mlflow.note.content", f"easydistill {context.job_type}")])

    def log(self, figures: Sequence[Figures]) -> None:
        metrics = (
            self._metric(f"{item.group}/{name}", value, round(item.time * 1000), item.step)
            for item in figures
            for name, value in item.values.items()
        )
        for batch in _batches(metrics, 1000):
            self._client.log_batch(self._id, metrics=batch)

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, {"done": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))


def _own_store(context: SinkContext) -> str:
    """A database where its library is installed, as it is with the whole of MLflow; else files."""
    if importlib.util.find_spec("sqlalchemy") is not None and importlib.util.find_spec("alembic") is not None:
        return f"sqlite:///{context.directory.absolute() / FILE}"
    return (context.directory / "mlruns").absolute().as_uri()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def make(config: SinkConfig, context: SinkContext) -> Mlflow:
    return Mlflow(cast(Config, config), context)
