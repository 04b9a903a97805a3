"""Keeps secrets out of everything a run writes: files, log, screen.

A secret is registered once, when its config is loaded; every writer of foreign text passes it through a
`Redactor`. Servers echo keys in error messages, so hiding our own values is not enough.
"""

from __future__ import annotations

import html
import json
import logging
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from easydistill.config.identity import SECRET_KEYS

MASK = "[redacted]"
_MIN_LENGTH = 6
"""Shorter values, such as the placeholder EMPTY, would blank out innocent text."""


_CREDENTIAL = re.compile(r"(AWS|OSS|ALIBABA|ALIYUN|AZURE|GOOGLE|GCS|FSSPEC)_.*(KEY|SECRET|TOKEN|CONNECTION_STRING).*")


class Redactor:
    """Replaces registered secrets in text and in JSON values."""

    def __init__(self) -> None:
        self._spellings: list[str] = []

    def register(self, secret: str) -> None:
        """Hide `secret` from now on, also in the spellings of JSON and URLs."""
        if len(secret) < _MIN_LENGTH:
            return
        self._spellings = sorted({*self._spellings, *_spellings(secret)}, key=len, reverse=True)

    def register_config(self, config: BaseModel) -> None:
        """Register every secret value inside a config, and passwords inside its URLs."""
        for name in type(config).model_fields:
            self._register_inside(getattr(config, name))

    def _register_inside(self, value: Any) -> None:
        if isinstance(value, SecretStr):
            self.register(value.get_secret_value())
        elif isinstance(value, BaseModel):
            self.register_config(value)
        elif isinstance(value, dict):
            for item in value.values():
                self._register_inside(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._register_inside(item)
        else:
            self._register_password(value)

    def _register_password(self, value: Any) -> None:
        """Register the password of a URL."""
        if isinstance(value, str) and "://" in value and "@" in value:
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


def credentials(environment: Mapping[str, str]) -> list[str]:
    """Values of an environment that give access to object stores."""
    return [environment[name] for name in credentials_named(environment)]


def credentials_named(names: Iterable[str]) -> list[str]:
    """Those of some variables whose values give access to object stores."""
    return [name for name in names if _CREDENTIAL.fullmatch(name)]


def hide_secrets(value: Any) -> Any:
    """A config as written, with the value of every secret key hidden, even one too short to search for.

    References to environment variables stay: they are not secret, and they say where the secret is.
    """
    if isinstance(value, dict):
        return {
            key: item if key not in SECRET_KEYS or str(item).startswith("${env:") else MASK
            for key, item in ((key, hide_secrets(item)) for key, item in value.items())
        }
    return [hide_secrets(item) for item in value] if isinstance(value, list) else value


def _spellings(secret: str) -> set[str]:
    """The spellings of a text in JSON (also nested in JSON, also with escaped slashes), Python, HTML and URLs."""
    in_json = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    in_json |= {text.replace("/", "\\/") for text in in_json}
    in_urls = {
        urllib.parse.quote(secret),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
    }
    in_urls |= {re.sub("%..", lambda code: code.group().lower(), text) for text in in_urls}
    return {
        secret,
        *in_json,
        *(json.dumps(text)[1:-1] for text in in_json),
        repr(secret)[1:-1],
        html.escape(secret),
        *in_urls,
    }


class RedactingFormatter(logging.Formatter):
    """Formats a log record, traceback included, without secrets."""

    def __init__(self, pattern: str, redactor: Redactor) -> None:
        super().__init__(pattern)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))
