"""Where a run's files are: a directory, or a place in an object store that a directory of this machine stands for."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from pathlib import Path

from easydistill.config.base import Unfit

_URL = re.compile(r"[A-Za-z][\w+.-]+(::[\w+.-]+)*:/")
_EXAMPLE = "write it like s3://bucket/runs/kd or oss://bucket/runs/kd"
_NOT_STORES = frozenset({"http", "https", "hf", "pkg", "recipe", "data", "git", "github"})


def is_remote(location: str) -> bool:
    """Whether a location is a URL, such as `s3://bucket/run`."""
    return _URL.match(location) is not None


def checked_location(location: str) -> str:
    """A location without trailing slashes, if it is a directory or a place in a store.

    Raises:
        Unfit: a URL that is no place in a store, or one with a secret in it.
    """
    if not is_remote(location):
        return location
    scheme, separator, rest = location.partition("://")
    if not separator:
        raise Unfit(f"{location} has one slash where a URL has two", _EXAMPLE)
    if "::" in location:
        raise Unfit("chained file systems are not supported here", _EXAMPLE)
    if scheme.lower() in _NOT_STORES:
        raise Unfit(f"a run cannot be kept at {scheme}://", _EXAMPLE)
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise Unfit(
            "a location has no user, password or query; they would be in the run's files",
            "take credentials from the environment or the provider's credentials file",
        )
    bucket, _, path = (
        rest.strip("/").partition("/") if scheme.lower() not in {"file", "local", "memory"} else ("-", "", rest)
    )
    if not bucket or not path.strip("/"):
        raise Unfit(f"{location} names no folder in a bucket", _EXAMPLE)
    if any(part in {".", ".."} for part in path.split("/")):
        raise Unfit(f"{location} has . or .. in it", _EXAMPLE)
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def cache_directory() -> Path:
    """Where converted weights and working copies are kept: `$EASYDISTILL_CACHE`, else the user's cache directory."""
    named = os.environ.get("EASYDISTILL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "easydistill"


def copy_directory(url: str, kind: str) -> Path:
    """A directory of this machine for files of a place in a store; its last part is the place's own name.

    Args:
        kind: `runs` for a run's working directory, `read` for a copy that is only read.
    """
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = urllib.parse.unquote(url.rstrip("/").rpartition("/")[2])
    return cache_directory() / kind / digest / re.sub(r"[^\w.-]", "_", name)
