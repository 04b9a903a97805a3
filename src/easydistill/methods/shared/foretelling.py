"""What a stage's template makes of its rows, found before a teacher is asked or a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from easydistill.config.models import ModelsConfig
from easydistill.data.messages import Chat, Message, answer_message, text_of
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import FORETOLD
from easydistill.errors import ConfigIssue, DataError, EasyDistillError, MissingExtra, ModelError
from easydistill.methods.shared.chat_settings import inherited_lines
from easydistill.methods.shared.outlook import Outlook, RowLength
from easydistill.methods.shared.rendering import LostThoughts, RenderingFigures, TemplateSettings
from easydistill.methods.shared.sight import ImageSizes, sight_of
from easydistill.models.limits import Limits
from easydistill.models.reference import converted_directory, resolve
from easydistill.models.student import making_issues, student_references
from easydistill.models.template_files import model_may_think

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Missing, Rendered
    from easydistill.models.multimodal import Vision

_PROMPTS = 100
"""Rows whose prompts are compared with what is trained."""
_ANSWER = answer_message("Yes.")
_THOUGHTFUL: tuple[Message, ...] = (
    {"role": "user", "content": "Is it so?"},
    answer_message("Yes.", "Let me think about that."),
)


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a file, before anything runs."""

    chats: Sequence[Chat] = ()
    lines: Sequence[str] = ()
    """What a user would not expect of how they are read."""
    unseen: int = 0
    """How many more rows there are with images that the student would not see."""
    blindness: str = ""
    """Why it would not see them."""
    rows: int | None = None
    """How many rows the chats are from, if not one each."""
    total: int | None = None
    """How many chats there are in all, if these are not all."""


