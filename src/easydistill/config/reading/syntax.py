"""A config file → nodes, by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from easydistill.config.reading.json_syntax import parse_json
from easydistill.config.reading.nodes import Node, syntax_error
from easydistill.config.reading.toml_syntax import parse_toml
from easydistill.config.reading.yaml_syntax import parse_yaml

PARSERS: dict[str, Callable[[str, str], Node]] = {
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


def read_file(path: Path) -> Node:
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
    root = PARSERS[suffix](text, str(path))
    if not isinstance(root.value, dict):
        found = _KINDS.get(type(root.value), type(root.value).__name__)
        hint = _TOP.get(suffix.replace("jsonc", "json").replace("yml", "yaml"), _START)
        raise syntax_error(root.where, f"a config consists of keys and values, and this is {found}", hint)
    return root


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        hint = "give the path of a config, or write one with `easydistill init`"
        raise syntax_error(str(path), "no such file", hint) from None
    except IsADirectoryError:
        raise syntax_error(str(path), "this is a directory", "give the path of a config file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise syntax_error(str(path), f"cannot be read: {reason}", "check the path and its permissions") from None
    try:
        text = raw.decode("utf-8-sig")
        bad = raw.find(b"\0")
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        line = raw[:bad].count(b"\n") + 1
        raise syntax_error(f"{path}:{line}", "the file is not UTF-8 text", "save it as UTF-8")
    return text
