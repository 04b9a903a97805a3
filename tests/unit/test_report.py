"""The report: right figures, hostile text harmless, unfinished runs shown as such, nothing made up, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from tests.unit.report_fixtures import (
    HIDDEN,
    HOSTILE,
    Page,
    change_json,
    compare,
    make_run,
    page_of,
    stage,
    standing,
    write_lines,
)

from easydistill.report.build import build_report, json_in_html
from easydistill.report.charts import (
    NARROW,
    POSITIONS_NARROW,
    POSITIONS_WIDE,
    WIDE,
    loss_curve,
    meter,
    position_chart,
    ticks,
    whole_ticks,
)
from easydistill.report.collect import EXAMPLES_PER_REASON, collect
from easydistill.report.curve import MAX_POINTS, Point, read_curve, smooth
from easydistill.report.disagreement import PositionLine, token_text, visible
from easydistill.report.figures import probability, rate_text
from easydistill.report.markdown import code, fenced, md
from easydistill.report.model_card import write_model_card
from easydistill.report.tables import funnel

# --- a complete run ---------------------------------------------------------------------------------------------


def test_a_complete_run_is_told_whole(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    assert page.sections() == ["results", "loss", "rows", "answers", "time", "rejected", "settings", "use"]
    for text in (
        "my run", "done", "3 min 03 s of work", "2026-01-01 00:10 UTC",
        "teacher answered 95 of 100 prompts.", "learned from 90 rows in 30 optimiser steps (all weights trained)",
        "On 5 prompts that the student never saw, cross-entropy fell from 4.000 to 2.000, top-1 agreement rose from 10.0% to 40.0%",
        "5 of 100 rows were rejected (5.0%); up to 5% are allowed.", "3 rows were longer than the limit of 64 tokens",
        "rejected: 5 empty_content", "1,234 prompt", "temperature 0.5", "3 epochs", "batch of 8 per device (2 × 4 accumulated)",
        "1,000 parameters, 250 of them trained (25.0%)", "AutoModelForCausalLM", "easydistill run kd.json", "torch",
    ):  # fmt: skip
        assert text in page.text, text
    assert "To continue the run" not in page.text


def test_the_funnel_counts_each_row_once(tmp_path: Path) -> None:
    facts = collect(make_run(tmp_path))
    steps = [(step.name, step.rows, step.lost) for step in funnel(facts)]
    assert steps == [
        ("Read", 100, ()),
        ("Answered by the teacher", 95, (("empty_content", 5),)),
        ("Trained on", 90, ()),
        ("Held out for evaluation", 5, ()),
    ]
    assert [(item.stage, item.reason, item.count, item.complete) for item in facts.rejected] == [
        ("label", "empty_content", 5, True)
    ]


def test_changes_say_which_way_is_better(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path)).read_text()
    changes = re.findall(r'<td class="num change ?(\w*)"><span aria-hidden="true">(.)</span> (\S+?)[<\s]', html)
    assert changes == [("better", "↓", "−50%"), ("better", "↑", "×4.0"), ("worse", "↓", "−50%"), ("", "↑", "+100%")]
    # Bars of metrics that end at 1 are drawn against 1, others against the larger value.
    widths = [float(width) for width in re.findall(r'class="(?:before|after)" x="0.00" y="0" width="([\d.]+)"', html)]
    assert widths[:2] == [100.0, 50.0] and widths[4:6] == [10.0, 40.0]


def test_a_missing_value_says_why(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    assert "n/a: the teacher is not on this machine" in page.text
    metrics = {"before": {"rouge_l": None, "kl": 1.0}, "after": {"rouge_l": 0.5}, "notes": {}}
    folder = make_run(tmp_path / "other", metrics=metrics)
    results = build_report(folder).read_text().split('id="results"')[1].split("</section>")[0]
    text = " ".join(re.sub(r"<[^>]*>", " ", results).split())
    assert "n/a before training: the evaluation gave no reason" in text
    assert "n/a after training: the evaluation gave no reason" in text
    assert re.findall(r"\d\.\d+", text) == ["1.000", "0.500"]
    assert "the evaluation gave no reason" in (folder / "report.md").read_text()


@pytest.mark.parametrize("value", [0, 0.0, -1.5, float("nan"), 10**400, True, "mild", [1], {"a": 1}, None])
def test_metrics_of_any_kind_are_shown(tmp_path: Path, value: Any) -> None:
    metrics = {"before": {"odd": value, "kl": value}, "after": {"odd": 1.0, "kl": 2.0}, "notes": None}
    folder = make_run(tmp_path, metrics=metrics)
    assert "odd" in page_of(folder).text
    write_model_card(folder)


def test_whitespace_of_answers_is_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert '<p class="text">  two\n\n  lines</p>' in build_report(folder).read_text()
    assert "```text\n  two\n\n  lines\n```" in (folder / "report.md").read_text()
    assert "n/a: no answer was recorded" in page_of(folder).text


def test_answers_beyond_the_first_are_folded_and_the_rest_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"text": "see"}, {"type": "image_url"}]},
    ]
    rows = [{"id": str(n), "prompt": prompt, "teacher": "t", "before": "", "after": "x" * 9000} for n in range(230)]
    write_lines(folder / "stages/3-evaluate/answers.jsonl", rows)
    html = build_report(folder).read_text()
    assert html.count("<article>") == 200
    assert html.index("<summary>176 more</summary>") > [match.start() for match in re.finditer("<article>", html)][23]
    text = Page(html).text
    assert "The remaining 30 of 230 are in answers.jsonl." in text
    for expected in ("system be brief user", "[image_url]", "(empty answer)", "… (1,000 more characters)"):
        assert expected in text, expected


# --- unfinished runs --------------------------------------------------------------------------------------------


def test_a_run_that_failed_after_labelling(tmp_path: Path) -> None:
    label = {"label": stage(100, 95, {"empty_content": 5})}
    folder = make_run(tmp_path, status="failed", exit_code=1, error="TeacherError: gone", stages=label, metrics={})
    (folder / "metrics.jsonl").unlink()
    page = page_of(folder)
    assert page.sections() == ["rows", "time", "rejected", "settings", "use"]
    for text in (
        "This run failed",
        "Complete so far: label.",
        "TeacherError: gone",
        "To continue from there: easydistill run kd.json",
    ):
        assert text in page.text, text
    # Answers and student are there, but evaluate and train are not complete: they are an earlier config's.
    assert "The student in this directory is from an earlier run" in page.text
    assert "TeacherError: gone" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "interrupted", "stages": {}}, "This run was interrupted No stage is complete yet."),
        ({"status": "running", "exit_code": None, "finished": None}, "This run has not ended"),
        ({"exit_code": 3}, "Finished, but too many rows were rejected"),
    ],
)
def test_the_banner_tells_the_state(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in page_of(make_run(tmp_path, **changes)).text


def test_rows_that_the_jobs_of_a_pipeline_rejected_are_told_of_all_that_they_read(tmp_path: Path) -> None:
    inner = tmp_path / "stages/1-label"
    inner.mkdir(parents=True)
    rows = {"entered": 60, "accepted": 10, "rejected": 50}
    stage = {"seconds": 1.0, "status": "done", "rows": {"entered": 60, "left": 10, "rejected": {"truncated": 50}}}
    (inner / "summary.json").write_text(json.dumps({"status": "done", "rows": rows, "stages": {"label": stage}}))
    # All jobs have rejected more than came in.
    whole = {"entered": 20, "accepted": 10, "rejected": 50, "rejected_share": 0.6}
    summary = {"job_type": "pipeline", "status": "done", "exit_code": 3, "rows": whole, "stages": {"label": stage}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = page_of(tmp_path).text
    assert "Finished, but too many rows were rejected 50 rows were rejected, 83.3% of all that the jobs read." in text
    assert "50 of 20 rows" not in text


def test_files_of_stages_that_are_not_complete_do_not_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="failed", stages={}, metrics={}, rows={})
    text = page_of(folder).text
    assert "left by an attempt that did not finish, or by an earlier config" in text
    assert "these are the losses logged so far by attempts in this directory" in text
    assert collect(folder).answers == ()


def test_an_almost_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{ torn")
    page = page_of(tmp_path)
    assert page.sections() == ["settings"]
    assert "The state of this run is unknown" in page.text
    assert "config.resolved.json is missing" in page.text
    write_model_card(tmp_path)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("value", [None, 3, "text", [], [1], {"a": "b"}, {"train": None}, True])
@pytest.mark.parametrize(
    "name", ["stages", "rows", "metrics", "seconds", "error", "name", "status", "resume", "started"]
)
def test_a_summary_of_wrong_types_does_not_stop_the_report(tmp_path: Path, name: str, value: Any) -> None:
    folder = make_run(tmp_path, **{name: value})
    page_of(folder)
    write_model_card(folder)


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, {"learning_rate": "fast", "num_train_epochs": None}])
@pytest.mark.parametrize("name", ["dataset", "models", "inference", "training", "evaluation"])
def test_a_config_of_another_shape_does_not_stop_the_report(tmp_path: Path, name: str, value: Any) -> None:
    folder = make_run(tmp_path)
    change_json(folder / "config.resolved.json", **{name: value})
    page_of(folder)
    write_model_card(folder)


def test_rows_that_were_labelled_already(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    change_json(folder / "config.resolved.json", dataset={"labeled_path": "labelled.json"})
    text = page_of(folder).text
    assert "for comparison only: the rows came labelled" in text
    assert "labelled rows from labelled.json" in text
    assert "Asking the teacher" not in text


# --- hostile text -----------------------------------------------------------------------------------------------


def test_hostile_text_is_text(tmp_path: Path) -> None:
    named = {HOSTILE: stage(5, 4, {HOSTILE: 1}, tokens={HOSTILE: 1}, status=HOSTILE)}
    metrics = {"before": {HOSTILE: HOSTILE}, "after": {HOSTILE: HOSTILE}, "notes": {HOSTILE: HOSTILE}}
    folder = make_run(
        tmp_path, name=HOSTILE, error=HOSTILE, status="failed", resume=HOSTILE, job_type=HOSTILE, metrics=metrics
    )
    summary = json.loads((folder / "summary.json").read_text())
    change_json(folder / "summary.json", stages=summary["stages"] | named)
    change_json(
        folder / "config.resolved.json",
        models={"teacher": HOSTILE, "student": {"from": HOSTILE, "keep_layers": HOSTILE}},
    )
    change_json(folder / "environment.json", packages={HOSTILE: HOSTILE})
    html = build_report(folder).read_text()
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any("alert" in script for script in page.scripts)
    assert {tag for tag, _ in page.tags} & {"b", "img", "iframe", "object", "link", "base", "form"} == set()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert html.count("{{ 7*7 }}") > 5 and "49" not in page.text
    assert "Teacher " + " ".join(HOSTILE.split()) in page.text


def test_only_the_report_s_own_script_may_run(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path)).read_text()
    policy = next(a["content"] for tag, a in Page(html).tags if tag == "meta" and "http-equiv" in a)
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_json_block_cannot_be_broken_out_of() -> None:
    value = {HOSTILE: ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "\ud800"]}
    text = json_in_html(value)
    assert not set("<>&") & set(text) and text.isascii()
    assert json.loads(text) == value


def test_the_curve_block_holds_the_points(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    points = json.loads(page.scripts[0])
    assert len(points) == 30
    assert points[0][:2] == [1, 5.0] and points[0][3:] == [3e-4, None]


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, name="a\ud800b")
    assert "a?b" in page_of(folder).text
    write_model_card(folder)


def test_hostile_markdown_is_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path, name="a | b <i> [x](y)")
    build_report(folder)
    text = (folder / "report.md").read_text()
    assert text.startswith("# a \\| b \\<i\\> \\[x\\](y)\n")
    assert f"````text\n{HOSTILE}\n````" in text
    assert md("a\n| `b`") == "a \\| \\`b\\`"
    assert code("a`b|c") == "`` a`b\\|c ``"
    assert fenced("x\n````\ny") == "`````text\nx\n````\ny\n`````"


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    change_json(folder / "config.resolved.json", inference={"base_url": "https://api.example.com/v1", "model": "big"})
    html = build_report(folder).read_text()
    page = Page(html)
    links = [
        v
        for _, a in page.tags
        for name, v in a.items()
        if name in {"src", "href", "srcset", "data", "action", "xlink:href"}
    ]
    assert links and all(link is not None and link.startswith("#") for link in links)
    assert not re.search(r"@import|url\(|@font-face|fetch\(|XMLHttp|import\(", html)
    assert "https://api.example.com/v1" in page.text
    for link in links:
        assert f'id="{link[1:]}"' in html, link  # type: ignore[index]


def test_the_page_is_accessible(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and tags.count("main") == 1
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    for tag, a in page.tags:
        if tag == "svg":
            assert a.get("aria-hidden") == "true" or (a.get("role") == "img" and a.get("aria-label"))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= ids
    assert ("html", {"lang": "en"}) in page.tags


# --- the curve --------------------------------------------------------------------------------------------------


def test_steps_after_a_resume_replace_those_before(tmp_path: Path) -> None:
    lines = [(1, 9.0), (2, 8.0), (3, 7.0), (4, float("nan")), (2, 1.0), (3, 0.5)]
    text = [json.dumps({"stage": "train", "step": step, "loss": loss, "learning_rate": 1}) for step, loss in lines]
    other = '{"stage": "label", "step": 1, "loss": 99}\n{"stage": "train", "step": 9}\n[1]\n'
    (tmp_path / "m.jsonl").write_text(other + "\n".join([*text, '{"stage": "tra']))
    curve = read_curve(tmp_path / "m.jsonl")
    assert [(point.step, point.loss) for point in curve.points] == [(1, 9.0), (2, 1.0), (3, 0.5)]
    assert curve.not_finite == 0


def test_losses_that_are_not_finite_are_counted_not_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"stage": "train", "step": 31, "loss": NaN}\n{"stage": "train", "step": 32, "loss": Infinity}\n')
    html = build_report(folder).read_text()
    assert "2 logged losses were not finite" in html
    assert not re.search(r"\bnan\b|Infinity", html)


def test_big_files_are_thinned_and_read_quickly(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with (folder / "metrics.jsonl").open("w") as handle:
        for step in range(1, 100_001):
            handle.write(json.dumps({"stage": "train", "step": step, "loss": 1 + 1 / step}) + "\n")
    summary = json.loads((folder / "summary.json").read_text())
    summary["stages"]["label"] = stage(200_000, 100_000, {"bad": 100_000})
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "stages/1-label/rejected.jsonl").open("w") as handle:
        for n in range(100_000):
            handle.write(
                json.dumps({"id": str(n), "reason": "bad", "detail": "", "raw": "x" * 5000 if n < 9 else ""}) + "\n"
            )
    began = time.monotonic()
    facts = collect(folder)
    assert time.monotonic() - began < 20  # about 1 s; the quadratic way took minutes
    assert 300 < len(facts.curve.points) <= MAX_POINTS
    assert facts.curve.points[-1].step == 100_000
    assert facts.curve.logged == 100_000
    assert (facts.rejected[0].count, len(facts.rejected[0].examples)) == (100_000, EXAMPLES_PER_REASON)
    html = build_report(folder).read_text()
    assert len(html) < 300_000
    assert "… (3,000 more characters)" in html
    assert "Each point is the mean of 167 of 100,000 logged steps." in html


def test_thinning_keeps_the_mean(tmp_path: Path) -> None:
    losses = [float(n % 7) for n in range(6000)]
    write_lines(tmp_path / "m.jsonl", [{"stage": "train", "step": n, "loss": loss} for n, loss in enumerate(losses)])
    points = read_curve(tmp_path / "m.jsonl").points
    assert sum(point.loss for point in points) / len(points) == pytest.approx(sum(losses) / len(losses))


def test_rejected_rows_of_an_unfinished_stage_are_counted_from_the_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="failed", stages={}, rows={})
    rows = [{"id": str(n), "reason": "bad" if n % 4 else "worse"} for n in range(40)]
    write_lines(folder / "stages/1-label/rejected.jsonl", rows)
    found = [
        (item.stage, item.reason, item.count, len(item.examples), item.complete) for item in collect(folder).rejected
    ]
    assert found == [("label", "bad", 30, 5, False), ("label", "worse", 10, 5, False)]


# --- charts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.37), (1, 1000), (-5, 5), (1e-9, 2e-9), (1e5, 1e5 + 0.01)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 12 and len(set(found)) == len(found)
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_ticks_of_steps_are_whole() -> None:
    assert whole_ticks(1, 3) == [1, 2, 3]
    assert whole_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert whole_ticks(5, 5) == [5]


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize(
    "points",
    [
        [Point(1, 3.0, 0.0, None), Point(2, 3.0, 0.0, None)],
        [Point(1, -3.0, None, None), Point(2, 1e300, 1e-4, 0.1)],
        [Point(n, 1 / n, 1e-4 / n, n / 9) for n in range(1, 500)],
    ],
)
def test_the_curve_stays_in_its_frame(points: list[Point], frame: Any) -> None:
    svg = ElementTree.fromstring(loss_curve(points, frame))
    assert svg.attrib["aria-label"].startswith("Training loss by step")
    for path in svg.iter("path"):
        for pair in path.attrib["d"][1:].split(" L"):
            x, y = (float(number) for number in pair.split(","))
            assert frame.left - 0.1 <= x <= frame.width - frame.right + 0.1
            assert frame.top - 0.1 <= y <= frame.height - frame.bottom + 0.1
    rates = [path for path in svg.iter("path") if path.attrib["class"] == "rate"]
    assert len(rates) == (1 if sum(bool(point.rate) for point in points) > 1 else 0)


def test_meters_never_leave_their_box() -> None:
    for parts in [((0.0, "a"),), ((1e-9, "a"),), ((0.7, "a"), (0.6, "b")), ((5.0, "a"), (1.0, "b")), ((-1.0, "a"),)]:
        svg = ElementTree.fromstring(meter(parts))
        boxes = [(float(box.attrib["x"]), float(box.attrib["width"])) for box in svg.iter("rect")]
        assert all(x + width <= 100.7 for x, width in boxes)
        assert len(boxes) == {(0.0, "a"): 0, (-1.0, "a"): 0, (0.7, "a"): 2}.get(parts[0], 1)


def test_smoothing_keeps_level_and_does_not_lag() -> None:
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    falling = [10.0 - n / 10 for n in range(60)]
    assert smooth(falling)[:50] == pytest.approx(falling[:50])
    assert smooth([]) == [] and smooth([1.0]) == [1.0]


def test_learning_rates_are_short() -> None:
    assert [rate_text(rate) for rate in (3e-4, 9.8e-5, 1.0)] == ["3e-4", "9.8e-5", "1e0"]


# --- what is left to learn ------------------------------------------------------------------------------------------


def left_of(folder: Path) -> tuple[str, str]:
    """The section's HTML and Markdown."""
    html = build_report(folder).read_text()
    text = (folder / "report.md").read_text()
    return html.split('id="left"')[1].split("</section>")[0], text.split("## What is left")[1].split("\n## ")[0]


