"""A finished student is not replaced in silence.

Where a run trains again in a directory that has a student of other settings, that student is kept first, with its
report and its settings, as `previous/<n>/`, which can be compared with later runs like any run. `replacing` drops it
instead, as the user wants it.

What the run writes anew is copied to a hidden folder when the run starts; it gets its number, and the weights, when
training starts again. A kill between the two is taken up by the next attempt, whose settings are others.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from easydistill.engine.run_directory import RunDirectory

PREVIOUS = "previous"
STUDENT = "student"
_PENDING = ".pending"
_SETTINGS = ("config.source.json", "config.resolved.json", "environment.json", "summary.json")
_REPORT = ("report.html", "report.md", "metrics.jsonl", "log.txt")
_REPORT_IMAGES = "report_images"
_OF_STAGES = ("manifest.json", "metrics.json", "answers.jsonl", "disagreement.json", "scores.json", "rejected.jsonl")
"""Files of stages that the report and comparisons read."""

_replacing = False


@contextlib.contextmanager
def replacing(wanted: bool) -> Iterator[None]:
    """Whether students that this process's runs replace are dropped meanwhile."""
    global _replacing
    before, _replacing = _replacing, wanted
    try:
        yield
    finally:
        _replacing = before


class FinishedStudent:
    """The student that a run directory has, as the run found it.

    Args:
        run: nothing of it has been written yet.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._folder = run.path / PREVIOUS
        self._pending = self._folder / _PENDING
        # The run writes these before it knows whether it will train.
        self._settings = {name: _bytes(run.path / name) for name in _SETTINGS} if run.student.is_dir() else {}

    def prepare(self) -> None:
        """Copy what the run is about to write anew, unless an earlier attempt has done so."""
        if (self._pending / STUDENT).is_dir():
            # An earlier attempt was killed when it had moved the weights, and gave them no number.
            self._number()
        if not self._settings or _replacing or self._pending.is_dir():
            return
        making = self._folder / f"{_PENDING}.tmp"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for name, content in self._settings.items():
            if content is not None:
                (making / name).write_bytes(content)
        for name in _REPORT:
            _copy(self._run.path / name, making / name)
        if (self._run.path / _REPORT_IMAGES).is_dir():
            shutil.copytree(self._run.path / _REPORT_IMAGES, making / _REPORT_IMAGES)
        for stage in self._run.stage_directories():
            for name in _OF_STAGES:
                _copy(stage / name, making / "stages" / stage.name / name)
        making.rename(self._pending)

    def keep(self, model: Path) -> Path | None:
        """Keep the student before it is replaced; returns where it is, or None if there is none or it is not wanted.

        Args:
            model: the folder of its stage, which is about to be written anew.
        """
        if _replacing or not model.is_dir() or not self._pending.is_dir():
            return None
        model.rename(self._pending / STUDENT)
        target = self._number()
        # Its files are those that were moved. Until there is another student, there is none.
        shutil.rmtree(self._run.student, ignore_errors=True)
        return target

    def _number(self) -> Path:
        number = 1 + max((int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()), default=0)
        return self._pending.rename(self._folder / str(number))

    def forget(self) -> None:
        """Nothing was replaced: remove the copies."""
        shutil.rmtree(self._pending, ignore_errors=True)
        with contextlib.suppress(OSError):
            # Only if it is empty.
            self._folder.rmdir()


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
