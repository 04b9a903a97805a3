"""Two tokenizers on one text: where their tokens begin at the same byte, and which tokens are equal.

What enters: tokenizers, or rows of ids and masks as `data/chat.py` renders them. What leaves: the exact bytes of every
token, a map from the teacher's ids to the student's, and pairs of tokens that begin at the same byte.

Row t−1 of a model's output predicts token t. A pair (t, u) therefore joins the student's row t−1 and the
teacher's row u−1.

Shapes: V a vocabulary, S the student's, T the teacher's; P pairs.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easydistill.errors import DataError

TokenBytes = list[bytes | None]
"""Bytes by token id; None if a token stands for no text."""
Ids = NDArray[np.int64]

_METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SAMPLES = (
    "Hello, it is 12:30 o'clock; isn't it? Naïve café, Straße, ¿qué?",
    "知识蒸馏：用大模型教小模型。二〇二六年，第1课！",
    "family 👩‍👩‍👧 flag 🇩🇪 star ⭐ math ∑𝔸≠∅",
    "def f(x):\n    return {'a': x[0] ** 2}  # <- y\n\n\n\tif x != 3:\n\t\tpass\n",
    "a  b   c        d\n \n  e\t\t f \r\n g",
    "control \x01\x02\x07\x1b[0m \x7f\x80 \u200b\ufeff end",
)


# --- the bytes of tokens ------------------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest for U+0100 and up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(0x100 + n): byte for n, byte in enumerate(others)}}


_BYTE_OF = _byte_alphabet()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


@dataclass(frozen=True)
class _Backend:
    """How a tokenizer of the `tokenizers` library writes text, according to its own JSON."""

    tokenizers: Any
    parts: dict[str, Any]
    """The JSON: model, normalizer, pre_tokenizer, decoder, added_tokens."""
    byte_level: bool
    space: str | None
    """The character that stands for a space (metaspace); None if there is none."""

    def read(self, token: str) -> bytes | None:
        """The bytes of a token of the model's vocabulary."""
        if self.byte_level:
            found = [_BYTE_OF.get(character) for character in token]
            return None if None in found else bytes(found)  # type: ignore[arg-type]
        if self.parts["model"].get("byte_fallback") and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return self.spaced(token).encode()

    def spaced(self, text: str) -> str:
        return text.replace(self.space, " ") if self.space else text

    def normalized(self, text: str) -> str:
        """Text as the tokenizer normalises it before tokenising, with real spaces."""
        normalizer = self.tokenizers.normalizer
        return self.spaced(normalizer.normalize_str(text) if normalizer else text)

    def read_added(self, added: dict[str, Any]) -> bytes | None:
        """The bytes of an added token: the letters of `<think>`, none for a control token.

        None, too, for a token that swallows the white space beside it: its text is ambiguous.
        """
        if added["special"] or added["lstrip"] or added["rstrip"]:
            return None
        text: str = added["content"]
        return (self.normalized(text) if added["normalized"] else self.spaced(text)).encode()

    def writable(self, text: str, vocabulary: Collection[str]) -> bytes:
        """The bytes that survive of a text: a byte-level vocabulary may lack some bytes, and drops them silently."""
        written = self.normalized(text).encode()
        if not self.byte_level or self.parts["model"].get("unk_token"):
            return written
        return bytes(byte for byte in written if _CHARACTER_OF[byte] in vocabulary)


