"""trackio's database, in the run directory or in a folder for several runs. No server is started, nothing is sent.

`TRACKIO_DIR=<folder> trackio show` opens it.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from easydistill.config.base import NonEmptyStr
from easydistill.contracts.sink import Figures, SinkConfig, SinkContext

NEEDS = ("trackio",)


class Config(SinkConfig):
    """trackio's database, on this machine."""

    project: NonEmptyStr = "easydistill"
    """The project that the run is part of."""
    directory: NonEmptyStr | None = None
    """A folder (`TRACKIO_DIR`) in which the runs of a project are shown together; by default in the run directory."""


class Trackio:
    """The run's rows in the project's table."""

    def __init__(self, config: Config, context: SinkContext) -> None:
        folder = Path(config.directory).absolute() if config.directory is not None else context.directory
        # trackio reads it when it is imported. Without a network it would ask the hub for remote copies.
        os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._project = SQLiteStorage, config.project
        self._name, self._id = f"{context.name}-{context.id[-4:]}", context.id
        # Written anew each time, in a shared folder too.
        self._storage.delete_run(self._project, self._name, run_id=self._id)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._settings: Mapping[str, Any] = {
            **context.settings,
            "job_type": context.job_type,
            # What its dashboard expects of every run.
            "_Created": now,
            "_Group": None,
            "_Username": None,
        }

    def log(self, figures: Sequence[Figures]) -> None:
        self._storage.bulk_log(
            self._project,
            self._name,
            [{f"{item.group}/{name}": value for name, value in item.values.items()} for item in figures],
            steps=[item.step for item in figures],
            timestamps=[datetime.datetime.fromtimestamp(item.time, datetime.UTC).isoformat() for item in figures],
            config=dict(self._settings),
            run_id=self._id,
        )

    def close(self, status: str) -> None:
        pass


def make(config: SinkConfig, context: SinkContext) -> Trackio:
    return Trackio(cast(Config, config), context)
