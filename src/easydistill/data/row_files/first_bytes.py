"""Whether a file holds what its name says, and is whole, as far as a first look tells. Cheap enough for `validate`."""

from __future__ import annotations

import codecs
from pathlib import Path

from easydistill.data.row_files.broken import PlaceError
from easydistill.data.row_files.places import FilesPlace, Format, format_of
from easydistill.data.row_files.wholeness import NotWhole, check_whole

_MAGIC = {
    ".gz": (b"\x1f\x8b",),
    # A frame, or one that decoders skip.
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
    ".parquet": (b"PAR1", b"PARE"),
}
_NAMES = {".gz": "gzip", ".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz", ".parquet": "Parquet"}
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_POINTER = b"version https://git-lfs.github.com/spec/"
_HEAD = 512
_OPENED = 256
"""Files of a folder that are looked at beyond their first bytes."""


def check_files(where: str, place: FilesPlace) -> None:
    """Refuse files that cannot be what their names say.

    Raises:
        PlaceError: one cannot be opened, is empty though it is the only one, holds something else, or is cut off.
    """
    for number, path in enumerate(place.files):
        found = format_of(path) or Format(path.suffix)
        try:
            with path.open("rb") as handle:
                head = handle.read(_HEAD)
        except OSError as error:
            raise PlaceError(where, f"{path.name} cannot be opened: {error.strerror or error}") from None
        if not head and place.single:
            raise PlaceError(where, "there are no rows in it: the file is empty")
        problem = _problem(found, head) if head else None
        if head and problem is None and number < _OPENED:
            problem = _damage(path, found, place.single)
        if problem is not None:
            subject = "it" if place.single else path.name
            raise PlaceError(where, f"{subject} {problem[0]}", problem[1])


def _problem(found: Format, head: bytes) -> tuple[str, str] | None:
    """(problem, hint), or None."""
    if head.startswith(_POINTER):
        return "is a Git LFS pointer, not the data", "fetch the data: git lfs pull"
    named = found.compression or found.suffix
    if named in _MAGIC:
        is_one = head.startswith(_MAGIC[named])
        return None if is_one else (f"is not a {_NAMES[named]} file", f"a suffix of what it is, in place of {named}")
    if found.suffix == ".arrow":
        return None
    really = next((suffix for suffix, begins in _MAGIC.items() if head.startswith(begins)), None)
    if really is not None:
        hint = f"rename it: {'….parquet' if really == '.parquet' else f'…{found.suffix}{really}'}"
        return f"is a {_NAMES[really]} file", hint
    if head.startswith(_WIDE) or b"\x00" in head:
        return "is not UTF-8 text", "save it as UTF-8"
    return _not_rows(found, head.removeprefix(codecs.BOM_UTF8).lstrip())


def _damage(path: Path, found: Format, single: bool) -> tuple[str, str] | None:
    """What is wrong behind the first bytes, as (problem, hint), or None."""
    try:
        text = check_whole(path, found)
    except NotWhole as damage:
        return f"is cut off or damaged ({damage})", "copy or download it again"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}", ""
    if not text:
        return ("holds no rows: it is empty", "") if text is not None and single else None
    if text.startswith(_WIDE) or b"\x00" in text[:_HEAD]:
        return "is not UTF-8 text", "save it as UTF-8"
    return _not_rows(found, text.removeprefix(codecs.BOM_UTF8).lstrip())


def _not_rows(found: Format, text: bytes) -> tuple[str, str] | None:
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page", "download the file itself"
    if found.suffix == ".json" and text and text[:1] not in (b"[", b"{", b'"'):
        return "is not JSON", "it begins with [ or {"
    if found.suffix in (".jsonl", ".ndjson") and text.partition(b"\n")[0].strip() in (b"[", b"{"):
        return "holds rows that are not a line each", "rename it: ….json"
    return None
