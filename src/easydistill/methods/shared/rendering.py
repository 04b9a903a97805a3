"""How a stage renders chats for its student, and what that contributes to the stage's fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.data.files import hash_file
from easydistill.data.messages import HasChat, Message, is_learned
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.template_files import file_shows_date, model_shows_date

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Missing, Rendered


class TemplateSettings(Protocol):
    """The `dataset` section, as far as it decides how chats are rendered."""

    @property
    def template(self) -> str | None: ...

    @property
    def template_kwargs(self) -> Mapping[str, Any] | None: ...

    @property
    def thoughts(self) -> str | None: ...


def student_renderer(
    settings: TemplateSettings, tokenizer: Any, eos_ids: frozenset[int], context: StageContext
) -> ChatRenderer:
    """The renderer of a stage's student.

    Raises:
        DataError: there is no template, or it cannot be read.
    """
    from easydistill.data.chat import ChatRenderer

    return ChatRenderer.from_file(
        tokenizer, eos_ids, settings.template, settings.template_kwargs, context.started, settings.thoughts
    )


def template_identity(settings: TemplateSettings) -> dict[str, Any]:
    """What the rendering depends on besides the student's own template and the date."""
    return {
        "template": hash_file(Path(settings.template)) if settings.template else None,
        **({"template_kwargs": dict(settings.template_kwargs)} if settings.template_kwargs else {}),
        **({"thoughts": settings.thoughts} if settings.thoughts else {}),
    }


def template_shows_date(settings: TemplateSettings, references: Iterable[str]) -> bool:
    """Whether the template reads the date, according to its file or the student's files; nothing is loaded."""
    if settings.template is not None:
        return file_shows_date(settings.template)
    return any(map(model_shows_date, references))


def rendering_lines(rows: Sequence[Rendered]) -> list[str]:
    """What to tell of what the template leaves out of the rows, with the ways out."""
    from easydistill.data.chat import count_kinds, tell

    lines = tell(count_kinds(row.missing for row in rows), len(rows))
    if lost := sum(bool(row.lost_turns) for row in rows):
        lines.append(f"answers are context only, not learned, in {lost} of {len(rows)} rows")
    return lines


def thoughts_issue(
    chats: Iterable[tuple[HasChat, Sequence[Missing]]], settings: TemplateSettings, rows: str = "rows"
) -> ConfigIssue | None:
    """Why chats are not trained on as they are: their answers would be learned without the thoughts that led to them.

    No issue is with thoughts of earlier turns, which many templates leave out once the user has asked again, as long as
    those since the last question are shown; nor with any once `dataset.thoughts` says that they are to be left out.

    Args:
        chats: each with what the template does not show of it.
        rows: what the chats are, in words.
    """
    if settings.thoughts == "drop":
        return None
    total, lost, beside = 0, 0, False
    for chat, missing in chats:
        total += 1
        if missing and _loses_thoughts(chat.messages, missing):
            lost += 1
            beside = beside or any(message.get("reasoning_content") for message in chat.messages)
    if not lost:
        return None
    problem = (
        f"the chat template does not show the thoughts of {lost} of {total} {rows}, so their answers would be learned "
        "without them"
    )
    ways = ['"drop" (leaves them out)']
    if beside and settings.thoughts is None:
        ways.insert(0, '"inline" (writes them into the answers as <think>…</think>)')
    hint = f"set dataset.thoughts to {' or '.join(ways)}, or dataset.template to a template that shows them"
    return ConfigIssue("config", "dataset.thoughts", problem, hint)


def refuse_lost_thoughts(
    chats: Iterable[tuple[HasChat, Sequence[Missing]]], settings: TemplateSettings, rows: str = "rows", *, made: bool
) -> None:
    """Refuse to train on chats whose thoughts the template leaves out; see `thoughts_issue`.

    Args:
        made: whether an earlier stage made the chats, which are then kept.

    Raises:
        ConfigError: it leaves some out, and `dataset.thoughts` does not say so.
    """
    issue = thoughts_issue(chats, settings, rows)
    if issue is not None:
        kept = "; the answers are kept, and the next run goes on from here" if made else ""
        raise ConfigError(replace(issue, hint=issue.hint + kept))


def has_thoughts(message: Message) -> bool:
    """Whether a message has thoughts, beside its text or in it."""
    return bool(message.get("reasoning_content", "").strip()) or "</think>" in message["content"]


def _loses_thoughts(messages: Sequence[Message], missing: Sequence[Missing]) -> bool:
    """Whether answers since the last question have thoughts that are to be learned, and none of them is shown."""
    from easydistill.data.chat.sentinels import THOUGHTS

    asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    thoughtful = {
        at for at, message in enumerate(messages) if at > asked and is_learned(message) and has_thoughts(message)
    }
    return bool(thoughtful) and thoughtful <= {part.message for part in missing if part.kind == THOUGHTS}
