"""Extensions by file name: each module in a registry's package is an extension, named after its file.

A registry imports only the modules it is asked for, so listing names costs nothing and `validate` does not load torch.
Third parties add names through the entry-point group `easydistill.<kind>`, each pointing at a module of the same shape
as a built-in one. What a module must declare is its kind's `Contract`, checked when the module is loaded; the contracts
are in `easydistill.contracts`.

A name such as `my_rewards.py:brevity` is no registered one: it means a function in a file of the user's, and
`my_reward.py` a module of the shape of its kind; see `plain_files`.
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
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from easydistill.errors import ConfigError, ConfigIssue
from easydistill.plain_files import PlainFile, PlainFileError, Reference, load


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
class FileOfSection:
    """The plain file that a section's class comes from, for the section's identity."""

    reference: str
    """As in the config, once it is read."""
    short: str
    digest: str


@dataclass(frozen=True)
class Registry:
    """The modules of `package` without an underscore before their names, the kind's entry points, and plain files."""

    kind: str
    package: str
    contract: Contract | None = None
    functions: str | None = None
    """The module that makes an extension of a plain function: its `module_of(function, file, reference) -> ModuleType`
    raises PlainFileError if the function's signature is none that it knows, and `EXAMPLE` is one that it does."""
    section: str = "Config"
    """What a module calls the class of its section."""
    tag: str | None = None
    """The field by which sections of the kind are told apart, if they are values and not keys."""

    def __post_init__(self) -> None:
        REGISTRIES.setdefault(self.kind, self)

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

    @cached_property
    def _files(self) -> dict[str, tuple[PlainFile, ModuleType]]:
        """Extensions in plain files, by reference, with the state of the file that they were made of."""
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
        """The module registered as `name`, with defaults for what it does not declare; or what a plain file offers.

        Raises:
            KeyError: nothing is registered under that name.
            ExtensionError: it cannot be loaded, or does not declare what it must.
        """
        if reference := Reference.read(name):
            return self.from_file(reference)
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

    def from_file(self, reference: Reference) -> ModuleType:
        """What a plain file offers, as a module of the kind. It is made again when the file has changed.

        Raises:
            ExtensionError: it cannot be loaded, or does not declare what it must.
        """
        name = str(reference)
        try:
            file = load(reference.path)
            known = self._files.get(name)
            if known is not None and known[0] is file:
                return known[1]
            module = self._of_function(reference, file) if reference.attribute else self._whole(file)
        except PlainFileError as error:
            raise ExtensionError(ConfigIssue(name, "", error.problem, error.hint)) from error
        problems = [f"it declares no `{self.section}`"] if not hasattr(module, self.section) else []
        if not problems:
            self._mark(module, reference, file)
            if self.kind == "operators":
                # The name in the stage's fingerprint; a union of sections cannot know the file.
                state = "" if inspect.isclass(getattr(module, self.section)) else f" {file.digest}"
                module.IDENTITY = (getattr(module, "IDENTITY", "") or reference.short) + state  # type: ignore[attr-defined]
            problems = self.contract.complete(name, module) if self.contract is not None else []
        if problems:
            raise ExtensionError(ConfigIssue(name, "", f"it cannot be used: {'; '.join(problems)}", self._wanted(file)))
        self._files[name] = file, module
        return module

    def section_from_file(self, name: str) -> Any:
        """The class of the section of a plain file that was loaded under a name; None if none was."""
        known = self._files.get(name)
        return None if known is None else getattr(known[1], self.section)

    def _of_function(self, reference: Reference, file: PlainFile) -> ModuleType:
        function = file.attribute(reference.attribute)
        if self.functions is None:
            hint = f"name the file alone, `{reference.path}`: as a whole it is a module of the kind"
            raise PlainFileError(f"{self.kind} are whole modules, and {reference.attribute!r} is a part of one", hint)
        adapter: Any = importlib.import_module(self.functions)
        example = f"such as: {adapter.EXAMPLE.format(name=reference.attribute)}"
        if not callable(function) or inspect.isclass(function):
            kind = "a class" if inspect.isclass(function) else f"a {type(function).__name__}"
            raise PlainFileError(f"{reference.short} is {kind}, not a function", example)
        try:
            made: ModuleType = adapter.module_of(function, file, reference)
        except PlainFileError as error:
            raise PlainFileError(error.problem, error.hint or example) from error
        return made

    @staticmethod
    def _whole(file: PlainFile) -> ModuleType:
        """A copy of a file's names: its section is replaced, and defaults are added."""
        module = ModuleType(file.module.__name__, file.module.__doc__)
        module.__dict__.update(vars(file.module))
        return module

    def _mark(self, module: ModuleType, reference: Reference, file: PlainFile) -> None:
        """Let the section know the file, so that another state of it is another identity."""
        config = getattr(module, self.section)
        if not (inspect.isclass(config) and issubclass(config, BaseModel)):
            return
        literal: Any = Literal[str(reference)]  # type: ignore[valid-type]
        fields: Any = {self.tag: (literal, Field(description=f"`{reference.short}`."))} if self.tag is not None else {}
        made: Any = create_model(
            config.__name__, __base__=config, __module__=config.__module__, __doc__=config.__doc__, **fields
        )
        made.plain_file = FileOfSection(str(reference), reference.short, file.digest)  # type: ignore[attr-defined]
        setattr(module, self.section, made)

    def _wanted(self, file: PlainFile) -> str:
        """What a file must declare."""
        hint = ""
        if self.contract is not None:
            required = self.contract.required
            hint = f"what a whole module must declare: {required.__module__}.{required.__name__}"
        if self.functions is not None:
            hint += f"; to use one of its functions, name it: {file.path.name}:…"
        return hint

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


def declares(reference: Reference, attribute: str) -> bool:
    """Whether a plain file has an attribute; False if it cannot be loaded."""
    try:
        return hasattr(load(reference.path).module, attribute)
    except PlainFileError:
        return False


REGISTRIES: dict[str, Registry] = {}
"""The registry of each kind, once its package was imported."""
