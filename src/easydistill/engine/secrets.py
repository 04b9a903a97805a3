"""Keeps secrets out of everything a run writes: files, log, screen.

A secret is registered once, when its config is loaded; every writer that can meet foreign text passes it
through `redact`. Servers echo keys in error messages, so hiding our own values is not enough.
"""

from __future__ import annotations

import json
import logging
import urllib.parse
from typing import Any

from pydantic import BaseModel, SecretStr

MASK = "[redacted]"
_MIN_LENGTH = 6
"""Shorter values, such as the placeholder EMPTY, would blank out innocent text."""


class Redactor:
    """Replaces registered secrets in text and in JSON values."""

    def __init__(self) -> None:
        self._spellings: list[str] = []

    def register(self, secret: str) -> None:
        """Hide `secret` from now on, also as JSON and URLs spell it."""
        if len(secret) < _MIN_LENGTH:
            return
        spellings = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        spellings |= {
            urllib.parse.quote(secret),
            urllib.parse.quote(secret, safe=""),
            urllib.parse.quote_plus(secret),
        }
        self._spellings = sorted({*self._spellings, *spellings}, key=len, reverse=True)

    def register_config(self, config: BaseModel) -> None:
        """Register every secret value inside a config, and passwords inside its URLs."""
        for name in type(config).model_fields:
            value = getattr(config, name)
            if isinstance(value, SecretStr):
                self.register(value.get_secret_value())
            elif isinstance(value, BaseModel):
                self.register_config(value)
            elif isinstance(value, str) and "://" in value and "@" in value:
                password = urllib.parse.urlsplit(value).password
                if password:
                    self.register(urllib.parse.unquote(password))
                    self.register(password)

    def text(self, text: str) -> str:
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, MASK)
        return text

    def value(self, value: Any) -> Any:
        """A copy of a JSON value with secrets hidden in every text, and lone surrogates made printable."""
        if isinstance(value, str):
            return self.text(value).encode("utf-8", "replace").decode("utf-8")
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


class RedactingFormatter(logging.Formatter):
    """Formats a log record, traceback included, without secrets."""

    def __init__(self, pattern: str, redactor: Redactor) -> None:
        super().__init__(pattern)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))