def test_teacher_and_student_are_compared(tmp_path: Path) -> None:
    folder = compare(make_run(tmp_path))
    page = page_of(folder)
    assert page.sections() == ["results", "loss", "rows", "left", "answers", "time", "rejected", "settings", "use"]
    for text in (
        "Both models predicted the next token at each of the 1,234 tokens of the teacher's held-out answers.", "Before After Teacher",
        "likeliest tokens that are among the student's 10 50.0% 75.0% 100.0%", "Student's mass on the teacher's top 10",
        "25.0% 25.0% 87.5%", "37.5% 37.5% 87.5%", "4.500 4.500 1.500", "KL 4.50 at token 12 of the answer, row",
        "<i>cat</i> 75%", "14 more", "10 more", "<i>cat</i>|`0 40 1.00 40.0",
    ):  # fmt: skip
        assert text in page.text, text
    html, markdown = left_of(folder)
    assert html.count("<article>") == 20
    # The student's likeliest tokens are without the answer's own, so its probability stands below them.
    assert html.count('<li class="hit rest">') == 20 and html.count('<li class="hit">') == 20
    for line in (
        "| Entropy: nats per token; lower means that fewer tokens are likely | 4.500 | 4.500 | 1.500 |",
        "| 129–256 | 256 | 8.000 | 4.000 |",
        "| `` <i>cat</i>\\|`0 `` | 40 | 1.00 | 40.0 |",
    ):
        assert line in markdown, line
    # Every line of a table has as many cells as its head.
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_run_without_the_comparison_says_nothing_of_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    build_report(folder)
    plain = [(folder / name).read_text() for name in ("report.html", "report.md")]
    assert not any("left to learn" in text.split("</style>")[-1] for text in plain)
    for content in ("{}", "[]", "{ torn", '{"before": {}, "after": {"largest": []}}', '{"after": {"kl": null}}'):
        (folder / "stages/3-evaluate/disagreement.json").write_text(content)
        build_report(folder)
        assert [(folder / name).read_text() for name in ("report.html", "report.md")] == plain


