"""The job `evaluate`, from config to report, with tiny models and scripted servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, prompt
from tests.support.jobs import start, write_config
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.cli import main
from easydistill.data.files import read_jsonl
from easydistill.errors import ConfigError, DataError

SUMS = [{"id": f"s{n}", "question": f"What is {n} + {n + 1}?", "answer": f"… #### {2 * n + 1}"} for n in range(10)]
BIRDS = [{"question": f"Bird number {n}?", "choices": ["cat", "wren"], "answer": "B"} for n in range(4)]


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


@pytest.fixture
def other_server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asks(url: str, **more: Any) -> dict[str, Any]:
    return {"inference": {"base_url": url, "model": "m", "max_retries": 0, **more}}


def job_of(folder: Path, models: dict[str, Any], tasks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"job_type": "evaluate", "output_dir": str(folder / "run"), "models": models, "tasks": tasks, **more}


def sums(folder: Path, **more: Any) -> dict[str, Any]:
    return {"task": "gsm8k", "data": write_rows(folder, "sums.jsonl", SUMS), **more}


def scores(folder: Path, stage: str = "1-tasks") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/stages" / stage / "scores.json").read_text())
    return found


def task_of(folder: Path, name: str = "gsm8k") -> dict[str, Any]:
    return next(task for task in scores(folder)["tasks"] if task["name"] == name)


def adds(text: str, number: int) -> str:
    """Adds the two numbers of a sum."""
    words = text.split()
    return f"<think>{words[2]} and more</think>\nIt is {int(words[2]) + int(words[4].rstrip('?'))}."


def half_right(text: str, number: int) -> str:
    """Right for even first numbers only."""
    return adds(text, number) if int(text.split()[2]) % 2 == 0 else "It is 1000."


def test_teacher_before_and_after_are_compared(
    tmp_path: Path, scripted: ScriptedServer, other_server: ScriptedServer
) -> None:
    scripted.say, other_server.say = adds, half_right
    models = {
        "teacher": {**asks(scripted.url), "published": {"gsm8k": 97.5}},
        "before": asks(other_server.url, system_prompt="Be wrong."),
        "after": asks(other_server.url),
    }
    easydistill.run(job_of(tmp_path, models, [sums(tmp_path)]))
    task = task_of(tmp_path)
    found = task["models"]
    assert found["teacher"]["score"]["mean"] == 1.0
    assert found["after"]["score"]["mean"] == 0.5
    assert found["after"]["score"]["low"] < 0.5 < found["after"]["score"]["high"]
    assert task["gap_closed"] == 0.0
    paired = found["teacher"]["comparison"]
    assert (paired["against"], paired["gained"], paired["lost"]) == ("before", 5, 0)
    assert paired["p"] == pytest.approx(2 / 2**5)
    flip = paired["flips"]["gained"][0]
    assert flip["problem"] == "s1" and flip["before"] == "It is 1000." and flip["after"] == "It is 3."
    replies = list(read_jsonl(tmp_path / "run/stages/1-tasks/replies.jsonl"))
    assert len(replies) == 30
    assert replies[0]["thoughts"] == "0 and more", "apart from the reply that is scored"
    report = (tmp_path / "run/report.md").read_text()
    assert "What the models can do" in report and "Answers that flipped" in report
    table = next(line for line in report.splitlines() if line.startswith("| gsm8k"))
    assert "100.0 %" in table and "97.5 %" in table and "0 %" in table
    html = (tmp_path / "run/report.html").read_text()
    assert "Paired comparison" in html and "McNemar" in html


def test_nothing_is_asked_twice_and_a_new_model_asks_only_its_own(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.say = adds
    config = job_of(tmp_path, {"teacher": asks(scripted.url)}, [sums(tmp_path)])
    easydistill.run(config)
    assert len(scripted.asked) == 10
    easydistill.run(config)
    assert len(scripted.asked) == 10
    config["models"]["other"] = asks(scripted.url, system_prompt="Other.")
    config["tasks"].append({"task": "custom", "score": "choice", "data": write_rows(tmp_path, "b.jsonl", BIRDS)})
    scripted.say = lambda text, number: "B" if "Bird" in text else adds(text, number)
    easydistill.run(config)
    assert len(scripted.asked) == 10 + 10 + 4 + 4
    assert task_of(tmp_path, "custom")["models"]["other"]["score"]["mean"] == 1.0


def test_models_of_one_server_have_one_bill(tmp_path: Path, scripted: ScriptedServer) -> None:
    """Each answer is paid for once, however many models the server stands for and however they are sampled."""
    scripted.say = adds
    priced = {"prices": {"input": 1.0, "output": 2.0}}
    models = {"plain": asks(scripted.url, **priced), "told": asks(scripted.url, **priced, system_prompt="Add.")}
    tasks = [sums(tmp_path), sums(tmp_path, name="longer", max_new_tokens=700)]
    easydistill.run(job_of(tmp_path, models, tasks))
    metrics = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["tasks"]["metrics"]
    bills = {name: bill for name, bill in metrics.items() if name.startswith("spent")}
    assert len(scripted.asked) == 40
    assert {name: bill["answers"] for name, bill in bills.items()} == {"spent_by_plain and told": 40}
    assert bills["spent_by_plain and told"]["cost"] == pytest.approx(40 * (10 * 1.0 + 5 * 2.0) / 1e6)


def test_samples_give_the_mean_and_pass_at_k(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.say = lambda text, number: adds(text, number) if number % 2 else "no idea"
    task = sums(tmp_path, samples=4, temperature=0.7, pass_at=[1, 4], limit=3)
    easydistill.run(job_of(tmp_path, {"m": asks(scripted.url, max_concurrency=1)}, [task]))
    found = task_of(tmp_path)["models"]["m"]
    assert (found["problems"], found["replies"], len(scripted.asked)) == (3, 12, 12)
    assert found["score"]["mean"] == found["pass_at"]["1"]["mean"] == pytest.approx(0.5)
    assert found["pass_at"]["4"]["mean"] == 1.0


def test_flips_of_samples_show_replies_that_differ(
    tmp_path: Path, scripted: ScriptedServer, other_server: ScriptedServer
) -> None:
    """Of several replies to a problem the first ones may say the contrary of what their means do."""
    scripted.say = lambda text, number: "It is 1000." if number == 1 else adds(text, number)
    other_server.say = lambda text, number: adds(text, number) if number == 1 else "It is 1000."
    task = sums(tmp_path, samples=4, temperature=0.7, limit=1)
    models = {"before": asks(other_server.url, max_concurrency=1), "after": asks(scripted.url, max_concurrency=1)}
    easydistill.run(job_of(tmp_path, models, [task]))
    (flip,) = task_of(tmp_path)["models"]["after"]["comparison"]["flips"]["gained"]
    assert flip["before"] == "It is 1000." and flip["after"] == "It is 1."
    report = (tmp_path / "run/report.md").read_text()
    assert "better with this model (1)" in report and "right only" not in report


def test_worked_examples_are_turns_and_are_not_evaluated(tmp_path: Path) -> None:
    task = sums(tmp_path, shots=2, shots_data=write_rows(tmp_path, "shots.jsonl", SUMS[:3]))
    config = job_of(tmp_path, {"m": asks("http://127.0.0.1:1/v1")}, [task])
    shown = easydistill.preview(config, rows=1)
    assert [message["role"] for message in shown[0].messages] == ["user", "assistant", "user", "assistant", "user"]
    assert shown[0].messages[1]["content"].endswith("\\boxed{1}")
    assert "2 + 3" in shown[0].messages[-1]["content"], "the first two rows are the examples"
    (planned,) = easydistill.plan(config)
    assert planned.estimate.rows == 8 and planned.estimate.calls == 8


def test_truncated_and_empty_replies_are_counted(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.say = lambda text, number: "" if "0 + 1" in text else "<think>it never ends" if "1 + 2" in text else "5"
    scripted.finish = lambda number: "length"
    easydistill.run(job_of(tmp_path, {"m": asks(scripted.url)}, [sums(tmp_path)]))
    found = task_of(tmp_path)["models"]["m"]
    assert (found["cut"], found["empty"], found["failed"]) == (10, 2, 0)
    assert found["score"]["mean"] == 0.1, "2 + 3 is 5, cut off or not"


def test_a_judge_scores_replies(tmp_path: Path, scripted: ScriptedServer, other_server: ScriptedServer) -> None:
    scripted.say = lambda text, number: "A fine reply."
    other_server.say = lambda text, number: "<score>9</score>" if "Bird number 0" in text else "<score>0</score>"
    task = {"task": "custom", "score": "judge", "data": write_rows(tmp_path, "b.jsonl", BIRDS)}
    config = job_of(tmp_path, {"m": asks(scripted.url)}, [task], judge=asks(other_server.url))
    easydistill.run(config)
    assert task_of(tmp_path, "custom")["models"]["m"]["score"]["mean"] == 0.25
    assert len(other_server.asked) == 4
    config["baseline"] = "m"
    config["models"]["other"] = asks(scripted.url, system_prompt="Other.")
    easydistill.run(config)
    assert len(other_server.asked) == 4, "the same reply is judged once"
    bill = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["tasks"]["metrics"]["spent_by_judge"]
    assert (bill["answers"], bill["prompt_tokens"]) == (4, 40), "those of the first start too"
    notes = " ".join(
        note for stage in easydistill.plan({**config, "output_dir": str(tmp_path / "new")}) for note in stage.notes
    )
    assert "the judge is asked up to 8 times" in notes


def test_replies_that_could_not_be_judged_are_told(
    tmp_path: Path, scripted: ScriptedServer, other_server: ScriptedServer
) -> None:
    """A judge that writes no score says nothing of the replies, which count as 0."""
    scripted.say = lambda text, number: "A fine reply."
    other_server.say = lambda text, number: "<score>9</score>" if "Bird number 0" in text else "I cannot say."
    task = {"task": "custom", "score": "judge", "data": write_rows(tmp_path, "b.jsonl", BIRDS)}
    easydistill.run(job_of(tmp_path, {"m": asks(scripted.url)}, [task], judge=asks(other_server.url)))
    found = task_of(tmp_path, "custom")["models"]["m"]
    assert (found["unjudged"], found["score"]["mean"]) == (3, 0.25)
    assert "3 of m's replies could not be judged" in (tmp_path / "run/report.md").read_text()


def test_contaminated_training_rows_are_told(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.say = lambda text, number: "7"
    long = (
        "A farmer has three fields and in every field stand four trees with five apples, so how many apples are there?"
    )
    rows = [*SUMS, {"question": long, "answer": "#### 60"}]
    trained = [
        {"instruction": "What is 3 + 4?", "output": "7"},
        {"instruction": f"Please answer this one. {long} Think.", "output": "60"},
        {"instruction": "Something else", "output": "yes"},
    ]
    task = {"task": "gsm8k", "data": write_rows(tmp_path, "sums.jsonl", rows)}
    more = {"contamination": {"data": [write_rows(tmp_path, "train.jsonl", trained)]}}
    easydistill.run(job_of(tmp_path, {"m": asks(scripted.url)}, [task], **more))
    found = scores(tmp_path)["contamination"]
    assert found["rows"] == 3
    assert {key: found["tasks"]["gsm8k"][key] for key in ("rows", "benchmark_exact", "benchmark_overlap")} == {
        "rows": 2,
        "benchmark_exact": 1,
        "benchmark_overlap": 1,
    }
    assert "Contamination" in (tmp_path / "run/report.md").read_text()


def test_a_failure_that_may_pass_ends_the_run_and_is_asked_again(tmp_path: Path, server: Running) -> None:
    """A score without some of the replies would be another score."""
    rows = [{"prompt": prompt(f"question {n}", "503" if n == 1 else None, times=1), "answer": "1"} for n in range(3)]
    task = {"task": "custom", "score": "verify", "data": write_rows(tmp_path, "rows.jsonl", rows)}
    config = job_of(tmp_path, {"m": asks(server.base_url)}, [task])
    with pytest.raises(DataError, match=r"1 of 3 requests of custom got no reply"):
        easydistill.run(config)
    assert not (tmp_path / "run/stages/1-tasks/scores.json").exists()
    easydistill.run(config)
    found = task_of(tmp_path, "custom")["models"]["m"]
    assert (found["replies"], found["failed"]) == (3, 0)
    assert sorted(server.stats()["attempts"].values()) == [1, 1, 2]


def test_tokens_are_those_of_replies_that_were_counted(tmp_path: Path, server: Running) -> None:
    """A request without a reply, and a server that counts nothing, make no reply short."""
    rows = [{"question": prompt(f"What is {n}", "bad_request" if n else None), "answer": "#### 1"} for n in range(3)]
    task = {"task": "gsm8k", "data": write_rows(tmp_path, "rows.jsonl", rows)}
    easydistill.run(job_of(tmp_path, {"m": asks(server.base_url)}, [task]))
    found = task_of(tmp_path)["models"]["m"]
    (tokens,) = [row["tokens"] for row in read_jsonl(tmp_path / "run/stages/1-tasks/replies.jsonl") if row["tokens"]]
    assert found["failed"] == 2
    assert found["tokens_per_reply"] == tokens > 0


def test_a_row_that_is_not_of_the_task_ends_the_run_before_anything_is_asked(
    tmp_path: Path, scripted: ScriptedServer
) -> None:
    rows = write_rows(tmp_path, "rows.jsonl", [*SUMS[:2], {"question": "no answer"}])
    config = job_of(tmp_path, {"m": asks(scripted.url)}, [{"task": "gsm8k", "data": rows}])
    with pytest.raises(DataError, match=r"row 3: not a row of gsm8k"):
        easydistill.run(config)
    assert scripted.asked == []


@pytest.mark.parametrize("line", ["{broken", '"text"', '{"question": "half \\ud800", "answer": "#### 1"}'])
def test_broken_rows_are_told_with_their_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(SUMS[0]) + "\n" + line + "\n")
    config = job_of(tmp_path, {"m": asks("http://127.0.0.1:1/v1")}, [{"task": "gsm8k", "data": str(path)}])
    with pytest.raises(DataError, match=r"rows.jsonl, row 2"):
        easydistill.plan(config)


def test_odd_replies_are_scored_and_written(tmp_path: Path, scripted: ScriptedServer) -> None:
    odd = [
        "",
        "\ud800 \\boxed{1}",
        "\x00\\boxed{1}",
        "```python\n",
        "\\boxed{" * 500,
        "1" * 5000,
        "</think>1",
        "<think>",
    ]
    scripted.say = lambda text, number: odd[int(text.split()[2])]
    rows = [{"question": f"What is {n} ?", "answer": "#### 1"} for n in range(len(odd))]
    data = write_rows(tmp_path, "odd.jsonl", rows)
    easydistill.run(job_of(tmp_path, {"m": asks(scripted.url)}, [{"task": "gsm8k", "data": data}]))
    replies = list(read_jsonl(tmp_path / "run/stages/1-tasks/replies.jsonl"))
    assert [row["value"] for row in replies] == [0, 1, 1, 0, 0, 0, 1, 0]
    assert (tmp_path / "run/report.html").is_file()


def test_a_judge_that_is_not_reached_gives_no_scores(tmp_path: Path, scripted: ScriptedServer, server: Running) -> None:
    scripted.say = lambda text, number: prompt("A fine reply", "503" if "Bird number 1" in text else None, times=1)
    task = {"task": "custom", "score": "judge", "data": write_rows(tmp_path, "b.jsonl", BIRDS)}
    config = job_of(tmp_path, {"m": asks(scripted.url)}, [task], judge=asks(server.base_url))
    with pytest.raises(DataError, match="1 of 4 replies could not be scored"):
        easydistill.run(config)
    easydistill.run(config)
    assert sum(server.stats()["attempts"].values()) == 5
    assert len(scripted.asked) == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"baseline": "nobody"}, "none of the models"),
        ({"judge": asks("http://x/v1")}, "no task is scored by a judge"),
        ({"models": {"m": {**asks("http://x/v1"), "published": {"mmlu": 3}}}}, "none of the tasks"),
        ({"models": {"m": asks("http://x/v1", temperature=0.5)}}, "has no effect here"),
        ({"models": {"m": {**asks("http://x/v1"), "model": "some/model"}}}, "the server names its own"),
        ({"models": {"m": {}}}, "there is no model"),
        ({"models": {"after": "x/y", "n": {"model": "x/z", "role": "after"}}}, "two models have the role"),
        ({"speed": {"models": ["n"]}}, "none of the models"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    config = job_of(tmp_path, {"m": asks("http://x/v1")}, [sums(tmp_path)])
    with pytest.raises(ConfigError, match=problem):
        easydistill.validate({**config, **change})


@pytest.mark.parametrize(
    ("task", "place", "problem"),
    [
        ("gsm8k", "tasks.0", "nothing says which task"),
        ({"data": "x"}, "tasks.0", "nothing says which task"),
        ({"task": "gsm8", "data": "x"}, "tasks.0.task", "is not one of"),
        ({"task": "gsm8k"}, "tasks.0.data", "this key is missing"),
        ({"task": "gsm8k", "data": "x", "limits": 1}, "tasks.0.limits", "there is no key"),
        ({"task": "gsm8k", "data": "x", "name": "a/b"}, "tasks.0.name", "part of a file's"),
    ],
)
def test_mistakes_in_tasks_are_told_where_they_are(task: Any, place: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        easydistill.validate({"job_type": "evaluate", "models": {"m": "x/y"}, "tasks": [task]})
    (issue,) = raised.value.issues
    assert issue.path == place and problem in issue.problem


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    config = job_of(tmp_path, {"m": "x/y"}, [sums(tmp_path), sums(tmp_path)])
    with pytest.raises(ConfigError, match="two tasks have the name"):
        easydistill.validate(config)
    config["tasks"][1]["name"] = "again"
    assert easydistill.validate(config)


# --- models on this machine ---------------------------------------------------------------------------------------


def local_models(tiny_model: Path) -> dict[str, Any]:
    here = {"inference": {"backend": "transformers", "batch_size": 2}}
    return {
        "teacher": {"model": str(tiny_model), **here},
        "student": {"model": {"from": str(tiny_model), "keep_layers": 2}, **here},
    }


@pytest.mark.slow
def test_killed_at_any_time_it_gives_equal_scores_and_asks_nothing_twice(tiny_model: Path, tmp_path: Path) -> None:
    def config(folder: Path) -> Path:
        folder.mkdir()
        birds = {
            "task": "custom",
            "score": "choice",
            "data": write_rows(folder, "b.jsonl", BIRDS),
            "max_new_tokens": 12,
        }
        tasks = [sums(folder, max_new_tokens=24), birds]
        return write_config(folder, job_of(folder, local_models(tiny_model), tasks))

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert main(["run", str(config(whole))]) == 0
    path = config(torn)
    journal = torn / "run/stages/1-tasks/journal.jsonl"
    reached = 0
    for lines in (1, 8):
        process = start(path)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.communicate()
        reached = journal.read_bytes().count(b"\n")
    assert reached < (whole / "run/stages/1-tasks/journal.jsonl").read_bytes().count(b"\n")
    assert main(["run", str(path)]) == 0

    def keys(folder: Path) -> list[str]:
        lines = (folder / "run/stages/1-tasks/journal.jsonl").read_text().splitlines()
        return [record["key"] for line in lines for record in json.loads(line)]

    assert len(keys(torn)) == len(set(keys(torn))) == 28
    assert set(keys(torn)) == set(keys(whole))
    for name in ("scores.json", "replies.jsonl"):
        one, other = ((folder / "run/stages/1-tasks" / name).read_text() for folder in (whole, torn))
        assert one == other


def test_models_are_timed_in_turns(tiny_model: Path, tmp_path: Path) -> None:
    speed = {"prompts": 3, "single": 1, "new_tokens": 8, "rounds": 2}
    config = job_of(tmp_path, local_models(tiny_model), [sums(tmp_path, max_new_tokens=8)], speed=speed)
    easydistill.run(config)
    found = json.loads((tmp_path / "run/stages/2-speed/speed.json").read_text())
    assert found["yardstick"] == "teacher" and found["settings"]["engine"] == "transformers"
    for name, record in found["models"].items():
        for figure in ("single_tokens_per_second", "saturated_tokens_per_second", "first_token_seconds"):
            assert 0 < record[figure]["least"] <= record[figure]["median"] <= record[figure]["most"]
        assert record["memory_bytes"] > 0
        assert (record["disk_bytes"] is None) == (name == "student"), "a student that is cut anew has no files"
        assert 0 < record["tokens_per_problem"] <= 8
    assert found["models"]["teacher"]["speed_up"]["median"] == 1.0
    assert "How fast they write" in (tmp_path / "run/report.md").read_text()


def test_models_of_different_engines_are_not_timed(tiny_model: Path, tmp_path: Path) -> None:
    models = {**local_models(tiny_model), "served": asks("http://127.0.0.1:1/v1")}
    speed = {"models": ["teacher", "served"]}
    config = job_of(tmp_path, models, [sums(tmp_path)], speed=speed)
    with pytest.raises(ConfigError, match="different engines"):
        easydistill.run(config)


def test_a_pipeline_ends_with_the_evaluation_of_the_student_that_it_trained(tiny_model: Path, tmp_path: Path) -> None:
    labelled = write_rows(tmp_path, "sft.jsonl", [{"instruction": f"Say {n}", "output": f"{n} {n}"} for n in range(8)])
    models = {"teacher": {"model": str(tiny_model)}, "before": str(tiny_model), "after": "@sft/student"}
    for name in ("teacher", "before", "after"):
        model = models[name] if isinstance(models[name], dict) else {"model": models[name]}
        models[name] = {**model, "inference": {"backend": "transformers"}}  # type: ignore[dict-item]
    config = {
        "job_type": "pipeline",
        "output_dir": str(tmp_path / "run"),
        "jobs": {
            "sft": {
                "job_type": "black_box_kd_local",
                "dataset": {"labeled_path": labelled},
                "models": {"student": str(tiny_model)},
                "training": {"num_train_epochs": 1, "learning_rate": 1e-3, "max_length": 64},
                "evaluation": {"enabled": False},
            },
            "tasks": {
                "job_type": "evaluate",
                "models": models,
                "tasks": [sums(tmp_path, max_new_tokens=6, limit=2)],
                "contamination": {"data": [labelled]},
            },
        },
    }
    planned = easydistill.plan(config)
    assert [stage.name for stage in planned] == ["sft.train", "tasks.tasks"]
    assert planned[1].state == "waits for sft"
    easydistill.run(config)
    found = json.loads((tmp_path / "run/stages/2-tasks/stages/1-tasks/scores.json").read_text())
    assert set(found["models"]) == {"teacher", "before", "after"}
    rows = json.loads((tmp_path / "run/summary.json").read_text())["rows"]
    assert (rows["entered"], rows["accepted"]) == (8, 8), "the rows that were trained on, not the replies"
    assert found["models"]["after"]["model"].endswith("student")
    assert "What the models can do" in (tmp_path / "run/report.md").read_text(), "the pipeline's report shows it too"
    easydistill.run(config)
