"""Rows without those that give away a benchmark: equal to one of its problems, or sharing a long run of tokens.

Exact: a message's normalised spelling is that of a benchmark problem. Overlap: a message and a problem share a run of
`words` tokens (13, Brown et al. 2020, appendix C), or of `characters` tokens where the problem is written in a script
without spaces. A problem shorter than that is found only as a whole message. Only problems are indexed, not their
solutions; of a row, every message is looked at, so a problem that an answer quotes is found too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from easydistill.config.base import NonEmptyStr, PositiveInt, Section
from easydistill.contracts.operator import Result, Steps
from easydistill.data.files import hash_file
from easydistill.data.formats import ROW, read_samples
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.errors import DataError
from easydistill.synthesis.text import by_character, ngrams, normalise, prompt_text, tokens
from easydistill.synthesis.tools import Tools

STAGE = "decontaminate"
SUMMARY = "Rows that share nothing with benchmarks."
PROMPTS: tuple[str, ...] = ()
REASONS = ("benchmark_exact", "benchmark_overlap")
LABELLED = None
MAKES_PROMPTS = False
Run = tuple[str, ...]


class Config(Section):
    """Which benchmarks, and how much of a problem gives it away."""

    identity_name = "operator.decontaminate"

    benchmarks: Annotated[list[NonEmptyStr], Field(min_length=1)]
    """Files of problems, as JSON, JSON Lines or Parquet: any rows that can be trained on, or `question` or `prompt` as
    GSM8K, HumanEval and IFEval have them."""
    words: PositiveInt = 13
    """Tokens of a run that gives a problem away, in scripts with spaces."""
    characters: PositiveInt = 21
    """The same in scripts without; 13 English words are about 21 Chinese characters."""
    boilerplate: PositiveInt = 10
    """A run that more problems of the benchmarks have than this is a common phrase ("answer in all capital letters")
    and gives none away."""

    def identity(self) -> dict[str, Any]:
        """What the benchmarks hold decides, and under which names, not where they lie."""
        paths = [Path(name) for name in self.benchmarks]
        held = [[path.name, hash_file(path) if path.is_file() else None] for path in paths]
        return {**super().identity(), "benchmarks": held}


def files(config: Config) -> dict[str, str]:
    """Files that the config names, by key."""
    return {f"benchmarks.{number}": path for number, path in enumerate(config.benchmarks)}


class Contamination(NamedTuple):
    """Which benchmark problem a text gives away, and by what."""

    reason: str
    """`benchmark_exact` or `benchmark_overlap`."""
    detail: str


class Benchmarks:
    """Problems of benchmark files, found by what they share with a text.

    Raises:
        DataError: a file cannot be read, or a row of it cannot, so that its problem would be overlooked.
    """

    def __init__(self, config: Config) -> None:
        self._names: list[str] = []
        self._whole: dict[str, int] = {}
        self._holders: dict[Run, list[int]] = {}
        for name in config.benchmarks:
            path = Path(name)
            problems, unread = read_samples(path, labelled=False)
            if unread:
                raise DataError(f"{len(unread)} problems of a benchmark cannot be read; the first: {unread[0].detail}")
            for problem in problems:
                self._index(config, f"{path.name}, row {problem.meta[ROW]}", prompt_text(problem))
        self._holders = {run: held for run, held in self._holders.items() if len(held) <= config.boilerplate}
        self._sizes = sorted({len(run) for run in self._holders})

    def __len__(self) -> int:
        return len(self._names)

    def given_away(self, text: str) -> Contamination | None:
        """Which problem a text gives away; of several, the one that it shares most runs with, then the first."""
        whole = self._whole.get(normalise(text))
        if whole is not None:
            return Contamination("benchmark_exact", f"the same text as {self._names[whole]}")
        units = tokens(text)
        shared: Counter[int] = Counter()
        first: dict[int, Run] = {}
        for size in self._sizes:
            for run in dict.fromkeys(ngrams(units, size)):
                for problem in self._holders.get(run, ()):
                    shared[problem] += 1
                    first.setdefault(problem, run)
        if not shared:
            return None
        problem = min(shared, key=lambda number: (-shared[number], number))
        run = first[problem]
        quoted = ("" if by_character(run) else " ").join(run)
        detail = f"{shared[problem]} runs of {len(run)} tokens shared with {self._names[problem]}: “{quoted}”"
        return Contamination("benchmark_overlap", detail)

    def _index(self, config: Config, name: str, text: str) -> None:
        number = len(self._names)
        self._names.append(name)
        self._whole.setdefault(normalise(text), number)
        units = tokens(text)
        size = config.characters if by_character(units) else config.words
        for run in dict.fromkeys(ngrams(units, size)):
            self._holders.setdefault(run, []).append(number)


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Drop rows that give away a benchmark problem, naming it. Asks nothing.

    Raises:
        DataError: a benchmark file, or a row of one, cannot be read.
    """
    yield from ()
    return decontaminate(config, rows)


def decontaminate(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order."""
    benchmarks = Benchmarks(config)
    result = Result(entered=len(rows))
    for row in rows:
        found = next(filter(None, map(benchmarks.given_away, _said(row))), None)
        if found is None:
            result.accepted.append(row)
        else:
            result.rejected.append(Rejection(row.id, STAGE, found.reason, found.detail, 1, prompt_text(row)))
    result.facts = {"problems": len(benchmarks), "dropped": count_reasons(result.rejected)}
    return result


def _said(row: Sample) -> list[str]:
    """All texts of a row but the system's."""
    texts = [message["content"] for message in row.messages if message["role"] != "system"]
    return texts + [message["reasoning_content"] for message in row.messages if message.get("reasoning_content")]
