"""YAML → data and lines, through PyYAML's safe loader. A repeated key is an error."""

from __future__ import annotations

import re
from typing import Any

from easydistill.config.base import SECRET_KEYS
from easydistill.config.reading.document import HIDDEN, MAX_DEPTH, Document, KeyPath, syntax_error
from easydistill.errors import ConfigError

MAX_VALUES = 100_000
"""Aliases let a few lines stand for billions of values."""

_MENDS = (
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
_MEND = "check indentation, colons and quotes"


def parse_yaml(text: str, name: str) -> Document:
    """YAML, of whose types only those of JSON are known: dates stay text.

    Raises:
        ConfigError: it is not valid YAML; a key stands twice or is not text; it is nested or repeated without end.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise syntax_error(name, "the file holds no value", "start from `easydistill init black_box_kd_local`")
        lines = _Lines(name, loader)
        lines.walk(node, ())
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        # Of a key without colon, and of an open quote, the start is what helps; PyYAML's problem is at the end.
        starts = str(error.context).startswith(("while scanning a simple key", "while scanning a quoted scalar"))
        mark = error.context_mark if starts else error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = str(error.problem or error.context)
        mend = next((mend for pattern, mend in _MENDS if re.search(pattern, problem)), _MEND)
        shown = _LINE_BREAK.split(text)[mark.line] if mark is not None else ""
        if any(key in shown for key in SECRET_KEYS):
            problem = re.sub(r"'[^']*'", HIDDEN, problem)
        raise syntax_error(where, f"not valid YAML: {problem}", mend) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the control character {chr(error.character)!r}" if isinstance(error.character, int) else "bad text"
        raise syntax_error(f"{name}:{line}", f"not valid YAML: {problem}", "remove it") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise syntax_error(name, f"not valid YAML: {error}", _MEND) from None
    return Document(name, data, lines.found)


class _Lines:
    """Finds the line of every value, and refuses what cannot be a config."""

    def __init__(self, name: str, loader: Any) -> None:
        self.found: dict[KeyPath, int] = {}
        self._name = name
        self._loader = loader
        self._count = 0

    def walk(self, node: Any, path: KeyPath) -> None:
        import yaml

        line = node.start_mark.line + 1
        self.found.setdefault(path, line)
        self._count += 1
        if len(path) > MAX_DEPTH:
            raise syntax_error(f"{self._name}:{line}", f"nested deeper than {MAX_DEPTH} levels", "no config needs that")
        if self._count > MAX_VALUES:
            problem = f"aliases make more than {MAX_VALUES:,} values of it"
            raise syntax_error(f"{self._name}:{line}", problem, "write values out instead of using * so often")
        if isinstance(node, yaml.MappingNode):
            for key, key_line, value in self._items(node):
                self.found[(*path, key)] = key_line
                self.walk(value, (*path, key))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.walk(item, (*path, index))

    def _items(self, node: Any) -> list[tuple[str, int, Any]]:
        items: dict[str, tuple[str, int, Any]] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self._loader.construct_object(key_node)
            if not isinstance(key, str):
                raise syntax_error(f"{self._name}:{line}", f"the key {key!r} is not text", "put it in quotes")
            if key in items:
                problem = f"the key {key!r} stands twice (first on line {items[key][1]})"
                raise syntax_error(f"{self._name}:{line}", problem, "keep one of them")
            items[key] = (key, line, value)
        return list(items.values())
