"""Text of a config file → plain data, and the line on which each key stands.

JSON is read by a small parser of ours because errors must name a line for every *value* later found wrong,
and no maintained library keeps positions for JSON with comments. It accepts JSON plus `//` and `/* */`
comments and trailing commas (JSONC), and explains what people commonly get wrong.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.errors import ConfigError, ConfigIssue

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 100


@dataclass
class Document:
    """A parsed config file: `data`, and for each path inside it the 1-based line where it stands."""

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a path, or of its nearest ancestor that stands in the file."""
        for end in range(len(path), -1, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return f"{self.name}:{line}"
        return self.name


def parse_file(path: Path) -> Document:
    """Read and parse a config by its suffix: `.json`/`.jsonc`, `.yaml`/`.yml`, `.toml`.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, or not valid in its language.
    """
    parser = PARSERS.get(path.suffix.lower())
    if parser is None:
        known = ", ".join(sorted(PARSERS))
        raise _error(str(path), f"a config cannot have the suffix {path.suffix!r}", f"use one of {known}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise _error(
            str(path), "no such file", "give the path of a config, or write one with `easydistill init`"
        ) from None
    except IsADirectoryError:
        raise _error(str(path), "this is a directory", "give the path of a config file") from None
    except OSError as error:
        raise _error(str(path), f"cannot be read: {error.strerror}", "check the file's permissions") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _error(f"{path}:{line}", "the file is not UTF-8 text", "save it as UTF-8") from None
    if not text.strip():
        raise _error(str(path), "the file is empty", "start from `easydistill init black_box_kd_local`")
    document = parser(text, str(path))
    if not isinstance(document.data, dict):
        found = type(document.data).__name__
        raise _error(f"{path}:1", f"a config is a mapping of keys to values, this is a {found}", "wrap it in { … }")
    return document


def _error(where: str, problem: str, mend: str = "") -> ConfigError:
    return ConfigError(ConfigIssue(where, "", problem, mend))


# --- JSON and JSONC ---------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\r\n]*(?:(?://[^\n]*|/\*.*?\*/)[ \t\r\n]*)*", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_$][\w$.-]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_CONSTANTS = {"true": True, "false": False, "null": None}
_WRONG_CONSTANTS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "nan": "null",
    "NaN": "null",
    "undefined": "null",
}


class _JsonParser:
    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.at = 0
        self.lines: dict[KeyPath, int] = {}

    def parse(self) -> Document:
        self._skip()
        data = self._value(())
        self._skip()
        if self.at < len(self.text):
            self._fail(f"unexpected {self._here()} after the end of the config", "a brace may be closed too early")
        return Document(self.name, data, self.lines)

    def _line(self, at: int | None = None) -> int:
        return self.text.count("\n", 0, self.at if at is None else at) + 1

    def _here(self) -> str:
        rest = self.text[self.at : self.at + 12].split("\n")[0]
        return repr(rest) if rest else "line break"

    def _fail(self, problem: str, mend: str, at: int | None = None) -> None:
        start = self.at if at is None else at
        column = start - (self.text.rfind("\n", 0, start) + 1) + 1
        raise _error(f"{self.name}:{self._line(start)}:{column}", f"not valid JSON: {problem}", mend)

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        if self.text.startswith("/*", self.at):
            self._fail("a comment is not closed", "end it with */")

    def _value(self, path: KeyPath) -> Any:
        self.lines.setdefault(path, self._line())
        if len(path) > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH} levels", "no config needs that")
        char = self.text[self.at : self.at + 1]
        if char == "{":
            return self._object(path)
        if char == "[":
            return self._array(path)
        if char == '"':
            return self._string()
        if match := _NUMBER.match(self.text, self.at):
            follower = self.text[match.end() : match.end() + 1]
            if not (follower.isalnum() or follower in {"_", "."}) or not follower:
                self.at = match.end()
                token = match.group()
                return int(token) if re.fullmatch(r"-?\d+", token) and len(token) < 300 else float(token)
            self._fail(
                f"{self._here()} is not a number",
                "write it plainly, e.g. 16, 0.5 or 2e-5; quote it if it is text",
            )
        if match := _WORD.match(self.text, self.at):
            word = match.group()
            if word in _CONSTANTS:
                self.at = match.end()
                return _CONSTANTS[word]
            if word in _WRONG_CONSTANTS:
                self._fail(f"{word} is not a JSON value", f"write {_WRONG_CONSTANTS[word]}")
            self._fail(f"the text {word!r} is not quoted", f'write "{word}"')
        if char == "'":
            self._fail("text is in single quotes", 'use double quotes: "…"')
        if not char:
            self._fail("the file ends where a value should be", "something is not closed or not finished")
        self._fail(f"a value is missing before {self._here()}", "write a value, or remove the key")
        raise AssertionError

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            end = self.text.find("\n", self.at)
            closing = self.text.find('"', self.at + 1)
            if end != -1 and (closing == -1 or end < closing):
                self._fail("a text runs over the end of its line", "close the quote, or write a line break as \\n")
            self._fail("a text is not closed, or holds a control character", 'end it with "')
            raise AssertionError
        try:
            value: str = json.loads(match.group())
        except json.JSONDecodeError:
            self._fail("a text holds an unknown escape", "write a backslash as \\\\")
            raise AssertionError from None
        if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
            self._fail(
                "a text holds half of a surrogate pair",
                "write the character itself, not \\uD800-style escapes",
            )
        self.at = match.end()
        return value

    def _object(self, path: KeyPath) -> dict[str, Any]:
        opened = self.at
        self.at += 1
        result: dict[str, Any] = {}
        while True:
            self._skip()
            char = self.text[self.at : self.at + 1]
            if char == "}":
                self.at += 1
                return result
            key = self._key(opened)
            if key in result:
                first = self.lines[(*path, key)]
                self._fail(f"the key {key!r} stands twice (first on line {first})", "keep one of them")
            self.lines[(*path, key)] = self._line()
            self._skip()
            if self.text[self.at : self.at + 1] != ":":
                self._fail(f"a colon is missing after the key {key!r}", f'write "{key}": …')
            self.at += 1
            self._skip()
            result[key] = self._value((*path, key))
            self._separator("}", opened)

    def _key(self, opened: int) -> str:
        char = self.text[self.at : self.at + 1]
        if char == '"':
            return self._string()
        if not char:
            self._fail(f"the {{ of line {self._line(opened)} is not closed", "add a }")
        if char == "'":
            self._fail("a key is in single quotes", 'use double quotes: "…"')
        if match := _WORD.match(self.text, self.at):
            self._fail(f"the key {match.group()} is not quoted", f'write "{match.group()}"')
        self._fail(f"a key is needed here, not {self._here()}", "remove it, or close the object before it")
        raise AssertionError

    def _array(self, path: KeyPath) -> list[Any]:
        opened = self.at
        self.at += 1
        result: list[Any] = []
        while True:
            self._skip()
            if self.text[self.at : self.at + 1] == "]":
                self.at += 1
                return result
            result.append(self._value((*path, len(result))))
            self._separator("]", opened)

    def _separator(self, close: str, opened: int) -> None:
        self._skip()
        char = self.text[self.at : self.at + 1]
        if char == ",":
            self.at += 1
        elif not char:
            self._fail(f"what line {self._line(opened)} opens is not closed", f"add a {close}")
        elif char in "}]" and char != close:
            self._fail(
                f"{char!r} where {close!r} was expected",
                f"close what line {self._line(opened)} opens with {close}",
            )
        elif char != close:
            self._fail(f"a comma is missing before {self._here()}", "add a comma after the value before it")


