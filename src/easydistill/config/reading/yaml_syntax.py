"""YAML → nodes, through PyYAML's safe loader. A repeated key is an error."""

from __future__ import annotations

import itertools
import re
from typing import Any

from easydistill.config.identity import SECRET_KEYS
from easydistill.config.reading.nodes import Node, syntax_error
from easydistill.config.values import HIDDEN
from easydistill.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
MAX_VALUES = 100_000
"""Aliases let a few lines stand for billions of values."""

_HINTS = (
    (r"character '\\t'", "indent with spaces, not tabs"),
    (r"mapping values are not allowed", "put one key on a line, and quote text that contains a colon"),
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
        ConfigError: it is not valid YAML, a key is repeated or not text, or it is too deep or too large.
    """
    import yaml

    try:
        return _parsed(text, name)
    except yaml.MarkedYAMLError as error:
        raise _explained(error, text, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the control character {chr(error.character)!r}" if isinstance(error.character, int) else "bad text"
        raise syntax_error(f"{name}:{line}", f"not valid YAML: {problem}", "remove it") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise syntax_error(name, f"not valid YAML: {error}", _HINT) from None


def _explained(error: Any, text: str, name: str) -> ConfigError:
    """PyYAML's error with a hint; a secret value is not quoted."""
    # Of a key without colon, and of an open quote, the start is what helps; PyYAML's problem is at the end.
    starts = str(error.context).startswith(("while scanning a simple key", "while scanning a quoted scalar"))
    mark = error.context_mark if starts else error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = str(error.problem or error.context)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, problem)), _HINT)
    shown = _LINE_BREAK.split(text)[mark.line] if mark is not None else ""
    if any(key in shown for key in SECRET_KEYS):
        problem = re.sub(r"'[^']*'", HIDDEN, problem)
    return syntax_error(where, f"not valid YAML: {problem}", hint)


def _parsed(text: str, name: str) -> Node:
    loader = _loader(name)(text)
    top = loader.get_single_node()
    if top is None:
        raise syntax_error(name, "the file contains no value", "start from `easydistill init black_box_kd_local`")
    count = itertools.count(1)

    def filled(node: Node, given: Any) -> Node:
        """The empty node with what PyYAML's holds. Each use of an alias is a value of its own."""
        if next(count) > MAX_VALUES:
            problem = f"its aliases expand to more than {MAX_VALUES:,} values"
            where = f"{name}:{given.start_mark.line + 1}"
            raise syntax_error(where, problem, "write values out instead of using * so often")
        if given.id == "mapping" and given.tag == f"{_TAG}map":
            node.value = {}
            for key, value in given.value:
                node.value[key.value] = filled(node.child(key.value, key.start_mark.line + 1), value)
        elif given.id == "sequence" and given.tag == f"{_TAG}seq":
            items = enumerate(given.value)
            node.value = [filled(node.child(index, item.start_mark.line + 1), item) for index, item in items]
        else:
            value = loader.construct_object(given, deep=True)
            node.value = tuple(value) if isinstance(value, list) else value  # `!!omap` and `!!pairs`
        return node

    return filled(Node(None, (), name, top.start_mark.line + 1), top)


def _loader(name: str) -> Any:
    """PyYAML's safe loader, which takes in merged mappings (`<<`) but would let a repeated key pass."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            mapping = super().compose_mapping_node(anchor)
            lines: dict[str, int] = {}
            for key_node, _ in mapping.value:
                if key_node.tag == f"{_TAG}merge":
                    continue
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                if not isinstance(key, str):
                    raise syntax_error(f"{name}:{line}", f"the key {key!r} is not text", "put it in quotes")
                if key in lines:
                    problem = f"the key {key!r} is repeated (first on line {lines[key]})"
                    raise syntax_error(f"{name}:{line}", problem, "keep one of them")
                lines[key] = line
            self.flatten_mapping(mapping)
            # Each key once: PyYAML keeps what is overridden, and in older versions merges of merges grow without end.
            mapping.value = list({key_node.value: (key_node, value) for key_node, value in mapping.value}.values())
            return mapping

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if tag != f"{_TAG}timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
