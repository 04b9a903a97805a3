"""White-box runs that name one answers cache score each shard once; what is damaged or other is scored anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.jobs import TRAINING, run_here, write_config

from easydistill.asking.answers_exchange import check, export, import_into
from easydistill.data.files import hash_file
from easydistill.signals.codec import Codec
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.shared import SharedShards, shard_key

ROWS = [{"instruction": f"question {n}", "output": f"answer {n} " + "word " * (n % 7)} for n in range(16)]


def job(folder: Path, model: Path, cache: Path, **sections: Any) -> Path:
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(ROWS))
    found: dict[str, Any] = {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "answers_cache": str(cache),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"teacher": str(model), "student": str(model)},
        "signals": {"kind": "top_k", "k": 4, "shard_tokens": 150, "max_batch_tokens": 100},
        "distillation": {"distillation_type": "forward_kld"},
        "training": {**TRAINING, "max_steps": 1},
        "evaluation": {"enabled": False},
    }
    for name, values in sections.items():
        found[name] = {**found[name], **values}
    return write_config(folder, found)


def store(folder: Path) -> dict[str, str]:
    found = {path.name: hash_file(path) for path in (folder / "run/stages/1-score/signals").glob("shard-*")}
    assert len(found) > 1
    return found


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that teachers have scored."""
    rows: list[str] = []
    real = ModelScorer.start if hasattr(ModelScorer, "start") else ModelScorer.score

    def spied(self: Any, batch: Any) -> Any:
        rows.extend(row.id for row in batch)
        return real(self, batch)

    monkeypatch.setattr(ModelScorer, real.__name__, spied)
    return rows


def test_another_run_takes_the_signals_and_loads_no_teacher(
    tiny_model: Path, tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    code, out = run_here(job(tmp_path / "first", tiny_model, cache))
    assert code == 0, out
    assert len(scored) == len(ROWS)
    shards = SharedShards(cache)
    assert len(shards.sizes()) == len(store(tmp_path / "first"))

    # A colleague with the same models elsewhere, and other settings of training.
    export(cache, tmp_path / "all.tar", signals=True)
    assert import_into(tmp_path / "theirs", tmp_path / "all.tar").signal_shards == len(shards.sizes())
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in tiny_model.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    second = job(tmp_path / "second", copied, tmp_path / "theirs", training={"learning_rate": 3e-3})
    with monkeypatch.context() as patched:
        patched.setattr(ModelScorer, "__init__", lambda *_, **__: pytest.fail("the teacher was loaded"))
        code, out = run_here(second)
    assert code == 0, out
    assert "signals of 16 rows are from the answers cache" in out
    assert store(tmp_path / "second") == store(tmp_path / "first")

    # One shard is damaged: it alone is scored anew, and replaced.
    broken = sorted(shards.sizes())[0]
    file, _ = shards.files(broken)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)
    assert check(cache).damaged_signals == [broken]
    scored.clear()
    code, out = run_here(job(tmp_path / "third", tiny_model, cache))
    assert code == 0, out
    assert 0 < len(scored) < len(ROWS)
    assert store(tmp_path / "third") == store(tmp_path / "first") and check(cache).good

    # Other settings of the signals are other signals.
    scored.clear()
    code, out = run_here(job(tmp_path / "fourth", tiny_model, cache, signals={"k": 5}))
    assert code == 0, out
    assert len(scored) == len(ROWS)


def test_everything_that_decides_a_signal_is_in_its_key() -> None:
    codec = Codec(vocabulary=100, head=4, most=4, draws=0)
    about = {"teachers": [[{"files": "abc"}, 1.0]], "temperature": 1.0}
    row = RowToScore("a", [1, 2, 3], [False, True, True])
    keys = [
        shard_key(about, codec, [row]),
        shard_key({**about, "temperature": 2.0}, codec, [row]),
        shard_key(about, Codec(vocabulary=100, head=5, most=5, draws=0), [row]),
        shard_key(about, codec, [RowToScore("b", [1, 2, 3], [False, True, True])]),
        shard_key(about, codec, [RowToScore("a", [1, 2, 4], [False, True, True])]),
        shard_key(about, codec, [RowToScore("a", [1, 2, 3], [False, False, True])]),
        shard_key(about, codec, [RowToScore("a", [1, 2, 3], [False, True, True], images=("0" * 64,))]),
        shard_key(about, codec, [row, row]),
    ]
    assert len(set(keys)) == len(keys)
    array = RowToScore("a", np.array([1, 2, 3]), np.array([False, True, True]))  # type: ignore[arg-type]
    assert shard_key(about, codec, [array]) == keys[0]
