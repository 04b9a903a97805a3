"""The on-policy benchmark on tasks: its problems, its clock of CPU seconds, and what it says of its arms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.on_policy.course import Course, merged
from benchmarks.on_policy.problems import TASKS, split
from benchmarks.on_policy.tasks import ARMS, Runs, Size, later, summary
from benchmarks.on_policy.tasks_plot import plot
from tests.support.jobs import ROOT

from easydistill.api import load


@pytest.mark.parametrize("task", list(TASKS))
def test_no_held_out_problem_is_trained_on_and_all_answers_are_right(task: str) -> None:
    train, heldout = split(task, 100, 125)
    assert (train, heldout) == split(task, 100, 125)
    asked = [problem["instruction"] for problem in train + heldout]
    assert len(asked) == len(set(asked)) == 225
    right = {"sums": sum, "largest": max}[task]
    for problem in train + heldout:
        assert right(int(number) for number in re.findall(r"\d+", problem["instruction"])) == problem["answer"]


def test_the_clock_counts_processors_and_halts_while_a_student_is_measured() -> None:
    def busy(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def measure(model: object) -> dict[str, float]:
        busy(0.3)
        return {"score": 0.5}

    course = Course(measure, every=2, steps=3)
    course.go()
    for _ in range(3):
        busy(0.05)
        time.sleep(0.2)
        course.after_step(None)
    assert [point["step"] for point in course.points] == [2, 3]
    assert 0.14 < course.seconds < 0.3
    assert course.points[0]["seconds"] == pytest.approx(0.1, abs=0.05)


def test_merged_weights_are_those_that_peft_merges() -> None:
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    # The benchmark sees the model that was built, into which PEFT has put its layers.
    found = merged(model)
    expected = adapted.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_an_arm_that_does_not_get_there_has_no_ratio() -> None:
    def course(*points: tuple[int, float, float]) -> list[dict[str, float]]:
        return [{"step": step, "seconds": seconds, "score": score} for step, seconds, score in points]

    start = (0, 0.0, 0.2)
    courses = {
        "offline": [course(start, (2, 10, 0.5), (4, 20, 0.9)), course(start, (2, 30, 0.9), (4, 40, 0.8))],
        "reverse_kl": [course(start, (2, 5, 0.9)), course(start, (2, 5, 0.9))],
        "grpo": [course(start, (7, 100, 0.9)), course(start, (7, 100, 0.3))],
    }
    table = summary(courses, 0.85)
    assert table["offline"]["seconds_to_target"] == {"mean": 25, "min": 20, "max": 30}
    assert table["reverse_kl"]["seconds_over_offline"] == 0.2
    assert "seconds_over_grpo" not in table["reverse_kl"] and table["grpo"]["reached"] == 1
    assert table["offline"]["score"] == {"mean": 0.85, "min": 0.8, "max": 0.9}
    drawn = ElementTree.fromstring(plot({"sums": {"courses": courses, "teacher": 0.9, "target": 0.85}}))
    assert len(drawn.findall(".//{*}polyline")) == 6


def test_what_comes_before_a_course_is_on_its_clock() -> None:
    course = [{"step": 0, "seconds": 0.0, "score": 0.1}, {"step": 2, "seconds": 3.0, "score": 0.6}]
    assert later(course, 4, 10) == [course[0], {"step": 6, "seconds": 13.0, "score": 0.6}]


def test_its_configs_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def kept(self: Runs, name: str, job: dict[str, object], every: int, after: object = ()) -> dict[str, object]:
        jobs.append({**job, "output_dir": str(tmp_path / name)})
        return {"seconds": 1.0, "course": [{"step": 0, "seconds": 0.0, "score": 0.0}]}

    monkeypatch.setattr(Runs, "measured", kept)
    runs = Runs("sums", Size(tmp_path, "a/student", 4, 32, 3, 1, 2, 1, 1))
    for arm in ARMS:
        runs.course(arm, 1)
    runs.grpo(0)
    for job in jobs:
        load(job)
    assert {job["job_type"] for job in jobs} == {"label", "white_box_kd_local", "on_policy_kd", "grpo"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_has_a_course() -> None:
    command = [sys.executable, "-m", "benchmarks.on_policy.tasks", "--tiny", "--seeds", "1", "--tasks", "sums"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = Path(done.stdout.splitlines()[-1])
    found = json.loads(saved.read_text(encoding="utf-8"))["tasks"]["sums"]
    assert set(found["courses"]) == {*ARMS, "grpo"}
    for arm, (course,) in found["courses"].items():
        seconds = [point["seconds"] for point in course]
        assert seconds == sorted(seconds) and len(seconds) == (2 if arm == "grpo" else 3), arm
    assert saved.with_suffix(".svg").is_file()
