"""Rows with several answers to a prompt, or several prompts → a row each.

Read are: a list in the place of an answer (`output`, `generations`, `responses` …), numbered columns
(`r1_solution_1`, `r1_solution_2` …), trajectories beside attempts (`deepseek_thinking_trajectory`,
`deepseek_attempt`), OmniThought's `reasoning` (with its verbosity and difficulty), and `instances` of inputs and
outputs. Each row that comes out has its answer in `response` and its thoughts in `reasoning_content`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from easydistill.data.reading import keys
from easydistill.data.reading.values import as_list, as_turns, is_given, is_text
from easydistill.data.row_files import MalformedRow

_LISTS = ("generations", "responses", "outputs", "completions", "solutions", "samples", "candidates", "reasoning")
_CHAINS = tuple(name for name in keys.CHAINS if name != "answer")
_NUMBERED = re.compile(r"(?P<name>\w*?(?:solution|response|output|generation|completion|answer_text))_?(?P<number>\d+)")
_TRAJECTORY = re.compile(r"(?P<name>\w+?)_(?:thinking_trajectory|thinking|reasoning|reasoning_content)")
_ATTEMPTS = ("attempt", "solution", "answer", "response", "output")
_TEXTS = ("full_response", "response", "output", "text", "content", "generation", "completion", "answer", "solution")
_BY_INDEX = re.compile(r"correct|complete|model|finish|verif|generator", re.IGNORECASE)
"""Lists beside a list of answers that have an entry for each."""
_SCORES = re.compile(r"score|rating|rank|reward|preference", re.IGNORECASE)
_JUDGEMENT = re.compile(
    r"score|rating|rank|reward|prefer|feedback|critique|criticism|comment|review|judg|evaluation|grade", re.IGNORECASE
)
"""Names of columns that say what an answer is worth."""
_VERBOSITY, _DIFFICULTY = "Reasoning_Verbosity", "Cognitive_Difficulty"


@dataclass(frozen=True)
class Answer:
    """One of several answers."""

    value: Any
    thoughts: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    """What is known of it: scores, correctness, the model."""


def rows_of(row: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(a row with one answer, what is known of that answer) for each answer of a row; the row itself if it has one.

    Raises:
        MalformedRow: the answers are not readable, or some are better than others.
    """
    if any(as_turns(row.get(name)) for name in keys.CHATS):
        return [(row, {})]
    found = _several(row)
    if found is None:
        return [(row, {})]
    name, answers, used = found
    if not answers:
        raise MalformedRow(f"`{name}` holds no answer")
    _refuse_scored(name, row, answers)
    rest = {key: value for key, value in row.items() if key not in used}
    return [
        (
            {**rest, "response": answer.value, **({"reasoning_content": answer.thoughts} if answer.thoughts else {})},
            answer.meta,
        )
        for answer in answers
    ]


def prompts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each of its `instances` (self-instruct); the row itself if it has none."""
    instances = as_list(row.get("instances"))
    if not instances or "instruction" not in row or not all(isinstance(item, dict) for item in instances):
        return [row]
    rest = {name: value for name, value in row.items() if name != "instances"}
    return [{**rest, **{name: item[name] for name in ("input", "output") if name in item}} for item in instances]


def _several(row: dict[str, Any]) -> tuple[str, list[Answer], set[str]] | None:
    """The column, its answers, and all columns that they were read from; None if there are not several."""
    for name in keys.ANSWERS:
        if row.get(name) is not None:
            return in_list(row, name)
    for find in (_trajectories, _numbered, _lists):
        found = find(row)
        if found is not None:
            return found
    # A list under `answer` holds spellings of one answer.
    return next((found for name in _CHAINS if (found := in_list(row, name)) is not None), None)


def _lists(row: dict[str, Any]) -> tuple[str, list[Answer], set[str]] | None:
    return next((found for name in _LISTS if (found := in_list(row, name)) is not None), None)


def in_list(row: dict[str, Any], name: str) -> tuple[str, list[Answer], set[str]] | None:
    """The answers of a column that holds a list of them."""
    value = row.get(name)
    if isinstance(value, str) or as_turns(value):
        return None
    items = as_list(value)
    if not items or not all(map(_is_answer, items)):
        return None
    _refuse_steps(row, name, items)
    beside = {key: listed for key in row if key != name and (listed := _beside(row, key, len(items))) is not None}
    answers = []
    for at, item in enumerate(items):
        known = {key: listed[at] for key, listed in beside.items()}
        answers.append(_answer(item, known))
    return name, answers, {name, *beside}


def _refuse_steps(row: dict[str, Any], name: str, items: list[Any]) -> None:
    """Refuse a list that holds, or may hold, the steps of one answer."""
    if name in keys.THOUGHTS and not all(isinstance(item, dict) for item in items):
        raise MalformedRow(
            f"`{name}` is a list of texts: the steps of one chain of thought, or several answers; join the steps into "
            'one text, or name the column of the answers: dataset.columns: {"answer": …}'
        )
    if any(isinstance(flags, list | tuple) for flags in (row.get("labels"), row.get("step_labels"))):
        raise MalformedRow(
            f"`{name}` holds the steps of one answer, each with a label, not several answers: steps are not learned yet"
        )


def _beside(row: dict[str, Any], key: str, count: int) -> list[Any] | None:
    if count < 2 or not (_BY_INDEX.search(key) or _SCORES.search(key)) or isinstance(row[key], str):
        return None
    listed = as_list(row[key])
    return listed if listed is not None and len(listed) == count else None


def _is_answer(item: Any) -> bool:
    if isinstance(item, dict):
        return as_turns([item]) is not None or any(isinstance(item.get(name), str) for name in _TEXTS)
    return isinstance(item, str) or as_turns(item) is not None


def _answer(item: Any, known: dict[str, Any]) -> Answer:
    meta = _judged(known)
    if not isinstance(item, dict) or as_turns([item]) is not None:
        return Answer(item, meta=meta)
    name = next(name for name in _TEXTS if isinstance(item.get(name), str))
    thoughts = next((item[key] for key in keys.THOUGHTS if is_text(item.get(key))), "")
    rest = {key: value for key, value in item.items() if key != name and value is not None and value != thoughts}
    return Answer(item[name], thoughts, {**_judged(rest), **meta, **_levels(rest)})


def _levels(known: dict[str, Any]) -> dict[str, int | float]:
    """OmniThought's two ratings of a chain of thought, which may be objects."""
    found: dict[str, int | float] = {}
    for theirs, ours in ((_VERBOSITY, "rv"), (_DIFFICULTY, "cd")):
        judged = known.get(theirs)
        level = judged.get("level") if isinstance(judged, dict) else judged
        if isinstance(level, int | float) and not isinstance(level, bool):
            found[ours] = level
    return found


