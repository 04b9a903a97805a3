"""What `plan` says about models and tasks: the forecasts of each pair, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Forecasts added up."""

    def pair(name: str) -> Any:
        known = [part[name] for part in parts if part[name] is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if known else None

    def total(name: str) -> int:
        return sum(part[name] or 0 for part in parts)

    return {
        "done_rows": None,
        "calls": total("calls"),
        "prompt_tokens": pair("prompt_tokens"),
        "completion_tokens": pair("completion_tokens"),
        "cost": pair("cost"),
        "from_answers": total("from_answers") or None,
        "cut_answers": total("cut_answers") or None,
    }
