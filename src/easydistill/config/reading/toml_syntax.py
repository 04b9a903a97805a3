"""TOML → nodes, through the standard library."""

from __future__ import annotations

import re
import tomllib

from easydistill.config.reading.nodes import Node, syntax_error, tree
from easydistill.config.values import KeyPath

_TABLE = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+(?:\s*\.\s*[A-Za-z0-9_\"'-]+)*)\s*=")
_HINTS = (
    ("Invalid value", "write text in double quotes, and true or false in small letters"),
    ("Invalid statement", "write key = value"),
    ("Expected '='", "write key = value"),
    ("Expected newline", "write one key on a line; quote text, and number by plain digits"),
    ("Cannot", "keep one of the two places that set this key"),
    ("Duplicate", "keep one of them"),
    ("Unterminated string", "close the quote"),
    ("Illegal character", "close the quote on the same line"),
    ("Unescaped", "write a backslash as \\\\, or use single quotes"),
    ("Unclosed array", "add a ]"),
    ("Unclosed inline table", "add a }"),
    ("Expected ']'", "add a ]"),
    ("Invalid initial character", "keep an inline table on one line, without a comma at its end"),
)


def parse_toml(text: str, name: str) -> Node:
    """TOML. Lines are found by looking for headers and keys.

    Raises:
        ConfigError: it is not valid TOML.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+), column (\d+)", str(error))
        where = f"{name}:{found[1]}:{found[2]}" if found else f"{name}:{len(text.splitlines())}"
        problem = str(error).split(" (at")[0]
        hint = next((hint for start, hint in _HINTS if problem.startswith(start)), "see toml.io for the notation")
        raise syntax_error(where, f"not valid TOML: {problem}", hint) from None
    except RecursionError:
        raise syntax_error(name, "nested too deeply", "no config needs that") from None
    return tree(data, name, _lines(text))


def _lines(text: str) -> dict[KeyPath, int]:
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    inside_text = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not inside_text:
            if header := _TABLE.match(line):
                table = _parts(header[1])
                lines.setdefault(table, number)
            elif key := _KEY.match(line):
                lines.setdefault((*table, *_parts(key[1])), number)
        if len(re.findall(r'"""|\'\'\'', line)) % 2:
            inside_text = not inside_text
    return lines


def _parts(key: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in key.split("."))
