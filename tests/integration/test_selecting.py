"""Jobs that ask no model, from end to end: a file in, a file out, consistent figures, helpful errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import easydistill
from easydistill.data.reading import read_samples
from easydistill.errors import EXIT_OK, EXIT_TOO_MANY_REJECTED, ConfigError, DataError
from easydistill.synthesis.operators import instruction_expansion

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = (
    "How deep is the old well behind the mill?",
    "Name a fish that climbs waterfalls.",
    "Why does chalk squeak on a blackboard?",
    "Draft a note for the night nurse.",
    "Which planets have no moons at all?",
    "Count backwards from thirty in steps of four.",
)


def scored(number: int, **fields: Any) -> Row:
    return {
        "instruction": QUESTIONS[number],
        "output": f"Answer {number}.",
        "page": number,
        "tags": ["x", "y"],
        **fields,
    }


COT = [
    scored(n, rv=rv, cd=cd, correct=correct)
    for n, (rv, cd, correct) in enumerate([(4, 4, 1), (9, 4, 1), (4, 9, 1), (4, 5, 0), (5, 3, 1), (3, 6, 1)])
]
JUDGED = [
    scored(n, informativeness=i, helpfulness=h, generalisation=8, correctness=c)
    for n, (i, h, c) in enumerate([(8, 8, 1), (2, 8, 1), (8, 2, 1), (8, 8, 0), (5, 5, 1), (9, 9, 1)])
]
TASKS = [scored(n, task=task) for n, task in enumerate(["Math", "Math", "Math", "Math", "Art", "Law"])]
REPEATED = [scored(n) for n in range(5)] + [
    {**scored(0), "instruction": "how deep is the OLD well, behind the mill?", "page": 5}
]
LEAKED = [scored(n) for n in range(6)]
BENCHMARK = [{"question": QUESTIONS[1]}, {"question": "What is the capital of the moon?"}]

# job → rows, parameters, pages of the rows that stay, funnel.
CASES: dict[str, tuple[list[Row], dict[str, Any], list[int], list[tuple[str, int]]]] = {
    "cot_selection": (
        COT,
        {"rv": [3, 6], "cd": [3, 6]},
        [0, 4, 5],
        [("candidates", 6), ("incorrect", 5), ("verbosity", 4), ("difficulty", 3)],
    ),
    "instruction_selection": (
        JUDGED,
        {},
        [0, 4, 5],
        [("candidates", 6), ("incorrect", 5), ("low_informativeness", 4), ("low_helpfulness", 3)],
    ),
    "task_balancing": (
        TASKS,
        {"targets": {"Math": 1, "Art": 1}, "total": 2, "max_copies": 1},
        [-1, 4],
        [("candidates", 6), ("task_not_wanted", 5), ("over_target", 2)],
    ),
    "deduplicate": (REPEATED, {}, [-1, 1, 2, 3, 4], [("candidates", 6), ("duplicate", 5)]),
    "decontaminate": (
        LEAKED,
        {"benchmarks": ["benchmark.jsonl"]},
        [0, 2, 3, 4, 5],
        [("candidates", 6), ("benchmark_exact", 5)],
    ),
}
ANY_OF = {"task_balancing": (0, 1, 2, 3), "deduplicate": (0, 5)}
"""Pages of which exactly one stays, written as -1 above."""


def as_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows))


def as_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path: Path, rows: list[Row]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {"json": as_json, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    as_jsonl(tmp_path / "benchmark.jsonl", BENCHMARK)
    return tmp_path


def job(kind: str, rows: list[Row] | None = None, suffix: str = "json", **synthesis: Any) -> dict[str, Any]:
    """A job over `rows` (by default those of its case), which are written to `rows.<suffix>`."""
    case_rows, parameters, _, _ = CASES[kind]
    WRITERS[suffix](Path(f"rows.{suffix}"), case_rows if rows is None else rows)
    return {
        "job_type": kind,
        "output_dir": "run",
        "dataset": {"instruction_path": f"rows.{suffix}", "labeled_path": f"chosen.{suffix}"},
        "synthesis": parameters | synthesis,
    }


def stage() -> Path:
    return next(Path("run/stages").glob("*-synthesise"))


def pages(rows: list[Row], kind: str) -> list[int]:
    """The rows' pages, in order; -1 stands for a row any of which may stay."""
    return [-1 if row["page"] in ANY_OF.get(kind, ()) else row["page"] for row in rows]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", CASES)
