"""Drops rows that contain benchmark problems, either as a whole message or as a long shared run of tokens.

Exact: a message has the same normalised spelling as a benchmark problem. Overlap: a message and a problem share a run
of `words` tokens (13, Brown et al. 2020, appendix C), or of `characters` tokens if the problem is in a script without
spaces. A problem shorter than that is only found as a whole message. Benchmark solutions are not indexed, but all
messages of a row are checked, so a problem quoted in an answer is found too.

Images: a row that shows an image of a benchmark is dropped, whatever it says of it. A problem with images is found by
them and by long runs, not by its whole text: "What is in the picture?" asks another thing about another picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from easydistill.config.base import NonEmptyStr, PositiveInt, Section
from easydistill.contracts.operator import Result, Steps
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import call_text, text_of
from easydistill.data.reading import ROW, read_samples
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.spool import like
from easydistill.errors import DataError, MissingExtra
from easydistill.synthesis.images import words_of
from easydistill.synthesis.text import by_character, ngrams, normalise, prompt_text, tokens
from easydistill.synthesis.tools import Tools

STAGE = "decontaminate"
SUMMARY = "Rows that share nothing with benchmarks."
PROMPTS: tuple[str, ...] = ()
REASONS = ("benchmark_image", "benchmark_exact", "benchmark_overlap")
LABELLED = None
MAKES_PROMPTS = False
KEEPS_IMAGES = True
PART = 5
"""Tokens of the parts by which runs are looked up."""
BOILERPLATE = 10
Run = tuple[str, ...]


class Config(Section):
    """Which benchmarks, and how much overlap counts as contamination."""

    identity_name = "operator.decontaminate"

    benchmarks: Annotated[list[NonEmptyStr], Field(min_length=1)]
    """Files of problems, in all that `dataset.instruction_path` may be: any rows that can be trained on, or rows with
    `question` or `prompt` as in GSM8K, HumanEval and IFEval."""
    words: PositiveInt = 13
    """How many words in a row must be the same to count as overlap, in scripts with spaces."""
    characters: PositiveInt = 21
    """The same in scripts without spaces; 13 English words are about 21 Chinese characters."""
    boilerplate: PositiveInt = BOILERPLATE
    """A run that occurs in more benchmark problems than this is a common phrase ("answer in all capital letters") and
    is ignored."""

    def identity(self) -> dict[str, Any]:
        """Depends on the benchmarks' file names and contents, not on their folders."""
        held = [[Path(name).name, _hash(name)] for name in self.benchmarks]
        return {**super().identity(), "benchmarks": held}


def _hash(name: str) -> str | None:
    """Hash of a benchmark's rows; None where there are none, which `validate` tells."""
    try:
        return hash_rows(name)
    except (DataError, MissingExtra):
        return None


def row_files(config: Config) -> dict[str, str]:
    """The benchmark files, by config key."""
    return {f"benchmarks.{number}": path for number, path in enumerate(config.benchmarks)}


class Contamination(NamedTuple):
    """Which benchmark problem a text contains, and how that was found."""

    reason: str
    """One of `REASONS`."""
    detail: str


class BenchmarkProblem(NamedTuple):
    """A benchmark problem."""

    name: str
    """Where it is from, for people."""
    text: str
    images: Sequence[str] = ()
    """The digests of its images."""


