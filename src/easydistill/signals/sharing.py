"""Scoring by several processes: which of them scores which shard, and what each has done.

Whoever is free takes the next shard. All that the processes tell each other are files, so none waits for another's
batches, and none needs a device for it. What a shard holds does not depend on who scores it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json, write_json
from easydistill.engine.interrupt import StopSignal

LOOK_SECONDS = 0.2
"""Time between two looks at what the others have done."""


class SharedWork:
    """The files of one attempt at a store, as one of its processes uses them.

    Args:
        directory: where the files are; `clear` it before the first process starts.
        rank: this process among `ranks`.
        scores: whether it takes shards; if not, the others' devices are all that there are.
    """

    def __init__(self, directory: Path, rank: int, ranks: int, *, scores: bool = True) -> None:
        self._directory = directory
        self._scores = scores
        self.rank, self.ranks = rank, ranks
        self.taken: set[int] = set()

    @staticmethod
    def clear(directory: Path) -> None:
        """Forget what an earlier attempt took: its processes are gone."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def take(self, number: int) -> bool:
        """Whether this process is to score a shard: whether it is the first to ask."""
        if not self._scores:
            return False
        try:
            os.close(os.open(self._directory / f"shard-{number:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        self.taken.add(number)
        return True

    def report(self, **figures: Any) -> None:
        """Tell the others that this process has nothing left to do, and what it did."""
        write_json(self._report(self.rank), figures)

    def reports(self) -> list[dict[str, Any]]:
        """What the processes have reported that have nothing left to do."""
        return [read_json(path) for rank in range(self.ranks) if (path := self._report(rank)).is_file()]

    def figures(self) -> dict[str, int]:
        """What the report says of all processes."""
        peaks = [report["peak_memory_bytes"] for report in self.reports()]
        return {"processes": self.ranks, "peak_memory_bytes": max(peaks)}

    def wait(self, look: Callable[[], Any], stop: StopSignal) -> None:
        """Call `look` until all processes have reported, or `stop` is requested.

        There is no limit of time: a process that fails ends this one.
        """
        while True:
            everyone = len(self.reports()) == self.ranks
            look()
            if everyone or stop.requested:
                return
            time.sleep(LOOK_SECONDS)

    def _report(self, rank: int) -> Path:
        return self._directory / f"rank-{rank}.json"
