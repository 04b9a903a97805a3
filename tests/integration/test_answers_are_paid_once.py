"""Runs that name one answers cache pay for each answer once, side by side or one after the other, killed or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, prompt, running
from tests.support.jobs import local_job, run, run_here, start, write_config, write_prompts

from easydistill import api
from easydistill.asking.answers_exchange import check
from easydistill.cli import main
from easydistill.data.files import hash_file

PRICES = {"input": 1.0, "output": 2.0}


@pytest.fixture(scope="module")
def slow_server() -> Iterator[Running]:
    with running(latency=0.03) as found:
        yield found


def label(folder: Path, server: Running, prompts: list[str], cache: Path | None, **inference: Any) -> Path:
    """The config of a job that only labels."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "base_url": server.base_url,
        "max_retry_wait": 0.2,
        "timeout": 2,
        "prices": PRICES,
        "max_retries": 0,
        "model": "teacher-1",
    }
    job: dict[str, Any] = {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, prompts)), "max_rejected_share": 1.0},
        "inference": settings | inference,
    }
    if cache is not None:
        job["answers_cache"] = str(cache)
    path = folder / "kd.json"
    path.write_text(json.dumps(job))
    return path


def labels(folder: Path) -> str:
    return hash_file(folder / "run/stages/1-label/labeled.json")


