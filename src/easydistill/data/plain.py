"""Values of other types than JSON's (what Arrow and Python have, and files of rows do not) as values of JSON's."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

DEEPEST = 64
"""Levels of lists and objects that a field of a row may have."""


_SHORTEST = 200
_BASE64 = re.compile(
    r"(?P<head>(?:data:[\w.+/-]*(?:;[\w.+=-]+)*?|\b[\w.+-]{1,64}/[\w.+-]{1,64});base64,)(?P<body>[A-Za-z0-9+/=\s%\\]+)"
    rf"|(?<![A-Za-z0-9+/])(?P<bare>(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s\\]{{{_SHORTEST},}}={{0,2}})",
    re.IGNORECASE,
)
"""Data URLs, also without `data:`, and images in base 64 without such a head."""


class TooDeep(ValueError):
    """A value is nested deeper than `DEEPEST`."""


def plain_scalar(value: Any) -> Any:
    """A value in one of JSON's types: dates and times as ISO text, decimals as numbers where they are that exactly,
    bytes as the text that they spell or else in base 64, arrays as lists; anything else as its text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value))
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    return str(value)


def plain_json(value: Any, level: int = 0) -> Any:
    """A value as every writer takes it: lists and objects with text keys, and in them the scalars of `plain_scalar`.
    What JSON has no number for (NaN, infinities) is null, half a surrogate pair is U+FFFD.

    Raises:
        TooDeep: it is nested deeper than `DEEPEST`.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if level > DEEPEST:
        raise TooDeep(f"it is nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        return {_key(name): plain_json(item, level + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item, level + 1) for item in value]
    return plain_json(plain_scalar(value), level + 1)


def whole_text(text: str) -> str:
    """A text that UTF-8 can hold: each half of a surrogate pair is U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def _key(name: Any) -> str:
    return whole_text(name if isinstance(name, str) else str(plain_scalar(name)))


def _number(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return str(value)
    if value.as_tuple().exponent == 0:
        return int(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else str(value)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def without_base64(text: str) -> str:
    """A text with a mark in the place of data URLs and of images in base 64: for journals, logs and reports."""
    return text if len(text) < _SHORTEST and "base64," not in text else _BASE64.sub(_left_out, text)


def _left_out(found: re.Match[str]) -> str:
    return f"{found['head'] or ''}[{len(found['body'] or found['bare']):,} characters]"


def without_image_bytes(value: Any, level: int = 0) -> Any:
    """A value of a row with a mark in the place of bytes, data URLs and base 64 of images; the value itself if it holds
    none."""
    if isinstance(value, str):
        return without_base64(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value):,} bytes]"
    if level > DEEPEST or not isinstance(value, dict | list | tuple):
        return value
    if isinstance(value, dict):
        parts = {name: without_image_bytes(item, level + 1) for name, item in value.items()}
        return parts if any(parts[name] is not item for name, item in value.items()) else value
    items = [without_image_bytes(item, level + 1) for item in value]
    return items if any(kept is not item for kept, item in zip(items, value, strict=True)) else value