def _judged(known: dict[str, Any]) -> dict[str, Any]:
    """What is known of an answer, with `correct` as 0 or 1 if the row tells."""
    marks = [value for name, value in known.items() if re.search("correct", name, re.IGNORECASE)]
    told = [value for value in marks if isinstance(value, bool | int) and value in (0, 1)]
    return {**known, **({"correct": int(all(told))} if told else {})}


def _numbered(row: dict[str, Any]) -> tuple[str, list[Answer], set[str]] | None:
    """Columns of one name with numbers: at least two, or one that is counted from 1."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for key, value in row.items():
        match = _NUMBERED.fullmatch(key) if isinstance(key, str) else None
        if match and is_given(value) and (isinstance(value, str) or as_turns(value)):
            groups.setdefault(match["name"], []).append((int(match["number"]), key))
    for name, members in groups.items():
        judged = _judged_beside(row, members)
        if judged is not None:
            raise MalformedRow(
                f"`{members[0][1]}` and its like are answers that are judged (`{judged}`), not all to imitate: name "
                'the one to learn: dataset.columns: {"answer": …}, or the better and the worse one, in the jobs dpo '
                'and reward_model: {"chosen": …, "rejected": …}'
            )
        if any(row.get(key) is not None for key in keys.PAIRED):
            raise MalformedRow(
                f"`{members[0][1]}` and its like are answers to compare, not to imitate: read the file as pairs (jobs "
                'dpo and reward_model), or name the one to learn: dataset.columns: {"answer": …}'
            )
        chosen = [key for _, key in sorted(members)]
        return name, [Answer(row[key], meta={"answer_column": key}) for key in chosen], set(chosen)
    return None


def _judged_beside(row: dict[str, Any], members: list[tuple[int, str]]) -> str | None:
    """A column that says what one of several numbered answers is worth: `feedback1`, `score_2`, `response_1_rating`."""
    beside = (key for key, value in row.items() if isinstance(key, str) and is_given(value) and _JUDGEMENT.search(key))
    return next((key for key in beside for number, name in members if _is_about(key, number, name)), None)


def _is_about(key: str, number: int, answer: str) -> bool:
    last = re.search(r"\d+\Z", key)
    return key.startswith(f"{answer}_") or (last is not None and int(last[0]) == number)


def _trajectories(row: dict[str, Any]) -> tuple[str, list[Answer], set[str]] | None:
    """Thoughts and attempts of several models, or several thoughts before one attempt (s1K)."""
    trajectories = as_list(row.get("thinking_trajectories"))
    if trajectories and is_text(row.get("attempt")):
        answers = [Answer(row["attempt"], thoughts) for thoughts in trajectories if is_text(thoughts)]
        return "thinking_trajectories", answers, {"thinking_trajectories", "attempt"}
    found = list(_by_model(row))
    if not found:
        return None
    used = {key for thoughts, attempt, _ in found for key in (thoughts, attempt)}
    answers = [Answer(row[attempt], row[thoughts], {"model": model}) for thoughts, attempt, model in found]
    return found[0][0], answers, used


def _by_model(row: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(column of the thoughts, column of the answer, model)."""
    for key, value in row.items():
        match = _TRAJECTORY.fullmatch(key) if isinstance(key, str) and is_text(value) else None
        if match:
            attempts = (f"{match['name']}_{word}" for word in _ATTEMPTS)
            attempt = next((name for name in attempts if is_text(row.get(name))), None)
            if attempt is not None:
                yield key, attempt, match["name"]


def _refuse_scored(name: str, row: dict[str, Any], answers: list[Answer]) -> None:
    """Answers that are scored against each other are not all to be imitated."""
    if len(answers) < 2:
        return
    scores = sorted({key for answer in answers for key in answer.meta if _SCORES.search(key)})
    paired = [key for key in keys.PAIRED if row.get(key) is not None]
    if scores or paired:
        raise MalformedRow(
            f"`{name}` holds answers of which some are better (`{(scores or paired)[0]}`), not all to imitate: read "
            'the file as pairs (jobs dpo and reward_model), or name one column: dataset.columns: {"answer": …}'
        )
