"""CogPO on GSM8K-like problems: a scripted server is teacher and critic, a tiny student answers and is trained."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_dpo import job as dpo_job
from tests.support.jobs import start, write_config
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.data.files import hash_file
from easydistill.errors import ConfigError

STAGES = ["synthesise", "train-1", "train-2"]
WORDS = "Let us look at it slowly, step after step, and write down what each step gives before we go on. "


class Problem:
    """A problem; its answer is read independently of the code under test."""

    def __init__(self, row: dict[str, str], number: int) -> None:
        self.question, self.solution, self.number = row["question"], row["answer"], number
        self.answer = int(row["answer"].rpartition("#### ")[2].replace(",", ""))
        self.kind = ("easy", "medium", "hard")[number % 3]


@pytest.fixture(scope="module")
def problems(own_data: Path) -> list[Problem]:
    """Problems with a one-digit answer, which the student may guess."""
    lines = (own_data / "gsm8k_train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    short = [row for row in rows if re.search(r"#### [2-9]$", row["answer"]) and len(row["question"]) < 170]
    return [Problem(row, number) for number, row in enumerate(short[:10])]


@pytest.fixture(scope="module")
def student(problems: list[Problem], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that says "The answer is" and some digit."""
    folder = tmp_path_factory.mktemp("student")
    rows = [
        {"instruction": problem.question, "output": f"I think the answer is {digit}."}
        for problem in problems
        for digit in range(2, 10)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    config = {
        "job_type": "black_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"student": str(tiny_model)},
        "training": {
            "learning_rate": 2e-2,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_length": 128,
        },
        "evaluation": {"enabled": False},
    }
    return easydistill.run(config, quiet=True).student


class Teacher:
    """Teacher and judge, whose replies depend on the request alone."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems

    def __call__(self, text: str, number: int) -> str:
        problem = next(problem for problem in self._problems if problem.question in text)
        chain = text.partition("[Solution]\n")[2]
        if "Choose one label" in text:
            chain = chain.partition("[What the student can do]")[0]
            return f"<label>{'medium' if 'Anew' in chain else problem.kind}</label>"
        if "[?]" in text:
            # From one chain the answer cannot be derived.
            return f"<answer>{'none' if problem.number == 5 else problem.answer}</answer>"
        if "learner can follow" in text:
            # Another chain gets a wrong answer.
            end = problem.answer + (problem.number == 3)
            return f"<thought>Anew. {WORDS * 2}{problem.solution.partition('####')[0]}\\boxed{{{end}}}</thought>"
        if "much shorter" in text:
            return f"<thought>Anew. #### {problem.answer}</thought>"
        # The teacher's own chains, one of them wrong.
        return f"{WORDS}So it is \\boxed{{{problem.answer + (problem.number == 1)}}}."


@pytest.fixture
def server(problems: list[Problem]) -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    made.say = Teacher(problems)
    yield made
    made.close()


def job(server: ScriptedServer, folder: Path, student: Path, problems: list[Problem]) -> dict[str, Any]:
    rows = [
        {"id": f"g{problem.number}", "question": problem.question, "answer": problem.solution}
        if problem.number % 2 == 0
        else {"id": f"g{problem.number}", "question": problem.question, "reference": problem.answer}
        for problem in problems
    ]
    (folder / "problems.json").write_text(json.dumps(rows))
    training = {"learning_rate": 1e-3, "gradient_accumulation_steps": 2, "max_length": 128, "max_steps": 4}
    training |= {"per_device_train_batch_size": 1, "logging_steps": 1}
    return {
        "job_type": "cogpo",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "problems.json"), "labeled_path": str(folder / "pairs.json")},
        "inference": {"base_url": server.url, "model": "m", "max_concurrency": 2},
        "models": {"student": str(student)},
        "student_inference": {"max_new_tokens": 10, "temperature": 1.0},
        "synthesis": {"wrong_answers": 1, "student_samples": 3},
        "sft": training,
        "training": training,
        "evaluation": {"heldout": 5},
    }


def final(text: str) -> int | None:
    """The number that a text ends on."""
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else None


def manifest_of(folder: Path, stage: str) -> dict[str, Any]:
    (path,) = folder.glob(f"run/stages/*-{stage}/manifest.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_from_problems_to_a_student(
    server: ScriptedServer, student: Path, problems: list[Problem], tmp_path: Path
) -> None:
    config = job(server, tmp_path, student, problems)
    assert [stage.name for stage in easydistill.api.plan(config)] == STAGES and not server.asked
    result = easydistill.run(config, quiet=True)
    assert result.exit_code == 0 and list(result.summary["stages"]) == STAGES
    by_id = {f"g{problem.number}": problem for problem in problems}
    pairs = json.loads((tmp_path / "pairs.json").read_text())

    # An independent recount, with the answers of the data set.
    gaps: Counter[str] = Counter()
    for pair in pairs:
        problem = by_id[pair["source"]]
        (prompt,), (chosen,), (rejected,) = pair["prompt"], pair["chosen"], pair["rejected"]
        assert prompt["content"] == problem.question
        assert final(chosen["content"]) == problem.answer
        assert (final(rejected["content"]) == problem.answer) == (pair["gap"] == "small")
        assert pair["beta"] == {"small": 0.1, "medium": 0.2, "large": 0.5}[pair["gap"]]
        assert ("Anew" in chosen["content"]) == (problem.kind != "medium" and pair["gap"] != "medium")
        by_teacher = "####" in rejected["content"] or WORDS in rejected["content"]
        assert by_teacher == (pair["gap"] == "small"), "otherwise it is the student's"
        gaps[pair["gap"]] += 1
    facts = manifest_of(tmp_path, "synthesise")["metrics"]
    assert facts["pairs"] == dict(gaps) and all(gaps[gap] >= 4 for gap in ("small", "medium", "large"))
    refused = {row["id"]: row["reason"] for row in map(json.loads, lines_of(tmp_path, "rejected.jsonl"))}
    assert refused["g1"] == "wrong_answer" and refused["g3"] == "answer_changed" and refused["g5"] == "not_derived"
    assert not refused.keys() & {pair["source"] for pair in pairs}
    assert facts["labels_before"] == Counter(problem.kind for problem in problems if problem.number != 1)
    assert facts["student_tries"]["right"] > 0 and facts["student_tries"]["wrong"] > 8
    shown = [text for text in server.asked if "[?]" in text]
    assert shown and all("####" not in text or "#### [?]" in text for text in shown)

    # Held-out rows are not fine-tuned on, and the fine-tuned student is the reference of the training on pairs.
    tuned, preferred = manifest_of(tmp_path, "train-1")["metrics"], manifest_of(tmp_path, "train-2")["metrics"]
    assert tuned["train_rows"] + tuned["heldout_rows"] == facts["sft_rows"] and tuned["heldout_rows"] > 0
    assert "train-1" in preferred["student"] and preferred["heldout_rows"] >= 5
    assert preferred["before"]["reward_accuracy"] == 0.5 and preferred["after"]["margin"] > 0
    assert preferred["train_rows"] + preferred["heldout_rows"] == len(pairs)
    assert (result.student / "model.safetensors").is_file() and "train-2" in result.report.read_text()

    asked = len(server.asked)
    assert not easydistill.run(config, quiet=True).fresh and len(server.asked) == asked
    config["synthesis"] |= {"beta_large": 0.4}
    config["sft"] = {"enabled": False}
    config["training"]["max_steps"] = 1
    config["evaluation"] = {"enabled": False}
    other = easydistill.run(config, quiet=True)
    assert list(other.summary["stages"]) == ["synthesise", "train"] and len(server.asked) == asked
    assert {pair["beta"] for pair in json.loads((tmp_path / "pairs.json").read_text())} == {0.1, 0.2, 0.4}
    assert str(student) in manifest_of(tmp_path, "train")["metrics"]["student"]


def lines_of(folder: Path, name: str) -> list[str]:
    (path,) = folder.glob(f"run/stages/*-synthesise/{name}")
    return path.read_text().splitlines()


def test_resumes_after_a_kill_while_the_student_answers(
    server: ScriptedServer, student: Path, problems: list[Problem], tmp_path: Path
) -> None:
    """No request is sent again, and rows and weights equal those of an uninterrupted run."""
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    jobs = {name: job(server, tmp_path / name, student, problems[:6]) for name in ("whole", "torn")}
    for made in jobs.values():
        made["sft"] = {"enabled": False}
        made["training"]["max_steps"] = 1
        made["synthesis"] |= {"student_samples": 2, "votes": 1}
        made["student_inference"]["batch_size"] = 2
    easydistill.run(jobs["whole"], quiet=True)
    once = Counter(server.asked)
    server.asked.clear()

    config = write_config(tmp_path / "torn", jobs["torn"])
    process = start(config)
    while process.poll() is None and not answers_of_student(tmp_path / "torn"):
        time.sleep(0.005)
    process.kill()
    out, _ = process.communicate()
    assert process.returncode < 0, out
    early = answers_of_student(tmp_path / "torn")
    assert 0 < len(early) < len(answers_of_student(tmp_path / "whole"))
    assert easydistill.run(config, quiet=True).exit_code == 0
    # The student's answers are still there, and none was generated twice.
    late = answers_of_student(tmp_path / "torn")
    assert late[: len(early)] == early and sorted(late) == sorted(answers_of_student(tmp_path / "whole"))
    again = Counter(server.asked) - once
    assert again.total() <= 2 and not once - Counter(server.asked), "only requests in flight when it was killed"
    for name in ("labeled.json", "labeled.parquet", "sft.json", "rejected.jsonl"):
        assert lines_of_bytes(tmp_path / "whole", name) == lines_of_bytes(tmp_path / "torn", name)
    weights = [hash_file(tmp_path / name / "run/student/model.safetensors") for name in ("whole", "torn")]
    assert weights[0] == weights[1]


def answers_of_student(folder: Path) -> list[str]:
    """Keys of the student's answers in the journal, in order."""
    found = [path.read_bytes() for path in folder.glob("run/stages/*-synthesise/journal.jsonl")]
    whole = [line for text in found for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    records = [record for line in whole for record in json.loads(line)]
    return [record["key"] for record in records if record.get("model") == "student"]


def lines_of_bytes(folder: Path, name: str) -> bytes:
    (path,) = folder.glob(f"run/stages/*-synthesise/{name}")
    return path.read_bytes()


def test_with_one_beta_it_equals_dpo_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    weights: list[str] = []
    for name, change in {"dpo": {"beta": None}, "cogpo": {"beta": 0.25}}.items():
        folder = tmp_path / name
        folder.mkdir()
        config = dpo_job(folder, tiny_model, rows=8)
        path = folder / "pairs.jsonl"
        rows = [json.loads(line) | change for line in path.read_text().splitlines()[:-1]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config |= {"job_type": name, "preference": {"beta": 0.25 if name == "dpo" else 0.9}}
        config["training"]["num_train_epochs"] = 1
        config["evaluation"] = {"heldout": 2}
        result = easydistill.run(config, quiet=True)
        assert list(result.summary["stages"]) == ["train"]
        weights.append(hash_file(result.student / "model.safetensors"))
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {}}, "neither problems nor pairs"),
        ({"dataset": {"labeled_path": "x.json"}, "sft": {}}, "sft has no effect on a job that only trains"),
        ({"inference": {"temperature": 0}, "models": {"student": "s", "teacher": "t"}}, "3 votes at temperature 0"),
        ({"inference": {}}, "there is no teacher"),
        ({"student_inference": {"temperature": 0}}, "student_inference.temperature"),
        ({"sft": {"output_dir": "x"}}, "the run directory is not set here"),
        ({"preference": {"beta": 0.3}}, "every pair has the β of its gap, not preference.beta"),
        ({"preference": {"loss_type": "aot"}}, "aot sorts the answers of a batch"),
        ({"preference": {"loss_type": ["sigmoid", "aot_unpaired"]}}, "aot_unpaired sorts the answers of a batch"),
        ({"dataset": {"labeled_path": "x.json"}, "preference": {"loss_type": "aot"}}, "aot sorts the answers"),
        ({"dataset": {"labeled_path": "x.json"}}, "inference has no effect on a job that only trains"),
        (
            {"synthesis": {"truncated_are_wrong": True}, "student_inference": {"truncation": "reject"}},
            "synthesis.truncated_are_wrong needs the answers that student_inference.truncation rejects",
        ),
        (
            {"inference": {"base_url": "http://localhost:1/v1", "temperature": 0}, "synthesis": {"votes": 1}},
            "a failed rewriting is sampled again, which at temperature 0 gives the same one",
        ),
    ],
)
def test_conflicting_settings_are_errors(changes: dict[str, Any], message: str) -> None:
    config = {
        "job_type": "cogpo",
        "dataset": {"instruction_path": "x.json"},
        "inference": {"base_url": "http://localhost:1/v1"},
        "models": {"student": "s"},
    }
    easydistill.validate(config)
    with pytest.raises(ConfigError) as error:
        easydistill.validate(config | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("role", ["teacher", "judge"])
def test_existing_pairs_need_neither_teacher_nor_judge(role: str) -> None:
    config: dict[str, Any] = {"job_type": "cogpo", "dataset": {"labeled_path": "x.json"}, "models": {"student": "s"}}
    easydistill.validate(config | {"preference": {"beta": 0.3}})
    config["models"][role] = "t"
    with pytest.raises(ConfigError, match=rf"models\.{role} has no effect on a job that only trains on existing pairs"):
        easydistill.validate(config)


def test_greedy_rewriting_is_valid_with_one_round() -> None:
    config = {
        "job_type": "cogpo",
        "dataset": {"instruction_path": "x.json"},
        "inference": {"base_url": "http://localhost:1/v1", "temperature": 0},
        "models": {"student": "s"},
        "synthesis": {"votes": 1, "rounds": 1},
    }
    easydistill.validate(config)


def test_reasoning_that_the_template_omits_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """Otherwise pairs that differ only in their reasoning would be the same tokens."""
    template = tmp_path / "shows.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} + 2?"}],
            "chosen": [{"role": "assistant", "content": f"{n + 2}", "reasoning_content": "First one, then one more."}],
            "rejected": [{"role": "assistant", "content": f"{n + 2}", "reasoning_content": "Obviously."}],
            "beta": 0.1,
        }
        for n in range(4)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    config = {
        "job_type": "cogpo",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"labeled_path": str(tmp_path / "pairs.json")},
        "models": {"student": str(tiny_model)},
        "training": {"max_steps": 1, "max_length": 128, "gradient_accumulation_steps": 1},
        "evaluation": {"enabled": False},
    }
    with pytest.raises(ConfigError, match=r"(?s)thoughts of 8 of 8 answers.*dataset\.template"):
        easydistill.run(config, quiet=True)
    config["dataset"]["template"] = str(template)
    assert easydistill.run(config, quiet=True).summary["stages"]["train"]["metrics"]["train_rows"] == 4
