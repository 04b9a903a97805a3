"""A task of lm-evaluation-harness, answered by our teachers: lm-eval makes the prompts and scores the replies.

Between them stands one `LM` (`JournalLM`). Chats reach it as JSON messages, so that the model's own template renders
them; replies come through the journal as those of every task. lm-eval's defaults hold where a task says nothing: 256
tokens, and a stop at a blank line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from easydistill.contracts.task import Problem, Reply, Score, Scorer, ScoringContext
from easydistill.data.files import hash_file
from easydistill.data.messages import Message
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import is_there, missing_file, needs_extra
from easydistill.errors import ConfigIssue, DataError, EasyDistillError, MissingExtra
from easydistill.task_evaluation.asking import Answered
from easydistill.task_evaluation.config import LmEvalConfig
from easydistill.task_evaluation.exams import Answer, Taken
from easydistill.task_evaluation.lm_eval_model import Evaluated, journal_lm, messages_of, until_of

_TOKENS, _DEFAULT_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens"), 256
_KNOWN = frozenset({*_TOKENS, "until", "do_sample", "temperature", "top_p", "top_k"})
_UNSAFE = "unsafe_code"


class LmEvalExam:
    """One task, or a group of them."""

    def __init__(self, config: LmEvalConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        return self.config.shown_name

    @property
    def _file(self) -> Path | None:
        """The user's YAML, if that is what the config names."""
        path = Path(self.config.lm_eval)
        return path if path.suffix in {".yaml", ".yml"} else None

    def identity(self) -> dict[str, Any]:
        found = self.config.identity()
        if self._file is None:
            return found
        # What a YAML file includes, or the functions that it names, lie beside it.
        beside = sorted(path for path in self._file.parent.glob("*") if path.suffix in {".yaml", ".yml", ".py"})
        named = {word: hash_rows(word) for path in beside for word in _paths_in(path)}
        files = {path.name: hash_file(path) for path in beside}
        return {**found, "lm_eval": self._file.name, "files": {**files, **named}}

    def preflight(self, where: str) -> list[ConfigIssue]:
        issues = needs_extra("eval", "lm_eval")
        if self._file is not None:
            issues += missing_file(f"{where}.lm_eval", str(self._file))
        return issues

    def sampling(self) -> dict[str, Any]:
        if not self._seen_sampling:
            self.problems()
        return self._seen_sampling

    @cached_property
    def _seen_sampling(self) -> dict[str, Any]:
        """The sampling of the task's first requests."""
        return {}

    def problems(self) -> Sequence[Problem]:
        return self._problems

    @cached_property
    def _problems(self) -> list[Problem]:
        asked: list[Problem] = []

        def record(sampling: Mapping[str, Any], questions: Sequence[tuple[tuple[Message, ...], int]]) -> list[Answered]:
            if not self._seen_sampling:
                self._seen_sampling.update(sampling)
            return [Answered(Reply(""), "")] * len(questions)

        try:
            found = self._evaluate(record)
        except EasyDistillError:
            raise
        except Exception as error:
            # A template that names a field that rows lack, images, a data file that is no such thing.
            raise DataError(f"lm-eval cannot take {self.config.lm_eval}: {type(error).__name__}: {error}") from error
        for (task, number), instance in found.first_instances():
            asked.append(Problem(f"{task} {number}", messages_of(instance), {}, _target(found, task, number)))
        if not asked:
            raise DataError(f"lm-eval's task {self.config.lm_eval} has no problems")
        return asked

    def notes(self) -> list[str]:
        return list(self._seen_notes)

    @cached_property
    def _seen_notes(self) -> dict[str, None]:
        return {}

    def scorer(self, context: ScoringContext) -> Scorer | None:
        return None

    def take(self, answer: Answer, scorer: Scorer | None) -> list[Taken]:
        found = self._evaluate(answer)
        taken: list[Taken] = []
        for problem, ((task, number), _) in zip(self._problems, found.first_instances(), strict=True):
            score = self._score(found.scores(task, number))
            for sample, answered in enumerate(found.answered(task, number)):
                taken.append(Taken(problem, sample, answered, score))
        return taken

    def _score(self, parts: Mapping[str, tuple[float, float]]) -> Score:
        wanted = self.config.metric
        names = [name for name in parts if wanted is None or wanted in (name, name.partition(",")[0])]
        if not names:
            have = ", ".join(parts) or "none that scores problems one by one"
            raise DataError(f"lm-eval's task {self.config.lm_eval} has no metric {wanted!r}; it has {have}")
        points, total = parts[names[0]]
        return Score(points / total if total else 0.0, parts=parts)

    def _evaluate(self, answer: Answer) -> Evaluated:
        evaluator, manager = _library()
        tasks = self._load(manager)
        lm = journal_lm(answer, self._sampling)
        with _quiet():
            results = evaluator.simple_evaluate(
                model=lm,
                tasks=tasks,
                num_fewshot=self.config.num_fewshot,
                limit=self.config.limit,
                bootstrap_iters=0,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                log_samples=True,
                task_manager=manager(include_defaults=False),
            )
        return Evaluated(results, lm)

    def _load(self, manager: Any) -> list[Any]:
        """The task objects, with their data.

        Raises:
            DataError: there is no such task, it runs programs, or it is not answered by text.
        """
        known = manager(include_path=self._file.parent, include_defaults=False) if self._file else manager()
        where = str(self._file) if self._file else self.config.lm_eval
        _refuse_programs(where, self._file, known)
        try:
            with _quiet():
                loaded = known.load(where)
        except Exception as error:
            raise DataError(f"lm-eval cannot load {where}: {type(error).__name__}: {error}") from error
        for name, task in loaded["tasks"].items():
            kind = task.get_config("output_type")
            if kind != "generate_until":
                problem = f"lm-eval's task {name} asks for {kind}: probabilities of given texts, not replies"
                raise DataError(f"{problem}\n    → use a task that generates (`output_type: generate_until`)")
            if getattr(task, "UNSAFE_CODE", False):
                raise DataError(f"lm-eval's task {name} runs programs unprotected: use a task of ours")
        return list(loaded["tasks"].values())

    def _sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A request's `generation_kwargs` as keys of an `inference` section.

        Raises:
            DataError: they have a key that cannot be honoured.
        """
        if unknown := sorted(given.keys() - _KNOWN):
            problem = f"generation_kwargs.{unknown[0]} of lm-eval's task {self.config.lm_eval} is not known here"
            raise DataError(f"{problem}\n    → use {', '.join(sorted(_KNOWN))}")
        named = next((int(given[name]) for name in _TOKENS if given.get(name)), None)
        own = self.config.max_new_tokens if "max_new_tokens" in self.config.model_fields_set else None
        sampling: dict[str, Any] = {"max_new_tokens": named or own or _DEFAULT_TOKENS, "seed": self.config.seed}
        draws = given.get("do_sample", False) or given.get("temperature", 0) > 0
        sampling["temperature"] = float(given.get("temperature", 1.0)) if draws else 0.0
        sampling["top_p"] = given.get("top_p") if draws else None
        if draws and given.get("top_k"):
            sampling["top_k"] = given["top_k"]
        until = until_of(given)
        stops = f"stops at {', '.join(map(json.dumps, until))}" if until else "stops nowhere"
        self._seen_notes[f"lm-eval's settings: {sampling['max_new_tokens']} tokens at most, {stops}"] = None
        return sampling


def _paths_in(path: Path) -> list[str]:
    """The data files that a YAML file names, as far as they are on this machine."""
    if path.suffix == ".py" or not path.is_file():
        return []
    words = re.findall(r"[^\s\"',\[\]]+", path.read_text(encoding="utf-8"))
    return [word for word in words if Path(word).suffix in {".json", ".jsonl", ".csv", ".parquet"} and is_there(word)]


def _library() -> tuple[Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtra("eval", "Tasks of lm-eval") from None
    return evaluator, TaskManager


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval logs every step of its own; and it seeds the process's random numbers, which are put back."""
    import random

    logger = logging.getLogger("lm_eval")
    level, state = logger.level, random.getstate()
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)


def _refuse_programs(where: str, file: Path | None, manager: Any) -> None:
    """Refuse tasks that run programs, before loading them: that would import a metric that is fetched from the hub."""
    entry = manager._index.get(where)
    path = file or (entry.yaml_path if entry is not None else None)
    seen: set[Path] = set()
    while path is not None and path not in seen and path.is_file():
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        if any(line.strip().startswith(_UNSAFE) and "true" in line.lower() for line in text.split("\n")):
            problem = f"lm-eval's task {where} runs programs unprotected, with a metric fetched from the hub"
            raise DataError(f"{problem}\n    → use a task of ours, such as humaneval, mbpp or custom")
        includes = [line.partition(":")[2].strip() for line in text.split("\n") if line.startswith("include:")]
        path = path.parent / includes[0] if includes else None


def _target(found: Evaluated, task: str, number: int) -> str:
    return str(found.sample(task, number).get("target", ""))
