"""The report: right figures, hostile text harmless, unfinished runs shown as such."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from easydistill.report.build import build_report
from easydistill.report.charts import bars, loss_curve, smooth, ticks
from easydistill.report.collect import CURVE_POINTS, collect
from easydistill.report.model_card import write_model_card

HOSTILE = "<script>alert(1)</script></pre>]]>{{ 7*7 }}&\"'"


def make_run(folder: Path, **changes: Any) -> Path:
    train = {
        "train_rows": 90,
        "heldout_rows": 5,
        "steps": 30,
        "final_loss": 1.5,
        "parameters": 1000,
        "student": "S of T",
    }
    stage = {"status": "done", "seconds": 61.0, "rows": {"entered": 100, "left": 95, "rejected": {"empty_content": 5}}}
    summary: dict[str, Any] = {
        "job_type": "black_box_kd_local", "name": "my run", "status": "done", "exit_code": 0, "error": None,
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00", "seconds": 600.0,
        "stages": {
            "label": {**stage, "tokens": {"prompt": 10, "completion": 20}, "metrics": {}},
            "train": {**stage, "tokens": {"trained": 30}, "metrics": train},
        },
        "rows": {"entered": 100, "accepted": 95, "rejected": 5, "rejected_share": 0.05,
                 "rejected_by_reason": {"empty_content": 5}},
        "metrics": {
            "before": {"cross_entropy": 4.0, "kl": None, "agreement": 0.1, "rouge_l": 0.2, "novel": 1.0},
            "after": {"cross_entropy": 2.0, "kl": None, "agreement": 0.4, "rouge_l": 0.1, "novel": 2.0},
            "notes": {"kl": "the teacher is not on this machine"},
        },
        "resume": "easydistill run kd.json",
    }  # fmt: skip
    config = {
        "models": {"teacher": "org/teacher", "student": "org/student"},
        "inference": {"temperature": 0.5, "max_new_tokens": 9},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 3.0,
                     "learning_rate": 1e-4},
    }  # fmt: skip
    (folder / "stages/1-label").mkdir(parents=True)
    (folder / "stages/3-evaluate").mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "student/config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "config.resolved.json").write_text(json.dumps(config))
    environment = {"python": "3.11", "platform": "Linux", "cpus": 2, "packages": {"torch": "2.13"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    curve = [{"stage": "train", "step": n, "loss": 5 / n, "learning_rate": 1e-4} for n in range(1, 31)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, curve)))
    rejected = [{"id": f"r{n}", "reason": "empty_content", "detail": HOSTILE, "raw": HOSTILE} for n in range(7)]
    (folder / "stages/1-label/rejected.jsonl").write_text("\n".join(map(json.dumps, rejected)))
    answer = {"id": "a", "prompt": [{"role": "user", "content": HOSTILE}], "teacher": HOSTILE, "before": None,
              "after": HOSTILE, "rouge_l_before": None, "rouge_l_after": 0.5}  # fmt: skip
    (folder / "stages/3-evaluate/answers.jsonl").write_text(json.dumps(answer) + "\n")
    return folder


def test_figures_and_words(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path)).read_text()
    for text in ("my run", "org/teacher", "S of T", "-50%", "+300%", "10.0%", "40.0%", "the teacher is not on this machine",
                 "full fine-tuning, 3 epochs, batch 8", "temperature 0.5", "1 min 01 s", "easydistill run kd.json", "novel"):  # fmt: skip
        assert text in html, text
    assert 'class="num better">↓ -50%' in html
    assert 'class="num worse">↓ -50%' in html  # ROUGE-L fell
    markdown = (tmp_path / "report.md").read_text()
    assert "| Cross-entropy on the teacher's answers | nats / token | 4.0000 | 2.0000 | -50% |" in markdown


def test_hostile_text_is_text(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path, name=HOSTILE, error=HOSTILE, status="failed")).read_text()
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert "49" not in re.findall(r"\{\{.*?\}\}", html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path)).read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(""", html)
    assert "http" not in html


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="failed", error="TeacherError: gone", stages={}, metrics={}, rows={})
    (folder / "metrics.jsonl").unlink()
    html = build_report(folder).read_text()
    assert "This run is failed" in html
    assert "TeacherError: gone" in html
    assert "What the student learned" not in html
    assert "Training loss" not in html


def test_an_almost_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert "unknown" in build_report(tmp_path).read_text()
    write_model_card(tmp_path)
    assert not (tmp_path / "student").exists()


def test_steps_after_a_resume_replace_those_before(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    lines = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 1.0), (3, 0.5)]
    text = [json.dumps({"stage": "train", "step": step, "loss": loss, "learning_rate": 1}) for step, loss in lines]
    (folder / "metrics.jsonl").write_text("\n".join([*text, '{"stage": "tra']))
    assert [(point["step"], point["loss"]) for point in collect(folder).curve] == [(1, 9.0), (2, 1.0), (3, 0.5)]


def test_large_files_are_thinned(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with (folder / "metrics.jsonl").open("w") as handle:
        for step in range(1, 20_001):
            handle.write(json.dumps({"stage": "train", "step": step, "loss": 1 + 1 / step}) + "\n")
    with (folder / "stages/1-label/rejected.jsonl").open("w") as handle:
        for n in range(20_000):
            handle.write(json.dumps({"id": str(n), "reason": "bad", "detail": "", "raw": "x" * 50}) + "\n")
    facts = collect(folder)
    assert len(facts.curve) <= CURVE_POINTS
    assert facts.curve[-1]["step"] == 20_000
    assert (facts.rejected[0].count, len(facts.rejected[0].examples)) == (20_000, 5)
    assert build_report(folder).stat().st_size < 300_000


def test_the_model_card(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_model_card(folder)
    text = (folder / "student/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/student"
    assert front["pipeline_tag"] == "text-generation"
    assert "AutoModelForCausalLM" in text
    assert "| 4.0000 | 2.0000 |" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.37), (1, 1000), (-5, 5), (1e-9, 2e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_charts_survive_odd_numbers() -> None:
    assert "svg" in loss_curve([1, 2], [3.0, 3.0], [0.0, 0.0])
    assert "&lt;b&gt;" in bars([("<b>", 0.0, "<i>")], "x")
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