def spent(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/summary.json").read_text())["stages"]["label"]["metrics"]["spent"]
    return found


def test_a_second_directory_and_a_second_machine_ask_nothing(slow_server: Running, tmp_path: Path) -> None:
    slow_server.reset()
    prompts = [f"q{number}" for number in range(30)]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    code, out = run_here(label(first, slow_server, prompts, tmp_path / "cache"))
    assert code == 0, out
    assert "answers cache" not in out
    again = label(second, slow_server, [*prompts, "new"], tmp_path / "cache")
    (planned,) = api.plan(again)
    assert (planned.estimate.done_rows, planned.estimate.calls) == (30, 1)
    code, out = run_here(again)
    assert code == 0, out
    assert "30 of 31 answers came from the answers cache" in out
    assert slow_server.stats()["attempts"] == dict.fromkeys([*prompts, "new"], 1)
    bill = spent(second)
    assert (bill["answers"], bill["answers_from_cache"], bill["saved_tokens"]) == (1, 30, 30 * 12)
    assert bill["cost"] == pytest.approx((5 + 14) / 1e6) and bill["saved_cost"] == pytest.approx(30 * 19 / 1e6)
    report = (second / "run/report.md").read_text()
    assert "30 answers came from the answers cache" in report and "0.00057" in report

    assert main(["answers", "export", str(tmp_path / "cache"), str(tmp_path / "answers.tar.gz")]) == 0
    assert main(["answers", "import", str(tmp_path / "elsewhere"), str(tmp_path / "answers.tar.gz")]) == 0
    code, out = run_here(label(third, slow_server, prompts, tmp_path / "elsewhere"))
    assert code == 0, out
    assert sum(slow_server.stats()["attempts"].values()) == 31
    assert labels(third) == labels(first)
    assert spent(third)["cost"] == 0
    # The run stands on its own: without the cache it is as complete as one that asked.
    (third / "run/stages/1-label/manifest.json").unlink()
    code, out = run_here(label(third, slow_server, prompts, None))
    assert code == 0 and labels(third) == labels(first)
    assert (spent(third)["answers"], spent(third)["answers_from_cache"]) == (0, 30)
    assert sum(slow_server.stats()["attempts"].values()) == 31


def test_errors_and_answers_that_no_row_can_use_are_not_kept(slow_server: Running, tmp_path: Path) -> None:
    slow_server.reset()
    kinds = ("bad_request", "server_error", "empty", "blank", "filtered", "long", "echo_key")
    prompts = ["fine", *(prompt("x", kind) for kind in kinds)]
    secret = "sk-very-secret-1234567890"
    for name in ("first", "second"):
        config = label(tmp_path / name, slow_server, prompts, tmp_path / "cache", api_key=secret)
        assert run_here(config)[0] == 0
    asked = slow_server.stats()["attempts"]
    assert {text: count for text, count in asked.items() if count == 1} == {"fine": 1, prompt("x", "long"): 1}
    assert check(tmp_path / "cache").answers == 2
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_retry_asks_again_whatever_the_cache_has(slow_server: Running, tmp_path: Path) -> None:
    slow_server.reset()
    config = label(tmp_path / "first", slow_server, ["a", prompt("x", "long")], tmp_path / "cache", truncation="reject")
    assert run_here(config)[0] == 0
    assert main(["retry", str(config), "--only=truncated", "--quiet"]) == 0
    assert slow_server.stats()["attempts"] == {"a": 1, prompt("x", "long"): 2}
    assert check(tmp_path / "cache").replaced == 1, "the later answer counts from now on"
    assert run_here(label(tmp_path / "second", slow_server, ["a", prompt("x", "long")], tmp_path / "cache"))[0] == 0
    assert sum(slow_server.stats()["attempts"].values()) == 3


def test_a_run_that_is_given_a_cache_later_fills_it_from_its_journal(slow_server: Running, tmp_path: Path) -> None:
    slow_server.reset()
    prompts = ["a", "b", prompt("c", "server_error", 1)]
    assert run_here(label(tmp_path / "first", slow_server, prompts, None))[0] == 0
    assert main(["retry", str(label(tmp_path / "first", slow_server, prompts, tmp_path / "cache")), "--quiet"]) == 0
    assert check(tmp_path / "cache").answers == 3
    assert main(["answers", "import", str(tmp_path / "other"), str(tmp_path / "first/run")]) == 0
    for number, cache in enumerate(("cache", "other")):
        folder = tmp_path / f"later-{number}"
        assert run_here(label(folder, slow_server, prompts, tmp_path / cache))[0] == 0
        assert labels(folder) == labels(tmp_path / "first")
    assert slow_server.stats()["attempts"] == {"a": 1, "b": 1, prompt("c", "server_error", 1): 2}


def test_runs_side_by_side_that_are_killed_pay_once(slow_server: Running, tmp_path: Path) -> None:
    """Two commands ask the same at once; one is killed with requests in flight, and is run again."""
    slow_server.reset()
    prompts = [f"side {number}" for number in range(60)]
    folders = [tmp_path / name for name in ("one", "two")]
    cache = tmp_path / "cache"
    configs = [label(folder, slow_server, prompts, cache, max_concurrency=4) for folder in folders]
    running_ones = [start(config) for config in configs]
    deadline = time.monotonic() + 400
    while not slow_server.stats()["paid"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running_ones[0].kill()
    for process in running_ones:
        out, _ = process.communicate(timeout=400)
    assert running_ones[1].returncode == 0, out
    code, out = run(configs[0])
    assert code == 0, out
    assert labels(folders[0]) == labels(folders[1])
    asked = slow_server.stats()["attempts"]
    assert set(asked) == set(prompts)
    twice = [text for text, count in asked.items() if count > 1]
    assert len(twice) <= 4, "but for what was in flight at the kill, nothing is asked twice"
    assert check(cache).good and check(cache).answers == 60


def test_what_another_run_has_in_flight_is_waited_for(tmp_path: Path) -> None:
    with running(latency=1.0) as server:
        prompts = [f"slow {number}" for number in range(8)]
        folders = [tmp_path / name for name in ("one", "two")]
        configs = [label(folder, server, prompts, tmp_path / "cache", timeout=20) for folder in folders]
        # Loaded and started together, each would ask all eight at once.
        both = [start(config) for config in configs]
        outs = [process.communicate(timeout=400)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], outs
        assert server.stats()["attempts"] == dict.fromkeys(prompts, 1)
        assert labels(folders[0]) == labels(folders[1])


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_asked(
    slow_server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow_server.reset()
    (tmp_path / "file").write_text("")
    code, out = run_here(label(tmp_path / "a", slow_server, ["a"], tmp_path / "file"))
    assert code == 2 and "answers_cache: this folder cannot be used" in out
    config = label(tmp_path / "b", slow_server, ["a"], None)
    code, out = run_here(config, "--set", "answers_cache=s3://bucket/cache")
    assert code == 2 and "object store" in out
    assert slow_server.stats()["attempts"] == {}
    capsys.readouterr()
    assert main(["answers", "info", str(tmp_path / "absent")]) == 1
    assert "no answers cache is here" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_a_model_on_this_machine_is_loaded_once_for_the_same_rows_and_settings(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easydistill.teachers.transformers import TransformersTeacher

    def config(name: str, **dataset: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        job = local_job(folder, tiny_model, tiny_model, ["one", "two", "three"])
        kept = {key: job[key] for key in ("output_dir", "inference", "dataset")}
        kept["dataset"] |= dataset
        models = {"teacher": str(tiny_model)}
        job = {"job_type": "label", "models": models, "answers_cache": str(tmp_path / "cache"), **kept}
        return write_config(folder, job)

    loaded: list[TransformersTeacher] = []
    real = TransformersTeacher.load

    def load(self: TransformersTeacher) -> None:
        loaded.append(self)
        real(self)

    monkeypatch.setattr(TransformersTeacher, "load", load)
    # Other rows are other batches.
    for name, rows, loads in (("first", 3, True), ("second", 3, False), ("third", 2, True)):
        loaded.clear()
        code, out = run_here(config(name, max_samples=rows))
        assert code == 0, out
        assert bool(loaded) == loads, name
        assert ("3 of 3 answers came from the answers cache" in out) == (name == "second")
    assert labels(tmp_path / "first") == labels(tmp_path / "second")
