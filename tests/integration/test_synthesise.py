"""Synthesis jobs against a real local server: requests are sent once, rows and figures are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.data.reading import read_samples


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def job(
    server: ScriptedServer, folder: Path, kind: str, rows: list[dict[str, Any]], **synthesis: Any
) -> dict[str, Any]:
    seeds = folder / "seeds.json"
    if not seeds.exists():
        seeds.write_text(json.dumps(rows))
    return {
        "job_type": kind,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(seeds), "labeled_path": str(folder / "out.json")},
        "inference": {"base_url": server.url, "model": "m"},
        "synthesis": synthesis,
    }


SEEDS = [{"instruction": "Write a poem about the sea.", "topic": "art"}, {"instruction": "Explain how rainbows form."}]
WORDS = [
    "river",
    "engine",
    "poem",
    "planet",
    "market",
    "violin",
    "bridge",
    "cactus",
    "island",
    "lantern",
    "mirror",
    "sea",
]


def novel(text: str, number: int) -> str:
    words = [WORDS[number * step % 12] + WORDS[(number + step) % 12] for step in (1, 5, 7)]
    return f"<instruction>{' '.join(words)} please {number}</instruction>"


def test_expansion_writes_rows_and_a_funnel(server: ScriptedServer, tmp_path: Path) -> None:
    server.say = lambda text, number: "nothing" if number % 3 == 0 else novel(text, number)
    result = easydistill.run(job(server, tmp_path, "instruction_expansion", SEEDS, num_output_samples=6), quiet=True)
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(rows) == 6 and {"id", "instruction", "operator", "sources"} <= set(rows[0])
    samples, rejected = read_samples(tmp_path / "out.json", labelled=False)
    assert len(samples) == 6 and not rejected and samples[0].meta["operator"] == "instruction_expansion"
    stage = next((tmp_path / "run/stages").glob("*-synthesise"))
    manifest = json.loads((stage / "manifest.json").read_text())
    steps = dict(manifest["metrics"]["funnel"])
    assert steps["candidates"] == len(server.asked) == manifest["rows"]["entered"]
    assert list(steps.values())[-1] == 6
    refused = [json.loads(line) for line in (stage / "rejected.jsonl").read_text().splitlines()]
    assert len(refused) == len(server.asked) - 6
    assert "size_categories" in (stage / "README.md").read_text()


def test_outputs_load_with_datasets(server: ScriptedServer, tmp_path: Path) -> None:
    from datasets import load_dataset

    server.say = novel
    easydistill.run(job(server, tmp_path, "instruction_expansion", SEEDS, num_output_samples=4), quiet=True)
    stage = next((tmp_path / "run/stages").glob("*-synthesise"))
    loaded = load_dataset(
        "parquet", data_files=str(stage / "labeled.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(loaded) == 4 and loaded[0]["messages"][0]["role"] == "user"


def test_nothing_is_asked_twice(server: ScriptedServer, tmp_path: Path) -> None:
    problems = [{"question": f"What is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(20)]
    server.say = lambda text, number: f"So \\boxed{{{int(text.split()[2]) + 2 + (number % 2)}}}"
    made = job(server, tmp_path, "cot_generation", problems, num_samples=2, keep="all")
    first = easydistill.run(made, quiet=True)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(server.asked) == 40
    recount = sum(row["output"] == f"So \\boxed{{{int(row['instruction'].split()[2]) + 2}}}" for row in rows)
    assert recount == len(rows) == 20
    assert first.exit_code == 0
    easydistill.run(made, quiet=True)
    assert len(server.asked) == 40, "a complete stage is skipped"
    made["synthesis"]["keep"] = "first"
    easydistill.run(made, quiet=True)
    assert len(server.asked) == 40, "another choice of rows sends no new requests"
    assert len(json.loads((tmp_path / "out.json").read_text())) <= 20


def test_seeds_keep_their_fields(server: ScriptedServer, tmp_path: Path) -> None:
    server.say = lambda text, number: "<same>1</same>" if "[Second]" in text else (
        f"<instruction>{text.split(']')[1].split('Rewrite')[0].strip()} Use ten words.</instruction>"
    )  # fmt: skip
    easydistill.run(job(server, tmp_path, "instruction_refinement", SEEDS), quiet=True)
    rows = {row["original"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert rows["Write a poem about the sea."]["topic"] == "art"
    assert rows["Write a poem about the sea."]["instruction"] == "Write a poem about the sea. Use ten words."


def test_texts_become_pairs(server: ScriptedServer, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.md").write_text("# Alborg\n\nThe lighthouse of Alborg was built in 1871 by the engineer Ida Holm.\n")
    (folder / "b.html").write_text("<p>The old bridge of Marvik has seven arches and was opened in 1920.</p>")
    (folder / "c.bin").write_bytes(b"\0\1")
    made = job(server, tmp_path, "instruction_response_extraction", [], pairs_per_chunk=1)
    made["dataset"]["instruction_path"] = str(folder)

    def say(text: str, number: int) -> str:
        if "[Evidence]" in text:
            return "It was built in 1871." if "Alborg" in text else "It was opened in 1920."
        if "Alborg" in text:
            parts = (
                "When was the lighthouse of Alborg built?",
                "It was built in 1871.",
                "Alborg was built in 1871 by the engineer",
            )
        else:
            parts = (
                "When was the bridge opened at Marvik?",
                "It was opened in 1920.",
                "has seven arches and was opened in 1920",
            )
        return "<question>{}</question><answer>{}</answer><evidence>{}</evidence>".format(*parts)

    server.say = say
    easydistill.run(made, quiet=True)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {row["output"] for row in rows} == {"It was built in 1871.", "It was opened in 1920."}
    assert all(row["evidence"] and row["text_source"] for row in rows)
    stage = next((tmp_path / "run/stages").glob("*-synthesise"))
    assert "c.bin" in (stage / "rejected.jsonl").read_text()
