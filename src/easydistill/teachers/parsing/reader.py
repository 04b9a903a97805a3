"""Reads what a local model wrote: token ids → text as written, thoughts, calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from easydistill.data.answers import MalformedCall, opened_thoughts, read_calls, split_thoughts
from easydistill.data.messages import Message, Tool, ToolCall, answer_message, openai_message
from easydistill.data.messages import text_of as message_text
from easydistill.errors import DataError, TeacherError
from easydistill.teachers.parsing.form import Form
from easydistill.teachers.parsing.forms import form_of, shows_tools
from easydistill.teachers.parsing.harmony import is_harmony, read_harmony
from easydistill.teachers.parsing.stream import AnswerStream, Marks

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer

_LAST_PROMPT_TOKENS = 16
"""Enough for a mark of thoughts, in pieces, and line breaks."""
_PLAIN, _THOUGHTS = "A plain answer.", "Something to think about."


@dataclass(frozen=True)
class Written:
    """What a model wrote."""

    text: str
    """Its text, thoughts included where they are marked in the text; without calls that could be read."""
    reasoning: str | None = None
    """Its thoughts, where it writes them as a message of their own."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    problem: str | None = None
    """Why a call in the text cannot be read."""
    whole: str | None = None
    """Everything as it was written, where `text` leaves some of it out."""

    @property
    def openai_calls(self) -> list[dict[str, Any]]:
        """The calls as OpenAI's protocol spells them."""
        message: Message = {"role": "assistant", "content": "", "tool_calls": self.tool_calls}
        spelled: list[dict[str, Any]] = openai_message(message)["tool_calls"]
        return spelled

    @property
    def message(self) -> Message:
        """The message, its thoughts apart; a call that cannot be read is left in the text."""
        reasoning, text = (self.reasoning, self.text) if self.reasoning else split_thoughts(self.text)
        return answer_message(text, reasoning, self.tool_calls)


def text_of(tokenizer: Any, ids: Sequence[int], ends: Collection[int]) -> str:
    """The text of an answer's tokens up to the first end token, special tokens included."""
    end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    decoded: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=False)
    return decoded


