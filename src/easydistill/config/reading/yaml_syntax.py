"""YAML → nodes, through PyYAML's safe loader. A repeated key is an error."""

from __future__ import annotations

import re
from typing import Any

from easydistill.config.base import SECRET_KEYS
from easydistill.config.reading.nodes import Node, syntax_error
from easydistill.config.values import HIDDEN
from easydistill.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
MAX_VALUES = 100_000
"""Aliases let a few lines stand for billions of values."""

_HINTS = (
    (r"character '\\t'", "indent with spaces, not tabs"),
    (r"mapping values are not allowed", "put one key on a line, and quote text that holds a colon"),
    (r"could not find expected ':'", "write key: value, with a space after the colon"),
    (r"expected <block end>", "give the keys of one section the same indentation"),
    (r"undefined alias", "quote text that starts with *"),
    (r"constructor for the tag", "remove the tag, or quote text that starts with !"),
    (r"cannot start any token", "quote text that starts with this character"),
    (r"another document", "keep one document in the file"),
    (r"end of stream", "close the quote"),
    (r"expected ',' or", "close the bracket"),
    (r"unknown escape", "write a backslash as \\\\, or use single quotes"),
)
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What YAML counts as the end of a line."""
_HINT = "check indentation, colons and quotes"


def parse_yaml(text: str, name: str) -> Node:
    """YAML, of whose types only those of JSON are known: dates stay text.

    Raises:
        ConfigError: it is not valid YAML; a key stands twice or is not text; it is nested or repeated without end.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if tag != f"{_TAG}timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        loader = Loader(text)
        top = loader.get_single_node()
        if top is None:
            raise syntax_error(name, "the file holds no value", "start from `easydistill init black_box_kd_local`")
        return _Tree(name, loader).grow(top)
    except yaml.MarkedYAMLError as error:
        # Of a key without colon, and of an open quote, the start is what helps; PyYAML's problem is at the end.
        starts = str(error.context).startswith(("while scanning a simple key", "while scanning a quoted scalar"))
        mark = error.context_mark if starts else error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = str(error.problem or error.context)
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, problem)), _HINT)
        shown = _LINE_BREAK.split(text)[mark.line] if mark is not None else ""
        if any(key in shown for key in SECRET_KEYS):
            problem = re.sub(r"'[^']*'", HIDDEN, problem)
        raise syntax_error(where, f"not valid YAML: {problem}", hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the control character {chr(error.character)!r}" if isinstance(error.character, int) else "bad text"
        raise syntax_error(f"{name}:{line}", f"not valid YAML: {problem}", "remove it") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise syntax_error(name, f"not valid YAML: {error}", _HINT) from None


class _Tree:
    """Makes nodes of PyYAML's, and refuses what cannot be a config."""

    def __init__(self, name: str, loader: Any) -> None:
        self._name = name
        self._loader = loader
        self._count = 0

    def grow(self, top: Any) -> Node:
        root = Node(None, (), self._name, top.start_mark.line + 1)
        self._fill(root, top)
        return root

    def _fill(self, node: Node, given: Any) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            problem = f"aliases make more than {MAX_VALUES:,} values of it"
            line = given.start_mark.line + 1
            raise syntax_error(f"{self._name}:{line}", problem, "write values out instead of using * so often")
        if given.tag == f"{_TAG}map" and given.id == "mapping":
            node.value = {}
            for key, (line, value) in self._items(given).items():
                node.value[key] = node.child(key, line)
                self._fill(node.value[key], value)
        elif given.tag == f"{_TAG}seq" and given.id == "sequence":
            node.value = []
            for index, item in enumerate(given.value):
                node.value.append(node.child(index, item.start_mark.line + 1))
                self._fill(node.value[index], item)
        else:
            value = self._loader.construct_object(given, deep=True)
            node.value = tuple(value) if isinstance(value, list) else value

    def _items(self, mapping: Any) -> dict[str, tuple[int, Any]]:
        """Key → line and value: a mapping's own keys over those that it merges (`<<`)."""
        own: dict[str, tuple[int, Any]] = {}
        merged: dict[str, tuple[int, Any]] = {}
        for key_node, value in mapping.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                for each in value.value if value.id == "sequence" else [value]:
                    merged = {**self._merged(each), **merged}
                continue
            key = self._loader.construct_object(key_node)
            if not isinstance(key, str):
                raise syntax_error(f"{self._name}:{line}", f"the key {key!r} is not text", "put it in quotes")
            if key in own:
                problem = f"the key {key!r} stands twice (first on line {own[key][0]})"
                raise syntax_error(f"{self._name}:{line}", problem, "keep one of them")
            own[key] = (line, value)
        return {**merged, **own}

    def _merged(self, given: Any) -> dict[str, tuple[int, Any]]:
        if given.id == "mapping":
            return self._items(given)
        problem = f"expected a mapping or list of mappings for merging, but found {given.id}"
        where = f"{self._name}:{given.start_mark.line + 1}:{given.start_mark.column + 1}"
        raise syntax_error(where, f"not valid YAML: {problem}", _HINT)