def _nodes(tree: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with sequences flattened."""
    if tree is None:
        return
    yield tree
    for key in ("normalizers", "pretokenizers", "decoders"):
        for child in tree.get(key, []):
            yield from _nodes(child)


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _backend(tokenizer: Any) -> _Backend:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"the tokenizer {_name(tokenizer)} has no fast version, which is needed to know the bytes of its tokens\n"
            "    → use a model whose folder has a tokenizer.json"
        )
    parts = json.loads(backend.to_str())
    if (kind := parts["model"]["type"]) not in {"BPE", "Unigram"}:
        raise DataError(
            f"the tokenizer {_name(tokenizer)} is a {kind} model, which does not keep a text's white space\n"
            "    → use a model with a BPE or Unigram tokenizer"
        )
    nodes = [node for part in ("normalizer", "pre_tokenizer", "decoder") for node in _nodes(parts[part])]
    space = next((node["replacement"] for node in nodes if node["type"] == "Metaspace"), None)
    if any(node["type"] == "Replace" and _METASPACE in (node["content"], *node["pattern"].values()) for node in nodes):
        space = _METASPACE
    return _Backend(backend, parts, any(node["type"] == "ByteLevel" for node in nodes), space)


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The bytes that every token id stands for inside running text, [V]; None for control tokens and unused ids.

    V is the tokenizer's highest id + 1; a model's own vocabulary may be padded beyond it. The bytes come from the
    tokenizer's backend, because `decode` has none for part of a character. An added token that is not special, such
    as many models' `<think>`, stands for its letters. If a sentencepiece-style tokenizer puts a space before a text,
    the first token's bytes include that space.

    Raises:
        DataError: the tokenizer does not keep its text (WordPiece), has no fast version, or does not reproduce the
            bytes of a few sample texts.
    """
    backend = _backend(tokenizer)
    vocabulary: dict[str, int] = backend.tokenizers.get_vocab(with_added_tokens=True)
    pieces: TokenBytes = [None] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        pieces[index] = backend.read(token) or None
    for added in backend.parts["added_tokens"]:
        pieces[added["id"]] = backend.read_added(added) or None
    unknown = backend.parts["model"].get("unk_token") or backend.parts["model"].get("unk_id")
    unknown_id = vocabulary.get(unknown) if isinstance(unknown, str) else unknown
    for index in {*tokenizer.all_special_ids, unknown_id} - {None}:
        pieces[index] = None
    for sample in _SAMPLES:
        _check(tokenizer, pieces, sample, backend.writable(sample, vocabulary), unknown_id)
    return pieces


def _check(tokenizer: Any, pieces: TokenBytes, sample: str, expected: bytes, unknown_id: int | None) -> None:
    """Check the bytes on a text; an unknown token matches anything, and a space may precede everything."""
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    parts = [b".+?" if index == unknown_id else re.escape(pieces[index] or b"\0no text\0") for index in ids]
    # Several wildcards in a row match the same as one, but in exponential time.
    pattern = re.compile(re.sub(rb"(?:\.\+\?)+", b".+?", b"".join(parts)), re.DOTALL)
    if pattern.fullmatch(expected) is None and pattern.fullmatch(b" " + expected) is None:
        raise DataError(
            f"the tokenizer {_name(tokenizer)} is not understood: its tokens' bytes do not add up to {sample!r}\n"
            "    → use a teacher with the student's tokenizer, or one with byte-level BPE or sentencepiece"
        )


# --- one vocabulary in the other ----------------------------------------------------------------------------


def shared_vocabulary(
    student: Any, teacher: Any, student_eos_ids: Collection[int], teacher_eos_ids: Collection[int], student_end: int
) -> Ids:
    """For each of the teacher's tokens the student's id with the same bytes, int64 [T]; −1 if there is none.

    The teacher's end tokens map to `student_end`, the token that the student's template writes at the end of an
    answer; other control tokens map to nothing. Several of the teacher's ids may map to one of the student's.
    """
    assert student_end in student_eos_ids
    candidates: dict[bytes, list[int]] = defaultdict(list)
    for index, piece in enumerate(token_bytes(student)):
        if piece is not None and index not in student_eos_ids:
            candidates[piece].append(index)
    id_of = {piece: ids[0] if len(ids) == 1 else _as_written(student, piece, ids) for piece, ids in candidates.items()}
    found = np.array([-1 if piece is None else id_of.get(piece, -1) for piece in token_bytes(teacher)], dtype=np.int64)
    found[list(teacher_eos_ids)] = student_end
    return found


def _as_written(tokenizer: Any, piece: bytes, ids: list[int]) -> int:
    """The one of several ids with the same bytes that the tokenizer produces; a byte token only as a last resort."""
    text = piece.decode(errors="ignore")
    # After a line break: at the start of a text, a space added by the tokenizer may hide the piece.
    written = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    if hits := [index for index in ids if index in written]:
        return hits[0]
    names = {index: tokenizer.convert_ids_to_tokens(index) for index in ids}
    return next((index for index in ids if not _BYTE_TOKEN.fullmatch(names[index])), ids[0])


# --- one row beside the other -------------------------------------------------------------------------------

# What one template may write before an answer's own text, and another not or differently.
_HEAD = re.compile(rb"\s*(?:<think>\s*</think>\s*)?")


@dataclass
class _Turn:
    """A run of learned tokens: one answer, as far as the bytes of its tokens are known."""

    text: bytearray = field(default_factory=bytearray)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    """(byte offset in `text` at which the token begins, index of the token in its row)."""
    known: bool = True
    """False after a token without bytes: later offsets are unknown."""
    end: int | None = None
    """Index of the end-of-turn token, if the offsets up to it are known."""

    def add(self, index: int, piece: bytes | None) -> None:
        self.known = self.known and piece is not None
        if self.known and piece is not None:
            self.tokens.append((len(self.text), index))
            self.text += piece


def _turns(ids: Sequence[int], mask: Sequence[bool], pieces: TokenBytes, ends: Collection[int]) -> list[_Turn]:
    turns: list[_Turn] = []
    current: _Turn | None = None
    for index, (token, on) in enumerate(zip(ids, mask, strict=True)):
        if not on:
            current = None
            continue
        if current is None:
            current = _Turn()
            turns.append(current)
        if token in ends:
            current.end = index if current.known else None
            current = None
        else:
            current.add(index, pieces[token])
    return turns


def _common_prefix(first: bytes, second: bytes) -> int:
    size = min(len(first), len(second))
    differ = np.frombuffer(first, np.uint8, size) != np.frombuffer(second, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size


@dataclass(frozen=True)
class _Match:
    """What turns have in common: the number of bytes (an end token counts as one), and the pairs."""

    score: int = 0
    pairs: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: _Match) -> _Match:
        return _Match(self.score + other.score, self.pairs + other.pairs)


def _match(student: _Turn, teacher: _Turn) -> _Match:
    """Match one answer in its two tokenizations."""
    first, second = _starts(student.text, teacher.text)
    texts = bytes(student.text[first:]), bytes(teacher.text[second:])
    common = _common_prefix(*texts)
    token_at = {offset - second: index for offset, index in teacher.tokens if 0 <= offset - second < common}
    pairs = [(index, token_at[offset - first]) for offset, index in student.tokens if offset - first in token_at]
    ended = not any(text[common:].strip() for text in texts)
    if ended and student.end is not None and teacher.end is not None:
        pairs.append((student.end, teacher.end))
        common += 1
    # Nothing predicts a row's first token.
    return _Match(common, tuple(pair for pair in pairs if min(pair) > 0))


def _starts(student: bytearray, teacher: bytearray) -> tuple[int, int]:
    """Where each side's text of an answer begins, after a head that the other does not have."""
    first, second = (head.end() if (head := _HEAD.match(text)) else 0 for text in (student, teacher))
    return (0, 0) if student[:first] == teacher[:second] else (first, second)


def _matched(student: list[_Turn], teacher: list[_Turn], truncated: bool) -> _Match:
    """Match all turns in order; if a side lacks some, those that leave the most text in common."""
    if len(student) == len(teacher):
        return sum((_match(*turns) for turns in zip(student, teacher, strict=True)), _Match())
    above = [_Match()] * (len(teacher) + 1)
    for mine in student:
        row = [_Match()]
        for at, theirs in enumerate(teacher):
            skipped, paired = [above[at + 1], row[at]], [above[at] + _match(mine, theirs)]
            # `max` takes the first of equals: the earlier or the later of answers with the same text.
            row.append(max(skipped + paired if truncated else paired + skipped, key=lambda match: match.score))
        above = row
    return above[-1]


def align(
    student_ids: Sequence[int],
    student_mask: Sequence[bool],
    teacher_ids: Sequence[int],
    teacher_mask: Sequence[bool],
    student_bytes: TokenBytes,
    teacher_bytes: TokenBytes,
    student_ends: Collection[int],
    teacher_ends: Collection[int],
    *,
    truncated: bool = False,
) -> Ids:
    """Pairs (t, u) of a student's and a teacher's token that begin at the same byte of the same answer, int64 [P, 2].

    Row t−1 of the student and row u−1 of the teacher then predict the continuation of the same text. Both tokens are
    learned (mask on), and both columns increase. Offsets are cumulative lengths of token bytes within a turn, which is
    a run of learned tokens up to and including its end token; the end tokens of a turn pair with each other.

    If the two texts of an answer differ:

    - White space or an empty thinking block before the answer that only one side has, or that differs, is attributed
      to the template: offsets count from its end on both sides.
    - From the first differing byte on, nothing of that turn pairs: not even the tokens whose continuations differ. But
      differences of white space before the end token do not prevent end tokens from pairing.
    - A token without bytes (control, unknown) in an answer ends the alignment of its turn.

    Args:
        student_ids, student_mask, teacher_ids, teacher_mask: the same chat, rendered for each side. A side may lack
            turns of the other: those cut off at its end, or those its template does not show as generated (Qwen3 trains
            on the last answer only). Turns are then paired in order, so that the most text is shared.
        student_bytes, teacher_bytes: from `token_bytes`.
        student_ends, teacher_ends: all tokens that end a turn.
        truncated: whether either row was cut off. This only decides between answers with the same text if one side
            lacks some: the earlier ones are paired, else the later ones. Equal numbers of turns are always paired one
            to one, so do not align a truncated row with one that shows only the last answer.
    """
    student = _turns(student_ids, student_mask, student_bytes, student_ends)
    teacher = _turns(teacher_ids, teacher_mask, teacher_bytes, teacher_ends)
    return np.array(_matched(student, teacher, truncated).pairs, dtype=np.int64).reshape(-1, 2)
