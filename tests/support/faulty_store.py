"""A store in memory that fails as it is told, under `faulty://`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Calls `fault(operation, path)` before each operation; what it raises is what the store answers."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[Callable[[str, str], None]] = staticmethod(lambda operation, path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("faulty://", "memory://")))

    @classmethod
    def empty(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.fault = staticmethod(lambda operation, path: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        type(self).fault("put", path)
        super().pipe_file(path, value, mode=mode, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        type(self).fault("put", rpath)
        super().put_file(lpath, rpath, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        type(self).fault("get", path)
        return super().cat_file(path, **options)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        type(self).fault("get", rpath)
        super().get_file(rpath, lpath, **options)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
