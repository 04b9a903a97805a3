"""Whether accepted chains of thought are right, counted again with nothing of `verification/`.

A reply's answer is the last number in its last `\\boxed{}`, or else of the sentence after its last "answer is", or
else of the reply; the known one stands after `####`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SAID = re.compile(r"answer is(.*?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def number_in(text: str) -> Fraction | None:
    """The last number of a text: `1,250.50` is 1250.5."""
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def answer_of(reply: str) -> Fraction | None:
    boxed = _BOXED.findall(reply)
    inside = number_in(boxed[-1]) if boxed else None
    said = [number for number in map(number_in, _SAID.findall(reply)) if number is not None]
    return inside if inside is not None else said[-1] if said else number_in(reply)


def recount(problems: Path, stage: Path) -> dict[str, Any]:
    """How many of the accepted rows are right by this count, and how many of those refused as wrong.

    Args:
        problems: rows with `id` and an `answer` that ends in `#### N`.
        stage: directory of the stage that ran `cot_generation` over them, one sample a problem.
    """
    known = {row["id"]: number_in(row["answer"].split("####")[-1]) for row in json.loads(problems.read_text())}
    # Without its manifest a stage is not complete: rows there are of an earlier attempt.
    made = json.loads((stage / "labeled.json").read_text()) if (stage / "manifest.json").exists() else []
    accepted = {row["id"]: row["output"] for row in made}
    lines = [json.loads(line) for line in (stage / "rejected.jsonl").read_text().splitlines()]
    wrong = {row["id"]: row["raw"]["text"] for row in lines if row["reason"] == "wrong_answer"}
    disputed = sorted(set(accepted) - _right(accepted, known))
    return {
        "accepted": len(accepted),
        "accepted_and_right": len(accepted) - len(disputed),
        "accepted_and_disputed": disputed,
        "refused_as_wrong": len(wrong),
        "refused_as_wrong_but_right": sorted(_right(wrong, known)),
    }


def _right(replies: dict[str, str], known: dict[str, Fraction | None]) -> set[str]:
    """Ids of replies that reach the known answer."""
    pairs: Iterable[tuple[str, Fraction | None]] = ((name, answer_of(text)) for name, text in replies.items())
    return {name for name, answer in pairs if answer is not None and answer == known[name]}
