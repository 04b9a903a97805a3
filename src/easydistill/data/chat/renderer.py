"""Chats → text, token ids, and the mask of the tokens to learn.

The prompt and each answer are tokenised separately, as in generation: the prompt's tokens are fixed before the first
answer token is sampled, so no token may span the boundary.
"""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from easydistill.config.dataset import RESERVED
from easydistill.data.answers import split_thoughts
from easydistill.data.chat.images import Expander, check_images, expanded, refuse_cut
from easydistill.data.chat.masks import Masked, Pieces
from easydistill.data.chat.rendered import Rendered, Shown
from easydistill.data.chat.shown import TURN, Missing, missing_parts, refusal
from easydistill.data.chat.spelling import Spelling, calling_spelling, plain_spelling
from easydistill.data.chat.templates import CLOCK, Clock, Template, named_templates
from easydistill.data.chat.turns import TurnFinder, Turns
from easydistill.data.messages import Chat, HasChat, Message, images_of, is_learned, text_of, with_text
from easydistill.errors import DataError

_BATCH = 128
_AHEAD = 3
"""Batches on their way through the tokenizer: one at work, one that waits for it, one that waits for the caller."""
_NOT_FOUND = (
    "the chat template does not show the final answer unchanged, or shows it again elsewhere\n"
    "    → set dataset.template to a copy of it in which {% generation %} and {% endgeneration %} stand around what "
    "the assistant writes, or to a template that shows an answer once"
)


