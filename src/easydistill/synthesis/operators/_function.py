"""An operator that is a plain function of one row:

    def shorter(row): return row if len(row["messages"][-1]["content"]) < 400 else None

    def titled(row):
        title = yield "Give this a title: " + row["messages"][0]["content"]
        return {**row, "title": title}

A row is a dict: `id`, `messages`, the row's other fields, and `tools` if it has some. The function returns one row, a
list of rows, or None for a row that is to be left out (reason `dropped`); `Unusable(reason, detail)` of
`easydistill.synthesis.replies`, raised, gives another reason.

A generator function asks the teacher: it yields a text, or a list of messages, and gets the reply as a text; it may
yield several at once as a tuple, and gets a list. A row whose question gets no usable reply is rejected. The function
must ask the same when it is run again: that is how a run resumes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import Any

from easydistill.config.base import Section
from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps, each
from easydistill.data.reading import chat_of
from easydistill.data.records import Rejection, Sample
from easydistill.data.row_files import MalformedRow
from easydistill.plain_files import PlainFile, PlainFileError, Reference
from easydistill.synthesis.replies import Unusable, gather, rejection, text_of

EXAMPLE = "def {name}(row): return row if len(row['messages']) > 1 else None"
DROPPED = "dropped"
_KWARGS = "chat_template_kwargs"


class FunctionOperatorConfig(Section):
    """An operator function of a file of the user's, which asks no model."""


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The operator that a function is.

    Raises:
        PlainFileError: it cannot be called as an operator.
    """
    function = PlainFunction(call, file, reference)
    function.check_named(("row",))
    if "row" not in function.given:
        raise PlainFileError("an operator has a parameter `row`, and this function has none")
    asks = inspect.isgeneratorfunction(function.written)

    def run(config: Section, rows: Sequence[Sample], tools: Any) -> Steps[Result]:
        def one(row: Sample) -> Steps[list[Sample | Rejection]]:
            found = yield from _of_row(function, row, function.chosen(config))
            return found

        several = yield from each(rows, one)
        return gather(item for found in several for item in found)

    return function.module(
        Config=function.config(OperatorConfig if asks else FunctionOperatorConfig),
        REASONS=(DROPPED, *getattr(file.module, "REASONS", ())),
        run=run,
    )


def _of_row(function: PlainFunction, row: Sample, settings: dict[str, Any]) -> Steps[list[Sample | Rejection]]:
    """What the function makes of a row."""
    replies: list[Reply] = []
    stage = function.reference.attribute
    try:
        try:
            returned = function.call(row=as_dict(row), **settings)
            if inspect.isgenerator(returned):
                if not inspect.isgeneratorfunction(function.written):
                    raise TypeError("it returned a generator; a function that asks the teacher has `yield` itself")
                returned = yield from _asked(function, returned, replies)
        except (Unusable, GeneratorExit):
            raise
        except (Exception, SystemExit) as error:
            raise function.failed(error) from error
        if returned is None or returned == []:
            raise Unusable(DROPPED, f"{stage} returned {returned}")
    except Unusable as problem:
        return [rejection(row.id, stage, problem, *replies)]
    several = returned if isinstance(returned, list) else [returned]
    return [_sample(function, made, row, number if len(several) > 1 else 0) for number, made in enumerate(several, 1)]


def _asked(function: PlainFunction, steps: Generator[Any, Any, Any], replies: list[Reply]) -> Steps[Any]:
    """Run a generator of the user's; returns what it returns. The replies that it was given are added to `replies`."""
    try:
        wanted = next(steps)
        while True:
            several = wanted if isinstance(wanted, tuple) else (wanted,)
            answered = yield [_ask(function, one) for one in several]
            replies.extend(answered)
            texts = [text_of(reply) for reply in answered]
            wanted = steps.send(texts if isinstance(wanted, tuple) else texts[0])
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def _ask(function: PlainFunction, wanted: Any) -> Ask:
    if isinstance(wanted, str):
        return Ask(({"role": "user", "content": wanted},))
    if isinstance(wanted, list) and wanted and all(isinstance(each, dict) and "role" in each for each in wanted):
        return Ask(tuple(chat_of({"messages": wanted}).messages))
    raise function.wrong(f"yielded {wanted!r:.60}, and a question is a text or a list of messages")


def as_dict(row: Sample) -> dict[str, Any]:
    """A row as functions see it; nothing of it is shared with the row."""
    more: dict[str, Any] = {"tools": list(row.tools)} if row.tools else {}
    if row.template_kwargs:
        more[_KWARGS] = dict(row.template_kwargs)
    return {**row.meta, **more, "id": row.id, "messages": [dict(message) for message in row.messages]}


def _sample(function: PlainFunction, made: Any, row: Sample, number: int) -> Sample:
    """A row that the function made of another one; `number` tells several apart, from 1."""
    if not isinstance(made, dict):
        raise function.wrong(
            f"returned a {type(made).__name__}, and a row is a dict, such as the one that it was given"
        )
    try:
        chat = chat_of({name: value for name, value in made.items() if name != "id"})
    except MalformedRow as error:
        raise function.wrong(f"made a row that cannot be read: {error}") from error
    identity = made.get("id", row.id)
    if number and identity == row.id:
        identity = f"{row.id}-{number}"
    return Sample(
        str(identity), tuple(chat.messages), chat.rest, tools=tuple(chat.tools), template_kwargs=chat.template_kwargs
    )
