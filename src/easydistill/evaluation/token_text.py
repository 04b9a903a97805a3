"""Figures of `disagreement.py` as `disagreement.json` holds them, with texts for token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from easydistill.evaluation.disagreement import TOP, CostlyToken, Figures, LargeDisagreement, Ranked

CONTEXT_CHARACTERS = 60
CONTEXT_TOKENS = 240
"""Tokens decoded for the context; a token may be as little as one byte of a character."""


class TokenText:
    """Texts of tokens, with the leading space that many of them have."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the leading space of a text's first token, so tokens are decoded after another one.
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._before = self.text(self._anchor)

    def text(self, ids: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    def token(self, token: int) -> dict[str, Any]:
        """A token as JSON. Parts of a character become U+FFFD; an id without a token has an empty text."""
        text = self.text([*self._anchor, token])
        cut = text[len(self._before) :] if text.startswith(self._before) else self.text([token])
        return {"id": token, "text": cut}


def described(figures: Figures, row_ids: Sequence[str], rows: Sequence[list[int]], text: TokenText) -> dict[str, Any]:
    """Figures as JSON.

    Args:
        row_ids: ids of the measured rows.
        rows: their token ids.
    """
    return {
        "tokens": figures.tokens,
        "not_finite": figures.not_finite,
        "top": TOP,
        **asdict(figures.shares),
        "kl_by_position": [asdict(bucket) for bucket in figures.positions],
        "largest": [_large(item, row_ids[item.row], rows[item.row], text) for item in figures.largest],
        "by_token": [_costly(item, text) for item in figures.costly],
    }


def _large(item: LargeDisagreement, row_id: str, ids: list[int], text: TokenText) -> dict[str, Any]:
    first = item.column - item.position + 1
    start = max(first, item.column - CONTEXT_TOKENS)
    before = text.text(ids[start : item.column])
    return {
        "row": row_id,
        "position": item.position,
        "context": before[-CONTEXT_CHARACTERS:],
        "context_is_cut": start > first or len(before) > CONTEXT_CHARACTERS,
        "token": text.token(item.token),
        "kl": item.kl,
        "teacher_probability": item.teacher_probability,
        "student_probability": item.student_probability,
        "teacher": _ranked(item.teacher, text),
        "student": _ranked(item.student, text),
    }


def _ranked(ranked: Ranked, text: TokenText) -> list[dict[str, Any]]:
    return [{**text.token(token), "probability": probability} for token, probability in ranked]


def _costly(item: CostlyToken, text: TokenText) -> dict[str, Any]:
    return {"token": text.token(item.token), "count": item.count, "kl": item.kl}
