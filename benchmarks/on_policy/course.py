"""A job's student in training: its held-out score by steps and CPU seconds.

The clock counts what this process and its children use of processors, from the job's start, so reading, loading,
labelling and scoring count, imports do not. It stands still while the held-out problems are answered, every few steps,
by a copy of the student in training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any
from unittest import mock

from benchmarks.on_policy.problems import Problem

ANSWER = 16
"""Longest answer, in tokens."""


def cpu_seconds() -> float:
    """What this process and its children that ended have used of processors."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


@dataclass
class Course:
    """What was measured, and the clock.

    Args:
        measure: figures of a model.
        every: steps from one measurement to the next.
        steps: of the whole training; the last one is measured too.
    """

    measure: Callable[[Any], dict[str, float]]
    every: int
    steps: int
    points: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    _since: float = 0.0

    def go(self) -> None:
        """Let the clock run."""
        self._since = cpu_seconds()

    def halt(self) -> None:
        self.seconds += cpu_seconds() - self._since

    def after_step(self, model: Any) -> None:
        self.halt()
        self.step += 1
        if self.step % self.every == 0 or self.step == self.steps:
            self.points.append({"step": self.step, "seconds": round(self.seconds, 2), **self.measure(model)})
        self.go()


def merged(model: Any) -> dict[str, Any]:
    """The weights of a model in training, with what its adapters add."""
    added = {name: part.get_delta_weight("default") for name, part in model.named_modules() if hasattr(part, "lora_A")}
    found = {}
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            own = name.replace(".base_layer.", ".")
            part = own.removesuffix(".weight")
            found[own] = value + added[part] if own.endswith(".weight") and part in added else value
    return found


class Exam:
    """Greedy answers to held-out problems, verified as rewards are.

    Args:
        student: reference of a model with the shape of those that are examined.
    """

    def __init__(self, student: Any, problems: Sequence[Problem]) -> None:
        from easydistill.config.models import ModelsConfig
        from easydistill.models.loading import choose_dtype, device
        from easydistill.models.student import build_student
        from easydistill.rewards import RewardContext, verify

        made = build_student(ModelsConfig(student=student), choose_dtype("auto", device()))
        self._model, self._tokenizer, self._ends = made.model.eval(), made.tokenizer, made.eos_ids
        self._problems = list(problems)
        self._right = verify.make(verify.Config(), RewardContext(tokenizer=made.tokenizer, eos_ids=made.eos_ids))

    def __call__(self, model: Any) -> dict[str, float]:
        self._model.load_state_dict(merged(model))
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Of the student as it is."""
        from easydistill.contracts.reward import Rollout
        from easydistill.methods.shared.rollouts import roll_out
        from easydistill.teachers.parsing import text_of

        chats = [
            [{"role": "system", "content": problem["system"]}, {"role": "user", "content": problem["instruction"]}]
            for problem in self._problems
        ]
        asked = [
            (str(at), self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
            for at, chat in enumerate(chats)
        ]
        written = roll_out(self._model, asked, 0, self._ends, ANSWER, 0.0, seed=0)
        rollouts = []
        for item, chat, problem in zip(written, chats, self._problems, strict=True):
            text = text_of(self._tokenizer, item.completion, self._ends)
            known = {"answer": problem["answer"]}
            rollouts.append(Rollout(tuple(chat), text, tuple(item.prompt), tuple(item.completion), item.ended, known))
        scores = [float(value or 0) for value in self._right(rollouts)]
        return {
            "score": round(fmean(scores), 4),
            "ended": round(fmean(item.ended for item in written), 4),
            "length": round(fmean(len(item.completion) for item in written), 2),
        }


def measured(job: dict[str, Any], problems: Sequence[Problem], every: int) -> dict[str, Any]:
    """Run a job; its CPU seconds, and the course of its student if it trains one."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import easydistill
    from easydistill.models import student as students

    import_all()
    torch.set_num_threads(1)
    exam = Exam(job["models"]["student"], problems) if "training" in job else None
    course = Course(exam or (lambda model: {}), every, job["training"]["max_steps"] if exam else 0)
    built: list[Any] = []
    original = students.build_student

    def build_student(*args: Any, **kwargs: Any) -> Any:
        built.append(original(*args, **kwargs))
        return built[-1]

    if exam is not None:
        course.points.append({"step": 0, "seconds": 0.0, **exam.figures()})
    hook = register_optimizer_step_post_hook(lambda *_: course.after_step(built[-1].model))
    try:
        with mock.patch.object(students, "build_student", build_student):
            course.go()
            easydistill.run(job, quiet=True)
            course.halt()
    finally:
        hook.remove()
    return {"seconds": round(course.seconds, 2), "course": course.points}


def import_all() -> None:
    """Everything that the jobs import only when they need it, so that no arm has it on its clock."""
    import datasets  # noqa: F401
    import peft  # noqa: F401

    import easydistill.methods.distil.score_stage
    import easydistill.methods.on_policy.generalized_jsd
    import easydistill.methods.policy.trl_trainer
    import easydistill.methods.sft.trainer
    import easydistill.teachers.transformers  # noqa: F401
