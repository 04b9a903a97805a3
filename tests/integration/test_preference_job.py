"""Pairs of answers from a server: written, reported, and read by `dpo` without conversion."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer
from tests.unit.report_fixtures import page_of

import easydistill
from easydistill.data.preferences import read_preferences
from easydistill.errors import ConfigError

PROBLEMS = [{"instruction": f"What is {n} + 2?", "reference": str(n + 2), "gap": "none"} for n in range(8)]


def liked(answer: str) -> int:
    """A judge's score, 0 to 9, of the answer alone."""
    return zlib.crc32(answer.split("Score")[0].strip().encode()) % 10


def say(text: str, number: int) -> str:
    """Teacher, student and judge. Every second sum is right; the judge's scores are arbitrary but fixed."""
    if "[First answer]" in text:
        first, second = text.split("[First answer]")[1].split("[Second answer]")
        return f"<first>{liked(first) + 1}</first><second>{liked(second) + 1}</second>"
    if "[Answer]" in text:
        return f"<score>{liked(text.split('[Answer]')[1])}</score>"
    total = int(text.split()[2]) + 2
    return f"Adding {'up ' * (number % 5)}gives \\boxed{{{total + number % 2}}} as of {number}"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    made.say = say
    yield made
    made.close()


def job(
    server: ScriptedServer, folder: Path, rows: list[dict[str, Any]] = PROBLEMS, **synthesis: Any
) -> dict[str, Any]:
    (folder / "prompts.json").write_text(json.dumps(rows))
    method = synthesis.get("method", "student")
    teacher = {} if method == "verifiable" else {"inference": {"base_url": server.url, "model": "big"}}
    student = (
        {} if method == "contrastive_prompt" else {"student_inference": {"base_url": server.url, "model": "small"}}
    )
    return {
        "job_type": "preference_data",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "prompts.json"), "labeled_path": str(folder / "pairs.jsonl")},
        **teacher,
        **student,
        "synthesis": synthesis,
    }


def stage_of(folder: Path) -> Path:
    return next((folder / "run/stages").glob("*-synthesise"))


def test_pairs_are_written_reported_and_trained_on(server: ScriptedServer, tmp_path: Path, tiny_model: Path) -> None:
    made = job(server, tmp_path, method="verifiable", max_pairs=2)
    assert easydistill.run(made, quiet=True).exit_code == 0
    assert len(server.asked) == 32
    pairs, rejected = read_preferences(tmp_path / "pairs.jsonl")
    assert not rejected and len(pairs) > 4
    for pair in pairs:
        total = int(pair.prompt[0]["content"].split()[2]) + 2
        assert (
            f"\\boxed{{{total}}}" in pair.chosen[0]["content"]
            and f"\\boxed{{{total + 1}}}" in pair.rejected[0]["content"]
        )
        expected = {"margin": 1.0, "chosen_by": "student", "rejected_by": "student", "method": "verifiable"}
        assert expected.items() <= pair.meta.items() and not {"gap", "_row"} & set(pair.meta)
    stage = stage_of(tmp_path)
    assert read_preferences(stage / "labeled.parquet")[0] == read_preferences(stage / "labeled.json")[0] == pairs

    card = (stage / "README.md").read_text()
    assert "`messages`" not in card and "`chosen` the better answer to it" in card and "`margin`" in card
    page = page_of(tmp_path / "run")
    for text in ("Chosen", "Rejected", "Asking the student", "Chosen longer"):
        assert text in page.text, text
    shown = [
        pair for pair in pairs if pair.chosen[0]["content"] in page.text and pair.rejected[0]["content"] in page.text
    ]
    assert len(shown) >= 5
    assert '"role"' not in page.text, "chats are shown as text"
    assert "Teacher" not in page.text

    dpo = {
        "job_type": "dpo",
        "output_dir": str(tmp_path / "dpo"),
        "dataset": {"labeled_path": str(tmp_path / "pairs.jsonl")},
        "models": {"student": str(tiny_model)},
        "training": {"bf16": False, "max_length": 128},
        "evaluation": {"heldout": 2},
    }
    assert easydistill.run(dpo, quiet=True).exit_code == 0
    rows = json.loads((tmp_path / "dpo/summary.json").read_text())["stages"]["train"]["rows"]
    assert rows["entered"] == rows["left"] == len(pairs)


