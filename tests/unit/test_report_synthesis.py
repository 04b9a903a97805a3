"""The report of synthesis jobs: right figures, the same samples every time, hostile text harmless, nothing of a student."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report_fixtures import (
    HOSTILE,
    Page,
    change_json,
    make_named_synthesis_run,
    make_run,
    make_synthesis_run,
    page_of,
    stage,
    synthesis_metrics,
    write_array,
    write_lines,
)

from easydistill.data.messages import Message
from easydistill.data.records import Sample
from easydistill.data.writing import write_paper_json, write_parquet
from easydistill.report.build import build_report
from easydistill.report.charts import meter
from easydistill.report.collect import Facts, collect
from easydistill.report.costs import bill_notes
from easydistill.report.document import Row, Table
from easydistill.report.fact_tables import ROWS_SHOWN, fact_tables, simple_facts
from easydistill.report.figures import share
from easydistill.report.markdown import CUT_AT, beginning
from easydistill.report.samples import KEPT_SHOWN, REJECTED_SHOWN, draw, kept_rows, received, rejected_rows
from easydistill.report.synthesis import Synthesis, read_synthesis
from easydistill.report.synthesis_words import end_lines, funnel_steps, models_of, spending_table


def section_of(folder: Path, number: int = 1) -> str:
    """The text of a run's section on a synthesis stage."""
    html = build_report(folder).read_text()
    part = html.split(f'id="synthesis-{number}"')[1].split("</section>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", part).split())


def synthesis(**metrics: Any) -> Synthesis:
    return read_synthesis("synthesise", synthesis_metrics(**metrics), {}, None)


# --- the whole page ---------------------------------------------------------------------------------------------


def test_a_synthesis_run_is_told_whole(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)
    page, markdown = page_of(folder), (folder / "report.md").read_text()
    assert page.sections() == ["synthesis-1", "time", "settings", "use"]
    for text in (
        "Instruction expansion: 12 of 20 candidates were accepted (60.0%); 8 rejected: too similar 7, malformed reply 1.",
        "It took 20 requests, 1,500 tokens in and 600 out; cost 0.25.",
        "Malformed reply 19 1 lost, 5.0% of those that reached this check",
        "Too similar 12 7 lost, 36.8% of those that reached this check Accepted 12",
        "Rows in seeds.json data/seeds.json → Teacher big http://localhost:1/v1 → Rows out 12 rows new.json",
        "rows from data/seeds.json; accepted rows also written to new.json",
        "num_output_samples 12",
    ):
        assert text in page.text, text
    for text in (
        "| Too similar | 12 | 7 lost, 36.8% of those that reached this check |",
        "Rows in: seeds.json (data/seeds.json) → teacher: big (http://localhost:1/v1) → rows out: 12 rows (new.json)",
        "| Teacher (also as judge, where one was needed) | 20 | 1,500 | 600 (100 reasoning) | 0.25 |",
        "- Wanted: 12",
        "`too_similar`: like k",
    ):
        assert text in markdown, text
    for text in (page.text, markdown):
        for word in ("tudent", "learned", "raining", "held-out", "{{ made", "None"):
            assert word not in text, word


def test_every_figure_of_diversity_says_which_way_is_better(tmp_path: Path) -> None:
    text = section_of(make_synthesis_run(tmp_path))
    for expected in (
        "Distinct words (distinct-1) 25 of 100 words are distinct. 0.250 higher",
        "Distinct runs of three words (distinct-3) n/a: the prompts are too short. n/a higher",
        "over 12 rows: 1 if the rows are copies of each other. 0.125 lower",
        "The highest value is 0.70. 0.400 lower",
        "nine in ten lie between 2 and 6, the longest has 7. 4 –",
        "Prompts in Chinese Of 12 prompts. 3 –",
    ):
        assert expected in text, expected


@pytest.mark.parametrize("name", ["synthesise-2", "expand", "filter"])
def test_stages_are_known_by_their_operator_not_their_name(tmp_path: Path, name: str) -> None:
    folder = make_named_synthesis_run(tmp_path, name, {})
    assert page_of(folder).sections()[0] == "synthesis-1"
    assert "Question" in section_of(folder)


