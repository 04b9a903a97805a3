"""Scoring in several processes: the store of one, however it is interrupted, and no row scored twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import assert_all_gone, ranks_of
from tests.support.jobs import TRAINING, start, write_config

from easydistill.data.files import hash_file, read_json
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext, StageResult, notes_of
from easydistill.errors import DataError
from easydistill.jobs import JOBS, stages_of
from easydistill.launch.stages import stage_runner

SHARDS = "stages/1-score/signals"


def rows_file(folder: Path, rows: int) -> str:
    path = folder / "rows.json"
    texts = [f"question {number}: " + "word " * (number % 23) for number in range(rows)]
    path.write_text(json.dumps([{"instruction": text, "output": f"{text} it is."} for text in texts]))
    return str(path)


def job_of(folder: Path, model: Path, processes: int, rows: int = 60, **sections: Any) -> dict[str, Any]:
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": rows_file(folder, rows)},
        "models": {"teacher": str(model), "student": str(model)},
        "signals": {"shard_tokens": 300, "max_batch_tokens": 200, "dtype": "float32"},
        "distillation": {"max_seq_length": 96, "distillation_type": "forward_kld"},
        "training": {
            **{name: value for name, value in TRAINING.items() if name != "max_length"},
            "num_train_epochs": 1,
            "max_steps": 1,
            "save_steps": 100,
        },
        "evaluation": {"enabled": False},
        "launch": {"processes": processes},
        **sections,
    }


def score(folder: Path, job: dict[str, Any]) -> StageResult:
    """Run the score stage of a job alone."""
    typed: Any = JOBS.module(job["job_type"]).Job.model_validate(job)
    stage = next(stage for stage in stages_of(typed) if stage.name == "score")
    directory = folder / "run/stages/1-score"
    directory.mkdir(parents=True, exist_ok=True)
    context = StageContext(directory, folder / "run", {}, "same", StopSignal(), Reporter(None), Redactor())
    return stage_runner(typed)(stage, context)


def store(folder: Path) -> dict[str, str]:
    """Hashes of a store's files."""
    found = {path.name: hash_file(path) for path in (folder / "run" / SHARDS).iterdir()}
    assert len(found) > 6 and "store.json" in found
    return found


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    score(folder, job_of(folder, tiny_model, 1))
    return folder


def test_two_processes_make_the_store_of_one(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    # A strategy of the training is none of the scoring's business.
    launch = {"processes": 2, "strategy": "fsdp2"}
    result = score(tmp_path, job_of(tmp_path, tiny_model, 2, launch=launch))
    assert store(tmp_path) == store(alone)
    assert result.metrics["processes"] == 2
    assert result.metrics["peak_memory_bytes"] > 10_000_000
    reports = [read_json(tmp_path / f"run/stages/1-score/processes/score/rank-{rank}.json") for rank in (0, 1)]
    assert sum(report["shards"] for report in reports) == len(store(alone)) - 2
    assert set(result.outputs) == {f"signals/{name}" for name in store(alone)} - {"signals/for.txt"}


@pytest.mark.slow
def test_what_is_there_is_not_scored_again(
    alone: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes go on with what one made; what it left unfinished is gone."""
    score(tmp_path, job_of(tmp_path, tiny_model, 1))
    signals = tmp_path / "run" / SHARDS
    for number in (1, 4):
        (signals / f"shard-{number:05d}.safetensors").unlink()
    (signals / ".shard-00001.safetensors.77.tmp").write_bytes(b"half")
    (signals / ".tmpDkcVD0").touch()
    kept = {path.name: path.stat().st_ino for path in signals.glob("shard-*")}
    result = score(tmp_path, job_of(tmp_path, tiny_model, 2))
    assert store(tmp_path) == store(alone)
    assert {name: (signals / name).stat().st_ino for name in kept} == kept
    said = capfd.readouterr().err
    assert f"of {result.rows.left} rows already done" in said
    assert f"Scoring: {result.rows.left}/{result.rows.left} rows" in said


def test_what_is_told_before(tiny_model: Path, tmp_path: Path) -> None:
    def told(**sections: Any) -> tuple[str, ...]:
        job: Any = JOBS.module("white_box_kd_local").Job.model_validate(job_of(tmp_path, tiny_model, 2, **sections))
        return notes_of(next(stage for stage in stages_of(job) if stage.name == "score"))

    assert re.fullmatch(r"each of 2 processes that scores loads the whole teacher \(\d\.\d GB\)", told()[0])
    assert told(launch={"processes": 1}) == told(launch=None) == ()
    vllm = {"kind": "top_k", "backend": "vllm"}
    assert "vLLM scores in one process" in told(signals=vllm)[0]


@pytest.mark.slow
def test_an_error_of_one_ends_all(tiny_model: Path, tmp_path: Path) -> None:
    """The message is that of the process in which it happened; nobody waits for it."""
    job = job_of(tmp_path, tiny_model, 2)
    score(tmp_path, job)
    signals = tmp_path / "run" / SHARDS
    (signals / "shard-00002.safetensors").write_bytes(b"not a shard")
    with pytest.raises(DataError, match=r"shard-00002.*not a readable shard"):
        score(tmp_path, job)


# --- kill -9 -----------------------------------------------------------------------------------------------------


def finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (folder / "run" / SHARDS).glob("shard-*")}


def until_more(run: Any, folder: Path, shards: int) -> list[int]:
    """Wait until more shards are finished than so many; the ids of the processes that score."""
    ends = time.monotonic() + 300
    while run.poll() is None and time.monotonic() < ends:
        if len(finished(folder)) > shards and len(ranks := ranks_of(run)) == 2:
            return ranks
        time.sleep(0.02)
    raise AssertionError(run.communicate(timeout=30))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["rank", "parent", "ctrl-c"])
def test_killed_at_random_moments(victim: str, tiny_model: Path, tmp_path: Path) -> None:
    """Every try goes on where the last one was, and the store is that of an uninterrupted run.

    tests/unit/test_score_rows.py kills more often.
    """
    whole = tmp_path / "whole"
    whole.mkdir()
    score(whole, job_of(whole, tiny_model, 1, rows=1500))
    config = write_config(tmp_path, job_of(tmp_path, tiny_model, 2, rows=1500))
    generator = random.Random(victim)
    kept = dict[str, int]()
    for _ in range(3):
        run = start(config)
        ranks = until_more(run, tmp_path, len(kept))
        time.sleep(generator.uniform(0, 1.0))
        if victim == "ctrl-c":
            run.send_signal(signal.SIGINT)
        else:
            os.kill(run.pid if victim == "parent" else generator.choice(ranks), signal.SIGKILL)
        out, _ = run.communicate(timeout=60)
        assert run.returncode == {"rank": 1, "parent": -signal.SIGKILL, "ctrl-c": 130}[victim], out
        assert_all_gone(ranks)
        now = finished(tmp_path)
        assert kept.items() < now.items(), "a finished shard was lost, or scored again"
        assert len(now) < len(finished(whole)), "there was nothing left to interrupt"
        kept = now
    run = start(config)
    out, _ = run.communicate(timeout=600)
    assert run.returncode == 0, out
    assert kept.items() <= finished(tmp_path).items()
    assert {name: made for name, made in store(tmp_path).items() if name != "for.txt"}.items() <= store(whole).items()
