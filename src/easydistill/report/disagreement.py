"""Where the student stands beside its teacher, out of the evaluation's `disagreement.json`, and how it is said."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.files import read_json
from easydistill.report.values import as_dict, as_float, as_int, as_text

DISAGREEMENT_FILE = "disagreement.json"
SIDES = ("before", "after")
LARGEST_READ = 100
TOKENS_READ = 50
RANKED_READ = 10
MOST = 2**53
"""More tokens than this are no count."""
CONTEXT_LIMIT = 200
TOKEN_LIMIT = 48
_JOINERS = "\u200c\u200d"
_SEEN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_NOT_SEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SPACE = "Zs"


@dataclass(frozen=True)
class Ranked:
    """A token that a model finds likely."""

    text: str
    probability: float
    in_answer: bool
    """Whether it is the token that stands in the answer."""


@dataclass(frozen=True)
class Difference:
    """A token of an answer at which the two models lie far apart."""

    row: str
    position: int | None
    context: str
    """The answer before the token; it is empty for an answer's first."""
    token: str
    kl: float
    teacher: tuple[Ranked, ...]
    student: tuple[Ranked, ...]
    teacher_probability: float | None
    student_probability: float | None


@dataclass(frozen=True)
class CostlyToken:
    """A token of the vocabulary, wherever it stands."""

    token: str
    count: int
    kl: float


