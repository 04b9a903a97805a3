"""OmniThought's schema: a problem a row, with its chains of thought and their scores.

    question, reasoning: [{full_response, model, Reasoning_Verbosity: {judge, level}, Cognitive_Difficulty: {judge,
    level}, correct, …}], id, and the problem's other fields

`full_response` holds thoughts as `<think>…</think>` before the answer. A field whose value differs between the chains
of some problem belongs to the chains, and so do those that are always about an answer; the others are the problem's.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from easydistill.data.messages import text_of
from easydistill.data.records import FINISH_REASON, IdAssigner, Sample
from easydistill.data.tables import Columns
from easydistill.data.writing import written_meta
from easydistill.releasing.layouts.plain import batched, single_turn_problem

RV, CD, VERBOSITY, DIFFICULTY = "rv", "cd", "Reasoning_Verbosity", "Cognitive_Difficulty"
_OF_CHAINS = frozenset({"model", "teacher", "correct", "correct_by", "pass_rate", FINISH_REASON})
"""Fields that are always a chain's."""
_RATED = {VERBOSITY: RV, DIFFICULTY: CD}
_OWN = frozenset({"question", "reasoning", "full_response"})
_CHAIN = "reasoning"


class OmniThought:
    """Problems with their chains.

    Args:
        judge: the model that gave the scores, where rows do not say so.
    """

    unit = "problems"

    def __init__(self, judge: str | None) -> None:
        self._judge = judge
        self._of_chains = set(_OF_CHAINS)
        self._outer, self._inner = Columns(()), Columns(())
        self._whole = True

    def why_not(self, sample: Sample) -> str | None:
        both = next((name for name in sample.meta if name in _OWN), None)
        if both is not None:
            return f"it has a field {both!r} of its own, which is a column of the schema"
        return single_turn_problem(sample, "omnithought", system=False) or _chain_problem(sample)

    def fit(self, parts: Sequence[Sequence[Sample]]) -> None:
        for part in parts:
            self._learn(part)
        for part in parts:
            for block in batched(self.rows(part)):
                self._outer.fit([_without_chains(row) for row in block])
                self._inner.fit(_chains(block))

    def _learn(self, samples: Sequence[Sample]) -> None:
        """Find out which fields are the chains'."""
        for group in _groups(samples):
            fields = [_fields(sample) for sample in group]
            for name in {name for item in fields for name in item}:
                if any(item.get(name) != fields[0].get(name) for item in fields[1:]):
                    self._of_chains.add(name)

    def rows(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        ids = IdAssigner()
        for group in map(_in_order, _groups(samples)):
            fields = _fields(group[0])
            own = {name: value for name, value in fields.items() if name not in self._of_chains}
            yield {
                "id": ids.assign(None, _id_of(group)),
                "question": text_of(group[0].messages[0]),
                **own,
                _CHAIN: [self._chain(sample) for sample in group],
            }

    def _chain(self, sample: Sample) -> dict[str, Any]:
        answer = sample.messages[-1]
        thoughts, text = answer.get("reasoning_content"), text_of(answer)
        rest = {name: value for name, value in _fields(sample).items() if name in self._of_chains and name != "model"}
        return {
            "full_response": f"<think>\n{thoughts}\n</think>\n\n{text}" if thoughts else text,
            "model": sample.meta.get("model") or sample.meta.get("teacher"),
            **{theirs: self._rating(sample, theirs, ours) for theirs, ours in _RATED.items()},
            **rest,
        }

    def _rating(self, sample: Sample, theirs: str, ours: str) -> dict[str, Any] | None:
        """A score with who gave it: the row's judge as long as the score is the one that it brought."""
        level, before = _level(sample, theirs, ours), sample.meta.get(theirs)
        if level is None:
            return None
        kept = isinstance(before, dict) and before.get("level") == level
        self._whole = self._whole and level == int(level)
        return {"judge": before.get("judge") if kept and isinstance(before, dict) else self._judge, "level": level}

    # --- tables -----------------------------------------------------------------------------------------------

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        import pyarrow as pa

        level = pa.int64() if self._whole else pa.float64()
        for name in _RATED:
            self._inner.set_type(name, pa.struct([("judge", pa.string()), ("level", level)]))
        self._inner.set_type("model", pa.string())
        outer = self._outer.table([_without_chains(row) for row in rows])
        inner = self._inner.table(_chains(rows)).combine_chunks()
        names = [name for name in inner.column_names if name != "id"]
        chains = pa.StructArray.from_arrays([_one(inner.column(name)) for name in names], names)
        ends = [0]
        for row in rows:
            ends.append(ends[-1] + len(row[_CHAIN]))
        return outer.append_column(_CHAIN, pa.ListArray.from_arrays(pa.array(ends, pa.int32()), chains))

    def loosen(self, column: str) -> None:
        # Which field of the chains it is, the schema of the list does not tell.
        if column == _CHAIN:
            self._inner.all_as_json(except_for=("full_response", "model", *_RATED))
        else:
            self._outer.as_json(column)


def _one(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks else column.combine_chunks()


def _without_chains(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != _CHAIN}


def _chains(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": "", **chain} for row in rows for chain in row[_CHAIN]]


def _fields(sample: Sample) -> dict[str, Any]:
    """A row's fields but for its scores, which have a spelling of their own."""
    return {name: value for name, value in written_meta(sample).items() if name not in {RV, CD, *_RATED}}


def _chain_problem(sample: Sample) -> str | None:
    """Why a chain's columns cannot hold what is known of it; None if they can."""
    model = sample.meta.get("model") or sample.meta.get("teacher")
    if model is not None and not isinstance(model, str):
        return f"its model is {model!r:.60}, which is no text"
    for theirs, ours in _RATED.items():
        level, before = _level(sample, theirs, ours), sample.meta.get(theirs)
        if level is not None and not _is_number(level):
            return f"its {ours} is {level!r:.60}, which is no number"
        replaced = isinstance(before, dict) and before.get("level") != level
        if before is not None and not replaced and not _is_rating(before):
            return f"its {theirs} is {before!s:.60}, and not a judge's name and a level"
    if "</think>" in sample.messages[-1].get("reasoning_content", ""):
        return "its thoughts hold the mark </think>, at which they would end"
    return None


def _level(sample: Sample, theirs: str, ours: str) -> Any:
    """A row's score: its own, or else the one that it was published with."""
    own, before = sample.meta.get(ours), sample.meta.get(theirs)
    return before.get("level") if own is None and isinstance(before, dict) else own


def _is_rating(value: Any) -> bool:
    """Whether a published score has a judge and a level alone."""
    if not isinstance(value, dict) or not isinstance(value.get("judge"), str | None):
        return False
    return all(item is None for name, item in value.items() if name not in {"judge", "level"})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_NUMBERED = re.compile(r"(.*)-(\d+)", re.DOTALL)


def _in_order(group: list[Sample]) -> list[Sample]:
    """Chains by the numbers of their ids, so that they get these again when they are read; else as they are."""
    found = [_NUMBERED.fullmatch(sample.id) for sample in group]
    if len({match and match[1] for match in found}) > 1:
        return group
    return sorted(group, key=lambda sample: int(sample.id.rpartition("-")[2])) if found[0] else group


def _id_of(group: Sequence[Sample]) -> str:
    """The problem's id: what is common to the ids of its chains, if these are it with numbers behind it."""
    bases = {re.sub(r"-\d+$", "", sample.id) for sample in group}
    return bases.pop() if len(group) > 1 and len(bases) == 1 else group[0].id


def _groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples of each question, questions in the order in which they first occur."""
    import numpy

    keys = numpy.array([_key(sample) for sample in samples], dtype=numpy.uint64)
    _, first, inverse = numpy.unique(keys, return_index=True, return_inverse=True)
    order = numpy.argsort(first[inverse], kind="stable")
    if not len(order):
        return
    starts = numpy.flatnonzero(numpy.append(True, inverse[order][1:] != inverse[order][:-1])).tolist()
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield [samples[int(at)] for at in order[begin:end]]


def _key(sample: Sample) -> int:
    return int.from_bytes(hashlib.sha256(sample.prompt_hash.encode()).digest()[:8])
