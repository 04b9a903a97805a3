"""Old configs that run, as they are and as `easydistill migrate` writes them, against a real server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.old_configs import ANEW, AS_THEY_ARE, VERSION_2
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.cli import main


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the old files are, which hold paths that are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, value: Any) -> None:
    Path(name).write_text(json.dumps(value))


def test_a_black_box_job_is_the_same_run_before_and_after(
    server: ScriptedServer, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "sk-from-the-environment")
    server.say = lambda text, number: f"This is said about {text}"
    write("rows.json", [{"instruction": f"question {number}"} for number in range(12)])
    config = json.loads(json.dumps(AS_THEY_ARE["kd_black_box_api"]))
    del config["dataset"]["template"]
    config["inference"] |= {"base_url": server.url, "stream": False, "model_name": "m"}
    config["models"]["student"] = str(tiny_model)
    config["training"] |= {"max_length": 64, "num_train_epochs": 1}
    write("old.json", config)
    assert main(["run", "--quiet", "old.json", "--set", "evaluation.heldout=2"]) == 0
    asked = len(server.asked)
    assert asked == 12
    assert main(["migrate", "old.json", "-o", "new.json"]) == 0
    # Nothing is asked or trained again: the written file says what the old one did.
    result = easydistill.run("new.json", ["evaluation.heldout=2"], quiet=True)
    assert (result.exit_code, result.fresh, len(server.asked)) == (0, False, asked)
    assert (folder / "result/student/model.safetensors").is_file()


def test_a_reward_model_of_version_1_runs_as_two_jobs(
    server: ScriptedServer, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "sk-from-the-environment")
    server.say = lambda text, number: f"Answer {number} to {text}"
    write("rows.json", [{"prompt": f"question {number}"} for number in range(10)])
    config = json.loads(json.dumps(ANEW["rl_reward_api"]))
    config["inference"] |= {"base_url": server.url, "stream": False, "model": "m"}
    config["models"]["student"] = str(tiny_model)
    config["training"] |= {"num_train_epochs": 1, "max_length": 64}
    write("old.json", config)
    assert main(["migrate", "old.json", "-o", "new.json"]) == 0
    assert main(["plan", "new.json"]) == 0
    result = easydistill.run("new.json", ["jobs.train.evaluation.heldout=2"], quiet=True)
    assert (result.exit_code, len(server.asked)) == (0, 20)
    pairs = json.loads((folder / "labeled.json").read_text())
    assert len(pairs) == 10
    assert all(row["chosen"][-1]["content"] != row["rejected"][-1]["content"] for row in pairs)
    assert (folder / "result/student/model.safetensors").is_file()


def test_an_old_prompt_is_what_the_teacher_is_asked(server: ScriptedServer, folder: Path) -> None:
    server.say = lambda text, number: (
        f"<instruction>Describe the {number}th lantern of the {number * 7}th boat</instruction>"
    )
    write("seeds.json", [{"instruction": "Write a poem about the sea."}, {"instruction": "Explain how rainbows form."}])
    config = json.loads(json.dumps(AS_THEY_ARE["instruction_expansion_api"]))
    config["inference"] |= {"base_url": server.url, "stream": False, "model_name": "m"}
    config["dataset"]["num_output_samples"] = 2
    config["synthesis"] = {"too_similar": 1.0, "near_duplicate": 1.0}
    write("old.json", config)
    assert easydistill.run("old.json", quiet=True).exit_code == 0
    assert all(
        text.startswith("Write another one, in <instruction></instruction>. The examples:\n") for text in server.asked
    )
    assert all("poem about the sea" in text and "rainbows" in text for text in server.asked)
    assert len(json.loads((folder / "made.json").read_text())) == 2


def test_chains_are_shortened_with_an_old_prompt(server: ScriptedServer, folder: Path) -> None:
    server.say = lambda text, number: "Four. \\boxed{4}"
    chain = "First we take two. Then we take another two. Together that makes four. The answer is \\boxed{4}."
    write("seeds.json", [{"instruction": "What is 2 + 2?", "output": chain}])
    config = json.loads(json.dumps(AS_THEY_ARE["cot_long2short_api"]))
    config["inference"] |= {"base_url": server.url, "stream": False, "model_name": "m"}
    write("old.json", config)
    assert easydistill.run("old.json", quiet=True).exit_code == 0
    (asked,) = server.asked
    assert asked.startswith("Shorten, and output nothing else.\n[Problem]\nWhat is 2 + 2?\n\n[Solution]\nFirst we take")
    assert json.loads((folder / "made.json").read_text())[0]["output"] == "Four. \\boxed{4}"


def test_a_pipeline_of_version_2_runs_from_seeds_to_answers(
    server: ScriptedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("EAS_TOKEN", "sk-from-the-environment")

    def say(text: str, number: int) -> str:
        if "Rewrite it" in text:
            return f"<instruction>Please describe the {number}th lantern of the harbour in detail</instruction>"
        if "Write one new instruction" in text:
            task = ("Paint a violin", "Count ripe cactus plants", "Mend bridges")[number % 3]
            return f"<instruction>{task} now</instruction>"
        return f"An answer to: {text}"

    server.say = say
    seeds = [{"instruction": "Write a poem about the sea."}, {"instruction": "Explain how rainbows form."}]
    Path("seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds))
    config = json.loads(json.dumps(VERSION_2["augmented_instruct_distill"]))
    config["pipeline"][0]["config"]["num_output_samples"] = 2
    write("old.json", config)
    assert main(["migrate", "old.json", "-o", "new.json"]) == 0
    assert main(["plan", "new.json"]) == 0
    # So few words are near duplicates of each other by any measure.
    loose = ["jobs.expand.synthesis.too_similar=1", "jobs.expand.synthesis.near_duplicate=1"]
    result = easydistill.run("new.json", [*loose, "jobs.expand.synthesis.min_tokens=2"], quiet=True)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["instruction"].startswith("Please describe the") for row in rows)
    assert all(row["output"] == f"An answer to: {row['instruction']}" for row in rows)
    assert (folder / "one.jsonl").is_file() and (folder / "two.jsonl").is_file()


def test_rows_with_problems_are_rows(server: ScriptedServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAI_TOKEN_BASE_URL", server.url)
    monkeypatch.setenv("PAI_TOKEN_API_KEY", "sk-from-the-environment")
    server.say = lambda text, number: "Two and two. \\boxed{4}"
    Path("seeds.jsonl").write_text(json.dumps({"problem": "What is 2 + 2?", "answer": "4"}) + "\n")
    write("old.json", VERSION_2["cot_distill"])
    assert main(["migrate", "old.json", "-o", "new.json"]) == 0
    assert easydistill.run("new.json", quiet=True).exit_code == 0
    (row,) = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert (row["instruction"], row["output"]) == ("What is 2 + 2?", "Two and two. \\boxed{4}")
