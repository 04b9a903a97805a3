"""A reward that is a plain function, called as TRL's trainers call theirs:

    def brevity(completions, prompts, answer, **columns): return [float, …]

- `completions`: the answers; `prompts`: what they answer; `completion_ids`: the answers' tokens.
- Every field of the rows is an argument of its name, a list with a value for each answer: `answer`, `solution` … The
  function names those that it reads, or takes all as `**columns`; a row that lacks one has None there.
- In the form `conversational`, the default, prompts are lists of messages and completions lists of one message; in the
  form `standard`, prompts are the texts that the student reads, by its template, and completions are texts.
- It returns a number for each answer, or None where it does not apply.
- It may be a coroutine function (`async def`).

Special tokens are left out of texts, as in TRL. `images` gives the images of each prompt as PIL images. TRL's
`trainer_state`, `environments`, `log_extra` and `log_metric` are not given.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, Literal

from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.reward import RewardConfig, RewardContext, Rollout
from easydistill.data.messages import images_of
from easydistill.plain_files import PlainFile, PlainFileError, Reference

EXAMPLE = "def {name}(completions, **columns): return [min(1.0, 80 / len(c[0]['content'])) for c in completions]"
_OURS = ("completions", "prompts", "completion_ids", "images")
_OF_TRAINERS = ("trainer_state", "environments", "log_extra", "log_metric")


class FunctionRewardConfig(RewardConfig):
    """A reward function of a file of the user's."""

    form: Literal["conversational", "standard"] = "conversational"
    """What the function is given: messages, or texts."""


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The reward that a function is.

    Raises:
        PlainFileError: it cannot be called as a reward.
    """
    function = PlainFunction(call, file, reference)
    if "completions" not in function.given and not function.takes_all:
        raise PlainFileError("a reward has a parameter `completions`, the answers, and this function has none")
    for name in _OF_TRAINERS:
        if name in function.required():
            raise PlainFileError(f"`{name}` is not given here", f"remove it, or give it a default: `{name}=None`")
    columns = [name for name in function.given if name not in (*_OURS, *_OF_TRAINERS)]
    function.check_named([*_OURS, *columns], may_wait=True)
    needed = [name for name in columns if name in function.required()]
    return function.module(
        Config=function.config(FunctionRewardConfig),
        make=lambda config, context: FunctionReward(function, config, context),
        check=partial(_missing, needed),
    )


def _missing(needed: Sequence[str], config: RewardConfig, meta: Mapping[str, Any]) -> str | None:
    lacking = [name for name in needed if name not in meta]
    has = f"it has {', '.join(sorted(meta))}" if meta else "it has none beside its chat"
    return f"the row has no field {lacking[0]!r}, which the function reads; {has}" if lacking else None


class FunctionReward:
    """The function, with its settings, as a `Reward`."""

    def __init__(self, function: PlainFunction, config: Any, context: RewardContext) -> None:
        self._function, self._form, self._context = function, config.form, context
        self._settings = function.chosen(config)
        self._loop: _Loop | None = None

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """
        Raises:
            FunctionFailed: the function has, or has returned something else than a number or None for each answer.
        """
        arguments = self._arguments(rollouts) | self._settings
        with self._function.running():
            values = self._function.call(**arguments)
            if inspect.isawaitable(values):
                self._loop = self._loop or _Loop()
                values = self._loop.result_of(values)
        return self._numbers(values, len(rollouts))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()

    def _arguments(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """What the function is called with, by name."""
        columns = {name: None for rollout in rollouts for name in rollout.meta}
        found: dict[str, Any] = {name: [rollout.meta.get(name) for rollout in rollouts] for name in columns}
        if "images" in self._function.given:
            found["images"] = [self._images(rollout) for rollout in rollouts]
        found["completion_ids"] = [list(rollout.answer_ids) for rollout in rollouts]
        found["prompts"] = [self._prompt(rollout) for rollout in rollouts]
        texts = [self._text(rollout.answer_ids, rollout.text) for rollout in rollouts]
        chats = self._form == "conversational"
        found["completions"] = [[{"role": "assistant", "content": text}] for text in texts] if chats else texts
        return found if self._function.takes_all else self._function.taken(found)

    def _prompt(self, rollout: Rollout) -> Any:
        if self._form == "conversational":
            return [dict(message) for message in rollout.prompt]
        text = "\n\n".join(str(message.get("content", "")) for message in rollout.prompt)
        return self._text(rollout.prompt_ids, text, special=True)

    def _text(self, ids: Sequence[int], text: str, *, special: bool = False) -> str:
        """A text from its tokens, or as it is where there are none."""
        if not ids or self._context.tokenizer is None:
            return text
        return str(self._context.tokenizer.decode(list(ids), skip_special_tokens=not special))

    def _images(self, rollout: Rollout) -> list[Any]:
        digests = images_of(*rollout.prompt)
        if not digests:
            return []
        from PIL import Image

        assert self._context.images is not None, "rows with images have a store of them"
        return [Image.open(self._context.images(digest)) for digest in digests]

    def _numbers(self, values: Any, count: int) -> list[float | None]:
        if hasattr(values, "tolist"):
            values = values.tolist()
        if not isinstance(values, list | tuple) or len(values) != count:
            what = f"{len(values)} values" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            raise self._function.wrong(
                f"returned {what} for {count} completions: a list with a number for each is needed"
            )
        return [None if value is None else self._number(value) for value in values]

    def _number(self, value: Any) -> float:
        if not isinstance(value, str):
            with suppress(TypeError, ValueError, RuntimeError):
                return float(value)
        raise self._function.wrong(f"returned {value!r}, which is no number")


class _Loop:
    """An event loop in a thread of its own: the caller's may have one that is running, as notebooks have."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="reward")
        self._thread.start()

    def result_of(self, value: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await value

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
