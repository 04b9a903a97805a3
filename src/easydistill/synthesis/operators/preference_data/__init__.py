"""Pairs of answers for `dpo` and `reward_model`: a better and a worse one to the same prompt.

Rows are prompts, with or without answers. `method` decides where answers come from and how they are compared, see
`configs.py`; `choice.py` decides which of the possible pairs are taken. Truncated and duplicate answers, ties and
undecided comparisons make no pairs. Dropped answers and pairs are counted in the facts by reason; a row without a pair
is rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any

from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import FINISH_REASON, Sample, cut_marks, is_cut
from easydistill.synthesis.operators.preference_data import configs as _configs
from easydistill.synthesis.operators.preference_data.choice import cap_lengths, choose, length_facts, surplus
from easydistill.synthesis.operators.preference_data.configs import (
    Config,
    ContrastiveConfig,
    PairsConfig,
    RankConfig,
    StudentConfig,
    VerifiableConfig,
)
from easydistill.synthesis.operators.preference_data.methods import contrastive, rank, student, verifiable
from easydistill.synthesis.operators.preference_data.pairs import BY_ROW, Pair, RowPairs
from easydistill.synthesis.replies import Unusable, rejection
from easydistill.synthesis.tools import Tools

__all__ = ["Config", "run"]

STAGE = "preference_data"
PROMPTS = _configs.PROMPTS
REASONS = (
    *("no_answer", "answer_unknown", "truncated", "duplicate", "one_answer", "no_final_answer", "undecided"),
    *("all_right", "all_wrong", "malformed_score", "inconsistent", "student_better", "tie", "small_margin"),
    *("length_ratio", "length_balance"),
)
LABELLED = None
MAKES_PROMPTS = False
PAIRS = True
SHOWS_IMAGES = ("teacher", "judge", "student")
_PAIR_FIELDS = frozenset(
    {"chosen", "rejected", "beta", "gap", "margin", "chosen_score", "rejected_score", FINISH_REASON}
)
"""Fields of a pair; a row's own fields of these names are dropped."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Make pairs from each row. `meta` has `margin` and the scores, if any, and who wrote each answer."""
    every = yield from _row_pairs(config, rows, tools)
    if config.max_length_ratio is not None:
        for found in every:
            cap_lengths(found, config.max_length_ratio)
    possible = {found.row.id: found.pairs for found in every}
    unbalanced = choose(possible, config.max_pairs, config.seed, balanced=False)
    taken = unbalanced if config.length_balance == "off" else _balanced(config, every, possible)
    result = Result()
    kept: list[Pair] = []
    for found in every:
        pairs = taken[found.row.id]
        kept += pairs
        result.accepted.extend([_row(config, found.row, pair, number) for number, pair in enumerate(pairs)])
        if not pairs:
            result.rejected.append(rejection(found.row.id, STAGE, _why_no_pair(found), *found.replies))
    result.entered = len(result.accepted) + len(result.rejected)
    result.facts = {"prompts": len(rows), "prompts_with_pairs": len(rows) - len(result.rejected)}
    result.facts |= _facts(every, kept, [*chain(*unbalanced.values())])
    return result


def _balanced(config: Config, every: Sequence[RowPairs], possible: Mapping[str, list[Pair]]) -> dict[str, list[Pair]]:
    """The pairs of each row such that the chosen answer is longer about as often as it is shorter."""
    taken = choose(possible, config.max_pairs, config.seed, balanced=True)
    if config.length_balance == "drop":
        dropped = surplus(taken, config.seed)
        for found in every:
            of_row = dropped.get(found.row.id, [])
            detail = "{}: of the more frequent kind"
            found.dropped_pairs += [Unusable("length_balance", detail.format(pair.name)) for pair in of_row]
            taken[found.row.id] = [pair for pair in taken[found.row.id] if pair not in of_row]
    return taken


def _row_pairs(config: PairsConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[RowPairs]]:
    if isinstance(config, StudentConfig):
        return (yield from student(config, rows, tools))
    if isinstance(config, RankConfig):
        return (yield from rank(config, rows, tools))
    if isinstance(config, VerifiableConfig):
        return (yield from verifiable(config, rows, tools))
    assert isinstance(config, ContrastiveConfig), "there are four methods"
    return (yield from contrastive(config, rows, tools))


def _row(config: Config, row: Sample, pair: Pair, number: int) -> Sample:
    meta = {name: value for name, value in row.meta.items() if name not in _PAIR_FIELDS}
    # The row's own mark is that of its own answer.
    chosen_cut, rejected_cut = (
        answer.truncated or (answer.by == BY_ROW and is_cut(row)) for answer in (pair.chosen, pair.rejected)
    )
    meta |= cut_marks(chosen=chosen_cut, rejected=rejected_cut)
    meta |= {"operator": STAGE, "method": config.method, "source": row.id}
    if pair.scores is not None:
        meta |= {"margin": pair.margin, "chosen_score": pair.scores[0], "rejected_score": pair.scores[1]}
    meta |= {"chosen_by": pair.chosen.by, "rejected_by": pair.rejected.by, "rejected": pair.rejected.message}
    identity = row.id if config.max_pairs == 1 else f"{row.id}-{number + 1}"
    return replace(row, id=identity, messages=(*row.prompt, pair.chosen.message), meta=meta)


def _why_no_pair(found: RowPairs) -> Unusable:
    """Why a row has no pair: of everything dropped, the problem that came up in the latest check."""
    if found.blocked is not None:
        return found.blocked
    if found.dropped_pairs:
        return max(found.dropped_pairs, key=lambda problem: _check_number(problem.reason))
    # A duplicate is only given as the reason if there is no other.
    by_weight = sorted(found.dropped_answers, key=lambda problem: problem.reason == "duplicate")
    return by_weight[0] if by_weight else Unusable("one_answer", "there is only one answer")


def _check_number(reason: str) -> int:
    """Position of a check in `REASONS`; failed requests come before all checks."""
    return REASONS.index(reason) if reason in REASONS else -1


def _facts(every: Sequence[RowPairs], kept: Sequence[Pair], unbalanced: Sequence[Pair]) -> dict[str, Any]:
    possible = sum(len(found.pairs) for found in every)
    margins = [pair.margin for pair in kept if pair.margin is not None]
    dropped_pairs = _reasons(found.dropped_pairs for found in every)
    dropped_answers = _reasons(found.dropped_answers for found in every)
    beyond = possible - len(unbalanced)
    return {
        "pairs_possible": possible,
        "mean_margin": round(fmean(margins), 4) if margins else None,
        "answers_usable": _counts(answer.by for found in every for answer in found.answers),
        "answers_dropped": _counts(dropped_answers),
        "pairs_dropped": _counts(dropped_pairs + ["beyond_max_pairs"] * beyond),
        "chosen_by": _counts(pair.chosen.by for pair in kept),
        "rejected_by": _counts(pair.rejected.by for pair in kept),
        "lengths": {"without_balance": length_facts(unbalanced), "with_balance": length_facts(kept)},
    }


def _reasons(problems: Iterable[Sequence[Unusable]]) -> list[str]:
    return [problem.reason for problem in chain.from_iterable(problems)]


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
