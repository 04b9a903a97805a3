"""IFEval (Zhou et al. 2023): prompts with instructions that a program can check; lm-eval's checkers do.

Rows have `prompt`, `instruction_id_list` and `kwargs`. Four figures: a prompt counts if all its instructions are
followed, or each instruction by itself; strictly, or loosely, where the reply may also lose its first or last line and
its asterisks. The score is that of prompts, strictly.

Two kinds of instructions (`length_constraints:number_sentences`, `change_case:capital_word_frequency`) split
sentences with nltk's data `punkt_tab`. Importing lm-eval's checkers tries to download it and reports success where that
failed, so it is looked for first, and nothing is downloaded here. Without it nltk's untrained splitter is used, which
counts a few texts otherwise, and the score says so.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from easydistill.config.base import PositiveInt
from easydistill.contracts.task import Problem, Reply, Score, Scorer, ScoringContext, TaskConfig
from easydistill.data.row_files import MalformedRow
from easydistill.engine.checks import needs_extra
from easydistill.errors import ConfigIssue, MissingExtra
from easydistill.tasks._rows import asked, list_field, row_id, text_field

_DATA = "tokenizers/punkt_tab/english"
_FIGURES = {
    "prompt_strict": "prompt_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "instruction_strict": "inst_level_strict_acc",
    "instruction_loose": "inst_level_loose_acc",
}
"""Our names of the four figures, and lm-eval's."""


class Config(TaskConfig):
    """IFEval: instructions that a program can check."""

    identity_name = "task.ifeval"

    task: Literal["ifeval"]
    """Which task this is."""
    max_new_tokens: PositiveInt = 1280
    """Longest reply, in the model's tokens. Longer ones are cut, scored as they are, and counted in the report."""


def issues(config: Config) -> list[ConfigIssue]:
    return needs_extra("eval", "lm_eval", "langdetect", "immutabledict", "nltk")


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    prompt, kinds = text_field(row, "prompt"), list_field(row, "instruction_id_list")
    settings = list_field(row, "kwargs")
    if not kinds or len(kinds) != len(settings) or not all(isinstance(kwargs, Mapping) for kwargs in settings):
        raise MalformedRow("instruction_id_list and kwargs do not belong together")
    # Columnar files fill absent keys with null.
    kwargs = [{name: value for name, value in kwargs.items() if value is not None} for kwargs in settings]
    identity = row_id(row, number, "key", "id")
    fields = {"key": identity, "prompt": prompt, "instruction_id_list": list(kinds), "kwargs": kwargs}
    _check_takes(fields)
    return Problem(identity, asked(prompt), fields, ", ".join(map(str, kinds)), prompt)


def _check_takes(fields: dict[str, Any]) -> None:
    """Refuse instructions that the checkers do not know, or settings that they do not take, before models are asked."""
    try:
        check = checkers()
    except MissingExtra:
        # Told by `issues`.
        return
    try:
        with seeded(fields["key"]):
            check(dict(fields), [""])
    except Exception as error:
        raise MalformedRow(
            f"lm-eval's checkers do not take its instructions: {type(error).__name__}: {error}"
        ) from None


def notes(config: Config) -> list[str]:
    if issues(config) or has_sentence_data():
        return []
    return [
        "not comparable: nltk's punkt_tab is not installed, so number_sentences and capital_word_frequency are checked "
        "with an untrained splitter of sentences"
    ]


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return _Checkers()


class _Checkers:
    """lm-eval's checks of a reply."""

    def __init__(self) -> None:
        self._check = checkers()

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        return [self._score(problem, reply) for problem, reply in replies]

    def _score(self, problem: Problem, reply: Reply) -> Score:
        with seeded(problem.id):
            found = self._check(dict(problem.fields), [reply.text])
        parts: dict[str, tuple[float, float]] = {}
        for name, theirs in _FIGURES.items():
            value = found[theirs]
            parts[name] = (sum(value), len(value)) if isinstance(value, list) else (float(value), 1.0)
        strict = found["inst_level_strict_acc"]
        missed = [
            kind for kind, followed in zip(problem.fields["instruction_id_list"], strict, strict=True) if not followed
        ]
        return Score(parts["prompt_strict"][0], "", ", ".join(missed), parts)

    def close(self) -> None:
        """Nothing to release."""


@contextlib.contextmanager
def seeded(name: str) -> Iterator[None]:
    """The same random numbers for a problem each time.

    Where a setting is missing or unusual, the checkers draw one anew for every check: for the published problem that
    asks for four `#`, the letter to be counted.
    """
    state = random.getstate()
    random.seed(f"ifeval {name}")
    try:
        yield
    finally:
        random.setstate(state)


@functools.cache
def has_sentence_data() -> bool:
    """Whether nltk's trained splitter of sentences is on this machine."""
    import nltk

    try:
        nltk.data.find(_DATA)
    except LookupError:
        return False
    return True


@functools.cache
def checkers() -> Any:
    """lm-eval's `process_results` of IFEval, which downloads nothing and detects languages alike every time.

    Raises:
        MissingExtra: `eval` is not installed.
    """
    try:
        import langdetect
        import nltk
    except ImportError:
        raise MissingExtra("eval", "IFEval") from None
    download = nltk.download
    # Importing the checkers downloads what is missing.
    nltk.download = lambda *names, **options: False
    try:
        # It also prints that it did.
        with contextlib.redirect_stdout(io.StringIO()):
            from lm_eval.tasks.ifeval import instructions_util, utils
    except ImportError:
        raise MissingExtra("eval", "IFEval") from None
    finally:
        nltk.download = download
    langdetect.DetectorFactory.seed = 0
    if not has_sentence_data():
        _split_without_data(instructions_util)
    return utils.process_results


def _split_without_data(instructions_util: Any) -> None:
    """Give the checkers nltk's splitter as it is before any training."""
    import nltk
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    sentences, words = PunktSentenceTokenizer(), NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    instructions_util._get_sentence_tokenizer = lambda: sentences
    # Theirs alone: nltk itself stays as it is.
    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, data=nltk.data, word_tokenize=word_tokenize)
