"""The Python API as notebooks use it: events, results, typed configs, loops, threads, Ctrl-C. The runs are real ones,
whose operator and teacher are functions of a plain file.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import easydistill
from easydistill.engine.events import Event, Progress, Said, StageFinished, StageStarted
from easydistill.errors import ConfigError, DataError, Interrupted, RunDirectoryBusy

FILE = """
def titled(row):
    title = yield "A title for: " + row["messages"][0]["content"]
    return {**row, "title": title} if "3" not in title else None

def parrot(messages): return messages[-1]["content"].upper()
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(FILE)
    rows = [{"instruction": f"Name {number} <rivers>."} for number in range(2, 8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "job_type": f"{tmp_path}/mine.py:titled",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(tmp_path / "rows.json")},
        "inference": {"backend": f"{tmp_path}/mine.py:parrot"},
    }


def run(job: Any, on_progress: Callable[[Event], object] | None = None) -> easydistill.RunResult:
    return easydistill.run(job, ["dataset.max_rejected_share=1"], quiet=True, on_progress=on_progress)


def test_what_happens_is_told_and_the_result_has_it(job: dict[str, Any]) -> None:
    events: list[Event] = []
    result = run(job, events.append)
    assert result.fresh and result.exit_code == 0 and result.status == "done"
    started = [event for event in events if isinstance(event, StageStarted)]
    finished = [event for event in events if isinstance(event, StageFinished)]
    assert [(event.stage, event.number, event.total, event.why) for event in started] == [("synthesise", 1, 1, "")]
    assert [(event.skipped, event.entered, event.left) for event in finished] == [(False, 6, 5)]
    counted = [event for event in events if isinstance(event, Progress)]
    assert (counted[0].done, counted[-1].done, counted[-1].total, counted[-1].unit) == (0, 6, 6, "rows")
    assert any(isinstance(event, Said) for event in events)

    rows = result.rows()
    assert len(rows) == 5 and rows and rows.head(1)[0]["title"] == "A TITLE FOR: NAME 2 <RIVERS>."
    assert [row["reason"] for row in result.rejected()] == ["dropped"]
    assert list(result.steps()) == [] and result.compared() == [] and result.jobs == {}
    for page in (result._repr_html_(), rows._repr_html_()):
        assert "<rivers>" not in page.lower()
    assert "&lt;RIVERS&gt;" in rows._repr_html_() and "dropped 1" in result._repr_html_()
    with pytest.raises(DataError, match=r"no stage has written 'replies\.jsonl'"):
        result.rows("replies.jsonl")

    again = run(easydistill.validate(job))
    assert not again.fresh and again.rows().head(9) == rows.head(9), "a typed job is the same job"
    opened = easydistill.result(job["output_dir"])
    assert opened.summary == json.loads(json.dumps(result.summary)) and opened.exit_code == 0
    with pytest.raises(DataError, match="no run is here"):
        easydistill.result(Path(job["output_dir"]).parent)
    with pytest.raises(DataError, match="no run is here"):
        easydistill.result(opened.report)


def test_a_changed_function_runs_its_stage_again(job: dict[str, Any], tmp_path: Path) -> None:
    run(job)
    (tmp_path / "mine.py").write_text(FILE.replace('"3"', '"4"'))
    events: list[Event] = []
    assert run(job, events.append).fresh
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert started.why.startswith("again: config.file changed")
    manifest = json.loads(next((tmp_path / "run").glob("stages/*/manifest.json")).read_text())
    config = manifest["fingerprint_of"]["config"]
    assert config["operator"] == "mine.py:titled" and config["config"]["file"].startswith("mine.py:titled ")


def test_a_listener_that_fails_harms_nothing(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    called = 0

    def fails(event: Event) -> None:
        nonlocal called
        called += 1
        raise ValueError("mine")

    result = easydistill.run(job, ["dataset.max_rejected_share=1"], on_progress=fails)
    assert result.exit_code == 0 and called == 1
    assert "note: on_progress has raised ValueError: mine" in capsys.readouterr().err


def test_a_listener_may_stop_the_run_which_is_resumed(job: dict[str, Any], tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    ask = f"def parrot(messages):\n    with open({str(asked)!r}, 'a') as file: file.write('x')\n    return"
    (tmp_path / "mine.py").write_text(FILE.replace("def parrot(messages): return", ask))

    def stops(event: Event) -> None:
        if isinstance(event, Progress):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(job, stops)
    assert easydistill.result(job["output_dir"]).status == "interrupted"
    assert run(job).fresh and asked.read_text() == "x" * 6, "every question was asked once"


def test_ctrl_c_stops_the_run_and_leaves_python_its_handler(job: dict[str, Any], tmp_path: Path) -> None:
    kill = "def parrot(messages):\n    os.kill(os.getpid(), signal.SIGINT)\n    return"
    text = FILE.replace("def parrot(messages): return", kill)
    (tmp_path / "mine.py").write_text("import os, signal\n" + text)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="To resume"):
        run(job)
    assert signal.getsignal(signal.SIGINT) is before


def test_inside_a_loop_in_a_thread_and_twice(job: dict[str, Any], tmp_path: Path) -> None:
    async def cell() -> easydistill.RunResult:
        return run(job)

    assert asyncio.run(cell()).fresh
    results: list[easydistill.RunResult] = []
    other = {**job, "output_dir": str(tmp_path / "other")}
    thread = threading.Thread(target=lambda: results.append(run(other)))
    thread.start()
    thread.join()
    assert results[0].fresh and not run(other).fresh


def test_two_runs_of_one_directory_at_once_are_refused(job: dict[str, Any]) -> None:
    refused: list[BaseException] = []

    def second(event: Event) -> None:
        if isinstance(event, StageStarted):
            with pytest.raises(RunDirectoryBusy) as error:
                run(job)
            refused.append(error.value)

    assert run(job, second).exit_code == 0 and len(refused) == 1


def test_a_typed_pipeline_is_refused_with_a_hint() -> None:
    from easydistill.config.pipeline import PipelineConfig

    with pytest.raises(ConfigError, match="give the mapping or the file"):
        easydistill.validate(PipelineConfig.model_construct(job_type="pipeline"))


def test_frames_need_pandas(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    result = run(job)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.rows().frame()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    assert isinstance(result.rows().frame(), pandas.DataFrame) and len(result.rejected().frame()) == 1
    assert list(result.frame().columns) == []
