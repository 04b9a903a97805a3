"""The `storage` section: how a run whose `output_dir` is a URL is kept in an object store. See docs/remote.md."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from easydistill.config.base import NonEmptyStr, PositiveFloat, Section, Unfit

_SECRET = re.compile(r"key|secret|token|password|passwd|credential|sas|connection_string|signature|auth", re.IGNORECASE)
_INNOCENT = frozenset({"sse_kms_key_id", "use_ssl", "auth_type"})


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    _refuse_secrets(options, "")
    return options


def _refuse_secrets(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            here = f"{path}.{name}" if path else str(name)
            innocent = isinstance(item, dict | list) or str(name).lower() in _INNOCENT
            if _SECRET.search(str(name)) and not innocent and item not in (None, False, True):
                raise Unfit(
                    f"{here} looks like a secret, and a config is written into the run's files",
                    "remove it: credentials are taken from the environment (AWS_ACCESS_KEY_ID, OSS_ACCESS_KEY_ID, "
                    "…) or the provider's credentials file",
                )
            _refuse_secrets(item, here)
    elif isinstance(value, list):
        for item in value:
            _refuse_secrets(item, path)
    elif isinstance(value, str) and re.search(r"://[^/\s]*@", value):
        raise Unfit(f"{path} has a user or password in its URL", "take them from the environment")


class StorageConfig(Section):
    """How a run is kept in an object store."""

    options: Annotated[dict[str, Any], AfterValidator(_without_secrets)] = {}  # noqa: RUF012 (pydantic copies it)
    """fsspec's `storage_options`, such as `{"endpoint_url": "https://s3.example.com"}`. Without secrets."""
    working_directory: NonEmptyStr | None = None
    """The directory of this machine in which the run works; by default one in the user's cache
    (`$EASYDISTILL_CACHE/runs/…`). Several machines that train together need one that all of them see."""
    send_seconds: PositiveFloat = 5.0
    """A reply is sent at most this long after it was received. What had not been sent when a machine is lost with its
    disk is asked again."""
    each_reply: bool = False
    """A reply counts, and is parsed, once the store has it: nothing that was paid for is ever asked again, and each
    reply waits for the store."""
    give_up_seconds: PositiveFloat = 600.0
    """A store that fails is tried again for this long while the run goes on; then the run ends."""
    lock_seconds: Annotated[PositiveFloat, Field(ge=1)] = 60.0
    """A command that has given no sign of life for this long is taken for dead, and another one may go on."""
