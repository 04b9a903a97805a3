"""Translates exceptions of the SDK and the network into faults, failures and error messages."""

from __future__ import annotations

import time

import httpx2
import openai

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Failure, bare_url
from easydistill.data.plain import without_base64
from easydistill.engine.secrets import Redactor
from easydistill.errors import QuotaExhausted, TeacherError
from easydistill.teachers.openai.chat_completion import RAW_LIMIT
from easydistill.teachers.openai.retry import Fault, Verdict, from_status

DETAIL_LIMIT = 500
_HINTS = {
    "auth": "check inference.api_key",
    "model": "check inference.model",
    "quota": "top up the account; the same command then goes on, and asks for nothing it has already",
}


class FaultReader:
    """Interprets the faults of requests to the servers of `config`."""

    def __init__(self, config: ApiInferenceConfig, redactor: Redactor) -> None:
        self._config, self._redactor = config, redactor

    def fault(self, error: Exception) -> Fault:
        """The fault behind an exception; an exception from neither server nor network is raised again."""
        if isinstance(error, Fault):
            return error
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            kind = type(error.__cause__ or error).__name__
            return Fault("timeout", f"{kind}; inference.timeout is {self._config.timeout:g} s", Verdict.RETRY)
        if isinstance(error, openai.APIStatusError):
            response = error.response
            return from_status(response.status_code, response.text, response.headers, time.time())
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__
            return Fault("connection", f"{type(cause).__name__}: {cause}" if cause else str(error), Verdict.RETRY)
        if isinstance(error, httpx2.HTTPError):
            reason = "stream_dropped" if self._config.stream else "connection"
            return Fault(reason, f"{type(error).__name__}: {error}", Verdict.RETRY)
        raise error

    def shown(self, text: str) -> str:
        """A server's text for display, without images that it sends back. It is redacted before it is cut: half a key
        would not be recognised."""
        return " ".join(without_base64(str(self._redactor.value(text))).split())[:DETAIL_LIMIT]

    def failure(self, key: str, fault: Fault, attempts: int) -> Failure:
        """The failure to record for a request that is given up because of `fault`."""
        raw = None if fault.raw is None else without_base64(self._redactor.value(fault.raw))[:RAW_LIMIT]
        return Failure(key, fault.reason, self.shown(fault.detail), attempts, fault.verdict is Verdict.RETRY, raw)

    def error(self, fault: Fault, url: str) -> TeacherError:
        """The error for a server that refuses all requests."""
        kind = QuotaExhausted if fault.verdict is Verdict.QUOTA else TeacherError
        hint = _HINTS.get(fault.reason, "check the server")
        return kind(f"{bare_url(url)} refuses to answer: {self.shown(fault.detail)}\n    → {hint}")
