"""Which form of calls a chat template writes: that which reads back a known call rendered by the template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from easydistill.data.answers import MalformedCall, split_thoughts, tool_call
from easydistill.data.messages import Chat, Message, Tool
from easydistill.errors import DataError
from easydistill.teachers.parsing.expression_forms import EXPRESSION_FORMS
from easydistill.teachers.parsing.form import PROBE, Form, Region, expect, read_json, skip_space
from easydistill.teachers.parsing.json_forms import JSON_FORMS
from easydistill.teachers.parsing.tag_forms import TAG_FORMS

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer

FORMS: tuple[Form, ...] = (*JSON_FORMS, *TAG_FORMS, *EXPRESSION_FORMS)
"""All forms, in the order in which they are tried."""
_NAME, _ARGUMENTS = PROBE, {"topic": "rivers of Asia", "most": 3}
PROBE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Looks something up.",
        "parameters": {
            "type": "object",
            "properties": {
                "topic": {"type": "string", "description": "About what."},
                "most": {"type": "integer", "description": "How many."},
            },
            "required": ["topic"],
        },
    },
}
_ASKED = "Which rivers are there?"
_PROMPT: tuple[Message, ...] = ({"role": "user", "content": _ASKED},)
# Nine letters and digits: Mistral's templates accept no other id.
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "name": _NAME, "arguments": _ARGUMENTS}],
}
_SAID = "I shall see."
_SAYING_CALL: Message = {**_CALL, "content": _SAID}
_RESULT: Message = {"role": "tool", "content": "[]", "tool_call_id": "call00001", "name": _NAME}


def shows_tools(renderer: ChatRenderer) -> bool:
    """Whether the template tells the model of its tools."""
    try:
        return _NAME in renderer.text(Chat(_PROMPT, (PROBE_TOOL,)), add_generation_prompt=True)
    except DataError:
        return False


def form_of(renderer: ChatRenderer) -> Form | None:
    """The form in which the template writes calls; None if it writes none that can be read back."""
    for written in _written_calls(renderer, _CALL):
        fitting = next((form for form in FORMS if _reads(form, written)), None) or _induced(written)
        if fitting is not None:
            behind = any(said.find(_SAID) > said.find(_NAME) for said in _written_calls(renderer, _SAYING_CALL))
            return replace(fitting, lead=_lead(fitting, written), tail=_tail(fitting, written), text_behind=behind)
    return _marked(renderer)


def _lead(form: Form, written: str) -> str:
    """What the template writes before the call, thoughts aside."""
    return split_thoughts(written[: form.find(written)])[1].strip()


def _tail(form: Form, written: str) -> str:
    """What the template writes behind the call."""
    at = form.find(written)
    while written.startswith(form.marks, at):
        _, at = form.read(written, at, (PROBE_TOOL,))
        at = skip_space(written, at)
    return written[at:].strip()


def _marked(renderer: ChatRenderer) -> Form | None:
    """The form whose mark is a token of the model, where the template writes no calls; None if that does not decide."""
    known = renderer.tokenizer.get_vocab()
    fitting = [form for form in FORMS if any(len(mark) > 1 and mark in known for mark in form.marks)]
    return fitting[0] if len(fitting) == 1 else None


def _written_calls(renderer: ChatRenderer, call: Message) -> Iterator[str]:
    """A message with a call as the template writes it: as the last one, and before a result."""
    ends = [renderer.tokenizer.decode([end]) for end in sorted(renderer.eos_ids)]
    for messages in ((*_PROMPT, call), (*_PROMPT, call, _RESULT)):
        chat = Chat(messages, (PROBE_TOOL,))
        try:
            prompt = renderer.text(chat.with_messages(_PROMPT), add_generation_prompt=True)
            whole = renderer.text(chat, add_generation_prompt=False)
        except DataError:
            continue
        asked = whole.rfind(_ASKED) + len(_ASKED)
        answer = whole[len(prompt) :] if whole.startswith(prompt) else whole[asked:]
        if _NAME in answer:
            yield _until_end(answer, ends)


def _until_end(answer: str, ends: Sequence[str]) -> str:
    """The answer up to the end token behind its call."""
    call = answer.rfind(_NAME)
    stops = [at for end in ends if end and (at := answer.find(end, call)) >= 0]
    return answer[: min(stops)] if stops else answer


def _reads(form: Form, written: str) -> bool:
    try:
        _, calls = form.parse(written, (PROBE_TOOL,), strict=False)
    except MalformedCall:
        return False
    return [(call["name"], call["arguments"]) for call in calls] == [(_NAME, _ARGUMENTS)]


def _induced(written: str) -> Form | None:
    """A form made from an example: what stands before the name, between it and JSON arguments, and behind them."""
    name = written.find(_NAME)
    begin = written.find("{", name + len(_NAME))
    if begin < 0:
        return None
    try:
        arguments, behind = read_json(written, begin)
    except MalformedCall:
        return None
    # The mark is what stands before the name in its line; a word alone would be found in any text.
    start = split_thoughts(written[:name])[1].lstrip().rpartition("\n")[2]
    if arguments != _ARGUMENTS or not re.search(r"[^\w\s]", start):
        return None
    between, end = written[name + len(_NAME) : begin], written[behind:].strip()

    def read(text: str, at: int, tools: Sequence[Tool]) -> Region:
        at += len(start)
        stop = text.find(between, at) if between else text.find("{", at)
        if stop < 0:
            raise MalformedCall(f"a call has no arguments: {text[at : at + 80]!r}")
        value, behind = read_json(text, stop + len(between))
        return [tool_call(text[at:stop], value)], expect(text.rstrip(), behind, end) if end else behind

    form = Form("of the template", (start,), read)
    return form if _reads(form, written) else None
