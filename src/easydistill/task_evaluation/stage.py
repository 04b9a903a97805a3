"""The stage that has every model answer every task, and scores the replies.

Replies are journalled as received. A stage that runs again, after a kill or with another task or model, asks only what
has not been answered yet, and computes the scores anew from the replies.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from easydistill.asking.answers import JOURNAL, worth_another_try
from easydistill.asking.forecast import forecast_calls
from easydistill.contracts.operator import Ask
from easydistill.contracts.task import SampledTask
from easydistill.data.files import write_json, write_jsonl
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.messages import Message
from easydistill.data.records import Rejection, count_reasons
from easydistill.engine.devices import answering_bytes
from easydistill.engine.run_directory import package_versions
from easydistill.engine.stage import Estimate, Previewed, StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.task_evaluation.asking import ModelAsker, rejection
from easydistill.task_evaluation.config import ContaminationConfig, EvaluatedModel
from easydistill.task_evaluation.exams import Exam, exam_of, prompt_hash
from easydistill.task_evaluation.forecasts import summed
from easydistill.task_evaluation.models import asked, template_hash
from easydistill.task_evaluation.results import (
    REPLIES,
    SCORES,
    TaskResult,
    comparison,
    figures,
    gap_closed,
    reply_row,
)
from easydistill.task_evaluation.scorers import Scorers

_LIBRARIES = ("easydistill-toolkit", "torch", "transformers", "vllm", "lm-eval", "math-verify", "langdetect", "nltk")
TASKS_EVALUATED = "tasks_evaluated"
"""Metric of the stage: the scores, by task and model."""


class TasksStage:
    """Models × tasks."""

    name = "tasks"
    inputs: tuple[str, ...] = ()
    offers = (SCORES, REPLIES)
    classifies = False

    def __init__(
        self,
        models: Mapping[str, EvaluatedModel],
        tasks: Sequence[SampledTask],
        baseline: str,
        roles: Mapping[str, str],
        judge: EvaluatedModel | None = None,
        contamination: ContaminationConfig | None = None,
    ) -> None:
        """
        Args:
            baseline: name of the model that others are compared with.
            roles: model → `teacher`, `before`, `after` or `other`.
            judge: scores the replies of tasks that need one.
        """
        self._models, self._tasks = models, tasks
        self._baseline, self._roles = baseline, roles
        self._judge, self._contamination = judge, contamination

    @cached_property
    def _exams(self) -> list[Exam]:
        return [exam_of(task) for task in self._tasks]

    def preflight(self) -> list[ConfigIssue]:
        issues = [issue for number, exam in enumerate(self._exams) for issue in exam.preflight(f"tasks.{number}")]
        sampling = self._tasks[0].sampling()
        for name, model in self._models.items():
            issues += [_placed(issue, f"models.{name}") for issue in asked(model, sampling).plan.preflight()]
        if self._judge is not None:
            issues += [_placed(issue, "judge") for issue in asked(self._judge, {}).plan.preflight()]
        if self._contamination is not None:
            from easydistill.task_evaluation.contamination import contamination_issues

            issues += contamination_issues(self._contamination)
        return issues

    def fingerprint(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "tasks": [exam.identity() for exam in self._exams],
            "models": {name: self._identity(model) for name, model in self._models.items()},
            "baseline": self._baseline,
            "roles": dict(self._roles),
            "published": {name: model.published for name, model in self._models.items() if model.published},
        }
        if self._judge is not None:
            found["judge"] = self._identity(self._judge)
        if self._contamination is not None:
            from easydistill.task_evaluation.contamination import contamination_identity

            found["contamination"] = contamination_identity(self._contamination)
        return found

    def _identity(self, model: EvaluatedModel) -> dict[str, Any]:
        own = asked(model, self._tasks[0].sampling())
        return {**own.plan.identity(), "system_prompt": model.inference.system_prompt, **model.inference.sampling()}

    def shows_date(self) -> bool:
        sampling = self._tasks[0].sampling()
        return any(asked(model, sampling).plan.shows_date() for model in self._models.values())

    # --- before a run ---------------------------------------------------------------------------------------------

    def estimate(self, directory: Path) -> Estimate:
        """Every model's questions; the ranges and the cost are sums over models and tasks."""
        rows = sum(len(exam.problems()) for exam in self._exams)
        parts: list[dict[str, Any]] = []
        most = 0
        for model in self._models.values():
            for exam in self._exams:
                found, longest = self._forecast(model, exam, directory)
                parts.append(found)
                most += longest
        plans = [asked(model, self._tasks[0].sampling()).plan for model in self._models.values()]
        memory = [size for plan in plans if (size := plan.memory_bytes()) is not None]
        needed = answering_bytes(max(memory)) if memory else None
        return Estimate(rows=rows, tokens_at_most=most, memory_bytes=needed, **summed(parts))

    def _forecast(self, model: EvaluatedModel, exam: Exam, directory: Path) -> tuple[dict[str, Any], int]:
        own = asked(model, exam.sampling())
        identity = own.plan.identity()
        asks = [
            Ask(problem.messages, index=sample) for problem in exam.problems() for sample in range(exam.config.samples)
        ]
        requests = {request.key: request for request in (own.request(ask, identity) for ask in asks)}
        known = None not in identity.values()
        found = forecast_calls(requests, directory, own.inference, keys_known=known)
        return found, len(requests) * exam.sampling()["max_new_tokens"]

    def preview(self, limit: int) -> list[Previewed]:
        name, model = next(iter(self._models.items()))
        found: list[Previewed] = []
        for exam in self._exams:
            own = asked(model, exam.sampling())
            for problem in exam.problems()[:limit]:
                messages = own.messages(Ask(problem.messages))
                row = f"{exam.name} {problem.id}"
                found.append(Previewed(self.name, name, row, messages, own.inference.sampling()))
        return found

    def foretell(self) -> list[str]:
        notes = [note for exam in self._exams for note in exam.notes()]
        for model in self._models.values():
            notes += asked(model, self._tasks[0].sampling()).plan.notes()
        if self._judge is not None:
            judged = [exam for exam in self._exams if getattr(exam.config, "scores_with_judge", False)]
            calls = sum(len(exam.problems()) * exam.config.samples for exam in judged) * len(self._models)
            notes.append(
                f"the judge is asked up to {calls:,} times, about each reply: calls, tokens, cost are without it"
            )
        return list(dict.fromkeys(notes))

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self, context: StageContext) -> StageResult:
        exams = self._exams
        for exam in exams:
            exam.problems()
        results: dict[tuple[str, str], TaskResult] = {}
        tokens = {"prompt": 0, "completion": 0}
        spent: dict[str, dict[str, Any]] = {}
        with Scorers(exams, self._judge, context) as scorers:
            for name, model in self._models.items():
                with Journal(context.directory / JOURNAL, note=worth_another_try) as journal:
                    with ModelAsker(name, model, journal, context) as asker:
                        for exam in _by_sampling(exams):
                            results[name, exam.name] = _take(name, exam, asker, scorers)
                    tokens = {kind: count + asker.tokens[kind] for kind, count in tokens.items()}
                    for value in asker.spent().values():
                        # Models of one server have one bill, which the last of them knows whole.
                        names = [*spent.pop(asker.author, {"names": []})["names"], name]
                        spent[asker.author] = {"names": names, "bill": value}
            judged = {f"{name}_by_judge": bill for name, bill in scorers.spent().items()}
        ordered = [results[name, exam.name] for exam in exams for name in self._models]
        bills = {f"spent_by_{' and '.join(found['names'])}": found["bill"] for found in spent.values()}
        return self._write(ordered, tokens, bills | judged, context)

    def _write(
        self, results: Sequence[TaskResult], tokens: Mapping[str, int], spent: Mapping[str, Any], context: StageContext
    ) -> StageResult:
        scores = self._scores(results)
        if self._contamination is not None:
            from easydistill.task_evaluation.contamination import contaminated

            scores["contamination"] = contaminated(self._contamination, self._exams)
        redact = context.redactor.value
        write_json(context.directory / SCORES, redact(scores))
        write_jsonl(
            context.directory / REPLIES,
            (redact(reply_row(result, item)) for result in results for item in result.taken),
        )
        rejected = [
            rejection(result.model, result.task, item.problem.id, self.name, item.answered)
            for result in results
            for item in result.taken
            if item.answered.failure is not None
        ]
        return StageResult(
            (SCORES, REPLIES), _counts(results, rejected), rejected, tokens, {TASKS_EVALUATED: _brief(scores), **spent}
        )

    def _scores(self, results: Sequence[TaskResult]) -> dict[str, Any]:
        """The contents of `scores.json`."""
        by_task: dict[str, dict[str, TaskResult]] = {}
        for result in results:
            by_task.setdefault(result.task, {})[result.model] = result
        return {
            "versions": _versions(),
            "models": {name: self._about(name) for name in self._models},
            "baseline": self._baseline,
            "tasks": [self._task(exam, by_task[exam.name]) for exam in self._exams],
        }

    def _about(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        return {
            "role": self._roles[name],
            "model": _reference(model),
            "backend": model.inference.backend,
            "template_hash": template_hash(model),
            "system_prompt": model.inference.system_prompt,
        }

    def _task(self, exam: Exam, by_model: Mapping[str, TaskResult]) -> dict[str, Any]:
        models: dict[str, dict[str, Any]] = {}
        for name, result in by_model.items():
            models[name] = figures(result, exam.config)
            if name != self._baseline:
                models[name]["comparison"] = comparison(result, by_model[self._baseline])
            if exam.name in self._models[name].published:
                models[name]["published"] = self._models[name].published[exam.name]
        task: dict[str, Any] = {
            "name": exam.name,
            "prompt_hash": prompt_hash(exam.problems()),
            "sampling": exam.sampling(),
            "samples": exam.config.samples,
            "shots": getattr(exam.config, "shots", None),
            "notes": exam.notes(),
            "models": models,
        }
        means = {self._roles[name]: record["score"]["mean"] for name, record in models.items()}
        if {"teacher", "before", "after"} <= means.keys():
            task["gap_closed"] = gap_closed(means["before"], means["after"], means["teacher"])
        return task


def _take(name: str, exam: Exam, asker: ModelAsker, scorers: Scorers) -> TaskResult:
    def answer(sampling: Mapping[str, Any], questions: Sequence[tuple[tuple[Message, ...], int]]) -> Any:
        return asker.answer(exam.name, sampling, questions)

    return TaskResult(name, exam.name, exam.take(answer, scorers.of(exam)))


def _by_sampling(exams: Sequence[Exam]) -> list[Exam]:
    """Exams with equal sampling behind one another: a model is loaded once for each way of sampling."""
    groups: dict[str, list[Exam]] = {}
    for exam in exams:
        groups.setdefault(str(exam.sampling()), []).append(exam)
    return [exam for group in groups.values() for exam in group]


def _reference(model: EvaluatedModel) -> Any:
    if model.model is None:
        return model.served.model if model.served is not None else None
    return model.model if isinstance(model.model, str) else model.model.model_dump(by_alias=True)


def _placed(issue: ConfigIssue, where: str) -> ConfigIssue:
    """An issue of a teacher's plan, which names the keys of other jobs."""
    _, _, key = issue.path.rpartition("models.")
    if issue.path.startswith("models."):
        return replace(issue, path=f"{where}.model" + key.removeprefix("teacher").removeprefix("student"))
    return replace(issue, path=f"{where}.{issue.path}") if issue.path else issue


def _counts(results: Sequence[TaskResult], rejected: Sequence[Rejection]) -> RowCounts:
    entered = sum(len(result.taken) for result in results)
    return RowCounts(entered, entered - len(rejected), count_reasons(rejected))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **package_versions(_LIBRARIES)}


def _brief(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Task → model → score, for the summary."""
    return {
        task["name"]: {name: round(record["score"]["mean"], 6) for name, record in task["models"].items()}
        for task in scores["tasks"]
    }
