"""A chat template: what it reads, and its rendering, which is transformers' own."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from easydistill.errors import DataError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names under which templates read an assistant's thoughts."""
CLOCK = "strftime_now"
"""The function through which templates read the date."""

Span = tuple[int, int]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, with which some templates mark what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it per instance)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A node that can be found again, and does nothing.
        return [jinja2.nodes.Scope(body, lineno=lineno)]


def _environment() -> ImmutableSandboxedEnvironment:
    """An environment that reads what transformers' reads, for looking at a template without rendering it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = json.dumps
    return environment


class Template:
    """A chat template.

    Raises:
        DataError: it is not valid Jinja.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        environment = _environment()
        try:
            tree = environment.parse(source)
            environment.compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        """The variables that it reads."""
        self.has_marks = any(True for _ in tree.find_all(jinja2.nodes.Scope))
        """Whether it marks what the assistant writes with `{% generation %}`."""
        self.single_turn = "message" in self.variables and "messages" not in self.variables
        """Whether this is an EasyDistill 1 template: one instruction, one output."""
        self.shows_date = CLOCK in self.variables
        read = set(_keys(tree))
        self.thoughts = next((name for name in THOUGHTS if name in read), THOUGHTS[0])
        """The key of a message under which it reads thoughts."""

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The text of messages as the template reads them.

        Raises:
            DataError: the template refuses them.
        """
        return self._render(messages, variables)[0]

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """The text, and the character spans that the template marks as the assistant's."""
        return self._render(messages, variables, return_assistant_tokens_mask=True)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], **options: Any
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[list(messages)], chat_template=self.source, **options, **variables
            )
        except Exception as error:
            # A template is user code and can fail in any way.
            raise DataError(f"the chat template refuses this chat: {error}") from error
        return texts[0], [tuple(mark) for mark in marks[0]] if marks else []


def _keys(tree: jinja2.nodes.Template) -> Iterator[str]:
    """Every name by which a template reads a field of something."""
    for attribute in tree.find_all(jinja2.nodes.Getattr):
        yield attribute.attr
    for item in tree.find_all(jinja2.nodes.Getitem):
        if isinstance(item.arg, jinja2.nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr) and call.node.attr == "get" and call.args:
            name = call.args[0]
            if isinstance(name, jinja2.nodes.Const) and isinstance(name.value, str):
                yield name.value


class Clock:
    """The date that a template writes: the same throughout a run."""

    def __init__(self, date: datetime.date | None) -> None:
        self._date = date or datetime.datetime.now()

    def __call__(self, form: str) -> str:
        return self._date.strftime(form)


def named_templates(tokenizer: Any, template: str | None) -> dict[str, Template]:
    """The template that is given, or else the tokenizer's own, by name: `default` and, of some models, `tool_use`.

    Raises:
        DataError: there is none, or it is not valid Jinja.
    """
    own = template or getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping) and not own.keys() & {"default", "tool_use"}:
        raise DataError(
            f"the model has several chat templates and none is its default: {', '.join(sorted(own))}\n"
            "    → set dataset.template to a file with the one that is meant"
        )
    if not own:
        raise DataError(
            "the model has no chat template of its own\n"
            "    → set dataset.template to a chat-template Jinja file (an instruct model of the family has one)"
        )
    sources = {"default": own} if isinstance(own, str) else {name: str(text) for name, text in own.items()}
    return {name: Template(text) for name, text in sources.items() if name in ("default", "tool_use")}
