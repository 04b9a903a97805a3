"""A saved student's template has the variables that it was trained with, and renders every chat as training did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import chat_templates

from easydistill.data.chat import ChatRenderer
from easydistill.data.chat.defaults import with_defaults
from easydistill.data.chat.templates import Template
from easydistill.data.messages import Chat, Message
from easydistill.errors import DataError

VARIABLES: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"preserve_thinking": True, "thinking": True, "reasoning_effort": "high", "builtin_tools": ["a", "b"]},
    {"date_string": 'the "1st" \\ \n 😀', "none": None},
]
USER: Message = {"role": "user", "content": "Why?"}


CHATS = [chat_templates.CHATS[name] for name in ("system and two turns", "a call with thoughts")]


def texts(source: str, tokenizer: Any, variables: dict[str, Any], chats: Sequence[Chat] = CHATS) -> list[str | None]:
    """Every chat, as a whole and as a prompt; None for those that the template refuses."""
    renderer = ChatRenderer(tokenizer, frozenset(), source, template_kwargs=variables)
    found: list[str | None] = []
    for chat in chats:
        for prompt in (False, True):
            try:
                found.append(renderer.text(chat, add_generation_prompt=prompt))
            except DataError:
                found.append(None)
    return found


def reading(variables: dict[str, Any]) -> list[str]:
    """The templates that read one of these variables."""
    return [name for name in chat_templates.names() if any(key in chat_templates.source(name) for key in variables)]


@pytest.mark.parametrize(
    ("name", "variables"), [(name, variables) for variables in VARIABLES for name in reading(variables)]
)
def test_every_chat_is_rendered_as_with_the_variables(name: str, variables: dict[str, Any]) -> None:
    source, tokenizer = chat_templates.source(name), chat_templates.tokenizer(name)
    made = with_defaults(source, variables)
    assert Template(made).has_marks == Template(source).has_marks
    assert texts(made, tokenizer, {}) == texts(source, tokenizer, variables)
    # A row's own variables, and those of whoever renders, still win.
    other = dict.fromkeys(variables, False)
    assert texts(made, tokenizer, other) == texts(source, tokenizer, other)


def test_a_template_that_reads_none_of_them_stays_as_it_is() -> None:
    assert with_defaults(chat_templates.source("phi3"), VARIABLES[0]) == chat_templates.source("phi3")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
STARTS = ("", "\n", "  \n", " ", "\n  {%- if x %}{% endif %}", "  {% if x %}{% endif %}\n", "{{ bos_token }}\n")


@settings(max_examples=25, deadline=None)
@given(value=JSON, start=st.sampled_from(STARTS))
def test_any_json_value_is_the_same_value_in_any_template(value: Any, start: str) -> None:
    source = start + "{{ x | tojson }}|{% macro m() %}{{ x | tojson }}{% endmacro %}{{ m() }}{{ messages[0].content }}"
    tokenizer = chat_templates.tokenizer("qwen3")
    chat = Chat((USER,))
    made = with_defaults(source, {"x": value})
    assert texts(made, tokenizer, {}, [chat]) == texts(source, tokenizer, {"x": value}, [chat])
    assert texts(made, tokenizer, {"x": 1}, [chat]) == texts(source, tokenizer, {"x": 1}, [chat])


def test_what_is_written_already_is_not_written_again() -> None:
    source = chat_templates.source("qwen3")
    once = with_defaults(source, {"enable_thinking": False})
    assert with_defaults(once, {"enable_thinking": False}) == once
    tokenizer = chat_templates.tokenizer("qwen3")
    # A student that is trained further with another value.
    twice = with_defaults(once, {"enable_thinking": True})
    assert texts(twice, tokenizer, {}) == texts(source, tokenizer, {"enable_thinking": True})


def test_transformers_renders_it_with_its_marks() -> None:
    tokenizer = chat_templates.tokenizer("qwen3_training")
    source = chat_templates.source("qwen3_training")
    messages = [USER, {"role": "assistant", "content": "Because."}]
    options: dict[str, Any] = {"return_assistant_tokens_mask": True, "return_dict": True}
    wanted = tokenizer.apply_chat_template(messages, chat_template=source, enable_thinking=False, **options)
    made = with_defaults(source, {"enable_thinking": False})
    assert tokenizer.apply_chat_template(messages, chat_template=made, **options) == wanted
