"""Objects under one URL, through fsspec: bytes in, bytes out, and the errors of every provider in one form."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from easydistill.errors import ConfigError, ConfigIssue, MissingExtra, StoreError

T = TypeVar("T")
_S3 = frozenset({"s3", "s3a"})
_OSS = frozenset({"oss"})
_FORBID_OVERWRITE = {"x-oss-forbid-overwrite": "true"}
"""Alibaba Cloud's own header for a put that fails where the object exists."""
ANSWER = 150.0
"""Seconds in which a store answers. Timeouts of a provider's library do not cover all of a request: aiohttp waits
without end for the `100 Continue` of a server that has gone."""
_SLOWEST = 100_000
"""Bytes a second that a transfer is given besides."""


class Trouble(StoreError):
    """The store did not do what it was asked: unreachable, throttled, denied, full. It may do it later.

    Attributes:
        denied: waiting alone will not help.
    """

    def __init__(self, text: str, denied: bool = False) -> None:
        super().__init__(text)
        self.denied = denied


class Exists(StoreError):
    """The object is there already, and is another one."""


class Absent(StoreError):
    """There is no such object."""


class Store:
    """The objects under a URL; keys are relative to it.

    Raises:
        MissingExtra: fsspec, or its part for this kind of store, is not installed.
        ConfigError: fsspec knows no such store, or does not take the options.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._fs = _filesystem(self.url, options)
        self._root = str(self._fs._strip_protocol(self.url)).rstrip("/")
        self._scheme = self.url.partition("://")[0]
        self._is_folder = self._scheme in {"file", "local"}
        method = getattr(self._fs, "_pipe_file", None) or self._fs.pipe_file
        # fsspec's own, which most classes override, looks first and writes then.
        general = getattr(method, "__module__", "") in {"fsspec.spec", "fsspec.asyn"}
        self._knows_create = not general and "mode" in inspect.signature(method).parameters
        self._takes_time = bool(getattr(self._fs, "async_impl", False))

    @property
    def is_exclusive(self) -> bool:
        """Whether the store itself refuses to create an object that exists."""
        return self._knows_create or self._is_folder or self._scheme in _OSS

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _within(self, size: int = 0) -> dict[str, float]:
        """What ends a call that gets no answer, for stores whose library can end one.

        Args:
            size: bytes that are carried.
        """
        return {"timeout": ANSWER + size / _SLOWEST} if self._takes_time else {}

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from `start` to before `end`."""
        if start is not None and start == end:
            return b""
        within = self._within(end - (start or 0) if end is not None else 0)
        data = _translated(key, lambda: bytes(self._fs.cat_file(self._at(key), start=start, end=end, **within)))
        # ossfs takes the end of a range for the last byte of it.
        return data if start is None or end is None else data[: end - start]

    def read_to(self, key: str, path: Path, size: int) -> None:
        """Write an object of `size` bytes to a file, piece by piece."""
        _translated(key, lambda: self._fs.get_file(self._at(key), str(path), **self._within(size)))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whether it exists or not."""
        if self._is_folder:
            self._write(key, lambda path: path.write_bytes(data))
        else:
            _translated(key, lambda: self._fs.pipe_file(self._at(key), data, **self._within(len(data))))

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file, in several requests if it is large; it appears when it is complete."""
        if self._is_folder:
            self._write(key, lambda made: shutil.copyfile(path, made))
        else:
            within = self._within(path.stat().st_size)
            _translated(key, lambda: self._fs.put_file(str(path), self._at(key), **within))

    def copy(self, source: str, target: str, size: int) -> None:
        """Copy an object of `size` bytes inside the store."""
        if self._is_folder:
            self._write(target, lambda made: shutil.copyfile(self._at(source), made))
        else:
            _translated(source, lambda: self._fs.cp_file(self._at(source), self._at(target), **self._within(size)))

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist. A repeated attempt whose answer got lost succeeds.

        Raises:
            Exists: another one is there.
        """
        try:
            if self._is_folder:
                self._write(key, lambda path: path.write_bytes(data), new=True)
            else:
                _translated(key, lambda: self._create(self._at(key), data))
        except Exists:
            try:
                found = self.read(key)
            except Absent:
                # Whoever had made it has removed it since.
                raise Trouble(f"{key} was there, and is gone") from None
            if not data.startswith(found):
                raise
            if len(found) < len(data):
                # Our own attempt that broke off, at a server that keeps the beginning of such an upload.
                self.put(key, data)

    def _create(self, path: str, data: bytes) -> None:
        within = self._within(len(data))
        if self._knows_create:
            self._fs.pipe_file(path, data, mode="create", **within)
        elif self._scheme in _OSS:
            self._fs.pipe_file(path, data, headers=_FORBID_OVERWRITE, **within)
        elif self._fs.exists(path, **within):
            raise FileExistsError(path)
        else:
            self._fs.pipe_file(path, data, **within)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        for key in keys:
            with contextlib.suppress(Absent):
                _translated(key, partial(self._fs.rm_file, self._at(key), **self._within()))

    def names(self, folder: str) -> list[str]:
        """Keys of all objects under a folder, in order."""
        prefix = f"{self._root}/"
        try:
            found = _translated(folder, lambda: self._fs.find(self._at(folder), **self._within()))
        except Absent:
            return []
        return sorted(str(path).removeprefix(prefix) for path in found)

    def _write(self, key: str, write: Callable[[Path], Any], *, new: bool = False) -> None:
        """Write an object of a store that is a directory: there at once and completely, as objects are."""

        def whole() -> None:
            path = Path(self._at(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
            try:
                write(made)
                if new:
                    path.hardlink_to(made)
                else:
                    made.replace(path)
            finally:
                made.unlink(missing_ok=True)

        _translated(key, whole)


def _filesystem(url: str, options: dict[str, Any]) -> Any:
    try:
        import fsspec
    except ImportError:
        raise MissingExtra("remote", f"output_dir {url}") from None
    scheme = url.partition("://")[0]
    try:
        fresh = {"use_listings_cache": False, "skip_instance_cache": True}
        made = fsspec.filesystem(scheme, **fresh | _with_defaults(scheme, options))
    except ImportError as error:
        raise MissingExtra("remote", f"output_dir {url} ({error})") from None
    except (ValueError, TypeError) as error:
        hint = "use a scheme of fsspec's, such as s3, oss, gs or abfs, and options that it takes"
        raise ConfigError(ConfigIssue("config", "output_dir", f"{url}: {error}", hint)) from None
    return made


def _with_defaults(scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    if scheme not in _S3:
        return options
    # Repeating is ours to do. Checksums that only Amazon's own store understands are left out; ours are SHA-256.
    config = {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **options.get("config_kwargs", {}),
    }
    return {**options, "config_kwargs": config}


def _translated(key: str, call: Callable[[], T]) -> T:
    """Call a store. Providers raise classes of their own, and no list of them is complete."""
    try:
        return call()
    except FileExistsError:
        raise Exists(f"{key} exists") from None
    except FileNotFoundError as error:
        raise Absent(f"{key}: {error}") from None
    except Exception as error:
        if "FileAlreadyExists" in str(error) or "PreconditionFailed" in str(error):
            raise Exists(f"{key} exists") from None
        denied = isinstance(error, PermissionError) or "Credential" in type(error).__name__
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise Trouble(f"{key}: {said}"[:500], denied) from error