def test_the_comparison_of_a_stage_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    folder = compare(make_run(tmp_path, status="failed", stages={"label": stage(100, 95)}))
    assert "left" not in page_of(folder).sections()


def test_tokens_are_text_and_all_of_them_is_seen(tmp_path: Path) -> None:
    folder = compare(make_run(tmp_path))
    html, markdown = left_of(folder)
    page = page_of(folder)
    assert {tag for tag, _ in page.tags} & {"i", "b", "img", "iframe", "object", "link", "base", "form"} == set()
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for text in (html, markdown):
        assert not re.search("[\0\x1b\u202e\u2028\ue000]", text)
        assert "‹U+0000›‹U+001B›" in text.replace("\\", "") and "‹U+202E›" in text
    # A part of a character tells its number, since others look the same.
    assert "\ufffd#10" in page.text and "\ufffd#8" in page.text
    assert html.count("{{ 7*7 }}") > 5
    # A token in a table is one line.
    assert "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt;]]&gt;{{␣7*7␣}}" in html


def test_characters_that_are_not_seen_get_a_sign() -> None:
    assert visible(" a\n\tb ", spaces=True) == "␣a↵⇥b␣"
    assert visible("a b\u3000c") == "a b\u3000c" and visible("\u00a0", spaces=True) == "‹U+00A0›"
    assert visible("👩‍🚀") == "👩‍🚀" and visible("\u200d") == "‹U+200D›"
    assert visible("naïve 今天 עברית") == "naïve 今天 עברית"
    assert visible("\ud800") == "‹U+D800›"
    assert visible(HIDDEN) == "‹U+0000›‹U+001B›[31m‹U+202E› \u00a0\u200d‹U+E000›‹U+2028›\ufffd"