def test_several_stages_each_have_their_section(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)
    (folder / "stages/2-second").mkdir()
    write_array(folder / "stages/2-second/labeled.json", [{"id": "x", "instruction": "Only here"}])
    first = json.loads((folder / "summary.json").read_text())["stages"]["synthesise"]
    told = {"operator": "deduplicate", "funnel": [["candidates", 12], ["duplicate", 1]], "kept": 1}
    change_json(
        folder / "summary.json",
        stages={"synthesise": first, "second": stage(12, 1, {"duplicate": 11}, metrics=told)},
    )
    page = page_of(folder)
    assert page.sections()[:2] == ["synthesis-1", "synthesis-2"]
    assert "No model was asked." in section_of(folder, 2) and "Only here" in section_of(folder, 2)
    assert "Only here" not in section_of(folder, 1)
    assert "Rows out 1 row new.json" in page.text
    told["operator"] = "instruction_expansion"
    change_json(
        folder / "summary.json",
        stages={"synthesise": first, "second": stage(12, 1, {"duplicate": 11}, metrics=told)},
    )
    assert "Instruction expansion (second): 1 of 12 candidates was accepted" in page_of(folder).text


def test_a_job_that_makes_rows_and_trains_shows_both(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    change_json(
        folder / "summary.json", stages=summary["stages"] | {"expand": stage(20, 12, metrics=synthesis_metrics())}
    )
    page = page_of(folder)
    assert {"results", "synthesis-1", "rows", "rejected"} <= set(page.sections())
    assert "What the student learned" in page.text and "teacher answered 95 of 100 prompts." in page.text
    assert "12 of 20 candidates were accepted" in section_of(folder)
    assert "Teacher teacher org/teacher → Student student org/student" in page.text


def test_jobs_that_train_nobody_say_nothing_of_it(tmp_path: Path) -> None:
    pipeline = make_synthesis_run(tmp_path / "pipeline")
    (pipeline / "config.resolved.json").write_text(json.dumps({"job_type": "pipeline", "jobs": {}}))
    inner = {"job": {"job_type": "deduplicate", "exit_code": 0, "rows": {}, "metrics": {}}}
    change_json(pipeline / "summary.json", stages={"dedup": stage(3, 2, metrics=inner)})
    failed = make_synthesis_run(tmp_path / "failed")
    change_json(failed / "summary.json", stages={}, status="failed", error="DataError: none was accepted")
    for folder in (pipeline, failed):
        for text in (page_of(folder).text, (folder / "report.md").read_text()):
            assert "tudent" not in text
    assert "Rows out n/a no stage is complete" in page_of(failed).text
    assert "too_similar" in page_of(failed).text, "what was refused before it failed is shown"


def test_a_limit_of_rejected_rows_is_told_where_there_is_one(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)
    assert "may be rejected" not in page_of(folder).text
    change_json(folder / "config.resolved.json", dataset={"instruction_path": "s", "max_rejected_share": 0.5})
    assert "Up to 50% may be rejected." in page_of(folder).text


# --- samples ----------------------------------------------------------------------------------------------------


def smallest_hashes(ids: list[str], most: int) -> list[str]:
    return sorted(ids, key=lambda identity: hashlib.sha256(identity.encode()).digest())[:most]


def test_samples_depend_on_ids_alone(tmp_path: Path) -> None:
    rows = [{"id": str(n), "instruction": f"q{n}"} for n in range(200)]
    refused = [{"id": str(n), "reason": "a" if n % 3 else "b", "raw": ""} for n in range(200)]
    for _ in range(3):
        random.shuffle(rows)
        random.shuffle(refused)
        write_array(tmp_path / "labeled.json", rows)
        write_lines(tmp_path / "rejected.jsonl", refused)
        assert [row.id for row in kept_rows(tmp_path)] == smallest_hashes([row["id"] for row in rows], KEPT_SHOWN)
        found = rejected_rows(tmp_path, ["a", "b", "c"])
        for reason in "ab":
            ids = [row["id"] for row in refused if row["reason"] == reason]
            assert [row.id for row in found[reason]] == smallest_hashes(ids, REJECTED_SHOWN)
        assert found["c"] == ()


def test_of_rows_with_the_same_id_the_first_are_drawn() -> None:
    assert draw(range(5), 2, lambda _: "same", lambda _: "") == {"": [0, 1]}


@pytest.mark.parametrize("write", [write_paper_json, write_parquet])
def test_rows_are_read_as_stages_write_them(tmp_path: Path, write: Any) -> None:
    chat: tuple[Message, ...] = ({"role": "system", "content": "brief"}, {"role": "user", "content": "one\ntwo"})
    answer: Message = {"role": "assistant", "content": "[1], {2},", "reasoning_content": "hm"}
    write(
        tmp_path / ("labeled.json" if write is write_paper_json else "labeled.parquet"),
        [
            Sample("a", (*chat, answer), {"score": 7, "sources": ["s", "t"]}),
            Sample("b", ({"role": "user", "content": "alone"},)),
            Sample("c", (chat[1], answer)),
        ],
    )
    rows = {row.id: row for row in kept_rows(tmp_path)}
    parts = {name: [(heading, text) for heading, text, _ in row.parts] for name, row in rows.items()}
    thought_and_answer = [("Thoughts", "hm"), ("Answer", "[1], {2},")]
    assert parts["a"] == [("system", "brief"), ("user", "one\ntwo"), *thought_and_answer]
    assert rows["a"].marks == (("score", "7"), ("sources", "s, t"))
    assert parts["b"] == [("", "alone")], "a prompt without an answer"
    assert parts["c"] == [("", "one\ntwo"), *thought_and_answer]


def test_big_files_are_not_held_in_memory(tmp_path: Path) -> None:
    text = "x" * 2000
    write_lines(tmp_path / "rejected.jsonl", [{"id": str(n), "reason": "a", "raw": text} for n in range(5000)])
    write_array(tmp_path / "labeled.json", [{"id": str(n), "instruction": text} for n in range(5000)])
    tracemalloc.start()
    try:
        assert len(kept_rows(tmp_path)) == KEPT_SHOWN and len(rejected_rows(tmp_path, ["a"])["a"]) == REJECTED_SHOWN
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000, "of files of 10 MB each"


def test_what_was_received_is_shown_as_text() -> None:
    assert received("plain") == "plain" and received(None) == ""
    assert received({"text": "so", "reasoning": None, "finish_reason": "stop"}) == "so"
    assert received({"text": "so", "reasoning": "hm"}) == "[thoughts]\nhm\n\n[answer]\nso"
    assert received([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]) == (
        "[user]\nq\n\n[assistant]\na"
    )
    several = [{"text": "one", "reasoning": None}, None, {"text": "two", "reasoning": "t"}]
    assert received(several) == "[1]\none\n\n[2]\n\n\n[3]\n[thoughts]\nt\n\n[answer]\ntwo"
    assert received([1, 2]) == "[1, 2]" and received({"error": 3}) == '{"error": 3}'


def test_pairs_are_shown_as_prompt_chosen_and_rejected(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)

    def said(text: str, **more: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text, **more}]

    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why so?"}]
    pair = {"id": "a", "prompt": asked, "chosen": said("Well, so.", reasoning_content="Hm."), "margin": 2.5}
    pair |= {"rejected": said("No.", reasoning_content="Bah."), "beta": 0.2, "chosen_by": "teacher"}
    write_array(folder / "stages/1-synthesise/labeled.json", [pair, {"id": "b", "instruction": "Hi", "chosen": 1}])
    text = section_of(folder)
    shown = "system Be kind. user Why so? Thoughts Hm. Chosen Well, so. Rejected [thoughts] Bah. [answer] No."
    assert shown in text and "margin 2.5" in text and "chosen_by teacher" in text and "beta 0.2" in text
    assert "Hi" in text and "chosen 1" in text, "what is no pair is shown as it was"
    markdown = (folder / "report.md").read_text()
    assert "Chosen:\n\n```text\nWell, so.\n```" in markdown and "Rejected:\n\n```text\n[thoughts]" in markdown


