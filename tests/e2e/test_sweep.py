"""`easydistill sweep`: variants on labels that are paid for once, whatever fails or is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, prompt, running
from tests.support.jobs import api_job, command, write_config

from easydistill.cli import main
from easydistill.sweeping import sweep as run_sweep
from easydistill.sweeping import variants_of

RATES = ("1e-3", "3e-3", "1e-2", "3e-2")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("sweep", str(config), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )


def sweep(config: Path, *arguments: str) -> tuple[int, str]:
    process = start(config, *arguments)
    out, _ = process.communicate(timeout=1700)
    return process.returncode, out


def labelling(folder: Path, server: Running, prompts: list[str]) -> Path:
    """A job that trains nothing, so that its variants take seconds."""
    folder.mkdir(exist_ok=True)
    job = api_job(folder, server.base_url, folder, prompts, model="teacher-1")
    kept = {name: job[name] for name in ("output_dir", "inference")}
    dataset = {"instruction_path": job["dataset"]["instruction_path"]}
    return write_config(folder, {"job_type": "label", "dataset": dataset, **kept})


def state(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "run/sweep.json").read_text())
    return {variant["name"]: variant["state"] for variant in found["variants"]}


def test_variants_share_answers_and_one_that_fails_stops_no_other(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reset()
    prompts = [*(f"shared {number}" for number in range(12)), prompt("x", "long")]
    config = labelling(tmp_path, server, prompts)
    grid = ["--grid", "inference.truncation=keep,reject", "--set", "dataset.max_rejected_share=0.05"]
    assert main(["sweep", str(config), *grid, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "truncation=keep\n  label: pending, 13 calls" in out
    assert "truncation=reject\n  label: pending, 13 calls" in out and "in all: at most 26 calls" in out
    assert not (tmp_path / "run").exists() and server.stats()["attempts"] == {}

    code, out = sweep(config, *grid)
    assert code == 3, out
    assert server.stats()["attempts"] == dict.fromkeys(prompts, 1)
    assert state(tmp_path) == {"truncation=keep": "done", "truncation=reject": "done"}
    assert "comparison:" in out and (tmp_path / "run/compare.html").is_file()
    assert main(["sweep", str(config), *grid]) == 3
    assert capsys.readouterr().out.count("finished before") == 2

    nobody = '"http://127.0.0.1:9/v1"'
    alone = ["--set", "inference.max_retries=0", "--set", "dataset.max_samples=5"]
    code, out = sweep(config, "--grid", f"inference.base_url={nobody},{server.base_url}", *alone)
    assert code == 1, out
    assert sorted(state(tmp_path).values()) == ["done", "failed"]
    assert "has failed; the others go on" in out


def test_a_wrong_variant_is_told_before_anything_is_paid(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reset()
    config = labelling(tmp_path, server, ["a"])
    assert main(["sweep", str(config), "--grid", "inference.max_new_tokens=8,-1"]) == 2
    told = capsys.readouterr().err
    assert "max_new_tokens" in told and "(in max_new_tokens=-1)" in told and told.startswith("error: 1 problem")
    assert main(["sweep", str(config), "--grid", "inference.max_new_token=8,9"]) == 2
    told = capsys.readouterr().err
    assert "max_new_tokens" in told and "(in " not in told
    assert main(["sweep", str(config), "--grid", "inference.seed=8,9", "--by", "agrement"]) == 2
    assert "did you mean agreement?" in capsys.readouterr().err
    where = ["--set", "output_dir=s3://bucket/run"]
    assert main(["sweep", str(config), "--grid", "inference.seed=8,9", *where]) == 2
    assert "object store" in capsys.readouterr().err
    assert main(["sweep", str(config), "--grid", "inference.seed=8,9", "--output", ""]) == 2
    assert "--output: output_dir: the text is empty" in capsys.readouterr().err
    assert server.stats()["attempts"] == {} and not (tmp_path / "run").exists()


def test_a_config_of_python_is_swept_too(server: Running, tmp_path: Path) -> None:
    server.reset()
    job = json.loads(labelling(tmp_path, server, ["a", "b"]).read_text())
    job["dataset"]["instruction_path"] = Path(job["dataset"]["instruction_path"])
    told: list[str] = []
    result = run_sweep(job, variants_of(["inference.seed=3"]), quiet=True, say=told.append)
    assert result.exit_code == 0 and [outcome.name for outcome in result.outcomes] == ["seed=3"]
    assert result.page is None and server.stats()["attempts"] == {"a": 1, "b": 1}
    assert told == ["=== [1/1] seed=3"]


def test_the_answers_of_a_run_in_the_same_folder_are_used(server: Running, tmp_path: Path) -> None:
    server.reset()
    config = labelling(tmp_path, server, ["a", "b"])
    assert main(["run", str(config), "--quiet"]) == 0
    code, out = sweep(config, "--grid", "inference.thoughts=apart,inline")
    assert code == 0 and "2 answers of the run in" in out, out
    assert server.stats()["attempts"] == {"a": 1, "b": 1}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_four_learning_rates_over_an_api_pay_for_each_question_once(
    server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed on the way, resumed, extended; then a second machine, which imports the answers and asks nothing."""
    server.reset()
    prompts = [f"Question {number}: what is {number} and {number}?" for number in range(24)]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    config = write_config(first, api_job(first, server.base_url, tiny_model, prompts, model="teacher-1"))
    grid = ["--grid", f"training.learning_rate={','.join(RATES)}"]

    process = start(config, *grid)
    deadline = time.monotonic() + 900
    while not (first / "run/sweep.json").is_file():
        # It is there once the first variant has ended.
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # The sweep alone: the second variant, which it has begun, must end with it.
    os.kill(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    weights = (first / "run/learning_rate=1e-3/student/model.safetensors").stat()
    code, out = sweep(config, *grid, "--by", "cross_entropy")
    assert code == 0, out
    assert "finished before" in out
    assert (first / "run/learning_rate=1e-3/student/model.safetensors").stat().st_ino == weights.st_ino
    assert server.stats()["attempts"] == dict.fromkeys(prompts, 1)
    assert state(first) == {f"learning_rate={rate}": "done" for rate in RATES}

    rows = [line for line in out.splitlines() if line.startswith("learning_rate=") and " done " in line]
    losses = [float(line.split()[2]) for line in rows]
    assert len(losses) == 4 and losses == sorted(losses) and len(set(losses)) > 1
    page = (first / "run/compare.md").read_text().replace("\\_", "_")
    assert all(f"learning_rate={rate}" in page for rate in RATES)
    assert "| `training.learning_rate` | 0.001 | 0.003 | 0.01 | 0.03 |" in page

    assert main(["answers", "export", str(first / "run/answers_cache"), str(tmp_path / "answers.tar.gz")]) == 0
    assert main(["answers", "import", str(tmp_path / "cache"), str(tmp_path / "answers.tar.gz")]) == 0
    second.mkdir()
    job = api_job(second, server.base_url, tiny_model, prompts, model="teacher-1")
    config = write_config(second, {**job, "answers_cache": str(tmp_path / "cache")})
    assert main(["run", str(config), "--set", "training.learning_rate=1e-3", "--quiet"]) == 0
    assert sum(server.stats()["attempts"].values()) == len(prompts), "the second machine has asked nothing"
    spent = json.loads((second / "run/summary.json").read_text())["stages"]["label"]["metrics"]["spent"]
    assert (spent["answers"], spent["answers_from_cache"]) == (0, len(prompts))
