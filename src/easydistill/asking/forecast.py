"""Forecasts of the tokens and money that requests will cost, as ranges.

Answers of an earlier run serve as a sample, for instance of one over a few rows (`dataset.max_samples`); without enough
of them the range goes from the least to the most that is possible.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from easydistill.asking.answers import JOURNAL, journalled_outcome, worth_another_try
from easydistill.config.inference import ApiInferenceConfig, PricesConfig, SamplingConfig
from easydistill.contracts.teacher import Completion
from easydistill.data.answers_cache import in_use
from easydistill.data.journal import Journal
from easydistill.data.messages import Chat, HasChat, Message
from easydistill.data.records import CUT
from easydistill.teachers.ledger import is_counted
from easydistill.teachers.sizes import chat_bytes

Range = tuple[int, int]
Asked = HasChat | Sequence[Message]
"""What a request asks: messages, or a chat with its tools."""

MIN_SAMPLE = 5
"""With fewer answers than this, the possible range is more reliable than an extrapolation."""
_LARGEST_SAMPLE = 1000
_DEVIATIONS = 2.0
"""Standard errors either side of a mean."""
_BYTES_A_TOKEN = (2.0, 6.0)
"""For prompts whose tokens have not been counted: from dense scripts and code to plain English."""
_FRAME = (0, 12)
"""Least and most tokens that a chat template adds to a message."""


@dataclass(frozen=True)
class Forecast:
    """Low and high estimates for the requests that are still open."""

    prompt_tokens: Range
    completion_tokens: Range
    cost: tuple[float, float] | None
    """In the currency of the prices; None without prices."""
    sample: int
    """Number of answers that it extrapolates from; 0 if it is the possible range."""
    cut: int = 0
    """Of the earlier answers that were looked at, those that were cut off at `max_new_tokens`."""


@dataclass(frozen=True)
class _Answered:
    prompt_bytes: int
    prompt_tokens: int
    completion_tokens: int
    cut: bool


def forecast_calls(
    requests: Mapping[str, Asked],
    directory: Path,
    inference: SamplingConfig,
    *,
    keys_known: bool,
    most: int | None = None,
) -> dict[str, Any]:
    """The fields of an `Estimate` that concern requests.

    Args:
        requests: key → chat.
        directory: the stage's, which may hold answers of an earlier attempt.
        keys_known: whether the keys are those that a run would use; if not, finished requests can only be counted.
        most: upper bound on the number of requests, if there may be more like these; scales the high estimates.
    """
    prices = inference.token_prices if isinstance(inference, ApiInferenceConfig) else None
    cache = in_use() if keys_known else None
    with contextlib.ExitStack() as stack:
        journal = None
        done: set[str] = set()
        if (directory / JOURNAL).exists():
            journal = stack.enter_context(Journal(directory / JOURNAL, note=worth_another_try))
            finished = [key for key in journal if not journal.note(key)]
            done = set(finished) & requests.keys() if keys_known else set(list(requests)[: len(finished)])
        if cache is not None:
            # They cost nothing.
            done |= {key for key in requests if key in cache}
        ahead = forecast(requests, done, journal, inference.max_new_tokens, prices, keys_known=keys_known)
    calls = len(requests) - len(done)
    factor = max(1.0, most / calls) if most is not None and calls else 1.0
    return {
        "done_rows": len(done),
        "calls": calls,
        "prompt_tokens": (ahead.prompt_tokens[0], int(ahead.prompt_tokens[1] * factor)),
        "completion_tokens": (ahead.completion_tokens[0], int(ahead.completion_tokens[1] * factor)),
        "cost": None if ahead.cost is None else (ahead.cost[0], ahead.cost[1] * factor),
        "from_answers": ahead.sample or None,
        "cut_answers": ahead.cut or None,
    }


def forecast(
    requests: Mapping[str, Asked],
    done: Collection[str],
    journal: Journal | None,
    longest: int,
    prices: PricesConfig | None,
    *,
    keys_known: bool = True,
) -> Forecast:
    """Forecast the requests that are not done.

    Args:
        requests: key → chat, of all requests.
        done: keys of those that will not be sent.
        journal: answers of an earlier run.
        longest: most tokens of an answer.
        prices: per million tokens, if known.
        keys_known: whether the keys are those that a run would use.
    """
    ahead = [chat for key, chat in requests.items() if key not in done]
    open_bytes = list(map(_size, ahead))
    sample = _sample(requests, journal, keys_known=keys_known) if journal is not None else []
    cut = sum(answer.cut for answer in sample)
    if len(sample) < MIN_SAMPLE:
        sample = []
    prompt = _prompt_range(open_bytes, sum(len(Chat.of(chat).messages) for chat in ahead), sample)
    completion = _completion_range(len(open_bytes), longest, sample)
    cost = None
    if prices is not None:
        low, high = (
            (tokens_in * prices.input + tokens_out * prices.output) / 1_000_000
            for tokens_in, tokens_out in zip(prompt, completion, strict=True)
        )
        if prices.cached_input is not None:
            low -= prompt[0] * max(0.0, prices.input - prices.cached_input) / 1_000_000
        cost = (low, high)
    return Forecast(prompt, completion, cost, len(sample), cut)


def _sample(requests: Mapping[str, Asked], journal: Journal, *, keys_known: bool) -> list[_Answered]:
    """Answers whose tokens the teacher counted, at most `_LARGEST_SAMPLE`."""
    found: list[_Answered] = []
    usual = round(fmean(map(_size, requests.values()))) if requests else 0
    for key in requests if keys_known else journal:
        if len(found) == _LARGEST_SAMPLE:
            break
        if key not in journal:
            continue
        outcome = journalled_outcome(journal, key)
        if isinstance(outcome, Completion) and is_counted(outcome):
            size = _size(requests[key]) if key in requests else usual
            cut = outcome.finish_reason == CUT
            found.append(_Answered(size, outcome.prompt_tokens, outcome.completion_tokens, cut))
    return found


def _prompt_range(sizes: Sequence[int], messages: int, sample: Sequence[_Answered]) -> Range:
    total = sum(sizes)
    if not sample:
        dense, plain = _BYTES_A_TOKEN
        return math.floor(total / plain) + messages * _FRAME[0], math.ceil(total / dense) + messages * _FRAME[1]
    ratios = [answer.prompt_tokens / max(1, answer.prompt_bytes) for answer in sample]
    low, high = _mean_range(ratios)
    return math.floor(total * low), math.ceil(total * high)


def _completion_range(count: int, longest: int, sample: Sequence[_Answered]) -> Range:
    if not sample:
        return count, count * longest
    low, high = _mean_range([answer.completion_tokens for answer in sample])
    return math.floor(count * min(low, longest)), math.ceil(count * min(high, longest))


def _mean_range(values: Sequence[float]) -> tuple[float, float]:
    """The sample's mean ± `_DEVIATIONS` standard errors."""
    error = _DEVIATIONS * stdev(values) / math.sqrt(len(values))
    middle = fmean(values)
    return max(0.0, middle - error), middle + error


def _size(chat: Asked) -> int:
    """Bytes of everything that a chat says."""
    whole = Chat.of(chat)
    return chat_bytes(whole.messages, whole.tools)
