"""Servers of examples, which are scripts beside their configs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def server_of(example: Path) -> ModuleType:
    """The module `server.py` of an example's folder, loaded anew: a test may change it."""
    spec = importlib.util.spec_from_file_location(f"server_of_{example.name}", example / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