def test_long_texts_are_cut_and_can_be_unfolded(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)
    words = " ".join(f"word{n}" for n in range(200))
    write_array(folder / "stages/1-synthesise/labeled.json", [{"id": "a", "instruction": words, "output": "short"}])
    html, markdown = build_report(folder).read_text(), (folder / "report.md").read_text()
    folded = html.split('<details class="long">')[1].split("</details>")[0]
    assert beginning(words).endswith("…") and len(beginning(words)) <= CUT_AT + 1
    assert f"{beginning(words)}</span>" in folded and f'<p class="text asked">{words}</p>' in folded
    assert beginning(words) in markdown and words not in markdown
    assert '<p class="text">short</p>' in html


@pytest.mark.parametrize("text", ["", "a", "x" * CUT_AT, "one\ntwo", "x" * 5000, "\n" * 500, "a b " * 500])
def test_beginnings_are_of_the_text(text: str) -> None:
    start = beginning(text)
    assert len(start) <= CUT_AT + 1
    assert start == text or (start.endswith("…") and text.startswith(start[:-1]))


# --- hostile and broken -----------------------------------------------------------------------------------------


def test_hostile_text_is_text(tmp_path: Path) -> None:
    folder = make_synthesis_run(
        tmp_path,
        operator=HOSTILE,
        funnel=[["candidates", 5], [HOSTILE, 2]],
        **{f"spent_by_{HOSTILE}": {"answers": 1}, HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}, "plain": HOSTILE},
    )
    row = {"id": HOSTILE, "instruction": HOSTILE * 20, "output": HOSTILE, HOSTILE: HOSTILE}
    write_array(folder / "stages/1-synthesise/labeled.json", [row])
    refused = {"id": HOSTILE, "reason": HOSTILE, "detail": HOSTILE, "raw": {"text": HOSTILE * 20, "reasoning": "x"}}
    write_lines(folder / "stages/1-synthesise/rejected.jsonl", [refused])
    html = build_report(folder).read_text()
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any("alert" in script for script in page.scripts)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert html.count("{{ 7*7 }}") > 40 and "49" not in page.text
    markdown = (folder / "report.md").read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "```text" not in outside, "every block is closed by its own fence"
    assert "<script>" not in re.sub(r"(`+)[^`\n].*?\1", "", outside)


