"""Raw text from files and folders.

Read: `.txt`, `.md`, `.html`, `.pdf`, and rows, as `row_files` reads them, with a `data` (the paper's) or `text`.
HTML is read by selectolax (an HTML5 parser, one wheel, no dependencies), PDF by pypdf (pure Python); both come with
the extra `synth` and are imported when needed. A file or row that cannot be read becomes a rejected row that names it.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.images.reader import NOT_SEEN
from easydistill.data.reading import keys
from easydistill.data.reading.values import is_given
from easydistill.data.records import IdAssigner, Rejection
from easydistill.data.row_files import (
    MALFORMED,
    SUFFIXES,
    BrokenRow,
    format_of,
    has_lone_surrogates,
    own_id,
    plain_value,
    rows_of,
)
from easydistill.errors import DataError, MissingExtra

TEXT_KEYS = ("data", "text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of files that are taken for images; what they hold decides whether they are."""
_OF_IMAGES = "the job image_instruction_generation makes instructions about images"


@dataclass(frozen=True)
class Document:
    """A text and its source: `path`, or `path, row n`."""

    id: str
    text: str
    source: str


class _Unreadable(Exception):
    """Why a file or row has no usable text: a reason code, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_documents(path: Path, encoding: str = "utf-8") -> tuple[list[Document], list[Rejection]]:
    """Read a file, or all files of a folder and its subfolders, in the order of their names.

    Args:
        path: a file or a folder. Inside a folder, names that begin with a dot are skipped.
        encoding: of `.txt` and `.md`, and of HTML that does not name its own. A byte order mark takes precedence.

    Returns:
        The documents, and a rejection for each file or row without usable text.

    Raises:
        DataError: there is no such path, or it contains no usable text.
        MissingExtra: there is an HTML or PDF file, and the library that reads it is not installed.
        ValueError: there is no such encoding.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"there is no encoding {encoding!r}; try utf-8 or gb18030") from None
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    ids = IdAssigner()
    documents: list[Document] = []
    rejected: list[Rejection] = []
    for file in _files(path):
        try:
            for source, row, result in _texts(file, encoding):
                if isinstance(result, str):
                    identity = ids.assign({"text": result}, own_id(row))
                    documents.append(Document(identity, result, source))
                else:
                    identity = ids.assign([source, str(row)[:1000]])
                    detail = f"{source}: {result}"
                    rejected.append(Rejection(identity, "read", result.reason, detail, 1, plain_value(row)))
        except (_Unreadable, DataError) as problem:
            reason = problem.reason if isinstance(problem, _Unreadable) else "unreadable"
            detail = str(problem) if isinstance(problem, DataError) else f"{file}: {problem}"
            rejected.append(Rejection(ids.assign([str(file)]), "read", reason, detail))
    if not documents:
        first = f"\n    {rejected[0].detail}" if rejected else ""
        raise DataError(f"{path}: it contains no usable text ({len(rejected)} files or rows were rejected){first}")
    return documents, rejected


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    below = ((file.relative_to(path), file) for file in path.rglob("*"))
    visible = [(name.as_posix(), file) for name, file in below if not any(part[0] == "." for part in name.parts)]
    return [file for _, file in sorted(visible) if file.is_file()]


def _texts(file: Path, encoding: str) -> Iterator[tuple[str, Any, str | _Unreadable]]:
    """(source, row, its text or what is wrong with it) for each text of a file."""
    suffix = file.suffix.lower()
    if format_of(file) is not None:
        for number, row in enumerate(rows_of(file), start=1):
            try:
                yield f"{file}, row {number}", row, _checked(_text_of(row))
            except _Unreadable as problem:
                yield f"{file}, row {number}", row, problem
        return
    if suffix not in _READERS:
        known = ", ".join([*_READERS, *SUFFIXES])
        hint = f"; {_OF_IMAGES}" if suffix in IMAGE_SUFFIXES else ""
        raise _Unreadable("unknown_format", f"text is read from {known}{hint}")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise _Unreadable("unreadable", error.strerror or str(error)) from None
    yield str(file), None, _checked(_READERS[suffix](raw, encoding))


def _text_of(row: Any) -> str:
    if isinstance(row, BrokenRow):
        raise _Unreadable(MALFORMED, row.problem)
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise _Unreadable(MALFORMED, f"a row is an object, not {type(row).__name__}")
    if any(is_given(row.get(name)) for name in keys.IMAGES):
        raise _Unreadable(NOT_SEEN, f"the row has an image, and text alone is read here; {_OF_IMAGES}")
    key, text = next(((key, row[key]) for key in TEXT_KEYS if row.get(key) is not None), ("", None))
    if not key:
        found = ", ".join(list(map(str, row))[:8]) or "nothing"
        raise _Unreadable(MALFORMED, f"no `data` or `text` in it (it has: {found})")
    if not isinstance(text, str):
        raise _Unreadable(MALFORMED, f"`{key}` is not text")
    return text


