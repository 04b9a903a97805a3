"""The job `mix` from end to end: files of several shapes, clear of benchmarks, whole, resumed, in a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import BLUE, RED, picture

import easydistill
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError, DataError

TOOL = {"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "How many legs has a spider?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "count_legs", "arguments": {"animal": "spider"}}}],
    },
    {"role": "tool", "content": "8"},
    {"role": "assistant", "content": "Eight.", "weight": 0},
]
PROBLEM = (
    "A gardener plants nine rows of tulips with eleven bulbs in every row and then gives seven of the bulbs away. "
    "How many are left?"
)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Chats with calls, with images, with thoughts and scores, and prompts and answers, under ids that clash."""
    (tmp_path / "red.png").write_bytes(picture(RED))
    (tmp_path / "blue.png").write_bytes(picture(BLUE))
    plain = [{"id": n, "instruction": f"Say {n}.", "output": f"{n}!", "note": {"n": n}} for n in range(30)]
    scored = {"rv": 4, "cd": 3, "correct": 1, "score": 0.5}
    chains = [
        {"id": n, "messages": [{"role": "user", "content": f"Chain {n}?"}, {"role": "assistant", "content": "Yes."}]}
        | {"reasoning_content": f"Thought {n}.", **scored}
        for n in range(10)
    ]
    pictures = [
        {"id": f"p{n}", "image": f"{colour}.png", "instruction": f"<image>What is {n}?", "output": colour}
        for n, colour in enumerate(["red", "blue"])
    ]
    return {
        "calls": {"path": lines(tmp_path / "calls.jsonl", [{"id": "c", "messages": CALLS, "tools": [TOOL]}])},
        "pictures": {"path": lines(tmp_path / "pictures.jsonl", pictures)},
        "chains": {"path": lines(tmp_path / "chains.jsonl", chains)},
        "plain": {"path": lines(tmp_path / "plain.jsonl", [*plain, plain[3]]), "share": 0.5},
    }


def job(folder: Path, inputs: dict[str, Any], **mix: Any) -> dict[str, Any]:
    return {"job_type": "mix", "output_dir": str(folder / "run"), "mix": {"inputs": inputs, **mix}}


def written(folder: Path, name: str = "labeled.parquet") -> list[Any]:
    path = folder / "run/stages/1-mix" / name
    samples, rejected = read_samples(path, labelled=None, images=ImageReader(ImageStore()))
    assert not rejected
    return list(samples)


def test_rows_are_mixed_whole(tmp_path: Path, inputs: dict[str, Any]) -> None:
    found = easydistill.run(job(tmp_path, inputs, labeled_path=str(tmp_path / "copy.jsonl")), quiet=True)
    rows = {sample.id: sample for sample in written(tmp_path)}
    # 13 rows of the others are half of 26.
    assert len(rows) == 26
    assert [sample.id for sample in written(tmp_path, "labeled.json")] == list(rows)
    call = rows["c"]
    assert call.messages[1]["tool_calls"][0]["arguments"] == {"animal": "spider"} and call.tools == (TOOL,)
    assert call.messages[-1]["weight"] == 0
    assert len({image for name in ("p0", "p1") for image in rows[name].images}) == 2
    chain = next(row for row in rows.values() if row.meta["mix_id"] == "7" and row.meta["mix_input"] == "chains")
    assert chain.messages[-1]["reasoning_content"] == "Thought 7."
    assert {name: chain.meta[name] for name in ("rv", "cd", "correct", "score")} == {
        "rv": 4,
        "cd": 3,
        "correct": 1,
        "score": 0.5,
    }
    assert sum(identity.startswith("plain:") for identity in rows) >= 1, "ids 0 to 9 are those of other chats"
    told = found.summary["stages"]["mix"]["metrics"]["inputs"]
    assert told["plain"] == {"read": 31, "duplicate": 1, "renamed": 10, "available": 30, "taken": 13}
    assert found.summary["rows"]["rejected_by_reason"] == {"duplicate": 1}
    assert len((tmp_path / "copy.jsonl").read_text().splitlines()) == 26
    report = (tmp_path / "run/report.md").read_text()
    assert "plain" in report and "10 rows have ids of other chats" in report


