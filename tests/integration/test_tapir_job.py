"""A curriculum of two rounds: a scripted server is teacher and judge, a tiny model is trained."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run, start, write_config
from tests.support.scripted_server import ScriptedServer
from tests.unit.synthesis.test_tapir import between, fresh

import easydistill
from easydistill.data.files import hash_file

STAGES = ["label", "curriculum-1", "train-1", "curriculum-2", "train-2", "evaluate"]


def say(text: str, number: int) -> str:
    """Teacher and judge. Every second instruction is hard, and so are all prompts made from it."""
    if "[First answer]" in text:
        about = between(text, "[Instruction]", "[First answer]")
        gap = 0 if "easy" in about else 5
        first_is_teachers = "The teacher's answer" in between(text, "[First answer]", "[Second answer]")
        return "<first>{}</first><second>{}</second>".format(*((8, 8 - gap) if first_is_teachers else (8 - gap, 8)))
    if "[Labels]" in text:
        return "<label>Reasoning</label>"
    if "Write one new instruction" in text:
        return f"<instruction>{fresh(text, number)}</instruction>"
    if "Rewrite the answer" in text:
        return f"<rewritten_answer>First this, then that. {between(text, '[Answer]', 'Rewrite the')}</rewritten_answer>"
    return f"The teacher's answer to {text[:40]}"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    made.say = say
    yield made
    made.close()


def job(server: ScriptedServer, folder: Path, student: Any, **curriculum: Any) -> dict[str, Any]:
    prompts = [{"instruction": f"Give {'easy' if n % 2 else 'knotty'} answer number {n}"} for n in range(16)]
    (folder / "seeds.json").write_text(json.dumps(prompts))
    return {
        "job_type": "tapir",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "seeds.json")},
        "inference": {"base_url": server.url, "model": "m"},
        "models": {"student": student},
        "student_inference": {"max_new_tokens": 8},
        "curriculum": {"rounds": 2, "reasoning_weight": 1, **curriculum},
        "training": {"num_train_epochs": 1, "learning_rate": 1e-2, "max_length": 128, "save_steps": 50},
        "evaluation": {"heldout": 4, "max_new_tokens": 2},
    }


def rows_of(folder: Path, stage: str) -> dict[str, dict[str, Any]]:
    (path,) = folder.glob(f"run/stages/*-{stage}/labeled.json")
    return {row["id"]: row for row in json.loads(path.read_text())}


def asked_again(server: ScriptedServer) -> list[str]:
    """Requests sent twice; every round may request one more prompt made from the same one."""
    return [text for text, count in Counter(server.asked).items() if count > 1 and "Write one new" not in text]


def manifest_of(folder: Path, stage: str) -> dict[str, Any]:
    (path,) = folder.glob(f"run/stages/*-{stage}/manifest.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def weights_of(folder: Path, number: int) -> str:
    (path,) = folder.glob(f"run/stages/*-train-{number}/model/model.safetensors")
    return hash_file(path)


def test_two_rounds_from_end_to_end(server: ScriptedServer, tiny_whole: Path, tmp_path: Path) -> None:
    config = job(server, tmp_path, {"from": str(tiny_whole), "keep_layers": 2})
    result = easydistill.run(config, quiet=True)
    assert result.exit_code == 0 and list(result.summary["stages"]) == STAGES
    assert result.metrics["before"]["cross_entropy"] > result.metrics["after"]["cross_entropy"]
    assert not asked_again(server), "nor by a later round"

    heldout = {
        json.loads(line)["id"] for line in next(tmp_path.glob("run/stages/*/answers.jsonl")).read_text().splitlines()
    }
    first, second = rows_of(tmp_path, "curriculum-1"), rows_of(tmp_path, "curriculum-2")
    assert len(heldout) == 4 and not heldout & (first.keys() | second.keys())
    facts = [manifest_of(tmp_path, f"curriculum-{number}")["metrics"] for number in (1, 2)]
    hard = facts[0]["hard"]
    assert facts[0]["mix"]["new"] == hard == facts[0]["tasks"]["Reasoning"]["asked"]
    assert facts[1]["hard"] == 2 * hard, "rows made in the first round are examined in the second, and are hard"
    assert [fact["alpha"] for fact in facts] == [0.3, 0.5]
    assert sum(row.get("round") == 2 for row in second.values()) == facts[1]["mix"]["new"] == 2 * hard
    assert all(row["output"].startswith("First this") for row in second.values() if row.get("task") == "Reasoning")

    assert weights_of(tmp_path, 1) != weights_of(tmp_path, 2) == hash_file(result.student / "model.safetensors")
    assert "train-1" in manifest_of(tmp_path, "train-2")["metrics"]["student"]
    report = result.report.read_text()
    assert "curriculum-2" in report and (result.student / "README.md").is_file()

    asked = len(server.asked)
    assert not easydistill.run(config, quiet=True).fresh
    config["curriculum"]["rounds"] = 1
    shorter = easydistill.run(config, quiet=True)
    assert len(server.asked) == asked, "one round less sends no requests"
    assert shorter.summary["stages"]["train-1"]["status"] == "skipped"
    assert hash_file(shorter.student / "model.safetensors") == weights_of(tmp_path, 1)


@pytest.mark.slow
def test_resumes_after_a_kill_in_the_second_round(server: ScriptedServer, tiny_model: Path, tmp_path: Path) -> None:
    made = job(server, tmp_path, str(tiny_model))
    made["inference"]["max_concurrency"] = 2
    config = write_config(tmp_path, made)

    def slowly(text: str, number: int) -> str:
        time.sleep(0.02)
        return say(text, number)

    server.say = slowly
    process = start(config)
    journal = "run/stages/4-curriculum-2/journal.jsonl"
    while process.poll() is None and len(lines_of(tmp_path / journal)) < 20:
        time.sleep(0.005)
    process.kill()
    out, _ = process.communicate()
    assert process.returncode < 0, out
    kept = len(server.asked)
    code, out = run(config)
    assert code == 0, out
    assert len(asked_again(server)) <= 2, "only requests in flight when it was killed"
    assert len(server.asked) > kept
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    states = {name: stage["status"] for name, stage in summary["stages"].items()}
    assert [states[name] for name in STAGES] == ["skipped"] * 3 + ["done"] * 3


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def test_plan_lists_the_rounds_before_anything_runs(server: ScriptedServer, tiny_model: Path, tmp_path: Path) -> None:
    config = job(server, tmp_path, str(tiny_model))
    planned = easydistill.api.plan(config)
    assert [stage.name for stage in planned] == STAGES
    assert {stage.state for stage in planned} == {"pending"} and planned[1].estimate.rows == 12
    assert server.asked == []


def test_missing_files_are_reported_once(server: ScriptedServer, tmp_path: Path) -> None:
    config = job(server, tmp_path, str(tmp_path / "nowhere"), prompts={"answer_comparision": "x.txt"})
    with pytest.raises(easydistill.errors.ConfigError) as error:
        easydistill.api.plan(config)
    message = str(error.value)
    assert message.count("nowhere") == 1 and message.count("curriculum.prompts.answer_comparision") == 1


def test_answered_rows_need_no_label_stage(server: ScriptedServer, tiny_model: Path, tmp_path: Path) -> None:
    config = job(server, tmp_path, str(tiny_model), rounds=1, expansions=0)
    rows = [{"instruction": f"Give knotty answer number {n}", "output": f"The teacher's answer {n}"} for n in range(4)]
    (tmp_path / "answered.json").write_text(json.dumps(rows))
    config["dataset"] = {"labeled_path": str(tmp_path / "answered.json")}
    config["evaluation"] = {"enabled": False}
    result = easydistill.run(config, quiet=True)
    assert list(result.summary["stages"]) == ["curriculum-1", "train-1"] and result.student.is_dir()
    assert {row["output"] for row in rows_of(tmp_path, "curriculum-1").values()} == {
        f"First this, then that. {row['output']}" for row in rows
    }
