"""Results that are read from run directories: pipelines, costs, metrics; and that nothing of them becomes HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import easydistill
from easydistill.results import RunResult


def write(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "job_type": "label",
        "status": "done",
        "exit_code": 0,
        "stages": {},
        "metrics": {},
        "rows": {},
        "error": None,
    }
    (folder / "summary.json").write_text(json.dumps({**base, **more}))
    return folder


def stage(cost: float | None) -> dict[str, Any]:
    bill = {"answers": 3, "answers_without_counts": 0, "prompt_tokens": 5, "completion_tokens": 6, "cost": cost}
    return {"seconds": 1.0, "metrics": {"spent": bill}}


def test_a_pipeline_adds_up_its_jobs(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run", job_type="pipeline", metrics={"before": {"kl": 2.0}, "after": {"kl": 0.5, "new": None}}
    )
    write(run / "stages/1-seeds", stages={"synthesise": stage(0.25)})
    write(run / "stages/2-label", stages={"label": stage(0.5)})
    for name, loss in (("1-seeds", 1.0), ("2-label", 2.0)):
        line = {"time": 1.0, "stage": "sft", "step": 1, "loss": loss}
        (run / "stages" / name / "metrics.jsonl").write_text(json.dumps(line) + '\n{"torn": ')
    result = easydistill.result(run)
    assert list(result.jobs) == ["seeds", "label"] and result.jobs["label"].cost == 0.5
    assert result.cost == 0.75
    assert [row["loss"] for row in result.steps()] == [1.0, 2.0], "a line that is being written is left for later"
    assert result.compared() == [
        {"metric": "kl", "before": 2.0, "after": 0.5, "change": -1.5},
        {"metric": "new", "before": None, "after": None, "change": None},
    ]
    page = result._repr_html_()
    assert "cost: 0.75" in page and "<td>-1.5</td>" in page and "report" not in page, "there is no report to link to"


def test_a_cost_that_is_not_known_is_none(tmp_path: Path) -> None:
    assert RunResult.of(write(tmp_path / "free")).cost is None
    assert RunResult.of(write(tmp_path / "unknown", stages={"label": stage(None)})).cost is None


def test_nothing_of_a_run_becomes_html(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    folder = write(
        tmp_path / "a'b<c>",
        job_type=evil,
        status="failed",
        exit_code=None,
        error=evil,
        stages={evil: stage(1.0)},
        metrics={"before": {evil: 1.0}, "after": {evil: evil}},
        rows={"entered": 1, "accepted": 0, "rejected": 1, "rejected_by_reason": {evil: 1}},
    )
    (folder / "report.html").touch()
    result = RunResult.of(folder)
    page = result._repr_html_()
    assert "<script" not in page and "&lt;script" in page and "a&#x27;b&lt;c&gt;/report.html" in page
    assert result.status == "failed" and result.exit_code == 1
