"""Fingerprints and request keys of a config, computed where nothing but the repository's own files plays a part.

Models are two small directories, whose files stand for weights: an identity is the hash of what a model's files hold.
What a pipeline's jobs have made is made up likewise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from easydistill import api
from easydistill.contracts.teacher import request_key
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.data.records import content_hash
from easydistill.jobs import stages_of

ROOT = Path(__file__).resolve().parents[2]
FROZEN = Path(__file__).with_name("frozen_identities.json")
MODELS = ("models/teacher", "models/student")
PROMPT = ({"role": "user", "content": "Name a river."},)


def prepare(folder: Path) -> None:
    """Lay out what the frozen configs name, by paths relative to `folder`."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in MODELS:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "which": name}))
    (folder / "train.json").write_text(json.dumps([{"instruction": "Name a river."}]))
    (folder / "train_labeled.json").write_text(json.dumps([{"instruction": "Name a river.", "output": "The Nile."}]))
    (folder / "personas.txt").write_text("A lighthouse keeper.\n")
    # A copy of what a stage makes, which has to be there where later stages are asked for theirs.
    (folder / "runs/preference").mkdir(parents=True)
    (folder / "runs/preference/cogpo_pairs.json").write_text("[]")


def _sections(config: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        at = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _sections(item, f"{at}.{key}")
        elif isinstance(value, BaseModel):
            yield at, value
            yield from _sections(value, at)


def _make_up(directory: Path) -> None:
    """What a pipeline's job leaves, as far as other jobs cite it."""

    def finish(at: Path, outputs: dict[str, str]) -> None:
        Manifest("made up", "0", {}, outputs, RowCounts(), {}, {}, 0.0, "", "", {}).write(at)

    stage = directory / "stages/1-made"
    stage.mkdir(parents=True)
    (stage / "labeled.parquet").write_text("rows")
    (directory / "student").mkdir()
    (directory / "student/config.json").write_text(json.dumps({"model_type": "llama", "which": directory.name}))
    finish(stage, {"labeled.parquet": "0"})
    finish(directory, {"stages/1-made/labeled.parquet": "0"})


_EVALUATION = {"generate", "max_new_tokens", "batch_size"}
_LOSS = {"packing", "loss_chunk_bytes"}
_IGNORED: dict[str, dict[str, set[str]]] = {
    "grpo": {"evaluation": _EVALUATION, "training": {*_LOSS, "group_by_length"}},
    "ppo": {"evaluation": _EVALUATION, "training": {*_LOSS, "group_by_length"}},
    "reward_model": {"training": _LOSS},
    "dpo": {"training": {"packing"}},
}
"""Keys that the first release accepted and did nothing with, by job and section; they are refused now."""


def without_ignored_keys(config: Any) -> Any:
    """A config of the first release without those keys."""
    if isinstance(config, list):
        return [without_ignored_keys(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: without_ignored_keys(value) for key, value in config.items()}
    for section, ignored in _IGNORED.get(str(config.get("job_type")), {}).items():
        if section in found:
            found[section] = {key: value for key, value in found[section].items() if key not in ignored}
    return found


def sets_ignored_keys(config: dict[str, Any], section: str, values: dict[str, Any]) -> bool:
    """Whether values hold keys that did nothing and were part of fingerprints all the same."""
    return section == "training" and bool(_IGNORED.get(config["job_type"], {}).get(section, set()) & values.keys())


def fingerprints(config: dict[str, Any]) -> dict[str, str]:
    """Of each of a job's stages, without what they read from earlier ones. The folder of `prepare` is current."""
    job = api.validate(config)
    found: dict[str, str] = {}
    for number, stage in enumerate(stages_of(job), start=1):
        found[stage.name] = content_hash(json.loads(json.dumps(stage.fingerprint())))
        if config["job_type"] == "pipeline":
            _make_up(Path(config["output_dir"]) / f"stages/{number}-{stage.name}")
    return found


def request_keys(config: dict[str, Any]) -> dict[str, str]:
    """The key of one request for each section that says how a model is asked, by the section's path."""
    return {
        path: request_key({"model": "m"}, section.sampling(), PROMPT)
        for path, section in _sections(api.validate(config))
        if hasattr(section, "sampling")
    }