def test_tokens_are_told_apart() -> None:
    assert token_text({"id": 5, "text": " the"}) == "␣the"
    assert token_text({"id": 5, "text": ""}) == "#5" and token_text({}) == "?"
    assert token_text({"id": 5, "text": "é\ufffd"}) == "é\ufffd#5" and token_text({"text": "\ufffd"}) == "\ufffd"
    assert token_text({"id": 5, "text": " " * 100}) == "␣" * 48 + "…"
    assert token_text({"id": "5", "text": ["x"]}) == '["x"]'


def test_probabilities_are_never_rounded_to_nothing() -> None:
    assert [probability(value) for value in (None, 0.0, 1e-9, 0.0006, 0.099, 0.0999, 0.5, 0.999, 1.0)] == [
        "n/a", "0.0%", "<0.1%", "0.1%", "9.9%", "10%", "50%", "99.9%", "100%"
    ]  # fmt: skip


def test_a_student_that_is_its_teacher_has_nothing_left(tmp_path: Path) -> None:
    side = standing(0.0) | {"largest": [], "by_token": [], "student_mass_on_teacher_top": 0.875, "student_entropy": 1.5}
    html, markdown = left_of(compare(make_run(tmp_path), before=side, after=side))
    assert "100.0%" in html and "The largest disagreements" not in html and "cost most" not in html
    assert "| 1 | 1 | 0.000 | 0.000 |" in markdown


