"""How rows were made, as the manifests of runs say: a file's hash leads to the stage that wrote it, the hash of what
that stage read to the stage before it, and so on.

Only stages that lie in the known run directories are found. A file that was changed by hand has another hash, and the
line ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.data.manifest import Manifest
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.summary import JOB
from easydistill.errors import EasyDistillError

_RUN_FILES = ("summary.json", "started.json")
_JUDGING = frozenset({"cot_scoring", "instruction_scoring", "task_labelling"})
"""Operators that ask a judge about rows, and write none."""


@dataclass(frozen=True)
class Step:
    """A stage that made rows."""

    name: str
    """The operator, or the stage's name."""
    manifest: Manifest
    models: dict[str, str] = field(default_factory=dict)
    """Role → the model that was asked."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reports."""
        return self.manifest.metrics


@dataclass(frozen=True)
class Lineage:
    """The stages that made the rows, the last one first."""

    steps: tuple[Step, ...] = ()

    def of(self, name: str) -> list[Step]:
        """The steps of an operator."""
        return [step for step in self.steps if step.name == name]

    def models(self, role: str) -> list[str]:
        """The models that were asked in a role, in the order in which the rows were made."""
        found = (step.models[role] for step in reversed(self.steps) if role in step.models)
        return list(dict.fromkeys(found))

    def identity(self) -> list[str]:
        """What decides what is told of the stages."""
        return [step.manifest.fingerprint for step in self.steps]


def lineage_of(path: str, runs: Iterable[str]) -> Lineage:
    """The stages that made the rows at a path.

    Args:
        runs: run directories besides the one in which the path lies.
    """
    folders = dict.fromkeys([*_enclosing(Path(path)), *map(Path, runs)])
    made: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(folder for run in folders for folder in _stages(run)):
        for digest in _outputs(folder):
            made.setdefault(digest, []).append(folder)
    steps: dict[Path, Step] = {}
    try:
        waiting = [hash_rows(path)]
    except EasyDistillError:
        # The run tells why they cannot be read.
        return Lineage()
    while waiting:
        # A stage that changed nothing wrote what it read: the later one stands first.
        for folder in sorted(made.pop(waiting.pop(0), []), key=_place, reverse=True):
            manifest = Manifest.read(folder)
            if manifest is not None and folder not in steps:
                steps[folder] = Step(_name(manifest), manifest, _models(folder, manifest))
                waiting += _sources(manifest.fingerprint_of.get("config", {})) + _inputs(folder, manifest)
    return Lineage(tuple(steps.values()))


def _place(folder: Path) -> tuple[int, ...]:
    """Where a stage stands in its run or pipeline."""
    numbers = (part.partition("-")[0] for part in folder.parts[-4:])
    return tuple(int(number) for number in numbers if number.isdecimal())


def _enclosing(path: Path) -> Iterator[Path]:
    """The run directories around a path: that of a job, and of the pipeline that it is in."""
    for folder in path.absolute().parents:
        if any((folder / name).is_file() for name in _RUN_FILES):
            yield folder


def _stages(run: Path) -> Iterator[Path]:
    """The directories of complete stages of a run, and of the jobs of a pipeline."""
    for pattern in (f"stages/*/{MANIFEST}", f"stages/*/stages/*/{MANIFEST}"):
        yield from sorted(path.parent for path in run.glob(pattern))


def _outputs(folder: Path) -> list[str]:
    """The hashes of the rows that a stage wrote; none of a job of a pipeline, whose own stages are found."""
    manifest = Manifest.read(folder)
    if manifest is None or JOB in manifest.metrics:
        return []
    return [digest for name, digest in manifest.outputs.items() if name.endswith((".json", ".jsonl", ".parquet"))]


def _name(manifest: Manifest) -> str:
    operator = manifest.metrics.get("operator")
    return operator if isinstance(operator, str) else manifest.stage


def _sources(config: Any) -> list[str]:
    """The hashes of what a stage has read, by its fingerprint: files of operators, of labelling, of mixes."""
    if not isinstance(config, dict):
        return []
    source, inputs = config.get("source"), config.get("inputs")
    found = [source.get("file") if isinstance(source, dict) else None, config.get("instructions")]
    if isinstance(inputs, list):
        found += [item[1] for item in inputs if isinstance(item, list) and len(item) > 1]
    return [digest for digest in found if isinstance(digest, str)]


def _inputs(folder: Path, manifest: Manifest) -> list[str]:
    """The hashes of what earlier stages of the same job wrote."""
    names = manifest.fingerprint_of.get("inputs") or {}
    siblings = [path for path in folder.parent.iterdir() if path.name.partition("-")[2] in names]
    return [digest for sibling in siblings for digest in _outputs(sibling)]


def _models(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Role → the model that was asked, by the config of the job. A path is told by its last part alone."""
    config = manifest.fingerprint_of.get("config", {})
    asks = bool(isinstance(config, dict) and (config.get("models") or config.get("teacher")))
    role = "judge" if _name(manifest) in _JUDGING else "teacher"
    model = _model(_config_of(folder), role) if asks else None
    return {} if model is None else {role: model}


def _config_of(folder: Path) -> dict[str, Any]:
    """The config of the job of a stage."""
    try:
        found = read_json(folder.parent.parent / "config.resolved.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _model(job: dict[str, Any], role: str) -> str | None:
    """The model of a role; without a judge of its own, the teacher judges."""
    models = job.get("models")
    named = models.get(role) if isinstance(models, dict) else None
    sections: Sequence[Any] = [job.get("inference")]
    if role == "judge":
        judge = job.get("judge")
        sections = [judge.get("inference") if isinstance(judge, dict) else None]
    served = next((item.get("model") for item in sections if isinstance(item, dict) and item.get("model")), None)
    value = served or named
    if isinstance(value, str):
        return value if value.count("/") == 1 and not value.startswith((".", "~", "/")) else value.rpartition("/")[2]
    return _model(job, "teacher") if role == "judge" else None
