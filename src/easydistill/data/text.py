"""Raw text from files and folders, and its chunks.

Read: `.txt`, `.md`, `.html`, `.pdf`, and rows of `.json`, `.jsonl`, `.parquet` with a `data` (the paper's) or `text`.
HTML is read by selectolax (an HTML5 parser, one wheel, no dependencies), PDF by pypdf (pure Python); both come with
the extra `synth` and load when such a file does. What cannot be read is a rejected row that names the file.

A text is cut into overlapping chunks along paragraphs and sentences, English and Chinese. A chunk is
`text[start:end]` to the letter, and together they are the whole text.
"""

from __future__ import annotations

import codecs
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from easydistill.data.records import IdGiver, Rejection
from easydistill.data.row_files import MALFORMED, BrokenRow, half_characters, own_id, plain_value, rows_of
from easydistill.errors import DataError, MissingExtra

ROW_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
TEXT_KEYS = ("data", "text")


@dataclass(frozen=True)
class Document:
    """A text and where it is from: `path`, or `path, row n`."""

    id: str
    text: str
    source: str


class _Unreadable(Exception):
    """Why a file or row gives no text: a word for the count, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_documents(path: Path, encoding: str = "utf-8") -> tuple[list[Document], list[Rejection]]:
    """Read a file, or all files of a folder and its subfolders, in the order of their names.

    Args:
        path: a file or a folder. Inside a folder, names that begin with a dot are left out.
        encoding: of `.txt` and `.md`, and of HTML that does not name its own. A byte order mark overrules it.

    Returns:
        The documents, and a rejection for each file or row that gives no text.

    Raises:
        DataError: there is no such path, or nothing of it can be used.
        MissingExtra: there is an HTML or PDF file, and no library to read it.
        ValueError: no such encoding.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"there is no encoding {encoding!r}; try utf-8 or gb18030") from None
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    ids = IdGiver()
    documents: list[Document] = []
    rejected: list[Rejection] = []
    for file in _files(path):
        try:
            for source, row, result in _texts(file, encoding):
                if isinstance(result, str):
                    identity = ids.give({"text": result}, own_id(row))
                    documents.append(Document(identity, result, source))
                else:
                    identity = ids.give([source, str(row)[:1000]])
                    detail = f"{source}: {result}"
                    rejected.append(Rejection(identity, "read", result.reason, detail, 1, plain_value(row)))
        except (_Unreadable, DataError) as problem:
            reason = problem.reason if isinstance(problem, _Unreadable) else "unreadable"
            detail = str(problem) if isinstance(problem, DataError) else f"{file}: {problem}"
            rejected.append(Rejection(ids.give([str(file)]), "read", reason, detail))
    if not documents:
        first = f"\n    {rejected[0].detail}" if rejected else ""
        raise DataError(f"{path}: no text to be had from it ({len(rejected)} files or rows were rejected){first}")
    return documents, rejected


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    below = ((file.relative_to(path), file) for file in path.rglob("*"))
    visible = [(name.as_posix(), file) for name, file in below if not any(part[0] == "." for part in name.parts)]
    return [file for _, file in sorted(visible) if file.is_file()]


def _texts(file: Path, encoding: str) -> Iterator[tuple[str, Any, str | _Unreadable]]:
    """(source, row, text or what is wrong) for each text of a file."""
    suffix = file.suffix.lower()
    if suffix in ROW_SUFFIXES:
        for number, row in enumerate(rows_of(file), start=1):
            try:
                yield f"{file}, row {number}", row, _checked(_text_of(row))
            except _Unreadable as problem:
                yield f"{file}, row {number}", row, problem
        return
    if suffix not in _READERS:
        known = ", ".join([*_READERS, *ROW_SUFFIXES])
        raise _Unreadable("unknown_format", f"text is read from {known}")
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
        raise _Unreadable("binary", "there are zero bytes in it, so it is not text")
    if half_characters(text):
        raise _Unreadable("encoding", "its text holds half of a surrogate pair")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- formats ----------------------------------------------------------------------------------------------

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
# What browsers read under these names (WHATWG encoding standard).
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
_LINES = frozenset({"li", "tr", "dt", "dd", "caption", "summary", "option", "address"})


def _html_text(root: Any) -> str:
    """The text of a tree: paragraphs apart by an empty line, cells of a table by a tab, `pre` as it is."""
    written: list[str] = []
    verbatim = 0
    # A stack, since documents nest deeper than Python recurses. (node, whether it was entered before)
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        tag = node.tag
        if tag == "-text":
            text = node.text_content or ""
            if not verbatim:
                text = re.sub(r"[ \t\n\r\f]+", " ", text)
                if not written or written[-1][-1:] in " \n\t":
                    text = text.lstrip(" ")
            if text:
                written.append(text)
            continue
        if tag in _SKIPPED or tag.startswith(("-", "!")):
            continue
        verbatim += {"pre": -1 if left else 1, "textarea": -1 if left else 1}.get(tag, 0)
        if tag in _PARAGRAPHS:
            written.append("\n\n")
        elif (tag == "br" and left) or (tag in _LINES and not (written and written[-1].endswith("\n"))):
            written.append("\n")
        elif tag in ("td", "th") and left:
            written.append("\t")
        if not left:
            stack.append((node, True))
            children = []
            child = node.first_child
            while child is not None:
                children.append((child, False))
                child = child.next
            stack += reversed(children)
    text = re.sub(r"[ \t]+\n", "\n", "".join(written).replace("\u00a0", " "))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


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
    except Exception as error:  # pypdf meets broken files with exceptions of every kind
        detail = f"page {len(pages) + 1}: not a readable PDF: {type(error).__name__}: {error}"
        raise _Unreadable("unreadable", detail) from None
    if not any(pages):
        raise _Unreadable("empty", "its pages hold no text; a scan needs character recognition (OCR) first")
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


