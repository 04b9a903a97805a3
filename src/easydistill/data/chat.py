"""The one place that renders chats: template → text → token ids → mask of the tokens to learn.

What enters: messages. What leaves: token ids, and a mask that is true exactly on what the assistant would have
to generate: its text and the token that ends its turn, never the prompt or anything after the end token.

The prompt and each answer are tokenised separately, as in generation: the prompt's tokens are fixed before the
first answer token is sampled, so no token may span the boundary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from easydistill.data.messages import Chat, HasChat, Message, template_message
from easydistill.errors import DataError

_OTHER_ANSWER = "<<another answer>>"


@dataclass(frozen=True)
class Rendered:
    """A tokenised chat.

    `mask[t]` says whether token t is learned; row t−1 of the model's output predicts it.
    """

    ids: list[int]
    mask: list[bool]
    truncated: bool = False

    @property
    def trained_tokens(self) -> int:
        return sum(self.mask)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, with which some templates mark what the assistant writes.

    The tags are ignored: spans are found by rendering, for every template alike.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it per instance)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    # Write JSON as transformers does; jinja2's own filter escapes it for HTML.
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment


class ChatRenderer:
    """Renders chats for one tokenizer with one template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        eos_ids: all tokens that end a turn for this model (several models have more than one).
        template: text of a chat template that replaces the tokenizer's own. An EasyDistill 1 template, which
            uses `message.content` and `message.output`, is recognised.

    Raises:
        DataError: there is no template, or it is not valid Jinja.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids or frozenset({tokenizer.eos_token_id} - {None})
        self.template = template or getattr(tokenizer, "chat_template", None)
        if isinstance(self.template, dict):
            self.template = self.template.get("default")
        if not self.template:
            raise DataError(
                "the model has no chat template of its own\n"
                "    → set dataset.template to a chat-template Jinja file (an instruct model of the family has one)"
            )
        environment = _environment()
        try:
            variables = jinja2.meta.find_undeclared_variables(environment.parse(self.template))
            self._compiled = environment.from_string(self.template)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        self.single_turn = "message" in variables and "messages" not in variables
        """Whether this is an EasyDistill 1 template: one instruction, one output."""

    @classmethod
    def from_file(cls, tokenizer: Any, eos_ids: frozenset[int], path: str | None) -> ChatRenderer:
        """The renderer with the template in `path`, or with the tokenizer's own if `path` is None."""
        if path is None:
            return cls(tokenizer, eos_ids)
        try:
            return cls(tokenizer, eos_ids, Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"dataset.template: {path} cannot be read: {error}") from None

    # --- text -------------------------------------------------------------------------------------------

    def text(self, chat: HasChat | Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat as the template renders it."""
        chat = Chat.of(chat)
        if self.single_turn:
            return self._single_turn_text(chat.messages, add_generation_prompt)
        special = {
            name: str(value)
            for name, value in getattr(self.tokenizer, "special_tokens_map", {}).items()
            if isinstance(value, str)
        }
        return self._render(
            messages=[template_message(message) for message in chat.messages],
            add_generation_prompt=add_generation_prompt,
            tools=list(chat.tools) or None,
            documents=None,
            **{**special, **chat.template_kwargs},
        )

    def _render(self, **variables: Any) -> str:
        try:
            return self._compiled.render(**variables)
        except Exception as error:
            # A template is user code and can fail in any way.
            raise DataError(f"the chat template refuses this chat: {error}") from error

    def _single_turn_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        answered = messages[-1]["role"] == "assistant"
        prompt = messages[:-1] if answered else messages
        # These templates have one instruction and one output; system text goes before the instruction.
        content = "\n\n".join(message["content"] for message in prompt)
        message = {"content": content, "output": messages[-1]["content"] if answered else ""}
        return self._render(
            message=message,
            add_generation_prompt=add_generation_prompt and not answered,
            add_output=answered,
        )

    # --- tokens -----------------------------------------------------------------------------------------

    def _tokenize(self, text: str) -> list[int]:
        # The template itself writes BOS if the model expects one; adding special tokens would double it.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt_ids(self, chat: HasChat | Sequence[Message]) -> list[int]:
        """Tokens of a prompt, up to the point where the assistant starts to write."""
        return self._tokenize(self.text(chat, add_generation_prompt=True))

    def chat_ids(self, chat: HasChat | Sequence[Message]) -> list[int]:
        """Tokens of a whole chat, as `apply_chat_template` gives them: what a reward model reads."""
        return self._tokenize(self.text(chat, add_generation_prompt=False))

    @cached_property
    def _splits_cleanly(self) -> bool:
        """Whether tokenising pieces separately preserves their text (sentencepiece-style tokenizers add a space)."""
        pieces = ["a b:\n", "Hello, it is"]
        joined = [token for piece in pieces for token in self._tokenize(piece)]
        return bool(self.tokenizer.decode(joined) == "".join(pieces))

    def render(self, chat: HasChat | Sequence[Message], max_length: int | None = None) -> Rendered:
        """Tokenise a chat and mark the assistant's tokens.

        A chat longer than `max_length` is cut off at the end.

        Raises:
            DataError: the template refuses the chat, or does not show the final answer unchanged.
        """
        text, spans = self._spans(Chat.of(chat))
        ids, mask = self._by_pieces(text, spans) if self._splits_cleanly else self._by_offsets(text, spans)
        if max_length is not None and len(ids) > max_length:
            return Rendered(ids[:max_length], mask[:max_length], truncated=True)
        return Rendered(ids, mask)

    def _spans(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """The chat's text, and the character spans in it that the assistant writes."""
        messages = chat.messages
        text = self.text(chat, add_generation_prompt=False)
        if self.single_turn:
            prompt = self.text(messages[:-1], add_generation_prompt=True)
            spans = [(prompt, text)]
        else:
            # A template may render earlier answers differently (Qwen3 drops their reasoning). What is not rendered
            # as it was generated cannot be learned: such turns are only context. The final one must match.
            spans = [
                (
                    self.text(chat.with_messages(messages[:index]), add_generation_prompt=True),
                    self.text(chat.with_messages(messages[: index + 1]), add_generation_prompt=False),
                )
                for index, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
        found = [
            (len(prompt), len(through))
            for prompt, through in spans
            if through.startswith(prompt) and text.startswith(through)
        ]
        if not found or found[-1][1] != len(text):
            found = [*found, self._answer_span(chat, text)]
        return text, found

    def _answer_span(self, chat: Chat, text: str) -> tuple[int, int]:
        """The final answer's span if the generation prompt is not a prefix of the rendered chat.

        Reasoning models' templates open a `<think>` in the generation prompt, which a rendered answer without
        reasoning lacks. The span then starts with the answer's own text. Rendering another answer in its place finds
        it; searching for the text could hit other places, such as "end" inside "<|im_end|>".
        """
        *context, answer = chat.messages
        if answer["role"] == "assistant":
            other: Message = {**answer, "content": _OTHER_ANSWER}
            changed = chat.with_messages([*context, other])
            before, found, _ = self.text(changed, add_generation_prompt=False).partition(_OTHER_ANSWER)
            if found and text.startswith(before) and text[len(before) :].lstrip().startswith(answer["content"].strip()):
                return len(before), len(text)
        raise DataError("the chat template does not show the final answer unchanged")

    def _by_pieces(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        at = 0
        for start, end in spans:
            for piece, assistant in ((text[at:start], False), (text[start:end], True)):
                tokens = self._tokenize(piece) if piece else []
                ids += tokens
                mask += self._until_end_of_turn(tokens) if assistant else [False] * len(tokens)
            at = end
        tail = self._tokenize(text[at:]) if at < len(text) else []
        return self._closed(ids + tail, mask + [False] * len(tail))

    def _by_offsets(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        mask = [False] * len(ids)
        for start, end in spans:
            inside = [t for t, (_, stop) in enumerate(encoded["offset_mapping"]) if start < stop <= end]
            kept = self._until_end_of_turn([ids[t] for t in inside])
            for t, keep in zip(inside, kept, strict=True):
                mask[t] = keep
        return self._closed(ids, mask)

    def _until_end_of_turn(self, tokens: list[int]) -> list[bool]:
        """True up to and including the first end token; nothing after it is ever generated."""
        last = next((t for t, token in enumerate(tokens) if token in self.eos_ids), len(tokens) - 1)
        return [t <= last for t in range(len(tokens))]

    def _closed(self, ids: list[int], mask: list[bool]) -> tuple[list[int], list[bool]]:
        """Append the end token if the template writes none after the final answer: the model must learn to stop."""
        last = max((t for t, on in enumerate(mask) if on), default=None)
        if last is None or ids[last] in self.eos_ids or self.tokenizer.eos_token_id is None:
            return ids, mask
        return [*ids[: last + 1], self.tokenizer.eos_token_id], [*mask[: last + 1], True]