@pytest.mark.parametrize("name", ["before", "after"])
def test_one_side_alone_is_shown(tmp_path: Path, name: str) -> None:
    page = page_of(compare(make_run(tmp_path), **{name: standing()}))
    assert "n/a" in page.text and f"Student {name} " in page.text


@pytest.mark.parametrize("value", [None, -1.5, float("nan"), 10**400, "text", [1], [{"kl": 1}]])
@pytest.mark.parametrize("name", [*standing(), "before", "after", "row", "token", "teacher", "student", "context"])
def test_a_comparison_of_wrong_types_does_not_stop_the_report(tmp_path: Path, name: str, value: Any) -> None:
    side = standing()
    if name in side:
        side[name] = value
    else:
        side["largest"] = [item | {name: value} for item in side["largest"]]
    sides: dict[str, Any] = {"before": side, "after": side}
    page_of(compare(make_run(tmp_path), **({**sides, name: value} if name in sides else sides)))


@pytest.mark.parametrize("frame", [POSITIONS_WIDE, POSITIONS_NARROW])
@pytest.mark.parametrize(
    "values",
    [
        [(0.0, 0.0)],
        [(1e300, 1e-9)],
        [(9.0, 1.0), (None, 2.0), (3.0, None)],
        [(n, n / 3) for n in range(14)],
        [(None, 1.0)] * 30,
    ],
)
def test_the_position_chart_stays_in_its_frame(frame: Any, values: list[tuple[float | None, float | None]]) -> None:
    lines = [PositionLine(f"{2**n + 1}–{2 ** (n + 1)}", 10, before, after) for n, (before, after) in enumerate(values)]
    svg = ElementTree.fromstring(position_chart(lines, frame))
    assert svg.attrib["aria-label"].startswith("Mean KL divergence by position in the answer: ")
    spots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    assert len(spots) == sum(value is not None for pair in values for value in pair)
    assert all(frame.left <= x <= frame.width - frame.right for x, _ in spots)
    assert all(frame.top - 0.1 <= y <= frame.height - frame.bottom + 0.1 for _, y in spots)
    assert all(dot.find("title") is not None for dot in svg.iter("circle"))