class Benchmarks:
    """Benchmark problems, indexed by spelling and by run.

    Args:
        words, characters, boilerplate: as in `Config`.
    """

    def __init__(
        self, problems: Iterable[BenchmarkProblem], *, words: int, characters: int, boilerplate: int = BOILERPLATE
    ) -> None:
        self._names: list[str] = []
        self._by_spelling: dict[str, int] = {}
        self._by_image: dict[str, int] = {}
        self._by_run: dict[Run, list[int]] = {}
        for problem in problems:
            self._index(words, characters, problem)
        self._by_run = {run: numbers for run, numbers in self._by_run.items() if len(numbers) <= boilerplate}
        self._parts = {size: _Parts(size) for size in sorted({len(run) for run in self._by_run})}
        for run in self._by_run:
            self._parts[len(run)].add(run)

    def __len__(self) -> int:
        return len(self._names)

    def find_image(self, images: Sequence[str]) -> Contamination | None:
        """The problem that shows one of the images."""
        found = next((self._by_image[image] for image in images if image in self._by_image), None)
        return None if found is None else Contamination("benchmark_image", f"an image of {self._names[found]}")

    def find_in(self, row: Sample) -> Contamination | None:
        """The problem that a row contains, in its images or any of its texts."""
        return self.find_image(row.images) or next(filter(None, map(self.find, texts_of(row))), None)

    def find(self, text: str) -> Contamination | None:
        """The problem that a text contains; among several, that with the most shared runs, then the first."""
        units = tokens(text)
        equal = self._by_spelling.get(" ".join(units) or normalise(text))
        if equal is not None:
            return Contamination("benchmark_exact", f"the same text as {self._names[equal]}")
        shared: Counter[int] = Counter()
        first: dict[int, Run] = {}
        for size, parts in self._parts.items():
            for run in dict.fromkeys(tuple(units[start : start + size]) for start in parts.starts(units)):
                for problem in self._by_run.get(run, ()):
                    shared[problem] += 1
                    first.setdefault(problem, run)
        if not shared:
            return None
        problem = min(shared, key=lambda number: (-shared[number], number))
        run = first[problem]
        quoted = ("" if by_character(run) else " ").join(run)
        detail = f"{shared[problem]} runs of {len(run)} tokens shared with {self._names[problem]}: “{quoted}”"
        return Contamination("benchmark_overlap", detail)

    def _index(self, words: int, characters: int, problem: BenchmarkProblem) -> None:
        number = len(self._names)
        self._names.append(problem.name)
        for image in problem.images:
            self._by_image.setdefault(image, number)
        if not problem.images:
            self._by_spelling.setdefault(normalise(problem.text), number)
        units = tokens(problem.text)
        size = characters if by_character(units) else words
        for run in dict.fromkeys(ngrams(units, size)):
            self._by_run.setdefault(run, []).append(number)


def problems_of(files: Sequence[str]) -> Iterator[BenchmarkProblem]:
    """The problems in benchmark files.

    Raises:
        DataError: a file, or a row of it, cannot be read: its problem would be missed.
    """
    for name in files:
        path = Path(name)
        problems, unreadable = read_samples(name, labelled=False, images=ImageReader(ImageStore()))
        if unreadable:
            detail = unreadable[0].detail
            raise DataError(f"{len(unreadable)} benchmark problems cannot be read; the first: {detail}")
        for problem in problems:
            yield BenchmarkProblem(f"{path.name}, row {problem.meta[ROW]}", words_of(problem), problem.images)


class _Parts:
    """Where in a text runs of one size can be, by shorter parts of them.

    A run of n tokens has n − k + 1 parts of k tokens. Of as many neighbouring places of a text, one is a multiple of
    n − k + 1, so only the parts at multiples are looked up.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._length = min(PART, size)
        self._step = size - self._length + 1
        self._known: set[Run] = set()

    def add(self, run: Run) -> None:
        self._known.update(ngrams(run, self._length))

    def starts(self, units: Sequence[str]) -> Iterator[int]:
        """Places of a text, in order, where a known run may begin; no known run begins at another place."""
        last, after = len(units) - self._size, 0
        for place in range(0, len(units) - self._length + 1, self._step):
            if tuple(units[place : place + self._length]) in self._known:
                yield from range(max(after, place - self._step + 1), min(place, last) + 1)
                after = place + 1


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Drop rows that contain a benchmark problem, which their rejections name. Asks no model.

    Raises:
        DataError: a benchmark file, or a row of one, cannot be read.
    """
    yield from ()
    return decontaminate(config, rows)


def decontaminate(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order."""
    benchmarks = Benchmarks(
        problems_of(config.benchmarks),
        words=config.words,
        characters=config.characters,
        boilerplate=config.boilerplate,
    )
    result = Result(like(rows), like(rows), len(rows))
    for row in rows:
        found = benchmarks.find_in(row)
        if found is None:
            result.accepted.append(row)
        else:
            result.rejected.append(Rejection(row.id, STAGE, found.reason, found.detail, 1, prompt_text(row)))
    result.facts = {"problems": len(benchmarks), "dropped": count_reasons(result.rejected)}
    return result


def texts_of(row: Sample) -> list[str]:
    """All texts of a row except system messages: contents, thoughts, and each call."""
    said = [message for message in row.messages if message["role"] != "system"]
    texts = [text_of(message) for message in said if message["content"] or "tool_calls" not in message]
    thoughts = [message["reasoning_content"] for message in said if message.get("reasoning_content")]
    return texts + thoughts + [call_text(call) for message in said for call in message.get("tool_calls", ())]
