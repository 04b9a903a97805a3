"""kill -9 of a big job at a server with a token bucket and faults: every row is answered, none is paid for twice."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run, start, write_config, write_prompts
from tests.support.traffic_server import traffic

CONCURRENCY = 24
RATE = 400.0


def label_job(folder: Path, base_url: str, prompts: list[str]) -> dict[str, Any]:
    """Answers alone, from an API."""
    return {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, prompts)), "labeled_path": str(folder / "out.jsonl")},
        "inference": {
            "base_url": base_url,
            "model": "teacher-1",
            "max_concurrency": CONCURRENCY,
            "timeout": 2,
            "max_retry_wait": 0.2,
            "max_retries": 10,
        },
    }


def answered(folder: Path) -> set[str]:
    """Keys of the answers that are on disk (whole lines only)."""
    path = folder / "run/stages/1-label/journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {record["key"] for line in lines for record in json.loads(line) if record["kind"] == "completion"}


def torture(folder: Path, wanted: int, rows: int, seed: int) -> None:
    """Kill so often; then let it finish, and count what the server was asked and what came of it."""
    prompts = [f"{folder.name} row {n}: tell me more" for n in range(rows)]
    draw = random.Random(seed)
    with traffic(rate=RATE, burst=RATE / 4, median=0.05, sigma=0.5, faults=0.2, seed=seed) as server:
        config = write_config(folder, label_job(folder, server.base_url, prompts))
        kept: set[str] = set()
        kills = 0
        while kills < wanted:
            process = start(config)
            before = len(kept)
            # Some moments are in the start of the process, some in the traffic.
            until = time.monotonic() + draw.uniform(0.1, 1.0)
            while process.poll() is None and len(answered(folder)) == before and draw.random() < 0.98:
                time.sleep(0.05)
            time.sleep(max(0.0, min(0.5, until - time.monotonic())))
            if process.poll() is not None:
                out, _ = process.communicate()
                assert process.returncode == 0, out
                break
            process.kill()
            process.communicate()
            kills += 1
            now = answered(folder)
            assert kept <= now, "an answer was lost"
            kept = now
        code, out = run(config)
        assert code == 0, out
        paid = [server.stats()["paid"].get(prompt, 0) for prompt in prompts]
    assert kills == wanted, f"done after {kills} kills: more rows are needed"
    assert min(paid) >= 1
    # Only what was under way at a kill may have been answered in vain.
    assert sum(paid) - rows <= kills * CONCURRENCY
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert sorted(row["instruction"] for row in found) == sorted(prompts)
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["rows"] == {
        "entered": rows,
        "accepted": rows,
        "rejected": 0,
        "rejected_share": 0.0,
        "rejected_by_reason": {},
    }


def test_a_few_kills(tmp_path: Path) -> None:
    torture(tmp_path, wanted=3, rows=600, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills(tmp_path: Path) -> None:
    torture(tmp_path, wanted=30, rows=6000, seed=1)