def parse_json(text: str, name: str) -> Document:
    """JSON, with comments and trailing commas allowed."""
    return _JsonParser(text, name).parse()


# --- YAML -------------------------------------------------------------------------------------------------


def parse_yaml(text: str, name: str) -> Document:
    """YAML through PyYAML's safe loader; a repeated key is an error."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only: dates stay text, so no config value has a type that JSON lacks."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    lines: dict[KeyPath, int] = {}
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise _error(name, "the file holds no value", "start from `easydistill init black_box_kd_local`")
        _yaml_lines(node, (), lines, name, loader)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise _error(
            where, f"not valid YAML: {error.problem or error.context}", "check indentation, colons and quotes"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _error(name, f"not valid YAML: {error}", "check indentation, colons and quotes") from None
    finally:
        loader.dispose()
    return Document(name, data, lines)


def _yaml_lines(node: Any, path: KeyPath, lines: dict[KeyPath, int], name: str, loader: Any) -> None:
    import yaml

    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > MAX_DEPTH:
        raise _error(
            f"{name}:{node.start_mark.line + 1}",
            f"nested deeper than {MAX_DEPTH} levels",
            "no config needs that",
        )
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line = key_node.start_mark.line + 1
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                raise _error(f"{name}:{line}", f"the key {key!r} is not text", "quote it")
            if key in seen:
                raise _error(f"{name}:{line}", f"the key {key!r} stands twice", "keep one of them")
            seen.add(key)
            lines[(*path, key)] = line
            _yaml_lines(value_node, (*path, key), lines, name, loader)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _yaml_lines(item, (*path, index), lines, name, loader)


# --- TOML -------------------------------------------------------------------------------------------------

_TOML_TABLE = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_TOML_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


def parse_toml(text: str, name: str) -> Document:
    """TOML through the standard library; lines are found by looking for headers and keys."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+), column (\d+)", str(error))
        where = f"{name}:{found[1]}:{found[2]}" if found else name
        raise _error(where, f"not valid TOML: {str(error).split(' (at')[0]}", "see toml.io for the notation") from None
    except RecursionError:
        raise _error(name, "nested too deeply", "no config needs that") from None
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TOML_TABLE.match(line):
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            lines.setdefault(table, number)
        elif key := _TOML_KEY.match(line):
            lines.setdefault((*table, *(part.strip("\"'") for part in key[1].split("."))), number)
    return Document(name, data, lines)


PARSERS: dict[str, Callable[[str, str], Document]] = {
    ".json": parse_json,
    ".jsonc": parse_json,
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": parse_toml,
}
