"""A file's bytes, decompressed as they are read."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.errors import DataError


def open_bytes(path: Path, compression: str = "") -> Any:
    """Open a file for reading: a stream of bytes. A compressed one is decompressed piece by piece.

    Args:
        compression: one of `places.COMPRESSIONS`, or nothing.
    """
    if compression == ".gz":
        import gzip

        return gzip.open(path, "rb")
    if compression == ".bz2":
        import bz2

        return bz2.open(path, "rb")
    if compression == ".xz":
        import lzma

        return lzma.open(path, "rb")
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a `DataError` that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(f"{path}: the file is not UTF-8 text\n    → save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:
        # The standard library's lzma raises a class of its own, which cannot be imported where Python lacks it.
        if type(error).__name__ != "LZMAError":
            raise
        raise DataError(f"{path}: it cannot be read: {error}") from None
