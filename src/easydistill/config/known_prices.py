"""Built-in prices of well-known models at their makers' own APIs: dated, told as such, and overridden by the config.

They are data (`known_prices.json`), so that a price is corrected by one line. A price belongs to a host and the very
name of a model: a server of one's own may call any model `gpt-4o`.
"""

from __future__ import annotations

import functools
import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE = "known_prices.json"


@dataclass(frozen=True)
class KnownPrice:
    """A model's price per million tokens, as of a date."""

    model: str
    input: float
    output: float
    cached_input: float | None
    currency: str
    as_of: str
    """ISO date on which the price was known to hold."""

    @property
    def title(self) -> str:
        """What plan and report call it."""
        return f"built-in price of {self.as_of}"

    def words(self) -> str:
        """The price in a sentence, with its date and how to override it."""
        cached = "" if self.cached_input is None else f", {self.cached_input:g} cached"
        per = f"{self.input:g} in{cached}, {self.output:g} out, in {self.currency} per million tokens"
        return f"{self.model}: {self.title} ({per}), as of that date; set inference.prices if it is another now"


@functools.cache
def _table() -> dict[tuple[str, str], KnownPrice]:
    """(host, name) → price."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return {
        (host, name): KnownPrice(
            name, model["input"], model["output"], model.get("cached_input"), provider["currency"], provider["as_of"]
        )
        for provider in data["providers"]
        for model in provider["models"]
        for name in model["names"]
        for host in provider["hosts"]
    }


def known_price(urls: Sequence[str], model: str | None) -> KnownPrice | None:
    """The built-in price of a model at some servers; None if one of them has none, or they differ."""
    if model is None:
        return None
    found = {_table().get((urllib.parse.urlsplit(url).hostname or "", model)) for url in urls}
    return found.pop() if len(found) == 1 else None
