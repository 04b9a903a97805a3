"""Whether a compressed file, a table or an array is whole, as far as that can be told without reading all of it.

Small files are decompressed to their end, of large ones the beginning; of Zstandard, which needs a library to be
decompressed, the headers of its blocks are followed instead, which tell where it has to end (RFC 8878).
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import BinaryIO

from easydistill.data.row_files.opening import open_bytes, reading
from easydistill.data.row_files.places import Format
from easydistill.errors import DataError

_HEAD = 1 << 16
"""Bytes of text that are looked at."""
_SMALL = 1 << 18
"""Compressed files up to this size are decompressed to their end."""
_MOST = 64 << 20
"""Bytes of text after which even a small file is believed."""
_ENDS = {".parquet": (b"PAR1", b"PARE"), ".arrow": (b"ARROW1",)}
_TABLES = {".parquet": b"PAR", ".arrow": b"ARROW1"}
"""How files begin that have an end of a known form; streams of Arrow have none."""
_ZSTD_MAGIC, _SKIPPED_MAGIC = 0xFD2FB528, 0x184D2A50
_BLOCKS = 200_000
"""Blocks of Zstandard after which the rest is believed: some 25 GB of text."""
_CUT = "it ends in the middle"


class NotWhole(Exception):
    """Says in which way a file is cut off or damaged."""


def check_whole(path: Path, found: Format) -> bytes | None:
    """The beginning of the text of a compressed file, if that can be told; None of all others.

    Raises:
        NotWhole: the file is cut off or damaged.
    """
    if found.compression == ".zst":
        with path.open("rb") as handle:
            _follow_blocks(handle, path.stat().st_size)
        return None
    if found.compression:
        return _decompressed(path, found.compression)
    if found.suffix in _ENDS:
        with path.open("rb") as handle:
            _check_end(handle, found.suffix)
    elif found.suffix == ".json":
        with path.open("rb") as handle:
            _check_array(handle, path.stat().st_size)
    return None


def _decompressed(path: Path, compression: str) -> bytes:
    small = path.stat().st_size <= _SMALL
    try:
        with reading(path), open_bytes(path, compression) as handle:
            head: bytes = handle.read(_HEAD)
            seen = len(head)
            while small and seen < _MOST and (more := len(handle.read(_HEAD))):
                seen += more
    except DataError as error:
        raise NotWhole(str(error).partition("it cannot be read: ")[2]) from None
    return head


def _check_end(handle: BinaryIO, suffix: str) -> None:
    ends = _ENDS[suffix]
    if not handle.read(8).startswith(_TABLES[suffix]):
        return
    handle.seek(-len(ends[0]), os.SEEK_END)
    if handle.read() not in ends:
        raise NotWhole(_CUT)


def _check_array(handle: BinaryIO, size: int) -> None:
    """Refuse an array of rows, which is read as a whole or not at all, without an end."""
    if not handle.read(_HEAD).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return
    handle.seek(max(0, size - _HEAD))
    if not handle.read().rstrip().endswith(b"]"):
        raise NotWhole(_CUT)


# --- Zstandard ------------------------------------------------------------------------------------------------


def _follow_blocks(handle: BinaryIO, size: int) -> None:
    """Go from block to block through all frames."""
    blocks = 0
    while handle.tell() < size and blocks < _BLOCKS:
        magic = _number(handle, 4)
        if magic & ~0xF == _SKIPPED_MAGIC:
            _skip(handle, _number(handle, 4), size)
        elif magic == _ZSTD_MAGIC:
            blocks += _follow_frame(handle, size)
        else:
            raise NotWhole("something else follows its first part")


def _follow_frame(handle: BinaryIO, size: int) -> int:
    """Go to a frame's end, from behind its magic number; returns the number of its blocks."""
    described = _number(handle, 1)
    single_segment = described >> 5 & 1
    window = 0 if single_segment else 1
    dictionary = (0, 1, 2, 4)[described & 3]
    content = (single_segment, 2, 4, 8)[described >> 6]
    _skip(handle, window + dictionary + content, size)
    blocks = last = 0
    while not last:
        header = _number(handle, 3)
        last, kind = header & 1, header >> 1 & 3
        if kind == 3:
            raise NotWhole("a block of it is damaged")
        # One byte stands for a block of equal ones.
        _skip(handle, 1 if kind == 1 else header >> 3, size)
        blocks += 1
    _skip(handle, 4 if described >> 2 & 1 else 0, size)
    return blocks


def _number(handle: BinaryIO, length: int) -> int:
    read = handle.read(length)
    if len(read) < length:
        raise NotWhole(_CUT)
    return int.from_bytes(read, "little")


def _skip(handle: BinaryIO, length: int, size: int) -> None:
    if handle.seek(length, os.SEEK_CUR) > size:
        raise NotWhole(_CUT)