@dataclass(frozen=True)
class Bucket:
    """Neighbouring positions in the answer and the mean KL divergence there."""

    first: int
    last: int
    tokens: int
    kl: float

    @property
    def label(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class Side:
    """The student before or after training."""

    figures: dict[str, float]
    tokens: int | None
    not_finite: int
    positions: tuple[Bucket, ...]
    largest: tuple[Difference, ...]
    costly: tuple[CostlyToken, ...]


@dataclass(frozen=True)
class Disagreement:
    """Both sides, as far as they are there."""

    before: Side | None
    after: Side | None

    @property
    def latest(self) -> Side | None:
        return self.after or self.before


def read_disagreement(folders: list[Path]) -> Disagreement | None:
    """What the complete stages' directories hold of it; None where that is nothing."""
    for folder in folders:
        try:
            found = as_dict(read_json(folder / DISAGREEMENT_FILE))
        except (OSError, ValueError, RecursionError):
            continue
        before, after = (_side(as_dict(found.get(name))) for name in SIDES)
        if before is not None or after is not None:
            return Disagreement(before, after)
    return None


def _side(value: dict[str, Any]) -> Side | None:
    known = ((name, as_float(number)) for name, number in value.items())
    figures = {name: number for name, number in known if number is not None}
    side = Side(
        figures=figures,
        tokens=as_int(value.get("tokens")),
        not_finite=as_int(value.get("not_finite")) or 0,
        positions=tuple(sorted(_buckets(value.get("kl_by_position")), key=lambda bucket: bucket.first)),
        largest=tuple(_differences(_listed(value.get("largest"), LARGEST_READ))),
        costly=tuple(_costly(_listed(value.get("by_token"), TOKENS_READ))),
    )
    return side if side.figures or side.positions or side.largest or side.costly else None


def _listed(value: Any, most: int) -> list[dict[str, Any]]:
    return [as_dict(item) for item in value[:most]] if isinstance(value, list) else []


def _buckets(value: Any) -> Iterator[Bucket]:
    for item in _listed(value, 64):
        first, last, tokens = (as_int(item.get(name)) for name in ("first", "last", "tokens"))
        kl = as_float(item.get("kl"))
        if first is not None and last is not None and kl is not None and 0 < first <= last and kl >= 0:
            yield Bucket(first, last, tokens or 0, kl)


def _differences(items: list[dict[str, Any]]) -> Iterator[Difference]:
    for item in items:
        kl, token = as_float(item.get("kl")), as_dict(item.get("token"))
        if kl is None:
            continue
        yield Difference(
            row=as_text(item.get("row")),
            position=as_int(item.get("position")),
            context=_context(item),
            token=token_text(token),
            kl=kl,
            teacher=tuple(_ranked(item.get("teacher"), token)),
            student=tuple(_ranked(item.get("student"), token)),
            teacher_probability=as_float(item.get("teacher_probability")),
            student_probability=as_float(item.get("student_probability")),
        )


def _context(item: dict[str, Any]) -> str:
    text = as_text(item.get("context"))
    cut = item.get("context_is_cut") is True or len(text) > CONTEXT_LIMIT
    return f"{'…' if cut else ''}{visible(text[-CONTEXT_LIMIT:])}"


def _ranked(value: Any, answer: dict[str, Any]) -> Iterator[Ranked]:
    for item in _listed(value, RANKED_READ):
        probability = as_float(item.get("probability"))
        if probability is not None:
            same = item.get("id") is not None and item.get("id") == answer.get("id")
            yield Ranked(token_text(item), probability, same)


def _costly(items: list[dict[str, Any]]) -> Iterator[CostlyToken]:
    for item in items:
        count, kl = as_int(item.get("count")), as_float(item.get("kl"))
        if count is not None and kl is not None and 0 <= count < MOST:
            yield CostlyToken(token_text(as_dict(item.get("token"))), count, kl)


# --- how it is said -------------------------------------------------------------------------------------------------


def token_text(token: dict[str, Any]) -> str:
    """A token so that all of it is seen; its number where its text alone would not tell which it is."""
    text = as_text(token.get("text"))
    number = as_int(token.get("id"))
    if text and "\ufffd" not in text:
        return f"{visible(text[:TOKEN_LIMIT], spaces=True)}{'…' if len(text) > TOKEN_LIMIT else ''}"
    seen = visible(text[:TOKEN_LIMIT], spaces=True)
    return f"{seen}#{number}" if number is not None else seen or "?"


def visible(text: str, *, spaces: bool = False) -> str:
    """Text with a sign or a code point in place of every character that is not seen, or that turns others around.

    Joiners shape the letters beside them: inside a text they stay.
    """
    return "".join(_seen(character, spaces, alone=len(text) == 1) for character in text)


def _seen(character: str, spaces: bool, *, alone: bool) -> str:
    if character == " ":
        return _SEEN[" "] if spaces else " "
    if character in _SEEN:
        return _SEEN[character]
    category = unicodedata.category(character)
    named = spaces and category == _SPACE
    if not named and (category not in _NOT_SEEN or (character in _JOINERS and not alone)):
        return character
    return f"‹U+{ord(character):04X}›"


@dataclass(frozen=True)
class ShareLine:
    """A line of the table."""

    label: str
    hint: str
    values: tuple[str, ...]
    """Before, after, and what a student equal to its teacher would have."""
    bars: tuple[tuple[float, str], ...]
    """(share of a full bar, CSS class)."""


@dataclass(frozen=True)
class _ShareKind:
    """How a figure is shown."""

    name: str
    of_teacher: str | None
    """Name of the figure that a student equal to its teacher would have; None where that is 1."""
    label: str
    hint: str
    form: str = ".1%"


_MASS = "teacher_mass_on_teacher_top"
_KINDS = (
    _ShareKind(
        "overlap",
        None,
        "Top-{0} overlap",
        "share of the teacher's {0} likeliest tokens that are among the student's {0}",
    ),
    _ShareKind(
        "student_mass_on_teacher_top",
        _MASS,
        "Student's mass on the teacher's top {0}",
        "probability that the student gives to the teacher's {0} likeliest tokens",
    ),
    _ShareKind(
        "teacher_mass_on_student_top",
        _MASS,
        "Teacher's mass on the student's top {0}",
        "probability that the teacher gives to the student's {0} likeliest tokens",
    ),
    _ShareKind(
        "student_entropy",
        "teacher_entropy",
        "Entropy",
        "nats per token; the lower, the fewer tokens it wavers between",
        ".3f",
    ),
)


def share_lines(found: Disagreement) -> list[ShareLine]:
    """Overlap, mass and entropy; what is missing on both sides is left out."""
    sides = [side.figures if side is not None else {} for side in (found.before, found.after)]
    top = format(_first("top", sides) or 10, "g")
    lines = []
    for kind in _KINDS:
        before, after = (side.get(kind.name) for side in sides)
        if before is None and after is None:
            continue
        values = (before, after, 1.0 if kind.of_teacher is None else _first(kind.of_teacher, sides))
        longest = 1.0 if "%" in kind.form else max(value for value in values if value is not None) or 1.0
        shown_values = ("n/a" if value is None else format(value, kind.form) for value in values)
        bars = ((value or 0.0) / longest for value in values)
        lines.append(
            ShareLine(
                kind.label.format(top),
                kind.hint.format(top),
                tuple(shown_values),
                tuple(zip(bars, (*SIDES, "teacher"), strict=True)),
            )
        )
    return lines


def _first(name: str, sides: list[dict[str, float]]) -> float | None:
    return next((side[name] for side in sides if name in side), None)


@dataclass(frozen=True)
class PositionLine:
    """One bucket of positions, before and after."""

    label: str
    tokens: int
    before: float | None
    after: float | None


def position_lines(found: Disagreement) -> list[PositionLine]:
    """Both sides' buckets joined by their positions, in order."""
    sides = [
        {(bucket.first, bucket.last): bucket for bucket in side.positions} if side is not None else {}
        for side in (found.before, found.after)
    ]
    lines = []
    for key in sorted({*sides[0], *sides[1]}):
        before, after = (side.get(key) for side in sides)
        known = after or before
        assert known is not None
        lines.append(
            PositionLine(
                known.label,
                known.tokens,
                before.kl if before is not None else None,
                after.kl if after is not None else None,
            )
        )
    return lines


def probability(value: float | None) -> str:
    """A probability as a person reads it; what is not nothing is not shown as nothing."""
    if value is None:
        return "n/a"
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.0%}" if 0.0995 <= value < 0.995 or value >= 0.9995 else f"{value:.1%}"