@dataclass
class Foresight:
    """Whether a student can be loaded, and what its template makes of the rows that it will be trained on.

    Args:
        models: the student.
        settings: its template.
        read: gives the first rows, at most as many as it is told, their images looked at in a store that it is given;
            prompts without an answer get one.
        awaits_thoughts: whether a teacher is yet to give the answers, whose thoughts, if it has any, will stand apart.
    """

    models: ModelsConfig
    settings: TemplateSettings
    read: Callable[[int, ImageSizes], FirstRows]
    awaits_thoughts: bool = False
    counted: str = "rows"
    """What the chats are, in words."""
    max_length: int | None = None
    """Tokens after which rows are cut off."""
    sizes: ImageSizes = field(default_factory=ImageSizes)
    blind: Callable[[], str] = lambda: "models.student"
    """Names the setting because of which rows with images are refused."""

    def issues(self) -> list[ConfigIssue]:
        """Why the student cannot be trained: it cannot be loaded, or its template takes none of the rows."""
        try:
            self._renderer  # noqa: B018 (loading it is the check)
            if issues := making_issues(self.models):
                return issues
        except MissingExtra:
            # Told by the stage's other checks.
            return []
        except ModelError as error:
            return [_issue("models.student", error)]
        except DataError as error:
            return [_issue("dataset.template", error)]
        if issue := self._unseen():
            return [issue]
        refused = self._refused
        if refused and len(refused) == len(self._rows):
            shown = f"the chat template takes none of the first {len(refused)} rows: {refused[0]}"
            problem, _, hint = shown.partition("\n    → ")
            return [ConfigIssue("config", "dataset.template", problem, hint or "name a template that takes such chats")]
        lost = LostThoughts.of(self._shown).issue(self.settings, self.counted)
        return [] if lost is None else [lost]

    def _unseen(self) -> ConfigIssue | None:
        """Why rows with images cannot be trained on: before their answers are paid for, not one by one."""
        first = self._first
        if not first.unseen:
            return None
        total = (len(first.chats) if first.rows is None else first.rows) + first.unseen
        why, _, ways = first.blindness.partition(": ")
        problem = f"{first.unseen} of the first {total} rows have an image; {why}"
        return ConfigIssue("config", self.blind(), problem, ways)

    def lines(self) -> list[str]:
        """What a user would not expect, a line each; nothing if the student must first be downloaded or converted."""
        try:
            if "_renderer" not in vars(self) and not self._is_at_hand():
                return list(self._first.lines)
            found = inherited_lines(student_references(self.models), self.settings)
            found += [*self._first.lines, *self._refusals(), *self._missing(), *self._disagreement()]
            return [*found, *self._unshown_thoughts(), *self._beyond_limits()]
        except EasyDistillError as error:
            # Nothing depends on these lines; `issues` and the stages themselves report what is wrong.
            LOGGER.info("the rows were not looked at beforehand: %s", error)
            return []

    def outlook(self, *, prompts: bool = False) -> Outlook | None:
        """How long the rows are; None as for `lines`, or if there is no row.

        Args:
            prompts: without the answers, and how the answer is begun.
        """
        try:
            if "_renderer" not in vars(self) and not self._is_at_hand():
                return None
            rows = [row for row in self._rows if not isinstance(row, DataError)]
        except (EasyDistillError, OSError):
            return None
        if not rows:
            return None
        longest = self.max_length or max(len(row.ids) for row in rows)
        lengths = (_length(row, longest, prompts) for row in rows)
        return Outlook(self._count, tuple(lengths))

    @property
    def _count(self) -> int:
        """How many rows there are; those beyond the first ones are counted, not read."""
        first = self._first
        return len(first.chats) if first.total is None else first.total

    def images(self) -> tuple[Vision, list[str]] | None:
        """What the student sees, and the images of the first rows, each once; None without any, or as for `lines`."""
        try:
            if "_renderer" not in vars(self) and not self._is_at_hand():
                return None
            rows = [row for row in self._rows if not isinstance(row, DataError)]
            digests = list(dict.fromkeys(image for row in rows for image in row.images))
            vision = sight_of(self.models, self.sizes.path) if digests else None
        except EasyDistillError:
            return None
        return None if vision is None else (vision, digests)

    def _is_at_hand(self) -> bool:
        """Whether the student's files are on this machine, in a form that transformers loads."""
        sources = [resolve(reference) for reference in student_references(self.models)]
        return all(
            source.path is not None and (not source.is_gguf or converted_directory(source).is_dir())
            for source in sources
        )

    @cached_property
    def _renderer(self) -> ChatRenderer:
        from easydistill.data.chat import ChatRenderer
        from easydistill.models.compatibility import student_side

        side = student_side(self.models)
        settings = self.settings
        tokenizer, images = side.tokenizer, None
        if (vision := sight_of(self.models, self.sizes.path)) is not None:
            tokenizer, images = vision.processor.tokenizer, vision
        return ChatRenderer.from_file(
            tokenizer, side.eos_ids, settings.template, settings.template_kwargs, None, settings.thoughts, images
        )

    @property
    def unread(self) -> DataError | None:
        """Why none of the first rows can be used; None if some can, or if that is not known."""
        return self._tried if isinstance(self._tried, DataError) else None

    @property
    def _first(self) -> FirstRows:
        # Rows that cannot be read are reported by the stage that reads them.
        return FirstRows() if isinstance(self._tried, Exception) else self._tried

    @cached_property
    def _tried(self) -> FirstRows | EasyDistillError | OSError:
        try:
            return self.read(FORETOLD, self.sizes)
        except (EasyDistillError, OSError) as error:
            return error

    @property
    def _chats(self) -> Sequence[Chat]:
        return self._first.chats

    @cached_property
    def _rows(self) -> list[Rendered | DataError]:
        return list(self._renderer.render_many(map(_answered, self._chats)))

    @property
    def _shown(self) -> Iterator[tuple[Chat, Sequence[Missing]]]:
        """Every chat that is rendered, with what the template does not show of it."""
        for chat, row in zip(self._chats, self._rows, strict=True):
            if not isinstance(row, DataError):
                yield _answered(chat), row.missing

    @property
    def _refused(self) -> list[DataError]:
        return [row for row in self._rows if isinstance(row, DataError)]

    def _refusals(self) -> list[str]:
        refused = self._refused
        if not refused:
            return []
        return [
            f"{len(refused)} of {len(self._rows)} rows cannot be rendered for training, the first one: {refused[0]}"
        ]

    def _missing(self) -> list[str]:
        rendered = [row for row in self._rows if not isinstance(row, DataError)]
        return [*RenderingFigures.of(rendered).lines(), *self._endless(rendered)]

    def _unshown_thoughts(self) -> list[str]:
        """What becomes of the thoughts of answers that are yet to be made, if the template shows none."""
        if not self.awaits_thoughts or self.settings.thoughts is not None:
            return []
        teachers = self.models.teachers_by_key.values()
        if teachers and not any(map(model_may_think, teachers)):
            return []
        from easydistill.data.chat.sentinels import THOUGHTS

        if not any(part.kind == THOUGHTS for part in self._renderer.missing(_THOUGHTFUL)):
            return []
        return [
            "the student's chat template shows no thoughts; if the teacher's answers have some, training waits until "
            'it is told what to do with them\n    → if the teacher thinks: set dataset.thoughts to "inline" or "drop"'
        ]

    def _beyond_limits(self) -> list[str]:
        """Rows that the student cannot read whole: tokens that it does not know, and rows beyond its last position."""
        limits = Limits.of_student(self.models)
        longest = self.max_length if self.max_length is None else limits.within(self.max_length)
        rows = [row for row in self._rows if not isinstance(row, DataError)]
        found: list[str] = []
        if longest is not None and longest != self.max_length:
            problem = f"the student has {longest} positions and training.max_length is {self.max_length}"
            found.append(f"{problem}: rows end after {longest} tokens")
            if longer := sum(len(row.ids) > longest for row in rows):
                found.append(
                    f"{longer} of {len(rows)} {self.counted} are longer than the student's {longest} positions"
                )
        if full := sum(not any(row.mask[1:longest]) for row in rows):
            end = f"the student's {longest} positions" if longest != self.max_length else "training.max_length"
            found.append(
                f"the prompt alone fills {end} in {full} of {len(rows)} {self.counted}, which will be rejected\n"
                "    → raise training.max_length as far as the student reads, or shorten the prompts"
            )
        if longest is not None:
            found += self._cut_images(rows, longest)
        if strange := sum(limits.stranger(row.ids) is not None for row in rows):
            found.append(
                f"{strange} of {len(rows)} {self.counted} have tokens that the student's embedding, of {limits.tokens} "
                "rows, does not know, and will be rejected\n    → take the tokenizer that belongs to the student"
            )
        return found

    def _cut_images(self, rows: Sequence[Rendered], longest: int) -> list[str]:
        """Rows that are rejected because an image is not read whole."""
        from easydistill.data.chat.images import image_beyond

        images = self._renderer.images
        cut = sum(image_beyond(images, row.ids_T, longest) is not None for row in rows if row.images)
        if not cut:
            return []
        end = f"the student's {longest} positions" if longest != self.max_length else "training.max_length"
        return [
            f"an image is not within {end} in {cut} of {len(rows)} {self.counted}, which will be rejected\n"
            "    → raise training.max_length as far as the student reads, or use smaller images"
        ]

    def _endless(self, rendered: Sequence[Rendered]) -> list[str]:
        """Rows of which no end token is learned: the template's own marks may leave it out."""
        ends = self._renderer.eos_ids
        endless = sum(not row.truncated and ends.isdisjoint(row.ids_T[row.mask_T].tolist()) for row in rendered)
        if not endless:
            return []
        return [
            f"no end token is learned in {endless} of {len(rendered)} rows, so the student would not learn to stop\n"
            "    → set dataset.template to a template whose marks include the end of a turn, or to one without marks"
        ]

    def _disagreement(self) -> list[str]:
        """What generation is given and training is not, for answers without thoughts."""
        if self._renderer.single_turn:
            return []
        chats = [chat for chat in map(_answered, self._chats[:_PROMPTS]) if _is_plain(chat)]
        extra = [found for chat in chats if (found := self._only_in_prompt(chat))]
        if not extra:
            return []
        return [
            f"generation is given {extra[0]!r}, which training on answers without thoughts is not, in {len(extra)} of "
            f"{len(chats)} rows\n    → dataset.template_kwargs may turn thoughts off (`enable_thinking`), or train on "
            "answers with thoughts"
        ]

    def _only_in_prompt(self, chat: Chat) -> str:
        try:
            prompt = self._renderer.text(chat.with_messages(chat.messages[:-1]), add_generation_prompt=True)
            text = self._renderer.text(chat, add_generation_prompt=False)
        except DataError:
            return ""
        if text.startswith(prompt):
            return ""
        common = next((at for at, pair in enumerate(zip(prompt, text, strict=False)) if pair[0] != pair[1]), len(text))
        # From the beginning of the tag in which they part.
        opened = prompt.rfind("<", 0, common)
        start = opened if ">" not in prompt[opened:common] and opened >= 0 else common
        return prompt[start:]


def _length(row: Rendered, longest: int, prompt: bool) -> RowLength:
    learned = row.mask_T[:longest].nonzero()[0]
    if prompt and len(learned):
        return RowLength(int(learned[0]), 0)
    return RowLength(min(longest, len(row.ids_T)), len(learned))


def _answered(chat: Chat) -> Chat:
    """The chat with an answer at its end, and that one learned."""
    if chat.messages and chat.messages[-1]["role"] == "assistant":
        return chat
    return chat.with_messages([*chat.messages, _ANSWER])


def _is_plain(chat: Chat) -> bool:
    answer = chat.messages[-1]
    return not answer.get("reasoning_content") and "</think>" not in text_of(answer) and len(chat.messages) > 1


def _issue(key: str, error: Exception) -> ConfigIssue:
    problem, _, hint = str(error).partition("\n    → ")
    return ConfigIssue("config", key, problem, hint)
