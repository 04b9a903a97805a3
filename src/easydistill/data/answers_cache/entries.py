"""One answer as a line: `<checksum> <request key> <time> <record>`. What can be read of a line without parsing it.

The checksum, half of a SHA-256, covers all that follows it. The time, in milliseconds since 1970, says which of two
answers to the same request counts: the later one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_KEY = re.compile(r"[0-9a-f]{32}")
_HEAD = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{32}) (\d{13}) ")
_HEAD_BYTES = 32 + 1 + 32 + 1 + 13 + 1


def is_key(key: str) -> bool:
    """Whether a request's key is one of ours: third parties may ask under keys that say nothing of the question."""
    return _KEY.fullmatch(key) is not None


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """Where an answer is. Of two, the greater one counts."""

    at: int
    checksum: bytes
    segment: str
    offset: int
    length: int


def encode(key: str, at: int, record: dict[str, Any]) -> bytes:
    """The line of a record."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    covered = f"{key} {at:013d} {body}".encode("utf-8", "surrogatepass")
    return _checksum(covered) + b" " + covered + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line is damaged."""
    head = _HEAD.match(line)
    if head is None or not line.endswith(b"\n") or _checksum(line[33:-1]) != head[1]:
        return None
    try:
        record = json.loads(line[_HEAD_BYTES:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("key") == head[2].decode() else None


def places(data: bytes, segment: str, start: int) -> Iterator[tuple[str, Place] | None]:
    """(key, place) of each whole line of a part of a segment, None for one that is none of ours; records are not read.

    Args:
        data: a part of the segment that begins with a line.
        start: where it begins.
    """
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        head = _HEAD.match(data, at)
        if head is None:
            yield None
        else:
            place = Place(int(head[3]), head[1], segment, start + at, end + 1 - at)
            yield head[2].decode(), place
        at = end + 1


def _checksum(covered: bytes) -> bytes:
    return hashlib.sha256(covered).hexdigest()[:32].encode()