def test_benchmarks_are_kept_out_and_what_was_kept_out_is_listed(tmp_path: Path) -> None:
    rows = [{"instruction": PROBLEM, "output": "92"}, {"instruction": "Name a bird.", "output": "Wren."}]
    quoted = [{"instruction": "Write a sum.", "output": f"Here is one: {PROBLEM}"}]
    inputs = {"a": {"path": lines(tmp_path / "a.jsonl", rows)}, "b": {"path": lines(tmp_path / "b.jsonl", quoted)}}
    task = {"task": "gsm8k", "data": lines(tmp_path / "test.jsonl", [{"question": PROBLEM, "answer": "#### 92"}])}
    with pytest.raises(DataError, match="no row of b is left"):
        easydistill.run(job(tmp_path, {**inputs, "b": {**inputs["b"], "count": 1}}, decontaminate={"tasks": [task]}))
    found = easydistill.run(job(tmp_path, inputs, decontaminate={"tasks": [task]}), quiet=True)
    assert [sample.prompt[0]["content"] for sample in written(tmp_path)] == ["Name a bird."]
    rejected = [json.loads(line) for line in (tmp_path / "run/stages/1-mix/rejected.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rejected] == ["benchmark_exact", "benchmark_overlap"]
    assert found.summary["stages"]["mix"]["metrics"]["decontamination"] == {"against": "gsm8k", "dropped": 2}
    assert found.exit_code == 0
    strict = job(tmp_path / "strict", inputs, decontaminate={"tasks": [task]}, max_rejected_share=0.5)
    assert easydistill.run(strict, quiet=True).exit_code == 3


def test_the_same_command_does_nothing_and_a_changed_input_mixes_again(tmp_path: Path, inputs: dict[str, Any]) -> None:
    config = job(tmp_path, inputs)
    easydistill.run(config, quiet=True)
    before = (tmp_path / "run/stages/1-mix/labeled.parquet").read_bytes()
    assert not easydistill.run(config, quiet=True).fresh
    # Files may lie elsewhere, and the rows come out as they did.
    moved = tmp_path / "elsewhere.jsonl"
    Path(inputs["plain"]["path"]).rename(moved)
    inputs["plain"]["path"] = str(moved)
    assert not easydistill.run(job(tmp_path, inputs), quiet=True).fresh
    # An image beside the rows is part of them.
    (tmp_path / "red.png").write_bytes(picture((9, 9, 9)))
    assert easydistill.run(job(tmp_path, inputs), quiet=True).fresh
    lines(moved, [{"id": n, "instruction": f"Say {n}.", "output": "?"} for n in range(30)])
    assert easydistill.run(job(tmp_path, inputs), quiet=True).fresh
    assert (tmp_path / "run/stages/1-mix/labeled.parquet").read_bytes() != before


def test_plan_foretells_counts_and_shortage(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (stage,) = easydistill.plan(job(tmp_path, inputs))
    assert stage.estimate.rows == 26
    assert any("13 of 31 rows of plain" in note for note in stage.notes)
    inputs["chains"]["count"] = 25
    (stage,) = easydistill.plan(job(tmp_path, inputs))
    assert any("chains: 25 wanted, 10 there" in note and '"epochs": 3' in note for note in stage.notes)


def test_prompts_alone_can_be_mixed(tmp_path: Path, inputs: dict[str, Any]) -> None:
    easydistill.run(job(tmp_path, {"chains": inputs["chains"]}, labelled=False), quiet=True)
    assert all(sample.answer is None for sample in written(tmp_path))


def test_a_missing_file_is_told_by_its_key(tmp_path: Path) -> None:
    config = job(tmp_path, {"a": {"path": str(tmp_path / "none.jsonl")}})
    with pytest.raises(ConfigError, match=r"mix\.inputs\.a\.path"):
        easydistill.run(config, quiet=True)
