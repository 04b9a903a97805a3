r"""Whether an answer has a required form: 1 or 0.

- `pattern`: a regular expression that must match the whole text; `.` also matches line breaks.
- `style`: `boxed`, a final answer in `\boxed{…}`; `think`, `<think>…</think>` and then an answer, neither of them empty
  and each tag exactly once; `hash`, a last line `#### x`.

A pattern may take exponential time on some texts, and since `re` holds Python's global lock meanwhile, no thread could
stop it. Patterns are therefore matched in a separate process, one for each call, which takes about 30 ms. A text that
takes longer than `seconds` counts as not having the form, and a warning is logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, Unfit
from easydistill.contracts.reward import Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import EasyDistillError
from easydistill.rewards._text import END_OF_THINK, THINK, with_opening
from easydistill.verification.answers import find_answer

LOGGER = logging.getLogger(__name__)
_HASH_LINE = re.compile(r"[ \t]*+####(?!#)[^\n]*\S[^\n]*")
READY = b"ready\n"
_START_SECONDS = 60.0
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The only variables that the process inherits: what Python may need to start."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise Unfit(f"this is not a regular expression: {error}", "see the syntax of Python's `re` module") from None
    return pattern


class Config(RewardConfig):
    """Whether the answer has a required form."""

    identity_name = "reward.format"

    pattern: Annotated[NonEmptyStr, AfterValidator(_compiles)] | None = None
    """A regular expression that must match the whole answer; `.` also matches line breaks."""
    style: Literal["boxed", "think", "hash"] | None = None
    """A predefined form: `\\boxed{…}`; `<think>…</think>` and an answer; `#### x` as the last line."""
    seconds: PositiveFloat = 1.0
    """Maximum time for matching one answer with `pattern`."""

    @model_validator(mode="after")
    def _is_one_form(self) -> Config:
        if (self.pattern is None) == (self.style is None):
            problem = "no form is given" if self.style is None else "pattern and style are both given"
            raise Unfit(problem, 'set one of them, such as "style": "boxed"')
        if self.style is not None and "seconds" in self.model_fields_set:
            raise Unfit("seconds limits the matching of a pattern, and style is given instead", "remove seconds")
        return self


def make(config: Config, context: RewardContext) -> Reward:
    return _Format(config, context.tokenizer)


class _Format:
    def __init__(self, config: Config, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        if self._config.style is not None:
            has = STYLES[self._config.style]
            return [float(has(with_opening(rollout, self._tokenizer))) for rollout in rollouts]
        assert self._config.pattern is not None
        matches = match_all(self._config.pattern, [rollout.text for rollout in rollouts], self._config.seconds)
        unfinished = matches.count(None)
        if unfinished:
            words = "%d of %d answers could not be matched with rewards.format.pattern within %g s each: they get 0"
            LOGGER.warning(words, unfinished, len(matches), self._config.seconds)
        return [float(match is True) for match in matches]

    def close(self) -> None:
        """Nothing to release: processes end with the call that started them."""


def has_box(text: str) -> bool:
    """Whether the final answer is in a box that is closed and not empty."""
    return find_answer(text, ("boxed",)) is not None


def has_thoughts(text: str) -> bool:
    """Whether the text is thoughts followed by an answer."""
    if text.count(THINK) != 1 or text.count(END_OF_THINK) != 1:
        return False
    before, _, rest = text.partition(THINK)
    thoughts, closed, answer = rest.partition(END_OF_THINK)
    return bool(not before.strip() and closed and thoughts.strip() and answer.strip())


def has_hash_line(text: str) -> bool:
    """Whether the last non-empty line is `#### x`."""
    return _HASH_LINE.fullmatch(text.rstrip().rpartition("\n")[2]) is not None


STYLES: dict[str, Callable[[str], bool]] = {"boxed": has_box, "think": has_thoughts, "hash": has_hash_line}


def match_all(pattern: str, texts: Sequence[str], seconds: float) -> list[bool | None]:
    """Whether each text matches a pattern as a whole; None if that exceeded `seconds` or the memory.

    Raises:
        EasyDistillError: the process that matches does not start.
    """
    matches: list[bool | None] = []
    while len(matches) < len(texts):
        matches += _match(pattern, texts[len(matches) :], seconds)
        if len(matches) < len(texts):
            # The process ended at this text, which gets no result; another process continues after it.
            matches.append(None)
    return matches


def _match(pattern: str, texts: Sequence[str], seconds: float) -> list[bool | None]:
    """Like `match_all`, up to the text at which the process ended."""
    request = json.dumps({"pattern": pattern, "seconds": seconds, "texts": list(texts)})
    # Isolated and without installed packages, so that it starts fast and no other module can take part.
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("_pattern_worker.py"))]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    limit = _START_SECONDS + seconds * len(texts)
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired as timeout:
        written = timeout.stdout or b""
    else:
        written = done.stdout
        if not written.startswith(READY):
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise EasyDistillError(f"the process that matches rewards.format.pattern does not start: {last}")
    complete_lines = written[: written.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in complete_lines[1:]]
