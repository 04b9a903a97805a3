"""How a stage renders chats for its student, and what that contributes to the stage's fingerprint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.data.files import hash_file
from easydistill.data.messages import HasChat, Message, is_learned, text_of
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.template_files import file_shows_date, model_shows_date

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Expander, Missing, Rendered

NOT_SHOWN, LOST_TURNS = "not_shown", "lost_turns"
"""Metrics of a stage: rows by the kind of part that the template leaves out, and answers that are not learned."""


class TemplateSettings(Protocol):
    """The `dataset` section, as far as it decides how chats are rendered."""

    @property
    def template(self) -> str | None: ...

    @property
    def template_kwargs(self) -> Mapping[str, Any] | None: ...

    @property
    def thoughts(self) -> str | None: ...


def student_renderer(
    settings: TemplateSettings,
    tokenizer: Any,
    eos_ids: frozenset[int],
    context: StageContext,
    images: Expander | None = None,
) -> ChatRenderer:
    """The renderer of a stage's student.

    Args:
        images: of a student that sees images.

    Raises:
        DataError: there is no template, or it cannot be read.
    """
    from easydistill.data.chat import ChatRenderer

    return ChatRenderer.from_file(
        tokenizer, eos_ids, settings.template, settings.template_kwargs, context.started, settings.thoughts, images
    )


def template_identity(settings: TemplateSettings) -> dict[str, Any]:
    """What the rendering depends on besides the student's own template and the date."""
    return {
        "template": hash_file(Path(settings.template)) if settings.template else None,
        **({"template_kwargs": dict(settings.template_kwargs)} if settings.template_kwargs else {}),
        **({"thoughts": settings.thoughts} if settings.thoughts else {}),
        # Once, thoughts in an answer's text were learned with "drop" too.
        **({"dropped": "in texts too"} if settings.thoughts == "drop" else {}),
    }


def template_shows_date(settings: TemplateSettings, references: Iterable[str]) -> bool:
    """Whether the template reads the date, according to its file or the student's files; nothing is loaded."""
    if settings.template is not None:
        return file_shows_date(settings.template)
    return any(map(model_shows_date, references))


@dataclass
class RenderingFigures:
    """What is counted of rows as they are rendered."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    lost_turns: int = 0
    """Answers that are context only."""
    with_lost_turns: int = 0
    """Rows that have such answers."""
    not_shown: Counter[str] = field(default_factory=Counter)
    """Rows by the kind of part that the template leaves out of them."""

    @classmethod
    def of(cls, rows: Iterable[Rendered]) -> RenderingFigures:
        found = cls()
        for row in rows:
            found.add(row)
        return found

    def add(self, row: Rendered) -> None:
        """Count a row."""
        self.rows += 1
        self.tokens += len(row)
        self.truncated += row.truncated
        self.lost_turns += row.lost_turns
        self.with_lost_turns += bool(row.lost_turns)
        self.not_shown.update({part.kind for part in row.missing})

    def lines(self) -> list[str]:
        """What to tell of what the template leaves out, with the ways out."""
        from easydistill.data.chat import tell

        lines = tell(dict(self.not_shown.most_common()), self.rows)
        if self.with_lost_turns:
            lines.append(f"answers are context only, not learned, in {self.with_lost_turns} of {self.rows} rows")
        return lines

    def metrics(self) -> dict[str, Any]:
        """What the template left out of the rows: nothing where it shows them whole."""
        shown = {NOT_SHOWN: dict(self.not_shown.most_common()), LOST_TURNS: self.lost_turns}
        return {name: value for name, value in shown.items() if value}


@dataclass
class LostThoughts:
    """Counts chats whose answers would be learned without the thoughts that led to them.

    Thoughts of earlier turns, which many templates leave out once the user has asked again, do not count as long as
    those since the last question are shown.
    """

    total: int = 0
    lost: int = 0
    beside: bool = False
    """Whether some of these thoughts stand beside the text, not in it."""

    @classmethod
    def of(cls, chats: Iterable[tuple[HasChat, Sequence[Missing]]]) -> LostThoughts:
        """Of chats, each with what the template does not show of it."""
        found = cls()
        for chat, missing in chats:
            found.add(chat, missing)
        return found

    def add(self, chat: HasChat, missing: Sequence[Missing]) -> None:
        """Count a chat, with what the template does not show of it."""
        self.total += 1
        if missing and _loses_thoughts(chat.messages, missing):
            self.lost += 1
            self.beside = self.beside or any(message.get("reasoning_content") for message in chat.messages)

    def issue(self, settings: TemplateSettings, rows: str = "rows") -> ConfigIssue | None:
        """Why the chats are not trained on as they are; None once `dataset.thoughts` says that thoughts are left out.

        Args:
            rows: what the chats are, in words.
        """
        if not self.lost or settings.thoughts == "drop":
            return None
        problem = (
            f"the chat template does not show the thoughts of {self.lost} of {self.total} {rows}, so their answers "
            "would be learned without them"
        )
        ways = ['"drop" (leaves them out)']
        if self.beside and settings.thoughts is None:
            ways.insert(0, '"inline" (writes them into the answers as <think>…</think>)')
        hint = f"set dataset.thoughts to {' or '.join(ways)}, or dataset.template to a template that shows them"
        return ConfigIssue("config", "dataset.thoughts", problem, hint)

    def refuse(self, settings: TemplateSettings, rows: str = "rows", *, made: bool) -> None:
        """Refuse to train on the chats if thoughts would be lost.

        Args:
            made: whether an earlier stage made the chats, which are then kept.

        Raises:
            ConfigError: some would, and `dataset.thoughts` does not say so.
        """
        issue = self.issue(settings, rows)
        if issue is not None:
            kept = "; the answers are kept, and the next run goes on from here" if made else ""
            raise ConfigError(replace(issue, hint=issue.hint + kept))


def has_thoughts(message: Message) -> bool:
    """Whether a message has thoughts, beside its text or in it."""
    return bool(message.get("reasoning_content", "").strip()) or "</think>" in text_of(message)


def _loses_thoughts(messages: Sequence[Message], missing: Sequence[Missing]) -> bool:
    """Whether answers since the last question have thoughts that are to be learned, and none of them is shown."""
    from easydistill.data.chat.sentinels import THOUGHTS

    asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    thoughtful = {
        at for at, message in enumerate(messages) if at > asked and is_learned(message) and has_thoughts(message)
    }
    return bool(thoughtful) and thoughtful <= {part.message for part in missing if part.kind == THOUGHTS}
