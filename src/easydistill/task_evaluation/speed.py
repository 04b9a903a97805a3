"""The stage that times how fast the models write: one engine and machine, the same prompts, the models in turns.

In a turn a model answers some prompts one at a time (output tokens a second, and the seconds until a first token, as
those of an answer of one token), then all prompts at once (output tokens a second, saturated). Loading and a first
answer are not counted. Figures are of the whole path from messages to text, as users have it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol, runtime_checkable

from easydistill.contracts.operator import Ask
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome, Teacher
from easydistill.data.files import read_json, write_json
from easydistill.data.manifest import RowCounts
from easydistill.data.messages import Message
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, DataError
from easydistill.models.reference import resolve
from easydistill.task_evaluation.config import EvaluatedModel, SpeedConfig
from easydistill.task_evaluation.exams import Exam
from easydistill.task_evaluation.models import asked
from easydistill.task_evaluation.results import SCORES

SPEED = "speed.json"
_WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".pt"})
_KEEPS_SEVERAL = frozenset({"transformers", "openai"})
"""Engines of which several models may be ready at once. Others are started anew for each turn."""
_NAMES = ("single_tokens_per_second", "saturated_tokens_per_second", "first_token_seconds")


@runtime_checkable
class Limitable(Protocol):
    """A teacher on this machine."""

    def limited(self, max_new_tokens: int) -> Teacher:
        """The same loaded model with another longest answer."""


class SpeedStage:
    """Times models that have answered tasks."""

    name = "speed"
    inputs = ("tasks",)
    offers = (SPEED,)
    classifies = False

    def __init__(self, models: Mapping[str, EvaluatedModel], exams: Sequence[Exam], config: SpeedConfig) -> None:
        """
        Args:
            models: those to time; the first is the yardstick.
            exams: where prompts come from.
        """
        self._models, self._exams, self._config = models, exams, config

    def _sampling(self, tokens: int) -> dict[str, Any]:
        return {"max_new_tokens": tokens, "temperature": 0.0, "top_p": None, "seed": 0}

    def _engines(self) -> dict[str, str]:
        """Model → engine."""
        found = {}
        for name, model in self._models.items():
            identity = asked(model, self._sampling(1)).plan.identity()
            found[name] = str(identity.get("backend", model.inference.backend))
        return found

    def preflight(self) -> list[ConfigIssue]:
        try:
            engines = self._engines()
        except DataError:
            # The stage of the tasks tells what is missing.
            return []
        if len(set(engines.values())) > 1:
            shown = ", ".join(f"{name} on {engine}" for name, engine in engines.items())
            hint = "give all of them the same inference.backend, or name those to time in speed.models"
            return [ConfigIssue("config", "speed", f"the models run on different engines: {shown}", hint)]
        spread = [name for name, model in self._models.items() if getattr(model.inference, "workers", None) is not None]
        if spread:
            problem = f"{spread[0]} answers in several processes, whose sum is not the speed of a model"
            return [ConfigIssue("config", "speed", problem, f"remove models.{spread[0]}.inference.workers")]
        return []

    def fingerprint(self) -> dict[str, Any]:
        models = {name: asked(model, self._sampling(1)).plan.identity() for name, model in self._models.items()}
        return {"config": self._config.identity(), "models": models}

    def estimate(self, directory: Path) -> Estimate:
        config = self._config
        calls = len(self._models) * config.rounds * (config.prompts + 2 * config.single)
        return Estimate(calls=calls, tokens_at_most=calls * config.new_tokens)

    def run(self, context: StageContext) -> StageResult:
        engine = next(iter(self._engines().values()))
        prompts = self._prompts()
        timed = {name: _Timed(name, model, self, context) for name, model in self._models.items()}
        turns = self._config.rounds * len(timed)
        try:
            with context.reporter.task("Timing the models", turns) as task:
                for _, model in itertools.product(range(self._config.rounds), timed.values()):
                    context.stop.raise_if_requested()
                    model.take_turn(prompts, self._config)
                    if engine not in _KEEPS_SEVERAL:
                        model.close()
                    task.advance(1)
        finally:
            for model in timed.values():
                model.close()
        found = self._summary(timed, engine, len(prompts), context)
        write_json(context.directory / SPEED, found)
        count = len(self._models)
        return StageResult((SPEED,), RowCounts(count, count, {}), metrics={"speed": _brief(found)})

    def plan_teacher(self, model: EvaluatedModel, tokens: int, context: StageContext) -> Teacher:
        """The teacher of a model, with a longest answer."""
        return asked(model, self._sampling(tokens)).plan.make(context)

    def _prompts(self) -> list[tuple[Message, ...]]:
        """Prompts drawn evenly from all problems."""
        every = [problem.messages for exam in self._exams for problem in exam.problems()]
        count = min(self._config.prompts, len(every))
        return [every[number * len(every) // count] for number in range(count)]

    def _summary(self, timed: Mapping[str, _Timed], engine: str, prompts: int, context: StageContext) -> dict[str, Any]:
        first = next(iter(timed.values()))
        problems = _tokens_per_problem(read_json(context.input_path("tasks", SCORES)))
        models = {}
        for name, model in timed.items():
            record: dict[str, Any] = {kind: _spread(model.rounds[kind]) for kind in _NAMES}
            for kind, key in (("speed_up", "saturated_tokens_per_second"), ("speed_up_single", _NAMES[0])):
                pairs = zip(model.rounds[key], first.rounds[key], strict=True)
                record[kind] = _spread([own / yardstick for own, yardstick in pairs])
            record["disk_bytes"] = disk_bytes(self._models[name])
            record["memory_bytes"] = model.memory_bytes
            record["tokens_per_problem"] = problems.get(name)
            models[name] = record
        settings = {"engine": engine, "prompts": prompts, **self._config.identity(), **_machine()}
        settings.pop("models", None)
        notes = [] if engine != "openai" else ["The servers' machines may differ: these are the speeds that users see."]
        return {"yardstick": first.name, "models": models, "settings": settings, "notes": notes}


@dataclass
class _Timed:
    """A model's turns."""

    name: str
    model: EvaluatedModel
    stage: SpeedStage
    context: StageContext
    rounds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    memory_bytes: int | None = None
    _open: tuple[Teacher, Teacher] | None = None
    _asked: int = 0

    def take_turn(self, prompts: Sequence[tuple[Message, ...]], config: SpeedConfig) -> None:
        """One round of all measurements."""
        long, short = self._ready(prompts[0], config.new_tokens)
        tokens = seconds = 0.0
        firsts = []
        for messages in prompts[: config.single]:
            written, took = self._time(long, [messages])
            tokens, seconds = tokens + written, seconds + took
            firsts.append(self._time(short, [messages])[1])
        self.rounds["single_tokens_per_second"].append(tokens / seconds)
        self.rounds["first_token_seconds"].append(median(firsts))
        written, took = self._time(long, prompts)
        self.rounds["saturated_tokens_per_second"].append(written / took)

    def _ready(self, messages: tuple[Message, ...], tokens: int) -> tuple[Teacher, Teacher]:
        """Teachers for long and for one-token answers, loaded and warm."""
        if self._open is None:
            long = self.stage.plan_teacher(self.model, tokens, self.context)
            self._open = (long, long)
            # A model on this machine is loaded by its first answer.
            self._time(long, [messages])
            shared = isinstance(long, Limitable)
            short = long.limited(1) if isinstance(long, Limitable) else None
            self._open = (long, short or self.stage.plan_teacher(self.model, 1, self.context))
            if not shared:
                self._time(self._open[1], [messages])
            self.memory_bytes = _loaded_bytes(long) or asked(self.model, {}).plan.memory_bytes()
        return self._open

    def _time(self, teacher: Teacher, prompts: Sequence[tuple[Message, ...]]) -> tuple[int, float]:
        """(answer tokens, seconds) of prompts answered at once.

        Raises:
            DataError: one of them got no answer.
        """
        found: list[Outcome] = []
        requests = []
        for messages in prompts:
            self._asked += 1
            ask = Ask(messages)
            requests.append(GenerationRequest(f"speed {self.name} {self._asked}", ask.messages))
        start = time.perf_counter()
        teacher.generate(requests, lambda key: False, found.extend, StopSignal())
        seconds = time.perf_counter() - start
        failed = next((outcome for outcome in found if not isinstance(outcome, Completion)), None)
        if failed is not None or len(found) != len(requests):
            why = f"{failed.reason}: {failed.detail}" if failed is not None else "no answer came"
            raise DataError(f"{self.name} cannot be timed: {why}")
        return sum(max(1, outcome.completion_tokens) for outcome in found if isinstance(outcome, Completion)), seconds

    def close(self) -> None:
        """Free the model."""
        if self._open is not None:
            long, short = self._open
            self._open = None
            short.close()
            if long is not short:
                long.close()