def test_names_of_positions_do_not_overlap() -> None:
    lines = [PositionLine(f"{2**n // 2 + 1}–{2**n}", 2**n, 1.0, 1.0) for n in range(14)]
    for frame in (POSITIONS_WIDE, POSITIONS_NARROW):
        texts = ElementTree.fromstring(position_chart(lines, frame)).iter("text")
        rows: dict[str, list[tuple[float, float]]] = {}
        for text in texts:
            if text.attrib["text-anchor"] == "middle" and text.attrib["class"].startswith("tick"):
                half = 7.2 * len(text.text or "") / 2
                rows.setdefault(text.attrib["y"], []).append(
                    (float(text.attrib["x"]) - half, float(text.attrib["x"]) + half)
                )
        assert rows
        for spans in rows.values():
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


# --- the model card ---------------------------------------------------------------------------------------------


def front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    write_model_card(folder)
    _, front, body = (folder / "student/README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_model_card(tmp_path: Path) -> None:
    front, body = front_matter(make_run(tmp_path))
    assert front == {
        "library_name": "transformers",
        "base_model": "org/student",
        "pipeline_tag": "text-generation",
        "tags": ["easydistill", "distillation"],
    }
    for text in (
        "# my run", "Teacher: `teacher`", "| 4.000 | 2.000 | ↓ −50% (better) |", "n/a: the teacher is not on this machine",
        "- rows read: 100", "- rows trained on: 90", "- rows held out for evaluation: 5", "- answer tokens in the training rows: n/a",
        "It was trained on only 90 rows", "AutoModelForCausalLM.from_pretrained(path)",
    ):  # fmt: skip
        assert text in body, text


def test_the_card_s_code_is_python(tmp_path: Path) -> None:
    _, body = front_matter(make_run(tmp_path))
    compile(body.split("```python\n")[1].split("```")[0], "card", "exec")


@pytest.mark.parametrize(
    ("student", "base"),
    [
        ("org/name", "org/name"),
        ({"from": "org/name", "keep_layers": 3}, "org/name"),
        ({"config": {"model_type": "llama"}}, None),
        ("./org/name", None),
        ("/org/name", None),
        ("pkg://a/b.gguf", None),
        ("models/b.gguf", None),
        ("org/name: [x", None),
    ],
)
def test_base_model_is_a_hub_id_or_not_there(tmp_path: Path, student: Any, base: str | None) -> None:
    folder = make_run(tmp_path)
    change_json(folder / "config.resolved.json", models={"student": student})
    assert front_matter(folder)[0].get("base_model") == base


def test_a_local_directory_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path)
    (tmp_path / "org/student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front_matter(folder)[0]


def test_the_card_does_not_tell_where_models_lie(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    models = {"teacher": "/home/ada/models/big", "student": "/home/ada/models/small"}
    change_json(folder / "config.resolved.json", models=models)
    body = front_matter(folder)[1]
    assert "`big`" in body and "`small`" in body and "/home/ada" not in body


def test_the_card_of_an_earlier_student_is_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="failed", stages={})
    (folder / "student/README.md").write_text("the earlier card")
    write_model_card(folder)
    assert (folder / "student/README.md").read_text() == "the earlier card"


def test_the_card_without_an_evaluation_says_so(tmp_path: Path) -> None:
    body = front_matter(make_run(tmp_path, metrics={}))[1]
    assert "n/a: the student was not evaluated in this run." in body
    assert "The figures above" not in body
