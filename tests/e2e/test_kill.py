"""kill -9 at any moment, then the same command: it completes, asks for nothing it has, and makes the same artifacts."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, running
from tests.support.jobs import api_job, local_job, run, start, write_config

from easydistill.data.files import hash_file

CONCURRENCY = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(latency=0.05) as found:
        yield found


def artifacts(folder: Path) -> dict[str, str]:
    """Hashes of what a run makes for its user."""
    found = {
        "labels": hash_file(folder / "run/stages/1-label/labeled.json"),
        "weights": hash_file(folder / "run/student/model.safetensors"),
        "answers": hash_file(folder / "run/stages/3-evaluate/answers.jsonl"),
    }
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["status"] == "done"
    found["metrics"] = json.dumps(summary["metrics"], sort_keys=True)
    return found


def journalled(folder: Path) -> set[str]:
    """Keys of completed requests that are on disk (whole lines only)."""
    path = folder / "run/stages/1-label/journal.jsonl"
    if not path.exists():
        return set()
    lines = path.read_bytes().split(b"\n")[:-1]
    return {record["key"] for line in lines for record in json.loads(line) if record["kind"] == "completion"}


def torture(folder: Path, job: dict[str, Any], longest: float, generator: random.Random) -> int:
    """Run, kill, run again until it completes; returns how often it was killed."""
    config = write_config(folder, job)
    kills = 0
    finished: set[str] = set()
    while True:
        process = start(config)
        deadline = time.monotonic() + generator.uniform(0.2, longest)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
            now = journalled(folder)
            assert finished <= now, "a finished answer was lost"
            finished = now
            # Every try gets further than the last one, or the test would never end.
            longest *= 1.25
            continue
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return kills


def api_trials(server: Running, tiny_model: Path, tmp_path: Path, wanted: int) -> None:
    prompts = [f"{tmp_path.name} question {n}, in a few words" for n in range(120)]

    def job(folder: Path, marker: str) -> dict[str, Any]:
        folder.mkdir()
        return api_job(
            folder, server.base_url, tiny_model, [f"{marker} {text}" for text in prompts], max_concurrency=CONCURRENCY
        )

    generator = random.Random(0)
    killed = trial = 0
    while killed < wanted:
        # The same prompts for both, so that the artifacts must be the same; the attempts are told apart by time.
        whole, torn = tmp_path / f"whole-{trial}", tmp_path / f"torn-{trial}"
        started = time.monotonic()
        code, out = run(write_config(whole, job(whole, str(trial))))
        assert code == 0, out
        before = server.stats()["attempts"]
        kills = torture(torn, job(torn, str(trial)), time.monotonic() - started, generator)
        after = server.stats()["attempts"]
        asked = {text: after[text] - before[text] for text in before if text.startswith(f"{trial} {tmp_path.name} ")}
        assert all(count >= 1 for count in asked.values())
        # Repeated can only be what was under way at a kill.
        assert sum(asked.values()) - len(asked) <= kills * CONCURRENCY
        assert artifacts(torn) == artifacts(whole)
        killed += kills
        trial += 1


def local_trials(tiny_model: Path, tmp_path: Path, wanted: int) -> None:
    prompts = [f"local question {n}: " + "word " * (n % 13) for n in range(48)]
    whole = tmp_path / "whole"
    whole.mkdir()
    started = time.monotonic()
    code, out = run(write_config(whole, local_job(whole, tiny_model, tiny_model, prompts)))
    assert code == 0, out
    longest = time.monotonic() - started
    expected = artifacts(whole)
    generator = random.Random(1)
    killed = trial = 0
    while killed < wanted:
        torn = tmp_path / f"torn-{trial}"
        torn.mkdir()
        killed += torture(torn, local_job(torn, tiny_model, tiny_model, prompts), longest, generator)
        assert artifacts(torn) == expected
        trial += 1


@pytest.mark.slow
def test_api_job(server: Running, tiny_model: Path, tmp_path: Path) -> None:
    api_trials(server, tiny_model, tmp_path, wanted=3)


@pytest.mark.slow
def test_local_job(tiny_model: Path, tmp_path: Path) -> None:
    local_trials(tiny_model, tmp_path, wanted=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_api_job_thirty_times(server: Running, tiny_model: Path, tmp_path: Path) -> None:
    api_trials(server, tiny_model, tmp_path, wanted=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_local_job_thirty_times(tiny_model: Path, tmp_path: Path) -> None:
    local_trials(tiny_model, tmp_path, wanted=30)