def test_a_file_in_and_a_file_out(kind: str, suffix: str) -> None:
    given, _, kept, funnel = CASES[kind]
    result = easydistill.run(job(kind, suffix=suffix), quiet=True)
    assert result.exit_code == EXIT_OK
    samples, rejected = read_samples(Path(f"chosen.{suffix}"), labelled=True)
    assert not rejected
    assert sorted(pages([sample.meta for sample in samples], kind)) == sorted(kept)
    by_page = {row["page"]: row for row in given}
    for sample in samples:
        row = by_page[sample.meta["page"]]
        assert (sample.messages[0]["content"], sample.answer) == (row["instruction"], row["output"])
        others = {name: value for name, value in row.items() if name not in {"instruction", "output"}}
        assert {name: sample.meta[name] for name in others} == others
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "done" and summary["exit_code"] == EXIT_OK
    assert summary["rows"]["entered"] == len(given)
    assert summary["rows"]["accepted"] == len(kept)
    assert sum(summary["rows"]["rejected_by_reason"].values()) == summary["rows"]["rejected"] == len(given) - len(kept)
    metrics = summary["stages"]["synthesise"]["metrics"]
    assert [tuple(step) for step in metrics["funnel"]] == funnel
    refused = [json.loads(line) for line in (stage() / "rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in refused} == {name for name, _ in funnel[1:]}
    assert not {row["id"] for row in refused} & {sample.id for sample in samples}
    assert "chosen by" in (stage() / "README.md").read_text()


@pytest.mark.parametrize("kind", CASES)
def test_outputs_load_with_datasets_and_can_be_trained_on(kind: str, smollm: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    easydistill.run(job(kind), quiet=True)
    kept = CASES[kind][2]
    loaded = load_dataset(
        "parquet", data_files=str(stage() / "labeled.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == len(kept) and loaded[0]["messages"][-1]["role"] == "assistant"
    training = {
        "job_type": "black_box_kd_local",
        "output_dir": "trained",
        "dataset": {"labeled_path": "chosen.json"},
        "models": {"student": str(smollm)},
    }
    easydistill.validate(training)
    planned = easydistill.plan(training)
    assert [(stage.name, stage.state) for stage in planned] == [("train", "pending"), ("evaluate", "pending")]


def test_a_rerun_does_nothing_and_another_threshold_selects_again() -> None:
    made = job("cot_selection")
    easydistill.run(made, quiet=True)
    manifest = (stage() / "manifest.json").read_bytes()
    assert [planned.state for planned in easydistill.plan(made)] == ["done"]
    again = easydistill.run(made, quiet=True)
    assert not again.fresh and again.exit_code == EXIT_OK
    assert (stage() / "manifest.json").read_bytes() == manifest
    looser = made | {"synthesis": {"rv": [3, 9], "cd": [3, 6]}}
    assert [planned.state for planned in easydistill.plan(looser)] == ["pending"]
    assert easydistill.run(looser, quiet=True).summary["rows"]["accepted"] == 4
    assert len(json.loads(Path("chosen.json").read_text())) == 4
    assert len(json.loads(Path("chosen.json.1.bak").read_text())) == 3, "the previous file is kept"


def test_a_changed_benchmark_is_checked_again() -> None:
    made = job("decontaminate")
    assert easydistill.run(made, quiet=True).summary["rows"]["rejected"] == 1
    as_jsonl(Path("benchmark.jsonl"), [{"question": question} for question in QUESTIONS[:3]])
    assert easydistill.run(made, quiet=True).summary["rows"]["rejected"] == 3


def test_too_many_rejected_rows_set_the_exit_code() -> None:
    made = job("instruction_selection")
    made["dataset"]["max_rejected_share"] = 0.4
    assert easydistill.run(made, quiet=True).exit_code == EXIT_TOO_MANY_REJECTED
    assert len(json.loads(Path("chosen.json").read_text())) == 3, "the rows are written nevertheless"


def test_an_unreadable_row_is_a_rejected_row() -> None:
    easydistill.run(job("deduplicate", [scored(0), {"ask": "?"}, scored(1)]), quiet=True)
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["rows"]["rejected_by_reason"] == {"malformed_row": 1}
    assert "rows.json, row 2" in (stage() / "rejected.jsonl").read_text()


PLAIN = [scored(0), scored(1)]
BAD: list[tuple[str, list[Row], dict[str, Any], tuple[str, ...]]] = [
    ("cot_selection", PLAIN, {}, ("rows.json", "none of 2", "not_scored ×2", "no correct", "cot_scoring writes it")),
    ("cot_selection", [scored(0, rv="4", cd=4, correct=1)], {}, ("rows.json", "rv is '4'", "0 to 9")),
    ("cot_selection", [{"instruction": "Why?", "rv": 4}], {}, ("rows.json, row 1", "no answer")),
    ("cot_selection", COT, {"rv": [0, 1]}, ("rows.json", "none of 6", "verbosity ×5", "rv 4 is outside 0 to 1")),
    ("instruction_selection", PLAIN, {}, ("rows.json", "no correctness", "instruction_scoring writes it")),
    ("task_balancing", PLAIN, {}, ("rows.json", "none of the 2 rows has a task", "task_labelling writes it")),
    ("task_balancing", TASKS, {"targets": {"Sport": 1}}, ("rows.json", "task_not_wanted ×6", "Math")),
    ("deduplicate", [], {}, ("rows.json", "no rows in it", '"instruction"')),
    ("deduplicate", [{"instruction": "Why?"}], {"compare": "answer"}, ("rows.json", "row 1", "compare to prompt")),
    ("decontaminate", [scored(1)], {}, ("rows.json", "benchmark_exact ×1", "benchmark.jsonl, row 1")),
]


@pytest.mark.parametrize(("kind", "rows", "synthesis", "words"), BAD)
def test_rows_that_cannot_be_used(
    kind: str, rows: list[Row], synthesis: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        easydistill.run(job(kind, rows, **synthesis), quiet=True)
    for word in words:
        assert word in str(caught.value)
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("failed", 1)
    assert not Path("chosen.json").exists()


def test_candidates_that_all_failed_are_kept_with_their_reasons() -> None:
    with pytest.raises(DataError, match=r"rejected\.jsonl"):
        easydistill.run(job("cot_selection", PLAIN), quiet=True)
    refused = [json.loads(line) for line in (stage() / "rejected.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in refused] == ["not_scored", "not_scored"]


@pytest.mark.parametrize("empty", ["", " \n"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_an_empty_file_is_reported_as_empty(suffix: str, empty: str) -> None:
    made = job("deduplicate", suffix=suffix)
    Path(f"rows.{suffix}").write_text(empty)
    with pytest.raises((ConfigError, DataError), match=rf'rows.{suffix}"?: there are no rows in it'):
        easydistill.run(made, quiet=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction_path": "rows.txt"}, ("dataset.instruction_path", "suffix", ".jsonl")),
        ({"instruction_path": "nowhere.json"}, ("dataset.instruction_path", "no such file")),
        ({"labeled_path": "chosen.txt"}, ("dataset.labeled_path", "suffix", ".jsonl")),
    ],
)
def test_paths_are_checked_before_anything_runs(change: dict[str, str], words: tuple[str, ...]) -> None:
    Path("rows.txt").write_text("a,b\n")
    made = job("deduplicate")
    made["dataset"] |= change
    with pytest.raises(ConfigError) as caught:
        easydistill.run(made, quiet=True)
    assert all(word in str(caught.value) for word in words)


def test_a_missing_benchmark_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"synthesis\.benchmarks\.1"):
        easydistill.run(job("decontaminate", benchmarks=["benchmark.jsonl", "nowhere.jsonl"]), quiet=True)


def test_a_personas_file_must_exist_and_its_contents_are_in_the_identity() -> None:
    made = job("deduplicate") | {
        "job_type": "instruction_expansion",
        "inference": {"base_url": "http://localhost:9/v1", "model": "m"},
        "synthesis": {"variant": "persona", "personas_path": "personas.txt"},
    }
    with pytest.raises(ConfigError, match=r"synthesis\.personas_path"):
        easydistill.plan(made)
    identities = []
    for text in ("A diver.", "A diver.", "A baker."):
        Path("personas.txt").write_text(text)
        identities.append(instruction_expansion.Config(**made["synthesis"]).identity())
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("deduplicate", 11),
        ("decontaminate", 11),
        ("task_balancing", 8),
        ("cot_selection", 7),
        ("instruction_selection", 8),
    ],
)
def test_examples_select_as_many_rows_as_documented(
    kind: str, accepted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    elsewhere = [f"output_dir={tmp_path / 'run'}", f"dataset.labeled_path={tmp_path / 'chosen.json'}"]
    easydistill.run(ROOT / f"examples/synthesis/{kind}.json", elsewhere, quiet=True)
    assert len(json.loads((tmp_path / "chosen.json").read_text())) == accepted


def test_what_is_not_read_is_said_once_and_stays_in_manifest_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}], "context": "Lost."}
        for text in QUESTIONS
    ]
    Path("rows.json").write_text(json.dumps(chats))
    described = {"job_type": "deduplicate", "output_dir": "run", "dataset": {"instruction_path": "rows.json"}}
    assert easydistill.run(described).exit_code == EXIT_OK
    notice = "rows.json: `context` is not read (in 6 of 6 rows)"
    assert capsys.readouterr().err.count(notice) == 1
    (stage,) = json.loads(Path("run/summary.json").read_text())["stages"].values()
    assert stage["notices"][0].startswith(notice)
    for name in ("report.md", "report.html"):
        assert "is not read (in 6 of 6 rows)" in Path("run", name).read_text()
    # Named, it is read; the stage runs again.
    named = {**described, "dataset": {"instruction_path": "rows.json", "columns": {"prompt": "context"}}}
    assert easydistill.run(named).exit_code in (EXIT_OK, EXIT_TOO_MANY_REJECTED)
    (stage,) = json.loads(Path("run/summary.json").read_text())["stages"].values()
    assert stage["status"] == "done" and stage["rows"]["left"] == 1
