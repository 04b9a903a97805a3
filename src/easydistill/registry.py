"""Extensions by file name: a module in a registry's package *is* the registered thing, named by its file.

A registry never imports more than the module it is asked for, so a listing costs nothing and
`validate` does not load torch. Third parties add names through the entry-point group `easydistill.<kind>`,
each pointing at a module of the same shape as a built-in one.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType


@dataclass(frozen=True)
class Registry:
    """The modules of `package` whose names do not start with an underscore, and entry points beside them."""

    kind: str
    package: str

    @cached_property
    def _builtin(self) -> tuple[str, ...]:
        package = importlib.import_module(self.package)
        names = (info.name for info in pkgutil.iter_modules(package.__path__))
        return tuple(sorted(name for name in names if not name.startswith("_")))

    @cached_property
    def _external(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=f"easydistill.{self.kind}")}

    def names(self) -> tuple[str, ...]:
        """All registered names, built-in ones first."""
        return (*self._builtin, *sorted(set(self._external) - set(self._builtin)))

    def module(self, name: str) -> ModuleType:
        """The module registered as `name`.

        Raises:
            KeyError: nothing is registered under that name.
        """
        if name in self._builtin:
            return importlib.import_module(f"{self.package}.{name}")
        if name in self._external:
            loaded = self._external[name].load()
            if not isinstance(loaded, ModuleType):
                raise TypeError(f"entry point easydistill.{self.kind}:{name} must name a module")
            return loaded
        raise KeyError(name)
