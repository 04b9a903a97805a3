"""What is told a client whose request is not answered, in the shape of OpenAI's errors."""

from __future__ import annotations

from typing import Any

INVALID, NOT_FOUND, KEY = "invalid_request_error", "not_found_error", "authentication_error"
BUSY, FAILED = "rate_limit_error", "server_error"
_TYPES = {401: KEY, 404: NOT_FOUND, 429: BUSY}


class ApiProblem(Exception):
    """Why a request is refused.

    Args:
        message: for whoever wrote the client: what is wrong, and what to do.
        param: the key of the request that is to blame.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI spells it."""
        kind = _TYPES.get(self.status, INVALID if self.status < 500 else FAILED)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiProblem:
    """The refusal of a request that is wrong in itself."""
    return ApiProblem(400, message, param, code)
