"""`deploy`: a student behind an OpenAI-compatible API. So far on PAI-EAS (`eas.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.cloud import eas
from easydistill.cloud.reading import read_settings
from easydistill.errors import ConfigError, ConfigIssue, ModelError


@dataclass(frozen=True)
class Deployment:
    """A service that may be made."""

    text: str
    """Exactly as it is sent."""
    settings: eas.Config
    notes: tuple[str, ...]


def request(student: Path, to: str, settings: Path | None, changes: Sequence[str]) -> Deployment:
    """What would be sent.

    Args:
        student: a directory of this machine: its end tokens and its name are read from it.
        to: the target.
        settings: the target's file.
        changes: `key=value` over it.

    Raises:
        ConfigError: the settings are wrong.
        ModelError: it is no student, or would not end its answers.
    """
    if to != eas.Config.name:
        raise ConfigError(ConfigIssue("command line", "--to", f'there is no target "{to}"', f"use {eas.Config.name}"))
    typed = read_settings(settings, changes, eas.Config, eas.Config.name)
    notes = check_ends(student)
    text = eas.render(typed, _name(student))
    where = f"the service reads the student from {typed.model}: copy {student} there"
    return Deployment(text, typed, (where, *notes))


def send(asked: Deployment) -> list[str]:
    """Make the service; returns what to tell the user.

    Raises:
        CloudError: it was refused.
    """
    return eas.create(asked.settings, asked.text)


def _name(student: Path) -> str:
    """Of the run, for a student in its run directory."""
    resolved = student.resolve()
    return resolved.parent.name if resolved.name == "student" else resolved.name


def check_ends(student: Path) -> tuple[str, ...]:
    """Whether vLLM will end the student's answers where its template does. It takes the end tokens of the tokenizer and
    of generation_config.json; no option of it adds others.

    Returns:
        What to tell the user.

    Raises:
        ModelError: it will not.
    """
    from easydistill.exporting.stage import source_of

    if not (student / "config.json").is_file():
        raise ModelError(f"{student}: no model is here (no config.json)\n    → name a student, e.g. runs/kd/student")
    source = source_of(str(student))
    names = sorted(source.tokenizer.convert_ids_to_tokens(sorted(source.ends)))
    written = _turn_end(source.tokenizer)
    if written is not None and written not in source.ends:
        token = source.tokenizer.convert_ids_to_tokens(written)
        raise ModelError(
            f"{student}: its chat template ends a turn with {token}, and its end tokens are {', '.join(names)}: the "
            f"service would write on\n    → add {written} to eos_token_id in generation_config.json"
        )
    return (f"answers end with {', '.join(names)}",)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes behind an answer; None if there is none."""
    if tokenizer.chat_template is None:
        return None
    mark = "ANSWER"
    chat = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": mark}]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False)
    tail = tokenizer.encode(text.rpartition(mark)[2], add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in tail if token in special), None)
