"""Errors that are not ours: a traceback that can be found, no secrets, and no pointer to a file that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.cli import main
from easydistill.engine.runner import Runner

SECRET = "sk-very-secret-1234"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "How many?"}]))
    path = tmp_path / "label.json"
    path.write_text(
        json.dumps(
            {
                "job_type": "label",
                "output_dir": str(tmp_path / "run"),
                "dataset": {"instruction_path": str(rows)},
                "inference": {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key": SECRET},
            }
        )
    )
    return path


def failing(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError(f"a library's own words, {SECRET} among them")


@pytest.mark.parametrize("command", ["run", "retry", "plan", "preview"])
def test_an_error_before_the_log_begins_shows_its_traceback(
    command: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "preflight", failing)
    assert main([command, str(config)]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "in failing" in shown and "error: ZeroDivisionError: a library's own" in shown
    assert "log.txt" not in shown and not (config.parent / "run" / "log.txt").exists()
    assert SECRET not in shown


def test_a_log_of_an_earlier_run_is_not_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "run").mkdir()
    (config.parent / "run" / "log.txt").write_text("what an earlier run said\n")
    monkeypatch.setattr(Runner, "preflight", failing)
    assert main(["run", str(config)]) == 1
    shown = capsys.readouterr().err
    assert "log.txt" not in shown and "in failing" in shown


def test_an_error_of_a_stage_is_in_the_log(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "execute", failing)
    assert main(["run", str(config)]) == 1
    shown = capsys.readouterr().err
    log = config.parent / "run" / "log.txt"
    assert f"the traceback is in {log}" in shown and "Traceback" not in shown
    assert "in failing" in log.read_text()
    assert SECRET not in shown + log.read_text()


@pytest.mark.parametrize("command", ["run", "validate"])
def test_an_error_while_the_config_is_read_shows_nothing_of_it(
    command: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "load_config", failing)
    assert main([command, str(config)]) == 1
    shown = capsys.readouterr().err
    assert "in failing" in shown and "ZeroDivisionError while the config was read" in shown
    assert SECRET not in shown and "log.txt" not in shown


def test_an_error_without_a_config_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "doctor", failing)
    assert main(["doctor"]) == 1
    assert "in failing" in capsys.readouterr().err
