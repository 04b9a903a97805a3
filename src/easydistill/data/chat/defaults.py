"""A chat template with values for some of its variables, which hold wherever it is rendered without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from easydistill.data.chat.templates import Template


def with_defaults(source: str, variables: Mapping[str, Any]) -> str:
    """A template's text that renders, without `variables`, as `source` does with them; given ones still win.

    Variables that the template does not read are left out, and so is what an earlier call has written already.
    """
    read = Template(source).variables
    names = sorted(read & variables.keys())
    written = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {_literal(variables[name])} -%}}" for name in names
    )
    if not written or source.startswith(written.removesuffix("-%}")):
        return source
    if not source[:1].isspace():
        return written + source
    # A template's first white space counts. transformers takes the one line break behind a block away.
    return written.removesuffix("-%}") + "%}\n" + source


def _literal(value: Any) -> str:
    """A JSON value as Jinja spells it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
