"""JSON with `//` and `/* */` comments and trailing commas (JSONC) → nodes.

A small parser of ours, because errors must name a line for every *value* later found wrong, and no maintained
library keeps positions for JSON with comments. It also explains common mistakes.
"""

from __future__ import annotations

import bisect
import json
import re
from typing import Any

from easydistill.config.identity import SECRET_KEYS
from easydistill.config.reading.nodes import Node, syntax_error
from easydistill.errors import ConfigError

_SPACE = re.compile(r"[ \t\r\n]*(?:(?://[^\n]*|/\*.*?\*/)[ \t\r\n]*)*", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_CONSTANTS = {"true": True, "false": False, "null": None}
_MISTAKEN = {
    **dict.fromkeys(("true", "yes", "on"), "write true"),
    **dict.fromkeys(("false", "no", "off"), "write false"),
    **dict.fromkeys(("null", "none", "nil", "undefined"), "write null, or remove the key"),
    **dict.fromkeys(("nan", "inf", "infinity"), "write a finite number, or remove the key"),
}
_DOUBLE_QUOTES = 'use double quotes: "…"'
_INVISIBLE = "\u00a0\u200b\u200c\u200d\u2028\u2029\u3000\ufeff"
_BARE = re.compile(rf"[^\s,;\[\]{{}}\"'{_INVISIBLE}]+")
"""Text without quotes, up to where a value must end."""
_STRANGE = {
    "'": ("text is in single quotes", _DOUBLE_QUOTES),
    "`": ("text is in backquotes", _DOUBLE_QUOTES),
    **dict.fromkeys("“”„‘’«»", ("text is in curly quotes", 'use straight double quotes: "…"')),
    "#": ("a comment starts with #", "start it with //"),
    "(": ("unexpected bracket (", "a list is written [ … ]"),
    "=": ("unexpected equals sign", 'a key and its value are written "key": value'),
    ";": ("unexpected semicolon", "separate values with commas"),
    **{char: (f"invisible character U+{ord(char):04X}", "remove it") for char in _INVISIBLE},
}
"""What people write where JSON has something else: problem and hint."""


class _JsonParser:
    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.at = 0
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._key_read = ""

    def parse(self) -> Node:
        self._skip()
        root = Node(None, (), self.name, self._line())
        root.value = self._value(root)
        self._skip()
        if self.at < len(self.text):
            raise self._error(
                f"unexpected {self._here()} after the end of the config", "a brace may be closed too early"
            )
        return root

    def _line(self, at: int | None = None) -> int:
        return bisect.bisect_left(self._breaks, self.at if at is None else at) + 1

    def _here(self) -> str:
        """The text at the current position, for a message; a secret value is not quoted."""
        if self._key_read in SECRET_KEYS:
            return "this text"
        rest = self.text[self.at : self.at + 12].split("\n")[0]
        return repr(rest) if rest else "line break"

    def _error(self, problem: str, hint: str, at: int | None = None) -> ConfigError:
        start = self.at if at is None else at
        column = start - (self.text.rfind("\n", 0, start) + 1) + 1
        return syntax_error(f"{self.name}:{self._line(start)}:{column}", f"not valid JSON: {problem}", hint)

    def _needed(self, what: str, hint: str) -> ConfigError:
        """`what` is needed instead of the text at the current position."""
        strange = _STRANGE.get(self._char())
        return self._error(*strange) if strange else self._error(f"{what} {self._here()}", hint)

    def _char(self) -> str:
        return self.text[self.at : self.at + 1]

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        if self.text.startswith("/*", self.at):
            raise self._error("a comment is not closed", "end it with */")

    def _value(self, node: Node) -> Any:
        """The value at the current position, which belongs into this empty node."""
        char = self._char()
        if char and char in "{[":
            return self._container(node, "}" if char == "{" else "]")
        if char == '"':
            return self._string()
        if not char:
            raise self._error("the file ends where a value should be", "something is not closed or not finished")
        return self._scalar()

    def _scalar(self) -> Any:
        found = _BARE.match(self.text, self.at)
        word = found.group() if found else ""
        # A comment may follow a value without a space.
        word = re.split(r"//|/\*", word)[0] if word[:1] in "-0123456789tfn" else word
        if word in _CONSTANTS:
            self.at += len(word)
            return _CONSTANTS[word]
        if _NUMBER.fullmatch(word):
            self.at += len(word)
            return int(word) if re.fullmatch(r"-?\d{1,300}", word) else float(word)
        secret = self._key_read in SECRET_KEYS
        if word.lstrip("+-").lower() in _MISTAKEN:
            raise self._error(f"{word} is not a JSON value", _MISTAKEN[word.lstrip("+-").lower()])
        if re.match(r"[-+.]?\d", word):
            hint = "write a number plainly, e.g. 16, 0.5 or 2e-5; quote it if it is text"
            raise self._error(f"{'this' if secret else word[:40]} is not a number", hint)
        if re.match(r"[^\W\d]|[$/.~\\]", word):
            text = "the text" if secret else f"the text {word[:40]!r}"
            raise self._error(
                f"{text} is not quoted", 'write it in double quotes: "…"' if secret else f'write "{word[:40]}"'
            )
        raise self._needed("a value is missing before", "write a value, or remove the key")

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self._bad_string()
        try:
            value: str = json.loads(match.group())
        except json.JSONDecodeError:
            raise self._error("unknown escape in a quoted text", "write a backslash as \\\\") from None
        self.at = match.end()
        return value

    def _bad_string(self) -> ConfigError:
        stop = re.compile(r'(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*').match(self.text, self.at + 1)
        assert stop is not None
        found = self.text[stop.end() : stop.end() + 1]
        if found in {"\n", "\r"}:
            return self._error(
                "a quoted text continues on the next line", "close the quote, or write a line break as \\n"
            )
        if found and found not in '"\\':
            hint = "write a tab as \\t" if found == "\t" else "remove it"
            return self._error(f"control character {found!r} in a quoted text", hint, stop.end())
        return self._error("a quoted text is not closed", 'end it with "')

    def _container(self, node: Node, close: str) -> dict[str, Node] | list[Node]:
        opened = self.at
        self.at += 1
        keyed: dict[str, Node] = {}
        items: list[Node] = []
        while True:
            self._skip()
            if self._char() == close:
                self.at += 1
                return keyed if close == "}" else items
            if close == "}":
                child = self._key_of(node, keyed, opened)
            else:
                child = node.child(len(items), self._line())
                items.append(child)
            child.value = self._value(child)
            self._separator(close, opened)

    def _key_of(self, node: Node, keyed: dict[str, Node], opened: int) -> Node:
        """An empty node for the key at the current position; moves on to where its value starts."""
        at = self.at
        key = self._key(opened)
        if key in keyed:
            first = keyed[key].line
            raise self._error(f"the key {key!r} is repeated (first on line {first})", "keep one of them", at)
        keyed[key] = node.child(key, self._line(at))
        self._key_read = key
        self._skip()
        if self._char() != ":":
            raise self._error(f"a colon is missing after the key {key!r}", f'write "{key}": …')
        self.at += 1
        self._skip()
        return keyed[key]

    def _key(self, opened: int) -> str:
        char = self._char()
        if char == '"':
            return self._string()
        if not char:
            raise self._error(f"the {{ on line {self._line(opened)} is not closed", "add a }")
        if match := re.compile(r"[^\W\d][\w$.-]*").match(self.text, self.at):
            raise self._error(f"the key {match.group()} is not quoted", f'write "{match.group()}"')
        hint = "remove it, or close the object before it"
        if char.isdigit():
            hint = "write numbers without commas" if self.text[self.at - 1] == "," else "put the key in double quotes"
        raise self._needed("a key is needed here, not", hint)

    def _separator(self, close: str, opened: int) -> None:
        end = self.at
        self._skip()
        char = self._char()
        if char == ",":
            self.at += 1
        elif not char:
            raise self._error(f"the bracket opened on line {self._line(opened)} is not closed", f"add a {close}")
        elif char in "}]" and char != close:
            hint = f"close the bracket opened on line {self._line(opened)} with {close}"
            raise self._error(f"{char!r} where {close!r} was expected", hint)
        elif char != close:
            if char in _STRANGE:
                raise self._error(*_STRANGE[char])
            # The comma belongs where the value ends, which may be lines before what follows.
            raise self._error(f"a comma is missing before {self._here()}", "add a comma after the value before it", end)


def parse_json(text: str, name: str) -> Node:
    """JSON, with comments and trailing commas allowed.

    Raises:
        ConfigError: it is not that; the error says where and what to write instead.
    """
    return _JsonParser(text, name).parse()