def test_a_judge_decides_and_nothing_is_asked_twice(server: ScriptedServer, tmp_path: Path) -> None:
    made = job(server, tmp_path, min_margin=1)
    assert easydistill.run(made, quiet=True).exit_code == 0
    asked = len(server.asked)
    pairs, _ = read_preferences(tmp_path / "pairs.jsonl")
    assert pairs and all(pair.meta["chosen_by"] == "teacher" and pair.meta["margin"] >= 1 for pair in pairs)
    metrics = json.loads((stage_of(tmp_path) / "manifest.json").read_text())["metrics"]
    assert metrics["spent_by_student"]["answers"] == 32 and metrics["spent_by_teacher"]["answers"] == asked - 32
    # The journal has all answers: another choice of pairs sends no requests.
    made["synthesis"] = {"min_margin": 2, "max_pairs": 3, "length_balance": "drop", "chosen": "best"}
    easydistill.run(made, quiet=True)
    assert len(server.asked) == asked
    metrics = json.loads((stage_of(tmp_path) / "manifest.json").read_text())["metrics"]
    after = metrics["lengths"]["with_balance"]
    assert after.get("chosen_longer") == after.get("chosen_shorter")


def test_ranked_samples_are_drawn_at_their_temperatures(server: ScriptedServer, tmp_path: Path) -> None:
    made = job(server, tmp_path, PROBLEMS[:3], method="rank", temperatures=[0.5, 1.0], student_samples=2)
    assert easydistill.run(made, quiet=True).exit_code == 0
    assert len(server.asked) == 3 * (4 + 12)
    journal = (stage_of(tmp_path) / "journal.jsonl").read_text()
    assert journal.count('"kind": "completion"') + journal.count('"kind":"completion"') == len(server.asked)
    pairs, _ = read_preferences(tmp_path / "pairs.jsonl")
    assert all(len([other for other in pairs if other.prompt == pair.prompt]) <= 3 for pair in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inference": {}}, "needs a teacher, and there is none"),
        ({"student_inference": {}}, "needs a student, and there is none"),
        ({"models": {"student": "org/small"}}, "models.student names another"),
        ({"models": {"judge": "org/judge"}}, "models.judge is not used"),
        ({"synthesis": {"method": "verifiable"}}, "verifiable with these settings does not use the teacher"),
        (
            {"synthesis": {"method": "contrastive_prompt"}},
            "contrastive_prompt with these settings does not use the student",
        ),
        ({"synthesis": {"teacher_samples": 0}, "inference": {}, "judge": None}, "needs a judge, and there is none"),
        ({"student_inference": {"base_url": "http://a/v1", "temperature": 0}}, "4 greedy answers of the student"),
    ],
)
def test_missing_and_unused_models_are_errors(
    server: ScriptedServer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    easydistill.validate(job(server, tmp_path))
    with pytest.raises(ConfigError, match=message):
        easydistill.validate({**job(server, tmp_path), **change})


def test_truncated_answers_cannot_be_both_needed_and_rejected(server: ScriptedServer, tmp_path: Path) -> None:
    config = job(server, tmp_path, method="verifiable", allow_truncated=True)
    easydistill.validate(config)
    config["student_inference"]["truncation"] = "reject"
    message = r"synthesis\.allow_truncated needs the answers that student_inference\.truncation rejects"
    with pytest.raises(ConfigError, match=message):
        easydistill.validate(config)
    # The teacher's may still be rejected answers.
    config["synthesis"]["teacher_samples"] = 1
    easydistill.validate(config | {"inference": {"base_url": server.url}})
