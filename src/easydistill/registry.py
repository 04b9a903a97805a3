"""Extensions by file name: each module in a registry's package is an extension, named after its file.

A registry imports only the modules it is asked for, so listing names costs nothing and `validate` does not load torch.
Third parties add names through the entry-point group `easydistill.<kind>`, each pointing at a module of the same shape
as a built-in one. What a module must declare is its kind's `Contract`, checked when the module is loaded; the contracts
are in `easydistill.contracts`.
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
    """A registered module cannot be loaded, or does not declare what its kind requires."""


@dataclass(frozen=True)
class Contract:
    """What a module of one kind must declare."""

    required: type
    """A Protocol: the module needs its annotated names, with values of those types, and its methods, as functions that
    accept as many positional arguments."""
    defaults: type | None = None
    """A class whose attributes replace those that a module leaves out; those it declares must be of the same type."""
    check: Callable[[str, ModuleType], list[str]] = lambda name, module: []
    """Further checks of the module registered under a name: returns what is wrong."""

    def complete(self, name: str, module: ModuleType) -> list[str]:
        """Add the defaults to a module; returns what is wrong with it."""
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
    """What a module declares differently from `declared`, or (with `must`) not at all."""
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
    return "" if _accepts(function, count) else f" cannot be called as `{shown}`"


def _accepts(function: Any, count: int) -> bool:
    """Whether a function can be called with this many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Registry:
    """The modules of `package` whose names do not start with an underscore, and the kind's entry points."""

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
        """Modules that meet the contract."""
        return {}

    def names(self) -> tuple[str, ...]:
        """All registered names, built-in ones first, including those of broken modules."""
        return (*self._builtin, *sorted(set(self._external) - set(self._builtin)))

    def loaded(self) -> dict[str, ModuleType]:
        """The usable modules, by name."""
        return {name: found for name, found in self._all() if isinstance(found, ModuleType)}

    def broken(self) -> dict[str, ExtensionError]:
        """What is wrong with each unusable module, by name."""
        return {name: found for name, found in self._all() if isinstance(found, ExtensionError)}

    def _all(self) -> Iterator[tuple[str, ModuleType | ExtensionError]]:
        for name in self.names():
            try:
                yield name, self.module(name)
            except ExtensionError as error:
                yield name, error

    def unusable(self) -> dict[str, str]:
        """What is wrong with each entry point that cannot be used, by its name. Loads no module of ours."""
        taken = {name: "a module of easydistill has the same name" for name in self._external if name in self._builtin}
        found: dict[str, str] = {}
        for name in set(self._external) - set(self._builtin):
            try:
                self.module(name)
            except ExtensionError as error:
                found[name] = error.issues[0].problem
        return found | taken

    def module(self, name: str) -> ModuleType:
        """The module registered as `name`, with defaults for what it does not declare.

        Raises:
            KeyError: nothing is registered under that name.
            ExtensionError: it cannot be loaded, or does not declare what it must.
        """
        module = self._load(name)
        if self.contract is None or self._checked.get(name) is module:
            return module
        problems = self.contract.complete(name, module)
        if problems:
            required = self.contract.required
            hint = f"what it must declare: {required.__module__}.{required.__name__}"
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