class AnswerReader:
    """Reads the answers of one model.

    Args:
        renderer: renders its prompts, so its template tells how it marks thoughts and calls.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._ends = renderer.eos_ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer: all of it but its end token, special tokens too, which mark thoughts and calls."""
        return text_of(self._tokenizer, ids, self._ends)

    def read(self, ids: Sequence[int], prompt: Sequence[int], tools: Sequence[Tool] = ()) -> Written:
        """What was written after a prompt.

        Args:
            prompt: its token ids; where they end by opening the thoughts, the text begins with that.
            tools: those that the prompt brought; without any, nothing in a text is a call.
        """
        return self.read_text(self.text(ids), ids, prompt, tools)

    def read_text(self, text: str, ids: Sequence[int], prompt: Sequence[int], tools: Sequence[Tool] = ()) -> Written:
        """As `read`, where the text of the tokens is known, or only the beginning of it is the answer."""
        if self._is_harmony:
            return self._harmony(text)
        whole = self._opened(prompt) + text
        reasoning, head, said = self._apart(whole)
        calls: list[ToolCall] = []
        if tools:
            try:
                # A call that is only thought about is none.
                said, calls = self._calls(said, ids, prompt, tools)
            except MalformedCall as problem:
                return Written(whole, problem=str(problem))
        text = head + (said if calls else self._unframed(said))
        return Written(text, reasoning, calls, whole=whole)

    def stream(self, prompt: Sequence[int], tools: Sequence[Tool] = ()) -> AnswerStream:
        """Tells an answer to a prompt while it is being written; arguments as for `read`."""
        marks = Marks(
            own=self._own_marks,
            frame=self._frame,
            form=self._form if tools else None,
            whole_only=self._is_harmony,
            text_waits=bool(tools) and self._form is None,
        )
        return AnswerStream(marks, "" if self._is_harmony else self._opened(prompt))

    def check_tools(self) -> str | None:
        """Why prompts with tools cannot be answered; None if they can.

        Raises:
            TeacherError: the template shows tools, but its calls could not be told from text.
        """
        if not shows_tools(self._renderer):
            return "the teacher's chat template does not show tools; set inference.template to one that does"
        if self._form is None and not self._is_harmony and not self._has_schema:
            raise TeacherError(
                "the teacher's chat template writes tool calls in a form that cannot be read back\n"
                "    → serve the teacher with a tool-call parser (vLLM, SGLang) and set inference.base_url, or set "
                "inference.template to a template with a known form"
            )
        return None

    # --- forms ------------------------------------------------------------------------------------------------

    @cached_property
    def _is_harmony(self) -> bool:
        return is_harmony(self._renderer.template or "")

    @cached_property
    def _form(self) -> Form | None:
        return form_of(self._renderer)

    def opens_thoughts(self, prompt: Sequence[int]) -> bool:
        """Whether an answer to a prompt begins inside its thoughts."""
        return not self._is_harmony and bool(self._opened(prompt))

    def _opened(self, prompt: Sequence[int]) -> str:
        """The mark of thoughts with which a prompt ends, if it does."""
        end: str = self._tokenizer.decode(list(prompt[-_LAST_PROMPT_TOKENS:]), skip_special_tokens=False)
        return opened_thoughts(end)

    @property
    def _has_schema(self) -> bool:
        """Whether the tokenizer says itself how its answers are read."""
        return getattr(self._tokenizer, "response_template", None) is not None

    def _calls(
        self, said: str, ids: Sequence[int], prompt: Sequence[int], tools: Sequence[Tool]
    ) -> tuple[str, list[ToolCall]]:
        if self._form is not None:
            return self._form.parse(said, tools)
        try:
            parsed = self._tokenizer.parse_response(list(ids), prefix=list(prompt), tools=list(tools))
        except Exception as error:
            # The model's own schema is data, and can fail in any way on what the model wrote.
            raise MalformedCall(f"the model's response template does not fit: {error}") from error
        calls = read_calls(parsed.get("tool_calls") or [])
        return (parsed.get("content") or "", calls) if calls else (said, [])

    def _harmony(self, text: str) -> Written:
        try:
            found = read_harmony(text)
        except MalformedCall as problem:
            return Written(text, problem=str(problem))
        if found is None:
            return Written(text)
        thoughts = "\n\n".join(part for part in found.thoughts if part.strip()) or None
        return Written("\n\n".join(found.texts), thoughts, found.calls, whole=text)

    # --- what stands around an answer -------------------------------------------------------------------------

    def _apart(self, whole: str) -> tuple[str | None, str, str]:
        """(thoughts in marks of the template's own, thoughts in usual marks with these, the rest)."""
        _, said = split_thoughts(whole)
        if said != whole:
            return None, whole[: len(whole) - len(said)], said
        start, end = self._own_marks
        if start and end and whole.lstrip().startswith(start):
            thoughts, _, said = whole.lstrip()[len(start) :].partition(end)
            return thoughts.strip() or None, "", said.lstrip("\r\n")
        return None, "", whole

    @cached_property
    def _own_marks(self) -> tuple[str, str]:
        """What the template writes before thoughts, and between them and the text, if it shows thoughts at all."""
        answer = self._shown(answer_message(_PLAIN, _THOUGHTS))
        start, found, rest = answer.partition(_THOUGHTS)
        between, text, _ = rest.partition(_PLAIN)
        return (start.strip(), between.strip()) if found and text else ("", "")

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What the template writes before and behind the text of an answer, white space aside: `<|START_TEXT|>`."""
        _, answer = split_thoughts(self._shown(answer_message(_PLAIN)))
        start, found, end = answer.partition(_PLAIN)
        return (start.strip(), end.strip()) if found else ("", "")

    def _shown(self, answer: Message) -> str:
        """What a model writes that answers as the template shows this answer, up to the end token; empty if that
        cannot be told."""
        prompt: Message = {"role": "user", "content": "Say something plain."}
        try:
            before = self._renderer.text((prompt,), add_generation_prompt=True)
            whole = self._renderer.text((prompt, answer), add_generation_prompt=False)
        except DataError:
            return ""
        if not whole.startswith(before):
            return ""
        shown = whole[len(before) :]
        ends = [self._tokenizer.decode([token]) for token in self._ends]
        said = shown.rfind(message_text(answer))
        return shown[: min((at for end in ends if end and (at := shown.find(end, said)) >= 0), default=len(shown))]

    def _unframed(self, said: str) -> str:
        """The text without what the template itself writes around it."""
        start, end = self._frame
        if start and said.lstrip().startswith(start):
            said = said.lstrip()[len(start) :]
        if end and said.rstrip().endswith(end):
            said = said.rstrip()[: -len(end)]
        return said