def _checked(text: str) -> str:
    if not text.strip():
        raise _Unreadable("empty", "there is no text in it")
    if "\0" in text:
        raise _Unreadable("binary", "it contains zero bytes, so it is not text")
    if has_lone_surrogates(text):
        raise _Unreadable("encoding", "its text contains half of a surrogate pair")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- formats ----------------------------------------------------------------------------------------------

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
# The encodings that browsers use for these names (WHATWG encoding standard).
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252"}


def _decode(raw: bytes, encoding: str) -> str:
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), encoding)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        detail = f"line {line}, byte {error.start}: 0x{raw[error.start]:02x} is not {encoding}"
        raise _Unreadable("encoding", f"{detail}; name the file's encoding (gb18030?) or convert it to UTF-8") from None


def _html(raw: bytes, encoding: str) -> str:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise MissingExtra("synth", "Reading HTML") from None
    named = _CHARSET.search(raw, 0, 1024)
    if named is not None:
        encoding = named[1].decode("ascii").lower()
        encoding = _SUPERSETS.get(encoding, encoding)
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise _Unreadable("encoding", f"it names an unknown encoding, {encoding}") from None
    root = LexborHTMLParser(_decode(raw, encoding)).root
    return "" if root is None else _html_text(root)


_SKIPPED = frozenset({"head", "script", "style", "template", "noscript", "svg", "math", "iframe", "object", "canvas"})
_PARAGRAPHS = frozenset(
    {"p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "h1", "h2", "h3", "h4", "h5", "h6"}
    | {"ul", "ol", "dl", "table", "blockquote", "pre", "figure", "figcaption", "form", "fieldset", "details", "hr"}
)
_VERBATIM = frozenset({"pre", "textarea"})
_LINES = frozenset({"li", "tr", "dt", "dd", "caption", "summary", "option", "address"})


def _html_text(root: Any) -> str:
    """The text of a tree: paragraphs separated by an empty line, table cells by a tab, `pre` unchanged."""
    written: list[str] = []
    verbatim = 0
    # (node, whether its children are done); a stack, because documents nest deeper than Python recurses.
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        tag = node.tag
        last = written[-1][-1:] if written else ""
        if tag == "-text":
            text = node.text_content or ""
            written += filter(None, [text if verbatim else _folded(text, last)])
        elif tag not in _SKIPPED and not tag.startswith(("-", "!")):
            if tag in _VERBATIM:
                verbatim += -1 if left else 1
            written += filter(None, [_separator(tag, last, left)])
            if not left:
                stack.append((node, True))
                stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]
    text = re.sub(r"[ \t]+\n", "\n", "".join(written).replace("\u00a0", " "))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _folded(text: str, last: str) -> str:
    """Text whose runs of white space are one space, or none where the text before ends in white space."""
    text = re.sub(r"[ \t\n\r\f]+", " ", text)
    return text.lstrip(" ") if last in " \n\t" else text


def _separator(tag: str, last: str, left: bool) -> str:
    """What is written where an element begins or, if `left`, ends."""
    if tag in _PARAGRAPHS:
        return "\n\n"
    if (tag == "br" and left) or (tag in _LINES and last != "\n"):
        return "\n"
    return "\t" if tag in ("td", "th") and left else ""


def _pdf(raw: bytes, encoding: str) -> str:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise MissingExtra("synth", "Reading PDF") from None
    pages: list[str] = []
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _Unreadable("encrypted", "it needs a password; save a copy without one")
        for page in reader.pages:
            pages.append(page.extract_text().strip())
    except (_Unreadable, MemoryError):
        raise
    except Exception as error:  # pypdf raises all kinds of exceptions for broken files
        detail = f"page {len(pages) + 1}: not a readable PDF: {type(error).__name__}: {error}"
        raise _Unreadable("unreadable", detail) from None
    if not any(pages):
        raise _Unreadable("empty", "its pages contain no text; a scan needs character recognition (OCR) first")
    return "\n\n".join(text for text in pages if text)


_READERS: dict[str, Callable[[bytes, str], str]] = {
    ".txt": _decode,
    ".text": _decode,
    ".md": _decode,
    ".markdown": _decode,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".pdf": _pdf,
}
