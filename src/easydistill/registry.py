"""Extensions by file name: a module in a registry's package *is* the registered thing, named by its file.

A registry never imports more than the modules it is asked for, so a listing costs nothing and `validate` does not load
torch. Third parties add names through the entry-point group `easydistill.<kind>`, each pointing at a module of the same
shape as a built-in one. What a module must declare is its kind's `Contract`, checked when the module is loaded; the
contracts stand in `easydistill.contracts`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from easydistill.errors import ConfigError, ConfigIssue


class ExtensionError(ConfigError):
    """A registered module cannot be loaded, or does not declare what its kind must."""


@dataclass(frozen=True)
class Contract:
    """What a module of one kind declares."""

    required: type
    """A Protocol: its annotated names must be there with values of that type, its methods as functions that take as
    many positional arguments."""
    defaults: type | None = None
    """A class whose attributes stand in for those that a module leaves out; what a module declares has its type."""
    check: Callable[[str, ModuleType], list[str]] = lambda name, module: []
    """What else is wrong with the module registered under a name."""

    def complete(self, name: str, module: ModuleType) -> list[str]:
        """Put the defaults into a module; returns what is wrong with it."""
        problems = list(_unmet(self.required, module, must=True))
        if self.defaults is not None:
            problems += _unmet(self.defaults, module, must=False)
        if problems:
            return problems
        for attribute, value in vars(self.defaults or object).items():
            if not attribute.startswith("_") and not hasattr(module, attribute):
                setattr(module, attribute, value.__func__ if isinstance(value, staticmethod) else value)
        return self.check(name, module)


def _unmet(declared: type, module: ModuleType, *, must: bool) -> Iterator[str]:
    """What a module does not declare as `declared` does."""
    for attribute, shown, problem_of in _members(declared):
        if attribute.startswith("_"):
            continue
        if not hasattr(module, attribute):
            if must:
                yield f"it declares no `{shown}`"
        elif problem := problem_of(getattr(module, attribute)):
            yield f"`{attribute}`{problem}"


def _members(declared: type) -> Iterator[tuple[str, str, Callable[[Any], str]]]:
    """Values, then functions: name, how it is declared, and a check that says what is wrong with a module's own."""
    for attribute, hint in get_type_hints(declared).items():
        yield attribute, attribute, partial(_mistyped, hint)
    for attribute, member in vars(declared).items():
        function = member.__func__ if isinstance(member, staticmethod) else member
        if inspect.isfunction(function):
            parameters = [name for name in inspect.signature(function).parameters if name != "self"]
            shown = f"{attribute}({', '.join(parameters)})"
            yield attribute, shown, partial(_uncallable, shown, len(parameters))


def _mistyped(hint: Any, value: Any) -> str:
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        return f": {error.errors(include_url=False)[0]['msg'].lower()}"
    return ""


def _uncallable(shown: str, count: int, function: Any) -> str:
    return "" if _takes(function, count) else f" cannot be called as `{shown}`"


def _takes(function: Any, count: int) -> bool:
    """Whether something can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Registry:
    """The modules of `package` whose names do not start with an underscore, and entry points beside them."""

    kind: str
    package: str
    contract: Contract | None = None

    @cached_property
    def _builtin(self) -> tuple[str, ...]:
        package = importlib.import_module(self.package)
        names = (info.name for info in pkgutil.iter_modules(package.__path__))
        return tuple(sorted(name for name in names if not name.startswith("_")))

    @cached_property
    def _external(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=f"easydistill.{self.kind}")}

    @cached_property
    def _checked(self) -> dict[str, ModuleType]:
        """Modules that were found to keep the contract."""
        return {}

    def names(self) -> tuple[str, ...]:
        """All registered names, built-in ones first; some may be broken."""
        return (*self._builtin, *sorted(set(self._external) - set(self._builtin)))

    def loaded(self) -> dict[str, ModuleType]:
        """Every module that can be used, by name. A broken one is left out: `module` says what is wrong with it."""
        found: dict[str, ModuleType] = {}
        for name in self.names():
            try:
                found[name] = self.module(name)
            except ExtensionError:
                continue
        return found

    def broken(self) -> dict[str, ExtensionError]:
        """What is wrong with each module that cannot be used, by name."""
        found: dict[str, ExtensionError] = {}
        for name in self.names():
            try:
                self.module(name)
            except ExtensionError as error:
                found[name] = error
        return found

    def module(self, name: str) -> ModuleType:
        """The module registered as `name`, with the defaults of what it does not declare.

        Raises:
            KeyError: nothing is registered under that name.
            ExtensionError: it cannot be loaded, or does not declare what it must.
        """
        module = self._load(name)
        if self.contract is None or self._checked.get(name) is module:
            return module
        problems = self.contract.complete(name, module)
        if problems:
            place = self.contract.required
            hint = f"what it must declare: {place.__module__}.{place.__name__}"
            raise self._error(name, f"the module {module.__name__} cannot be used: {'; '.join(problems)}", hint)
        self._checked[name] = module
        return module

    def _load(self, name: str) -> ModuleType:
        if name in self._builtin:
            return importlib.import_module(f"{self.package}.{name}")
        point = self._external[name]
        try:
            loaded = point.load()
        except Exception as error:
            problem = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
            raise self._error(name, problem, "fix the package, or uninstall it") from error
        if not isinstance(loaded, ModuleType):
            raise self._error(name, f"{point.value} is a {type(loaded).__name__}, not a module", "name a module")
        return loaded

    def _error(self, name: str, problem: str, hint: str) -> ExtensionError:
        if name in self._builtin:
            return ExtensionError(ConfigIssue(f"easydistill's own {self.kind}: {name}", "", problem, hint))
        point = self._external.get(name)
        package = getattr(point, "dist", None)
        of = f" of {package.name} {package.version}" if package is not None else ""
        return ExtensionError(ConfigIssue(f"entry point easydistill.{self.kind}:{name}{of}", "", problem, hint))
