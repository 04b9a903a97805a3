"""The log-probabilities of a prompt's tokens in vLLM's answers.

They are `prompt_logprobs` of the first choice (`/completions`), or of the answer itself (`/inference/v1/generate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from easydistill.data.numbers import as_float, usable_logprob
from easydistill.teachers.openai.retry import Fault, Verdict, body_in

NO_LOGPROBS = "no_prompt_logprobs"
_KEY = "prompt_logprobs"


def parsed(content: bytes) -> dict[str, Any]:
    """The body of an answer.

    Raises:
        Fault: it is broken (to be retried), or an error.
    """
    body = body_in(content)
    try:
        choice: Any = body["choices"][0]
        return {_KEY: choice.get(_KEY), **body} if choice.get(_KEY) is not None else body
    except (LookupError, TypeError, AttributeError):
        raise Fault("garbage", "the body holds no choices", Verdict.RETRY) from None


OTHERS = "others"
"""Key of what is listed beside a token: (id, log-probability) of each, most probable first."""


def target_logprobs(content: bytes, ids: Sequence[int], top: int = 0) -> list[dict[str, Any]]:
    """A response's entry for each of tokens 1, 2 … of `ids`: `{"logprob": …, "decoded_token": …}`.

    Args:
        top: how many of the most probable tokens were asked for; if any, they are added as `OTHERS`.

    Raises:
        Fault: the body is broken (to be retried), or has no log-probabilities (not to be retried).
    """
    entries = parsed(content).get(_KEY)
    if entries is None:
        raise Fault(NO_LOGPROBS, "the answer holds no prompt_logprobs", Verdict.REJECT)
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise Fault(NO_LOGPROBS, f"prompt_logprobs is not a list of {len(ids)} tokens", Verdict.REJECT)
    tokens: list[dict[str, Any]] = []
    for entry, token in zip(entries[1:], ids[1:], strict=True):
        found = entry.get(str(token)) if isinstance(entry, dict) else None
        if not isinstance(found, dict) or not _is_logprob(found.get("logprob", "")):
            raise Fault(NO_LOGPROBS, f"prompt_logprobs has no entry for token {token}", Verdict.REJECT)
        beside = {OTHERS: _others(entry, token, top)} if top else {}
        tokens.append({**found, **beside, "logprob": usable_logprob(found["logprob"])})
    return tokens


def _others(entry: dict[str, Any], token: int, top: int) -> list[tuple[int, float]]:
    """What is listed beside a token, without placeholders."""
    found = []
    for name, value in entry.items():
        if not name.isdecimal() or not isinstance(value, dict) or not _is_logprob(value.get("logprob", "")):
            raise Fault(NO_LOGPROBS, f"prompt_logprobs lists {name!r}, which is no token", Verdict.REJECT)
        logprob = usable_logprob(value["logprob"])
        if int(name) != token and not math.isnan(logprob):
            found.append((int(name), logprob))
    if len(entry) < top:
        problem = f"prompt_logprobs lists {len(entry)} tokens in the place of one, and {top} were asked for"
        raise Fault(NO_LOGPROBS, problem, Verdict.REJECT)
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:top]


def _is_logprob(value: Any) -> bool:
    """Whether a value stands where a log-probability does; it may be null, not finite, or a placeholder."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        return False
    number = as_float(value)
    return number is None or number <= 1e-3
