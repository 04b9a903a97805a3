"""Alibaba Cloud's SDKs: their clients, and their errors in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from easydistill.cloud.target import NotKnown
from easydistill.errors import CloudError, MissingExtra

Answer = TypeVar("Answer")
_ATTEMPTS = 5
_LONGEST_WAIT = 30.0
_TIMEOUT_MS = 30_000
_HINTS = (
    ("throttling", "too many calls: wait a minute, then the same command again"),
    ("invalidaccesskeyid", "check the access key, e.g. ALIBABA_CLOUD_ACCESS_KEY_ID"),
    ("signaturedoesnotmatch", "check the access key's secret, e.g. ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    ("securitytoken", "the temporary credentials have expired, or are not whole: get new ones"),
    ("forbidden", "the account may not do this: ask for the right, or name another workspace"),
    ("nopermission", "the account may not do this: ask for the right, or name another workspace"),
    ("quota", "ask for less, wait for other jobs to end, or name another quota"),
)


def client(package: str, region: str, endpoint: str | None) -> Any:
    """A client of one of the SDKs, with the user's credentials: environment, files or the machine's role.

    Args:
        package: such as `alibabacloud_pai_dlc20201203`.
        endpoint: `host` or `http://host:port`; by default the region's.

    Raises:
        CloudError: the SDK is not installed, or there are no credentials.
    """
    import importlib

    try:
        sdk = importlib.import_module(f"{package}.client")
        from alibabacloud_credentials.client import Client as Credentials
        from alibabacloud_tea_openapi.utils_models import Config
    except ImportError as error:
        raise _no_extra() from error
    protocol, _, host = endpoint.rpartition("://") if endpoint is not None else ("", "", None)
    try:
        credentials = Credentials()
        credentials.get_credential()
    except Exception as error:  # Each source of credentials raises what it likes.
        raise CloudError(
            f"no credentials for Alibaba Cloud are found: {error}\n"
            "    → set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
        ) from error
    settings = {"connect_timeout": 10_000, "read_timeout": _TIMEOUT_MS}
    return sdk.Client(
        Config(credential=credentials, region_id=region, endpoint=host, protocol=protocol or None, **settings)
    )


def _no_extra() -> CloudError:
    return CloudError(str(MissingExtra("pai", "Alibaba Cloud's PAI")))


def call(
    what: str, ask: Callable[[], Answer], *, repeatable: bool = True, wait: Callable[[float], None] = time.sleep
) -> Answer:
    """An SDK's answer. Throttled calls were not carried out, so they are made again.

    Args:
        what: is asked, for messages.
        repeatable: whether asking twice does no harm: then it is asked again after failures of server or connection.

    Raises:
        NotKnown: it may have been carried out.
        CloudError: it was refused.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return ask()
        except Exception as raised:
            error = getattr(raised, "inner_exception", None) or raised
            code, status = str(getattr(error, "code", "") or ""), getattr(error, "status_code", None)
            throttled = status == 429 or "throttling" in code.lower()
            unclear = status is None or status >= 500
            if status is None and not _is_connection(error):
                raise
            last = attempt == _ATTEMPTS
            if last or not (throttled or (unclear and repeatable)):
                kind = NotKnown if unclear and not throttled else CloudError
                raise kind(_told(what, code, error)) from error
            wait(min(_LONGEST_WAIT, _seconds(getattr(error, "retry_after", None)) or 2.0 ** (attempt - 1)))
    raise AssertionError("the last attempt returns or raises")


def _seconds(milliseconds: int | None) -> float:
    return 0.0 if milliseconds is None else milliseconds / 1000


def _is_connection(error: BaseException) -> bool:
    """Whether a call got no answer."""
    named = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(named & {"requests", "urllib3", "Tea", "darabonba"})


def _told(what: str, code: str, error: BaseException) -> str:
    message = str(getattr(error, "message", "") or error).strip()
    hint = next((hint for part, hint in _HINTS if part in code.lower() or part in message.lower()), "")
    return f"{what}: {code + ': ' if code else ''}{message}" + (f"\n    → {hint}" if hint else "")