class ChatRenderer:
    """Renders chats for one tokenizer with one template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        eos_ids: all tokens that end a turn for this model (several models have more than one).
        template: text of a chat template that replaces the tokenizer's own. An EasyDistill 1 template, which
            uses `message.content` and `message.output`, is recognised.
        template_kwargs: variables of the template; those of a chat itself win.
        date: what the template's clock shows; by default the present.
        thoughts: `inline` writes an assistant's thoughts into its text before a template sees them, `drop` leaves them
            out, None gives them to the template as they are.
        images: of a model that sees images: writes what it reads of them. Without it, chats with images are refused.

    Raises:
        DataError: there is no template, or it is not valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: frozenset[int],
        template: str | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
        thoughts: str | None = None,
        images: Expander | None = None,
    ) -> None:
        self.images = images
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids or frozenset({tokenizer.eos_token_id} - {None})
        self._templates = named_templates(tokenizer, template)
        first = self._templates.get("default") or next(iter(self._templates.values()))
        self.template = first.source
        self.single_turn = first.single_turn
        """Whether this is an EasyDistill 1 template: one instruction, one output."""
        self.shows_date = any(each.shows_date for each in self._templates.values())
        """Whether the text depends on the date."""
        self._thoughts = thoughts
        self._variables = {
            **getattr(tokenizer, "special_tokens_map", {}),
            CLOCK: Clock(date),
            **(template_kwargs or {}),
        }
        self._spellings: dict[tuple[str, bool], Spelling] = {}

    @classmethod
    def from_file(
        cls,
        tokenizer: Any,
        eos_ids: frozenset[int],
        path: str | None,
        template_kwargs: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
        thoughts: str | None = None,
        images: Expander | None = None,
    ) -> ChatRenderer:
        """The renderer with the template in `path`, or with the tokenizer's own if `path` is None."""
        try:
            text = None if path is None else Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"dataset.template: {path} cannot be read: {error}") from None
        return cls(
            tokenizer, eos_ids, text, template_kwargs=template_kwargs, date=date, thoughts=thoughts, images=images
        )

    # --- text -------------------------------------------------------------------------------------------

    def text(self, chat: HasChat | Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat as the template renders it: what transformers' `apply_chat_template` gives. An image is one mark."""
        return self._text(self._prepared(chat), add_generation_prompt)

    def _text(self, chat: Chat, add_generation_prompt: bool) -> str:
        if self.single_turn:
            return self._single_turn_text(chat, add_generation_prompt)
        template = self._template(chat)
        return template.render(self._spelled(template, chat), self._given(chat, add_generation_prompt))

    def _template(self, chat: Chat) -> Template:
        name = "tool_use" if chat.tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise DataError("the model has a chat template for tools only, and this chat has none")
        return self._templates[name]

    def _given(self, chat: Chat, add_generation_prompt: bool) -> dict[str, Any]:
        if taken := RESERVED & chat.template_kwargs.keys():
            raise DataError(f"a row cannot set the chat template's variable {', '.join(sorted(taken))}")
        return {
            **self._variables,
            **chat.template_kwargs,
            "tools": list(chat.tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def _spelled(self, template: Template, chat: Chat) -> list[dict[str, Any]]:
        calling = any(message.get("tool_calls") for message in chat.messages)
        return self._spelling(template, calling).of(chat.messages)

    def _spelling(self, template: Template, calling: bool) -> Spelling:
        key = (template.source, calling)
        if key not in self._spellings:
            self._spellings[key] = (
                calling_spelling(template, self._spelling(template, False), self._variables)
                if calling
                else plain_spelling(template, self._variables)
            )
        return self._spellings[key]

    def _prepared(self, chat: HasChat | Sequence[Message]) -> Chat:
        """The chat with its thoughts where `thoughts` wants them.

        Raises:
            ImageRefused: the model cannot be shown its images.
        """
        chat = Chat.of(chat)
        check_images(self.images, chat, self.single_turn)
        if self._thoughts is None:
            return chat
        return chat.with_messages(_with_thoughts(message, self._thoughts) for message in chat.messages)

    def _single_turn_text(self, chat: Chat, add_generation_prompt: bool) -> str:
        messages = chat.messages
        answered = messages[-1]["role"] == "assistant"
        prompt = messages[:-1] if answered else messages
        # These templates have one instruction and one output; system text goes before the instruction.
        content = "\n\n".join(map(text_of, prompt))
        return self._templates["default"].render(
            [],
            {
                **self._variables,
                **chat.template_kwargs,
                "message": {"content": content, "output": text_of(messages[-1]) if answered else ""},
                "add_generation_prompt": add_generation_prompt and not answered,
                "add_output": answered,
            },
        )

    # --- tokens -----------------------------------------------------------------------------------------

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.tokenizer, self.eos_ids)

    @property
    def _splits_cleanly(self) -> bool:
        return self._pieces.splits_cleanly

    def prompt_ids(self, chat: HasChat | Sequence[Message]) -> list[int]:
        """Tokens of a prompt, up to the point where the assistant starts to write."""
        return self._pieces.tokens(self._expanded_text(chat, True))

    def chat_ids(self, chat: HasChat | Sequence[Message]) -> list[int]:
        """Tokens of a whole chat, as `apply_chat_template` gives them: what a reward model reads.

        Raises:
            DataError: the template refuses the chat, or does not show the calls of an answer.
        """
        whole = Chat.of(chat)
        calls = any(message.get("tool_calls") for message in whole.messages)
        if calls and (problem := refusal(whole, self.missing(whole))):
            raise DataError(problem)
        return self._pieces.tokens(self._expanded_text(chat, False))

    def _expanded_text(self, chat: HasChat | Sequence[Message], add_generation_prompt: bool) -> str:
        """The text that the model reads: images are what it reads of them."""
        prepared = self._prepared(chat)
        text = self._text(prepared, add_generation_prompt)
        return expanded(self.images, images_of(*prepared.messages), text)[0]

    def render(self, chat: HasChat | Sequence[Message], max_length: int | None = None) -> Rendered:
        """Tokenise a chat and mark the assistant's tokens.

        A chat longer than `max_length` is cut off at the end.

        Raises:
            DataError: the template refuses the chat, does not show the final answer, or not the calls of an answer
                that is learned.
            ImageRefused: the model cannot be shown the chat's images, or not all of them within `max_length`.
        """
        (found,) = self._tokenised([self._attempt(chat)], max_length)
        if isinstance(found, DataError):
            raise found
        return found

    def render_many(
        self, chats: Iterable[HasChat | Sequence[Message]], max_length: int | None = None
    ) -> Iterator[Rendered | DataError]:
        """`render` of many chats, in their order; the error of a chat stands in its place.

        While the template renders a batch, those before it are tokenised, which holds no lock of Python's. At most
        `_AHEAD` batches are rendered and not yet given out, whatever the number of chats.
        """
        remaining = iter(chats)
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[list[Rendered | DataError]]] = deque()
            while batch := list(islice(remaining, _BATCH)):
                waiting.append(pool.submit(self._tokenised, [self._attempt(chat) for chat in batch], max_length))
                if len(waiting) == _AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _attempt(self, chat: HasChat | Sequence[Message]) -> Shown | DataError:
        try:
            prepared = self._prepared(chat)
            return self._with_images(self._shown(prepared), prepared)
        except DataError as error:
            return error

    def _tokenised(self, batch: Sequence[Shown | DataError], max_length: int | None) -> list[Rendered | DataError]:
        masked = self._pieces.masked([(one.text, one.spans) for one in batch if isinstance(one, Shown)])
        return [one if isinstance(one, DataError) else self._row(one, next(masked), max_length) for one in batch]

    def _with_images(self, shown: Shown, chat: Chat) -> Shown:
        """The same with what the model reads of the chat's images."""
        images = images_of(*chat.messages)
        if not images:
            return shown
        text, spans = expanded(self.images, images, shown.text, shown.spans)
        return replace(shown, text=text, spans=spans, images=images)

    def _row(self, shown: Shown, masked: Masked, max_length: int | None) -> Rendered | DataError:
        row = shown.row(masked)
        if max_length is None or len(row) <= max_length:
            return row
        try:
            if row.images:
                refuse_cut(self.images, row.ids_T, max_length)
        except DataError as error:
            return error
        return row.first(max_length, truncated=True)

    def missing(self, chat: HasChat | Sequence[Message]) -> list[Missing]:
        """What the template does not show of a chat.

        Raises:
            DataError: the template refuses the chat.
        """
        prepared = self._prepared(chat)
        text = self._text(prepared, False)
        return self._missing(prepared, text, self._turns.find(prepared, text, []))

    # --- what is learned --------------------------------------------------------------------------------

    def _shown(self, chat: Chat) -> Shown:
        learned = [index for index, message in enumerate(chat.messages) if is_learned(message)]
        if not learned:
            raise DataError("the chat has no answer that is to be learned")
        if self.single_turn:
            return self._single_turn(chat)
        text, turns = self._found(chat, learned)
        missing = self._missing(chat, text, turns)
        if problem := refusal(chat, missing):
            raise DataError(problem)
        spans = {index: own for index, own in turns.learned.items() if not _is_empty(chat, index, missing)}
        if learned[-1] not in spans:
            raise DataError(_NOT_FOUND)
        return Shown(text, [span for own in spans.values() for span in own], len(learned) - len(spans), tuple(missing))

    def _found(self, chat: Chat, learned: list[int]) -> tuple[str, Turns]:
        """The text, and the turns in it: by the template's own marks where it has them."""
        template = self._template(chat)
        if not template.has_marks:
            text = self._text(chat, False)
            return text, self._turns.find(chat, text, learned)
        text, marks = template.render_marked(self._spelled(template, chat), self._given(chat, False))
        return text, self._turns.find(chat, text, learned, marks)

    def _missing(self, chat: Chat, text: str, turns: Turns) -> list[Missing]:
        reads_tools = not self.single_turn and "tools" in self._template(chat).variables
        return missing_parts(chat, text, turns.located, lambda other: self._text(other, False), reads_tools)

    @cached_property
    def _turns(self) -> TurnFinder:
        return TurnFinder(self._text, self._pieces.end_texts, self._pieces.whole_texts)

    def _single_turn(self, chat: Chat) -> Shown:
        text = self._text(chat, False)
        answer = chat.messages[-1]
        prompt = self._text(chat.with_messages(chat.messages[:-1]), True)
        if not is_learned(answer) or not text.startswith(prompt):
            raise DataError("the chat template does not show the final answer unchanged")
        missing = [Missing("thoughts", len(chat.messages) - 1)] if answer.get("reasoning_content") else []
        if any(message.get("tool_calls") for message in chat.messages) or chat.tools:
            raise DataError("an EasyDistill 1 template shows no tool calls\n    → set dataset.template to another one")
        return Shown(text, [(len(prompt), len(text))], 0, tuple(missing))


def _is_empty(chat: Chat, index: int, missing: list[Missing]) -> bool:
    """Whether a turn is shown without what it says."""
    return Missing(TURN, index) in missing and not chat.messages[index].get("tool_calls")


def _with_thoughts(message: Message, how: str) -> Message:
    """A message with its thoughts inside its text; or without them, also without those that its text begins with."""
    if how == "drop" and message["role"] == "assistant":
        message = with_text(message, lambda text: split_thoughts(text)[1])
    if "reasoning_content" not in message:
        return message
    changed: Message = message.copy()
    thoughts = changed.pop("reasoning_content")
    if how == "inline" and thoughts.strip():
        changed = with_text(changed, lambda text: f"<think>\n{thoughts.strip()}\n</think>\n\n{text}")
    return changed
