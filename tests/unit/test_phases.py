"""Where the seconds of training go: each counts once, and the report shows their shares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from easydistill.methods.shared.phases import Phases
from easydistill.report.phases import LABELS, read_spent


@pytest.fixture
def phases() -> Phases:
    """On a clock that is a second later each time it is read."""
    ticks: Iterator[float] = iter(float(second) for second in range(1000))
    return Phases(torch.device("cpu"), lambda: next(ticks))


def test_a_second_counts_for_the_innermost_phase(phases: Phases) -> None:
    phases.begin()
    with phases.during("update"), phases.during("scores"), phases.during("rollouts"):
        pass
    # One second from each reading of the clock to the next.
    assert phases.take() == {"other": 2.0, "update": 2.0, "scores": 2.0, "rollouts": 1.0}
    assert phases.take() == {"other": 1.0}


def test_a_phase_ends_with_an_error_too(phases: Phases) -> None:
    phases.begin()
    with pytest.raises(KeyError), phases.during("teacher"):
        raise KeyError
    phases.take()
    assert phases.take() == {"other": 1.0}


def lines(path: Path, *entries: tuple[int, dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps({"stage": "seconds", "step": step, **found}) + "\n" for step, found in entries))
    return path


def test_the_report_adds_them_up_without_what_was_done_twice(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "metrics.jsonl",
        (5, {"rollouts": 3.0, "update": 1.0, "other": 0.0}),
        (10, {"rollouts": 50.0, "update": 50.0, "other": 0.0}),
        # Resumed from step 5.
        (10, {"rollouts": 2.0, "update": 2.0, "other": 2.0}),
    )
    spent = read_spent(path)
    assert spent is not None
    assert spent.seconds == {"rollouts": 5.0, "update": 3.0, "other": 2.0}
    assert "learned in 30%; 20% was lost" in spent.told
    assert [[cell.text for cell in row.cells] for row in spent.table.rows] == [
        ["5.0 s", "50%"],
        ["3.0 s", "30%"],
        ["2.0 s", "20%"],
    ]


def test_without_such_lines_there_is_nothing_to_show(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "train", "step": 1, "loss": 2.0}\n')
    assert read_spent(tmp_path / "metrics.jsonl") is None
    assert read_spent(lines(tmp_path / "none.jsonl", (1, {"other": 0.0}))) is None


def test_the_report_knows_every_phase() -> None:
    from typing import get_args

    from easydistill.methods.shared.phases import REST, Phase

    assert set(LABELS) == {*get_args(Phase), REST}
