"""Rows with two answers, or a scored list of them, and a verdict → the better and the worse answer.

Verdicts are signed numbers (HelpSteer), the name, letter or number of the better one (arenas, PKU-SafeRLHF, AlpacaFarm,
SHP), a flag for each, or a score for each. Without a preference there is a `Tie`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.data.reading import several
from easydistill.data.records import CUT, FINISH_REASON, cut_marks
from easydistill.data.row_files import MalformedRow

_STEMS = ("response", "answer", "output", "completion", "generation", "conversation", "human_ref")
_SUFFIXES = (("_1", "_2"), ("_0", "_1"), ("1", "2"), ("_a", "_b"), ("_A", "_B"))
_SIGNED = ("preference_strength", "overall_preference")
"""Below 0 where the first answer is better, above 0 where the second is."""
_NAMED = ("better_response_id", "winner", "preference", "preferred", "better", "choice", "labels", "chosen")
_TIES = frozenset({"tie", "tie (bothbad)", "bothbad", "both", "both_bad", "equal", "neither", "none", "same"})
_SCORES = ("overall_score", "score", "rating", "ratings", "scores", "reward", "rewards", "rank", "ranks", "correct")
_DOWNWARDS = ("rank", "ranks")
"""The better answer has the smaller one."""
_LISTS = ("completions", "generations", "responses", "answers", "outputs", "candidates", "output", "response")


@dataclass(frozen=True)
class Tie:
    """A row whose answers are equally good."""

    detail: str


@dataclass(frozen=True)
class Judged:
    """The better and the worse answer of a row, and what is known of them."""

    chosen: Any
    rejected: Any
    used: frozenset[str]
    """Columns that hold the answers."""
    meta: dict[str, Any]


def judged(row: Mapping[str, Any]) -> Judged | Tie | None:
    """The answers of a row that tells in one of these ways which is better; None if it does not hold several answers.

    Raises:
        MalformedRow: it does not tell which is better.
    """
    names = _candidates(row)
    if names is None:
        return _scored(row)
    better = _better(row, names)
    if better is None:
        return Tie(f"`{names[0]}` and `{names[1]}` are equally good")
    worse = 1 - better
    return Judged(row[names[better]], row[names[worse]], frozenset(names), {})


def _candidates(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for stem in _STEMS:
        for one, other in _SUFFIXES:
            names = stem + one, stem + other
            if all(row.get(name) is not None for name in names):
                return names
    return None


def _better(row: Mapping[str, Any], names: tuple[str, str]) -> int | None:
    """0 if the first answer is better, 1 if the second is, None if neither is."""
    for find in (_by_sign, _by_name, _by_flags, _by_scores):
        found = find(row, names)
        if found is not None:
            return found[0]
    raise MalformedRow(
        f"there are two answers, `{names[0]}` and `{names[1]}`, and nothing that says which is better; name the better "
        'one\'s column: dataset.columns: {"chosen": …, "rejected": …}'
    )


def _by_sign(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[int | None] | None:
    for column in _SIGNED:
        number = as_float(row.get(column))
        if number is not None:
            return (None if number == 0 else int(number > 0),)
    return None


def _by_name(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[int | None] | None:
    for column in _NAMED:
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        word = str(value).strip().lower()
        if word in _TIES:
            return (None,)
        if column == "labels":
            # Stanford's SHP: 1 where the first one is preferred.
            return ({"1": 0, "0": 1}[word],) if word in ("0", "1") else None
        found = _place(word, names)
        models = [row.get(f"model_{letter}") for letter in "ab"]
        if found is None and value in models and models[0] != models[1]:
            found = models.index(value)
        if found is not None:
            return (found,)
    return None


def _place(word: str, names: tuple[str, str]) -> int | None:
    """Which of two columns a word means."""
    for at, name in enumerate(names):
        suffix = name.lower().rpartition("_")[2] if "_" in name else name[-1]
        if word in (name.lower(), suffix, f"model_{suffix}", f"assistant_{suffix}", f"response_{suffix}"):
            return at
    by_letter = names[0].lower().endswith("a")
    return {"1": 0, "2": 1, "first": 0, "second": 1}.get(word) if by_letter else {"a": 0, "b": 1}.get(word)


def _by_flags(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[int | None] | None:
    flags = [row.get(f"winner_model_{letter}") for letter in "ab"]
    if not all(isinstance(flag, bool | int) for flag in flags):
        return None
    return (None if flags[0] == flags[1] else int(not flags[0]),)


def _by_scores(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[int | None] | None:
    for kind in ("score", "rating", "reward"):
        values = []
        for name in names:
            suffix = name.rpartition("_")[2]
            keys = (f"{kind}_{suffix}", f"{name}_{kind}", f"{kind}{suffix}")
            values.append(next((number for key in keys if (number := as_float(row.get(key))) is not None), None))
        if values[0] is not None and values[1] is not None:
            return (None if values[0] == values[1] else int(values[1] > values[0]),)
    return None


def _scored(row: Mapping[str, Any]) -> Judged | Tie | None:
    """The best and the worst answer of a scored list."""
    for name in _LISTS:
        found = several.in_list(dict(row), name)
        if found is None or len(found[1]) < 2:
            continue
        _, answers, used = found
        for key in _SCORES:
            numbers = [_number(answer.meta.get(key)) for answer in answers]
            known = [(number, at) for at, number in enumerate(numbers) if number is not None]
            if len(known) > 1:
                return _best_and_worst(name, key, answers, known, used)
    return None


def _best_and_worst(
    name: str, key: str, answers: list[several.Answer], known: list[tuple[float, int]], used: set[str]
) -> Judged | Tie:
    sign = -1 if key in _DOWNWARDS else 1
    # Of equally good answers the first.
    best = max(known, key=lambda item: (sign * item[0], -item[1]))
    worst = min(known, key=lambda item: (sign * item[0], item[1]))
    if best[0] == worst[0]:
        return Tie(f"all answers in `{name}` have the same {key}")
    cut = [answers[at].meta.get(FINISH_REASON) == CUT for _, at in (best, worst)]
    meta: dict[str, Any] = {"chosen_score": sign * best[0], "rejected_score": sign * worst[0]}
    meta |= cut_marks(chosen=cut[0], rejected=cut[1])
    chosen, rejected = (side_of(answers[at]) for _, at in (best, worst))
    return Judged(chosen, rejected, frozenset(used), meta)


def side_of(answer: several.Answer) -> Any:
    """An answer as a message, where it has thoughts of its own."""
    if answer.thoughts and isinstance(answer.value, str):
        return {"role": "assistant", "content": answer.value, "reasoning_content": answer.thoughts}
    return answer.value


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return as_float(float(value))
        except ValueError:
            return None
    return as_float(value)
