"""What the files of a model and of a template tell of a chat template; nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from easydistill.errors import ModelError
from easydistill.models.reference import converted_directory, resolve

_CLOCK = b"strftime_now"
_THOUGHTS = (b"<think", b"</think", b"[THINK]", b"<|channel", b"<|begin_of_thought|>", b"reasoning_content")
_KEY = b"chat_template"
_FILE = "chat_template.jinja"
_TEMPLATE_FILES = (_FILE, "chat_template.json", "tokenizer_config.json")
_GGUF_HEADER = 64 << 20
"""The metadata of a GGUF file, among them the template, are within its first bytes."""


def file_shows_date(path: str) -> bool:
    """Whether the template in a file reads the date."""
    return Path(path).is_file() and _CLOCK in Path(path).read_bytes()


def model_shows_date(reference: str) -> bool:
    """Whether a model's own template reads the date; not known of one that must first be downloaded."""
    return any(_CLOCK in text for _, text in _template_texts(reference))


def model_may_think(reference: str) -> bool:
    """Whether a model's template or tokens know thoughts, as those of models that write some do; True if its files are
    not at hand."""
    texts = [text for _, text in _template_texts(reference)]
    return not texts or any(mark in text for text in texts for mark in _THOUGHTS)


def has_template(reference: str) -> bool:
    """Whether a model on this machine has a template of its own."""
    return any(name == _FILE or _KEY in text for name, text in _template_texts(reference))


def teacher_shows_date(reference: str, template: str | None, fallback: str | None) -> bool:
    """Whether the template that a teacher on this machine is given chats with reads the date.

    Args:
        template: a file that replaces its own template.
        fallback: a file for a teacher that has none.
    """
    if template is None and fallback is not None and not has_template(reference):
        template = fallback
    return model_shows_date(reference) if template is None else file_shows_date(template)


def _template_texts(reference: str) -> Iterable[tuple[str, bytes]]:
    """(name, contents) of the files that hold a model's template."""
    try:
        source = resolve(reference)
    except ModelError:
        return
    if source.path is None:
        return
    directory = source.path
    if source.is_gguf:
        directory = converted_directory(source)
        if not directory.is_dir():
            with source.path.open("rb") as handle:
                yield source.path.name, handle.read(_GGUF_HEADER)
    for name in _TEMPLATE_FILES:
        if (path := directory / name).is_file():
            yield name, path.read_bytes()
