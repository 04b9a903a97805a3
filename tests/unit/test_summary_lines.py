"""What a run prints at its end."""

from __future__ import annotations

from pathlib import Path

from easydistill.api import RunResult, summary_lines
from easydistill.engine.summary import JOB


def test_metrics_that_were_not_measured_are_named_in_one_line(tmp_path: Path) -> None:
    """Without a teacher here, half of a newcomer's first table was n/a."""
    before = {"agreement": None, "cross_entropy": 4.0, "kl": None, "rouge_l": 0.1}
    after = {"agreement": None, "cross_entropy": 3.0, "kl": None, "rouge_l": 0.2}
    assert summary_lines(RunResult(tmp_path, 0, {"before": before, "after": after}))[:-1] == [
        "held-out metric       before     after    change",
        "cross_entropy         4.0000    3.0000      -25%",
        "rouge_l               0.1000    0.2000     +100%",
        "not measured: agreement, kl (the report says why)",
    ]
    nothing = {"kl": None}
    lines = summary_lines(RunResult(tmp_path, 0, {"before": nothing, "after": nothing}))
    assert lines[0] == "not measured: kl (the report says why)"


def test_rows_that_the_jobs_of_a_pipeline_rejected_are_no_share_of_the_first_ones(tmp_path: Path) -> None:
    rows = {"entered": 48, "rejected": 150, "rejected_by_reason": {"truncated": 150}}
    stages = {name: {"seconds": 1.0, "metrics": metrics} for name, metrics in (("label", {JOB: "label"}), ("sft", {}))}
    lines = summary_lines(RunResult(tmp_path, 0, summary={"rows": rows, "stages": stages}))
    assert lines[-2] == "rejected rows: 150 of all jobs (truncated 150)"
    alone = summary_lines(RunResult(tmp_path, 0, summary={"rows": rows, "stages": {"sft": stages["sft"]}}))
    assert alone[-2] == "rejected rows: 150 of 48 (truncated 150)"