@pytest.mark.parametrize(
    "value", [None, 3, -1, "text", [], {}, [["candidates"]], {"a": [1]}, [["a", 5], ["b", 9]], True]
)
def test_metrics_of_wrong_types_do_not_stop_the_report(tmp_path: Path, value: Any) -> None:
    names = ("funnel", "diversity", "spent_by_teacher", "tasks", "yield")
    folder = make_synthesis_run(tmp_path, **dict.fromkeys(names, value))
    assert "Instruction expansion" in page_of(folder).text
    end_lines(folder)


@pytest.mark.parametrize("operator", [None, "", 3, {}])
def test_a_stage_without_an_operator_is_no_synthesis(tmp_path: Path, operator: Any) -> None:
    folder = make_synthesis_run(tmp_path, operator=operator)
    assert page_of(folder).sections() == ["rows", "cost", "time", "rejected", "settings", "use"]
    assert end_lines(folder) == []


def test_missing_and_torn_files_leave_their_samples_out(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path)
    (folder / "stages/1-synthesise/labeled.json").unlink()
    lines = (folder / "stages/1-synthesise/rejected.jsonl").read_text()
    (folder / "stages/1-synthesise/rejected.jsonl").write_text(lines[: len(lines) // 3])
    text = section_of(folder)
    assert "Rows that were kept" not in text
    assert "too_similar: 7 rejected, 3 of them here" in text
    assert "n/a: no such row is in rejected.jsonl." in text
    (folder / "stages/1-synthesise/labeled.parquet").write_bytes(b"PAR1 torn")
    assert "Rows that were kept" not in section_of(folder)


def test_the_page_is_accessible(tmp_path: Path) -> None:
    tables = {"tasks": {"Art": {"target": 3}}, "scores": {"1": 2}}
    page = page_of(make_synthesis_run(tmp_path, **tables))
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    assert all(a.get("aria-hidden") == "true" for tag, a in page.tags if tag == "svg")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {str(a["href"]) for tag, a in page.tags if tag == "a"}
    assert links == {"#synthesis-1", "#time", "#settings", "#use"} and {link[1:] for link in links} <= set(ids)


# --- figures ----------------------------------------------------------------------------------------------------


def test_the_funnel_s_bars_are_what_is_left_and_what_is_lost() -> None:
    steps = funnel_steps(synthesis())
    bars = [re.findall(r'class="(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', meter(step.bars)) for step in steps]
    assert bars == [
        [("kept", "0.00", "100.00")],
        [("kept", "0.00", "95.00"), ("lost", "95.00", "5.00")],
        [("kept", "0.00", "60.00"), ("lost", "60.00", "35.00")],
        [("after", "0.00", "60.00")],
    ]


def test_shares_are_not_rounded_to_nothing_or_everything() -> None:
    assert share(0, 10) == "0.0%" and share(10, 10) == "100.0%" and share(1, 0) == "n/a"
    assert share(1, 100_000) == "under 0.1%" and share(99_999, 100_000) == "over 99.9%"


BILL = {"answers": 5, "answers_without_counts": 0, "prompt_tokens": 50, "completion_tokens": 10,
        "cached_prompt_tokens": 20, "reasoning_tokens": None, "cost": None}  # fmt: skip


def spending(facts: Facts) -> tuple[Row, ...]:
    table = spending_table(facts.synthesis[0], facts)
    assert table is not None
    return table.rows


def titles(table: Table) -> tuple[str, ...]:
    return tuple(column.title for column in table.columns)


def test_a_judge_that_is_the_teacher_is_not_paid_twice(tmp_path: Path) -> None:
    facts = collect(make_synthesis_run(tmp_path / "one"))
    assert [row.name for row in spending(facts)] == ["Teacher"]
    folder = make_synthesis_run(tmp_path / "two")
    change_json(folder / "config.resolved.json", judge={"inference": {"model": "wise", "base_url": "http://j/v1"}})
    facts = collect(folder)
    assert [(row.name, row.texts[-1]) for row in spending(facts)] == [
        ("Teacher", "0.25"),
        ("Judge", "0.25"),
    ]
    assert "It took 40 requests, 3,000 tokens in and 1,200 out; cost 0.5." in page_of(folder).text
    assert "→ Judge wise http://j/v1 → Rows out" in page_of(folder).text


def test_unknown_cost_is_not_nothing_and_says_why(tmp_path: Path) -> None:
    for name, changes, prompt, why in (
        ("prices", {}, "50 (20 cached)", "the config gives no prices"),
        ("some", {"answers_without_counts": 2}, "50 (20 cached)", "The server reported no token counts for 2 answers"),
        (
            "all",
            {"answers_without_counts": 5, "prompt_tokens": 0},
            "n/a",
            "The server reported no token counts for 5 answers",
        ),
    ):
        bill = BILL | changes
        facts = collect(make_synthesis_run(tmp_path / name, spent_by_teacher=bill, spent_by_judge=bill))
        (row,) = spending(facts)
        requests, tokens_in, _, cost = row.texts
        assert (requests, tokens_in, cost) == ("5", prompt, "n/a")
        assert why in " ".join(bill_notes(models_of(facts.synthesis[0], facts.config)))


def test_models_on_this_machine_cost_nothing_that_is_known(tmp_path: Path) -> None:
    folder = make_synthesis_run(tmp_path, spent_by_teacher=None, spent_by_judge=None)
    summary = json.loads((folder / "summary.json").read_text())
    for role in ("teacher", "judge"):
        del summary["stages"]["synthesise"]["metrics"][f"spent_by_{role}"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "It took 2,100 tokens of models on this machine." in page_of(folder).text
    assert "Models on this machine no API was paid n/a 1,500 600 n/a" in section_of(folder)


def test_facts_of_tasks_become_a_table() -> None:
    found = {
        "Math": {"available": 30, "target": 20, "taken": 20, "missing": 0},
        "Art": {"available": 1, "target": 20, "taken": 2, "missing": 18},
        **{name: {"available": 0, "target": 0, "taken": 0, "missing": 0} for name in "ABCDE"},
    }
    stage = synthesis(tasks=found, dropped={"too_similar": 7, "malformed_reply": 1}, kept=12, novelty=None)
    (table,) = fact_tables(stage)
    assert table.title == "Tasks" and titles(table) == ("Available", "Target", "Taken", "Missing")
    assert [(row.name, row.texts) for row in table.rows] == [
        ("Math", ("30", "20", "20", "0")),
        ("Art", ("1", "20", "2", "18")),
    ]
    assert table.footnotes == ("0 everywhere: A, B, C, D, E.",)
    # What was dropped and kept is in the funnel.
    assert simple_facts(stage) == [("Wanted", "12"), ("Yield", "0.6"), ("Novelty", "n/a")]


def test_facts_of_other_shapes_become_tables() -> None:
    many = {str(n): n for n in range(ROWS_SHOWN + 5)}
    tables = fact_tables(
        synthesis(
            scores={"rv": {"7": 2, "10": 1}, "cd": {"3": 4}},
            bins=[{"cd": [0, 4], "taken": 3}, {"cd": [4, 9], "taken": 1}],
            labels={"Math": 8, "Art": 2},
            mixed={"a": {"b": 1}, "c": 2},
            mix={"new": 3, "share": 0.5},
            many=many,
            empty={},
            names=["x", "y"],
        )
    )
    found = {table.title: table for table in tables}
    assert list(found) == ["Scores", "Bins", "Labels", "Mixed", "Mix", "Many"]
    assert titles(found["Scores"]) == ("3", "7", "10")
    assert [row.texts for row in found["Scores"].rows] == [("–", "2", "1"), ("4", "–", "–")]
    assert [(row.name, row.texts) for row in found["Bins"].rows] == [("1", ("[0, 4]", "3")), ("2", ("[4, 9]", "1"))]
    assert found["Labels"].rows[1].bars == ((0.25, "after"),) and not found["Scores"].has_bars
    assert not found["Mix"].has_bars, "a share is no count"
    assert [row.texts for row in found["Mixed"].rows] == [("1", "–"), ("–", "2")]
    assert len(found["Many"].rows) == ROWS_SHOWN and found["Many"].footnotes == (
        "5 more are in the stage's manifest.json.",
    )


# --- the end of a run in words ------------------------------------------------------------------------------------


def test_the_end_of_a_run_tells_what_was_made_and_where(tmp_path: Path) -> None:
    folder = make_synthesis_run(
        tmp_path, funnel=[["candidates", 20], ["a", 19], ["b_c", 12], ["d", 10], ["e", 9], ["f", 7]]
    )
    (folder / "stages/1-synthesise/README.md").write_text("a card")
    assert end_lines(folder) == [
        "instruction_expansion: 20 candidates, 7 accepted, 13 rejected (b c 7, d 2, f 2, other reasons 2); cost 0.25",
        f"rows:    {folder}/stages/1-synthesise/labeled.json",
        f"card:    {folder}/stages/1-synthesise/README.md",
        "copy:    new.json",
    ]


def test_a_budget_that_was_too_small_is_told(tmp_path: Path) -> None:
    told = end_lines(make_synthesis_run(tmp_path, wanted=2000, budget=6000))
    assert told[1].strip() == "2,000 rows were wanted, and the budget of 6,000 candidates is used up"
    assert "synthesis.budget" in told[2]


def test_the_jobs_of_a_pipeline_each_tell_theirs(tmp_path: Path) -> None:
    make_synthesis_run(tmp_path / "stages/1-expand")
    make_synthesis_run(tmp_path / "stages/3-again", spent_by_teacher=BILL, spent_by_judge=BILL)
    inner = {name: stage(20, 12, metrics={"job": {}}) for name in ("expand", "kd", "again")}
    (tmp_path / "summary.json").write_text(json.dumps({"stages": inner}))
    lines = end_lines(tmp_path)
    assert [line.rpartition("; ")[2] for line in lines if line.startswith("instruction_")] == ["cost 0.25", "cost n/a"]
    assert f"rows:    {tmp_path}/stages/3-again/stages/1-synthesise/labeled.json" in lines


def test_runs_without_synthesis_end_as_before(tmp_path: Path) -> None:
    assert end_lines(make_run(tmp_path)) == [] and end_lines(tmp_path / "nowhere") == []
