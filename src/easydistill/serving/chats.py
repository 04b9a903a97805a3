"""Messages as clients send them → a prompt's tokens; what was written → the message that clients are sent."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.config.dataset import RESERVED
from easydistill.contracts.teacher import GenerationRequest, prompt_or_failure
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageStore
from easydistill.data.images.normalise import ImageProblem
from easydistill.data.images.reader import embedded
from easydistill.data.messages import Message, Tool, images_of, openai_message
from easydistill.data.reading import refuse_lone_surrogates
from easydistill.data.reading.calls import tools_of
from easydistill.data.reading.turns import turns_of
from easydistill.data.row_files import MalformedRow
from easydistill.errors import DataError, EasyDistillError, TeacherError
from easydistill.models.structured import SchemaGrammars, SchemaMasks
from easydistill.serving.bodies import ChatBody
from easydistill.serving.problems import refused
from easydistill.serving.rows import Ended
from easydistill.teachers.parsing import AnswerReader, AnswerStream

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

TOO_LONG = "context_length_exceeded"
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    ids: list[int]
    images: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()


class Chats:
    """Renders chats for one model, and reads its answers.

    One thread at a time may make prompts; answers are read in any.

    Args:
        ends: tokens that end an answer.
        template: a file that replaces the model's own template, or None.
        context: longest prompt plus answer, in tokens; None if there is no such end.
        vocabulary: width of the model's logits.
        vision: of a model that sees images; `store` holds them.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: frozenset[int],
        template: str | None,
        context: int | None,
        vocabulary: int,
        vision: Vision | None = None,
        store: ImageStore | None = None,
    ) -> None:
        self.tokenizer, self.ends, self.context = tokenizer, ends, context
        self._template, self._vision, self._vocabulary = template, vision, vocabulary
        self._images = None if store is None else _HeldImages(store)
        self._grammars: SchemaGrammars | None = None
        self._made(datetime.date.today())

    def _made(self, date: datetime.date) -> None:
        self._date = date
        self._renderer = ChatRenderer.from_file(
            self.tokenizer, self.ends, self._template, date=date, images=self._vision
        )
        self._reader = AnswerReader(self._renderer)

    def check(self) -> list[int]:
        """The tokens of some prompt.

        Raises:
            DataError: the template does not show a question.
        """
        asked: Message = {"role": "user", "content": "Are you there?"}
        # Of any length: --max-model-len may be short, which is no fault of the template.
        found = prompt_or_failure(self._renderer, GenerationRequest("", (asked,)), None)
        if not isinstance(found, list):
            raise DataError(found.detail)
        return found

    # --- prompts ------------------------------------------------------------------------------------------------

    def prompt(self, body: ChatBody) -> Prompt:
        """The prompt of a request. Its images stay until `release`.

        Raises:
            ApiProblem: it cannot be shown to the model.
        """
        if self._renderer.shows_date and datetime.date.today() != self._date:
            self._made(datetime.date.today())
        messages = self._messages(body.messages)
        try:
            return self._rendered(body, messages)
        except BaseException:
            self._release(images_of(*messages))
            raise

    def _rendered(self, body: ChatBody, messages: tuple[Message, ...]) -> Prompt:
        tools = self._tools(body)
        variables = body.chat_template_kwargs or {}
        if taken := RESERVED & variables.keys():
            raise refused(f"chat_template_kwargs cannot set {', '.join(sorted(taken))}", "chat_template_kwargs")
        try:
            refuse_lone_surrogates(list(messages), (list(tools), variables))
        except MalformedRow as problem:
            raise refused(str(problem), "messages") from None
        request = GenerationRequest("", messages, tools=tools, template_kwargs=variables)
        try:
            ids = prompt_or_failure(self._renderer, request, self.context)
        except EasyDistillError as error:
            raise refused(_first_line(error), "messages") from None
        if not isinstance(ids, list):
            code = TOO_LONG if ids.reason == "prompt_too_long" else None
            raise refused(_first_line(ids.detail), "messages", code)
        if not ids:
            raise refused("the chat template makes nothing of these messages", "messages")
        if body.schema_wanted is not None and self._reader.opens_thoughts(ids):
            message = "the chat template opens the answer's thoughts, and response_format leaves no room for any: "
            hint = 'turn them off, such as with chat_template_kwargs {"enable_thinking": false}'
            raise refused(message + hint, "response_format")
        return Prompt(ids, images_of(*messages), tools)

    def tokens(self, text: str | list[int]) -> Prompt:
        """The prompt that is given as a text or as tokens.

        Raises:
            ApiProblem: it fills the model's context, or has tokens that it does not know.
        """
        ids: list[int]
        if isinstance(text, str):
            try:
                ids = self.tokenizer(text)["input_ids"]
            except (TypeError, UnicodeError):
                raise refused("the prompt contains half of a surrogate pair", "prompt") from None
        else:
            ids = text
        if not ids:
            raise refused("the prompt has no tokens", "prompt")
        if stranger := next((token for token in ids if not 0 <= token < self._vocabulary), None):
            raise refused(f"token {stranger} is out of vocabulary: the model has {self._vocabulary}", "prompt")
        if self._vision is not None and not set(self._vision.processor.reserved_ids).isdisjoint(ids):
            raise refused(
                "the prompt holds a token that stands for an image: send images to chat/completions", "prompt"
            )
        if self.context is not None and len(ids) >= self.context:
            detail = f"the prompt has {len(ids)} tokens, and the model's context length is {self.context}"
            raise refused(detail, "prompt", TOO_LONG)
        return Prompt(ids)

    def masks(self, schema: dict[str, Any], rows: int) -> list[SchemaMasks | None]:
        """What holds each of some answers to a JSON schema.

        Raises:
            ApiProblem: no grammar can be made of it.
        """
        try:
            if self._grammars is None:
                self._grammars = SchemaGrammars(self.tokenizer, self.ends, self._vocabulary)
            return [self._grammars.masks([schema]) for _ in range(rows)]
        except (EasyDistillError, ImportError) as error:
            # The hints are for configs of jobs.
            words = _first_line(error).partition("; take")[0].replace("synthesis.reply=json", "response_format")
            raise refused(words, "response_format") from None

    def release(self, prompt: Prompt) -> None:
        """The images of a prompt are not needed any more."""
        self._release(prompt.images)

    def _release(self, images: Sequence[str]) -> None:
        if self._images is not None:
            self._images.release(images)

    def _messages(self, given: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
        """
        Raises:
            ApiProblem: they cannot be read whole.
        """
        for number, message in enumerate(given):
            if message.get("role") not in _ROLES:
                raise refused(f"messages.{number}: there is no role {message.get('role')!r}", "messages")
        try:
            found = turns_of(list(given), "messages")
        except MalformedRow as problem:
            raise refused(_first_line(problem), "messages") from None
        if found.unread:
            raise refused(f"not supported in messages: {', '.join(sorted(found.unread))}", "messages")
        return self._with_images(found.messages)

    def _with_images(self, messages: Iterable[Message]) -> tuple[Message, ...]:
        made: list[Message] = []
        try:
            for message in messages:
                made.append(message)
                if isinstance(content := message["content"], list):
                    parts = made[-1]["content"] = []
                    for part in content:
                        parts.append(
                            {"type": "image", "image": self._image(part["image"])} if part["type"] == "image" else part
                        )
        except ImageProblem as problem:
            self._release(images_of(*made))
            raise refused(f"an image cannot be used: {problem}", "messages") from None
        except BaseException:
            self._release(images_of(*made))
            raise
        return tuple(made)

    def _image(self, source: Any) -> str:
        if self._images is None:
            raise refused("this model reads text alone: it would not see the images", "messages")
        address = source.get("url") if isinstance(source, dict) else source
        if not isinstance(address, str) or address[:5].lower() != "data:":
            message = "images are read from data URLs alone (data:image/png;base64,…): nothing is fetched"
            raise refused(message, "messages")
        data = embedded(address)
        assert data is not None
        return self._images.hold(data)

    def _tools(self, body: ChatBody) -> tuple[Tool, ...]:
        if not body.tools or body.tool_choice == "none":
            return ()
        try:
            tools = tools_of(body.tools)
        except MalformedRow as problem:
            raise refused(_first_line(problem), "tools") from None
        if any(isinstance(tool.get("function"), dict) and tool["function"].get("strict") for tool in tools):
            raise refused("strict tools are not supported: calls are not held to a schema", "tools")
        try:
            why = self._reader.check_tools()
        except TeacherError as error:
            why = str(error)
        if why is not None:
            # The hints are for configs of jobs.
            words = _first_line(why).partition(";")[0].replace("the teacher's", "the model's")
            raise refused(words, "tools")
        return tools

    # --- answers ------------------------------------------------------------------------------------------------

    def stream(self, prompt: Prompt) -> AnswerStream:
        """Tells an answer while it is being written."""
        return self._reader.stream(prompt.ids, prompt.tools)

    def answer(self, prompt: Prompt, ended: Ended) -> tuple[dict[str, Any], str | None]:
        """(the message of an answer as OpenAI spells it, why a call in it cannot be read)."""
        written = self._reader.read_text(ended.text, ended.ids, prompt.ids, prompt.tools)
        message = openai_message(written.message)
        for call in message.get("tool_calls", ()):
            call.setdefault("id", f"call_{uuid.uuid4().hex}")
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None
        return message, written.problem

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


class _HeldImages:
    """The images of requests under way."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hold(self, data: bytes) -> str:
        with self._lock:
            digest = self._store.add(data)
            self._users[digest] += 1
        return digest

    def release(self, digests: Iterable[str]) -> None:
        with self._lock:
            for digest in digests:
                self._users[digest] -= 1
                if self._users[digest] == 0:
                    del self._users[digest]
                    self._store.remove(digest)


def _first_line(problem: object) -> str:
    return str(problem).partition("\n")[0]
