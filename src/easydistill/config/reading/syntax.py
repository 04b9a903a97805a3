"""A config file → a document, by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from easydistill.config.reading.document import Document, syntax_error
from easydistill.config.reading.json_syntax import parse_json
from easydistill.config.reading.toml_syntax import parse_toml
from easydistill.config.reading.yaml_syntax import parse_yaml

PARSERS: dict[str, Callable[[str, str], Document]] = {
    ".json": parse_json,
    ".jsonc": parse_json,
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": parse_toml,
}
_START = "start from `easydistill init black_box_kd_local`"
_KINDS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
_TOP = {
    ".json": 'write { "job_type": …, … }',
    ".yaml": "write lines of `key: value`, with a space after the colon",
}


def parse_file(path: Path) -> Document:
    """Read and parse a config by its suffix: `.json`/`.jsonc`, `.yaml`/`.yml`, `.toml`.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, or not valid in its language.
    """
    suffix = path.suffix.lower()
    if suffix not in PARSERS and not path.is_dir():
        problem = f"a config cannot have the suffix {suffix!r}" if suffix else "a config's name needs a suffix"
        raise syntax_error(str(path), problem, f"use one of {', '.join(sorted(PARSERS))}")
    text = _read(path)
    if not text.strip():
        raise syntax_error(str(path), "the file is empty", _START)
    document = PARSERS[suffix](text, str(path))
    if not isinstance(document.data, dict):
        found = _KINDS.get(type(document.data), type(document.data).__name__)
        mend = _TOP.get(suffix.replace("jsonc", "json").replace("yml", "yaml"), _START)
        raise syntax_error(document.where(()), f"a config holds keys and their values, this is {found}", mend)
    return document


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        mend = "give the path of a config, or write one with `easydistill init`"
        raise syntax_error(str(path), "no such file", mend) from None
    except IsADirectoryError:
        raise syntax_error(str(path), "this is a directory", "give the path of a config file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise syntax_error(str(path), f"cannot be read: {reason}", "check the path and its permissions") from None
    try:
        text = raw.decode("utf-8-sig")
        bad = text.find("\0")
        bad = bad if bad < 0 else len(text[:bad].encode())
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        line = raw[:bad].count(b"\n") + 1
        raise syntax_error(f"{path}:{line}", "the file is not UTF-8 text", "save it as UTF-8")
    return text
