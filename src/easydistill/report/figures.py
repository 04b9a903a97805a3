"""Figures: how one is declared, and how every kind of value is formatted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from easydistill.data.numbers import as_float
from easydistill.engine.progress import duration
from easydistill.report.values import shown

MISSING = "n/a"


@dataclass(frozen=True)
class Figure:
    """How a known figure is shown."""

    label: str
    unit: str = ""
    better: Literal["", "lower", "higher"] = ""
    form: str = ".3f"
    """Format specification of its values."""
    full: float | None = None
    """Its largest possible value, if there is one: the length of a full bar."""
    short: str = ""
    """Its name inside a sentence."""

    def text(self, value: Any) -> str:
        number = as_float(value)
        return plain(value) if number is None else format(number, self.form)


def percentage(label: str, unit: str, better: Literal["", "lower", "higher"] = "", short: str = "") -> Figure:
    """A figure between 0 and 1, shown as a percentage."""
    return Figure(label, unit, better, ".1%", 1.0, short)


def plain(value: Any) -> str:
    """A value of unknown meaning."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value, 80)


def or_missing(value: float | None, form: str = ",") -> str:
    return MISSING if value is None else format(value, form)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def time_of(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def moment(text: str) -> str:
    """An ISO time to the minute."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(.*)", text)
    if found is None:
        return text
    zone = " UTC" if found[3].endswith(("+00:00", "Z")) else ""
    return f"{found[1]} {found[2]}{zone}"


def short(value: float) -> str:
    """A number with few characters: 12k for 12,000."""
    if abs(value) >= 10_000 and value == int(value):
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.6g}"


def rate_text(rate: float) -> str:
    """A learning rate as it is usually written: 3e-4."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def share(part: int, whole: int) -> str:
    """`part` as a percentage of `whole`; only 0 and `whole` itself are shown as 0 % and 100 %."""
    if not whole:
        return MISSING
    text = f"{part / whole:.1%}"
    if part and text == "0.0%":
        return "under 0.1%"
    return "over 99.9%" if part < whole and text == "100.0%" else text


def probability(value: float | None) -> str:
    """A probability as a percentage; a small one is not rounded to 0."""
    if value is None:
        return MISSING
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.0%}" if 0.0995 <= value < 0.995 or value >= 0.9995 else f"{value:.1%}"


def in_words(name: str) -> str:
    """An identifier as words: `near_duplicate` → `Near duplicate`."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:] if text else name
