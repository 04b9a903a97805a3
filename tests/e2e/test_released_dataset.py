"""From published chains to a student: OmniThought's rows are mixed, scored, selected, released, trained on.

The judge is a server of the test; all else is real. Every step is a job of one pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import TRAINING
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.data.reading import read_samples

PROBLEMS = 24


@pytest.fixture
def judge() -> Iterator[ScriptedServer]:
    """Scores chains by the number of spiders: CD is its last digit, RV 4 or 7, and odd ones are wrong."""

    def say(text: str, number: int) -> str:
        spiders = int(re.findall(r"Legs of (\d+) spiders", text)[-1])
        return f"<rv>{7 if 'At length' in text else 4}</rv><cd>{spiders % 10}</cd><correct>{1 - spiders % 2}</correct>"

    server = ScriptedServer()
    server.say = say
    yield server
    server.close()


def published(path: Path) -> str:
    def chain(model: str, number: int, words: str) -> dict[str, Any]:
        return {
            "Cognitive_Difficulty": {"judge": "old", "level": 9},
            "Reasoning_Verbosity": {"judge": "old", "level": 9},
            "full_response": f"<think>\n{words}: {number} by eight.\n</think>\n\n{8 * number}",
            "model": model,
        }

    rows = [
        {
            "id": f"p{number}",
            "question": f"Legs of {number} spiders?",
            "reasoning": [chain("R1", number, "In short"), chain("QwQ", number, "At length")],
        }
        for number in range(PROBLEMS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pipeline(folder: Path, url: str, student: Path) -> dict[str, Any]:
    inference = {"base_url": url, "model": "org/judge-1", "api_key": "none", "max_new_tokens": 32}
    return {
        "job_type": "pipeline",
        "output_dir": str(folder / "run"),
        "jobs": {
            "mixed": {
                "job_type": "mix",
                "mix": {"inputs": {"omni": {"path": published(folder / "omni.jsonl"), "count": 40}}, "labelled": True},
            },
            "scored": {
                "job_type": "cot_scoring",
                "dataset": {"instruction_path": "@mixed/labeled"},
                "inference": inference,
            },
            "selected": {
                "job_type": "cot_selection",
                "dataset": {"instruction_path": "@scored/labeled"},
                "synthesis": {"rv": [3, 9], "cd": [0, 6]},
            },
            "release": {
                "job_type": "release",
                "dataset": {"labeled_path": "@selected/labeled"},
                "release": {"schema": "omnithought", "splits": {"test": 4}, "shard_mb": 0.001},
            },
            "sft": {
                "job_type": "black_box_kd_local",
                "dataset": {"labeled_path": "@release/dataset"},
                "models": {"student": str(student)},
                "training": {**TRAINING, "num_train_epochs": 1},
                "evaluation": {"enabled": False, "heldout": 0},
            },
        },
    }


def test_published_chains_become_a_student(tmp_path: Path, judge: ScriptedServer, tiny_whole: Path) -> None:
    import datasets

    config = pipeline(tmp_path, judge.url, tiny_whole)
    found = easydistill.run(config, quiet=True)
    assert found.exit_code == 0 and len(judge.asked) == 40
    stages = tmp_path / "run/stages"
    chosen, _ = read_samples(stages / "3-selected/stages/1-synthesise/labeled.parquet", labelled=True)
    kept = {(row.prompt[0]["content"], row.meta["model"]): row for row in chosen}
    assert kept and all(row.meta["correct"] == 1 and row.meta["cd"] <= 6 for row in chosen)

    loaded = datasets.load_dataset(str(stages / "4-release/dataset"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    back: dict[tuple[str, str], tuple[int, int, int]] = {}
    for row in (row for part in loaded.values() for row in part):
        for chain in row["reasoning"]:
            verbosity, difficulty = chain["Reasoning_Verbosity"], chain["Cognitive_Difficulty"]
            assert {verbosity["judge"], difficulty["judge"]} == {"org/judge-1"}
            back[row["question"], chain["model"]] = verbosity["level"], difficulty["level"], chain["correct"]
    assert back == {key: (row.meta["rv"], row.meta["cd"], row.meta["correct"]) for key, row in kept.items()}
    card = (stages / "4-release/dataset/README.md").read_text()
    assert "Judges: org/judge-1." in card and "Teachers: " in card
    steps = [line.split(" | ")[0].strip("| ") for line in card.splitlines() if line.startswith(("| mix |", "| cot_"))]
    assert steps == ["mix", "cot_scoring", "cot_selection"]

    train = found.summary["stages"]["sft"]["metrics"]["job"]["rows"]
    trained = sum(len(row["reasoning"]) for row in loaded["train"])
    assert train["entered"] == trained and train["rejected"] == 0
    assert (tmp_path / "run/student/config.json").is_file()
    assert not easydistill.run(config, quiet=True).fresh and len(judge.asked) == 40