# --- chunks -----------------------------------------------------------------------------------------------

_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_PARAGRAPH_END = re.compile(r"\n[ \t\f]*+\n\s*+")
_SENTENCE_END = re.compile(r"[.!?…]++[\"'”’)\]]*+\s++(?![a-z])|[。！？；]++[”’」』）]*+\s*+|\n\s*+")
_WORD_END = re.compile(r"\s++|[，、]\s*+")
_LETTER = re.compile(r"\S")
_ENDS = (_PARAGRAPH_END, _SENTENCE_END, _WORD_END)


@dataclass(frozen=True)
class Chunk:
    """`text` is `document[start:end]`; offsets are in characters."""

    text: str
    start: int
    end: int
    tokens: int
    source: str = ""


@dataclass(frozen=True)
class _Piece:
    start: int
    end: int
    tokens: int
    level: int
    """What ends it: 0 a paragraph, 1 a sentence or line, 2 a word, 3 any character."""


def approximate_tokens(text: str) -> int:
    """A rule of thumb for texts without a tokenizer: an ideograph a token, else four characters a token."""
    wide = sum(1 for _ in _WIDE.finditer(text))
    return wide + math.ceil((len(text) - wide) / 4)


def chunks(
    text: str,
    tokens_min: int = 800,
    tokens_max: int = 1500,
    overlap: int = 100,
    count: Callable[[str], int] = approximate_tokens,
    source: str = "",
) -> list[Chunk]:
    """Cut a text into overlapping chunks that cover all of it.

    A chunk ends at the last paragraph's end between `tokens_min` and `tokens_max`, else at the last sentence's.
    Sentences are cut between words, and words inside, only where no chunk of that length would be had otherwise. The
    last chunk may be shorter, and so may one before what cannot be cut; none is longer, unless it is one character.

    Args:
        text: any text; one that is only white space has no chunks.
        tokens_min: tokens that a chunk should have.
        tokens_max: tokens that a chunk may have.
        overlap: most tokens that a chunk repeats from the end of the one before, in whole pieces.
        count: tokens of a text, without special tokens. Lengths are summed by it, so it should be nearly additive;
            the upper limit holds whether or not it is.
        source: noted in each chunk.

    Raises:
        ValueError: not 0 <= overlap < tokens_min <= tokens_max.
    """
    if not 0 <= overlap < tokens_min <= tokens_max:
        raise ValueError(
            f"chunks need 0 <= overlap < tokens_min <= tokens_max, not {overlap}, {tokens_min}, {tokens_max}"
        )
    if not text.strip():
        return []
    made: list[Chunk] = []
    # The next piece is the last of `waiting`.
    waiting = _split(text, _Piece(0, len(text), count(text), -1), count)[::-1]
    current: list[_Piece] = []
    done = total = 0
    while waiting or (current and current[-1].end > done):
        if waiting and total + waiting[-1].tokens <= tokens_max:
            total += waiting[-1].tokens
            current.append(waiting.pop())
            continue
        if waiting and total < tokens_min and len(parts := _split(text, waiting[-1], count)) > 1:
            waiting[-1:] = parts[::-1]
            continue
        if not current:
            total = waiting[-1].tokens
            current.append(waiting.pop())
        kept = _fitting(text, current, _best(current, tokens_min) if waiting else len(current), tokens_max, count)
        if current[kept - 1].end <= done:
            # Only what the chunk before has already: there is no room for the overlap.
            total -= current.pop(0).tokens
            continue
        start, done = current[0].start, current[kept - 1].end
        made.append(Chunk(text[start:done], start, done, count(text[start:done]), source))
        waiting += current[kept:][::-1]
        current = _tail(current[:kept], overlap)
        total = sum(piece.tokens for piece in current)
    return made


def _best(pieces: list[_Piece], least: int) -> int:
    """How many of the pieces make the chunk: up to the strongest, then the latest border past `least` tokens."""
    best, total, level = len(pieces), 0, pieces[-1].level
    for number, piece in enumerate(pieces, start=1):
        total += piece.tokens
        if total >= least and piece.level <= level:
            best, level = number, piece.level
    return best


def _fitting(text: str, pieces: list[_Piece], number: int, most: int, count: Callable[[str], int]) -> int:
    """At most `number` pieces, and no more than together have `most` tokens: sums are not always the whole."""
    while number > 1 and count(text[pieces[0].start : pieces[number - 1].end]) > most:
        number -= 1
    return number


def _tail(pieces: list[_Piece], overlap: int) -> list[_Piece]:
    """The last pieces that together have at most `overlap` tokens; never all."""
    total, kept = 0, len(pieces)
    while kept > 1 and total + pieces[kept - 1].tokens <= overlap:
        kept -= 1
        total += pieces[kept].tokens
    return pieces[kept:]


def _split(text: str, piece: _Piece, count: Callable[[str], int]) -> list[_Piece]:
    """Cut a piece along the next finer kind of border that there is in it; inside a word, in halves."""
    start = next((match.start() for match in _LETTER.finditer(text, piece.start, piece.end)), piece.end)
    for level in range(max(piece.level + 1, 0), len(_ENDS)):
        # White space alone is no piece; at the end, it belongs to the border before it.
        ends = [end for match in _ENDS[level].finditer(text, start, piece.end) if (end := match.end()) < piece.end]
        if ends:
            break
    else:
        if piece.end - piece.start == 1:
            return [piece]
        level, ends = len(_ENDS), [(piece.start + piece.end) // 2]
    return [
        _Piece(start, end, count(text[start:end]), level if end < piece.end else max(piece.level, 0))
        for start, end in pairwise([piece.start, *ends, piece.end])
    ]