def _loaded_bytes(teacher: Teacher) -> int | None:
    """Memory of the weights of a model in this process."""
    model = getattr(teacher, "_model", None)
    if model is None or not hasattr(model, "parameters"):
        return None
    unique = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in unique.values())


def disk_bytes(model: EvaluatedModel) -> int | None:
    """Size of a model's files of weights; None of one that is made when it is loaded, or lies elsewhere."""
    if not isinstance(model.model, str):
        return None
    path = resolve(model.model).path
    if path is None:
        return None
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files) or None


def _tokens_per_problem(scores: Mapping[str, Any]) -> dict[str, float]:
    """Model → mean tokens of a reply, over all tasks."""
    totals: dict[str, list[tuple[float, int]]] = {}
    for task in scores["tasks"]:
        for name, record in task["models"].items():
            if record["tokens_per_reply"] is not None:
                totals.setdefault(name, []).append((record["tokens_per_reply"], record["replies"]))
    return {
        name: sum(mean * count for mean, count in pairs) / max(1, sum(count for _, count in pairs))
        for name, pairs in totals.items()
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "least": min(values), "most": max(values), "mean": fmean(values)}


def _machine() -> dict[str, Any]:
    """What the figures depend on."""
    import os
    import platform

    found: dict[str, Any] = {"processor": platform.machine(), "cores": os.cpu_count()}
    try:
        import torch
    except ImportError:
        return found
    found["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def _brief(found: Mapping[str, Any]) -> dict[str, float]:
    """Model → speed-up, for the summary."""
    values = {name: record["speed_up"]["median"] for name, record in found["models"].items()}
    return {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}
