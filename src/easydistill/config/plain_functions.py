"""Plain functions of the user's files, as extensions: what they are given, their settings, and where they fail.

A keyword-only parameter with a type and a default is a setting, a key of the function's section in the config:

    def brevity(completions, *, words: int = 20, **columns): ...

All other parameters are what the function is given; which there are says the kind.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import create_model
from pydantic.errors import PydanticUserError

from easydistill.config.base import Section
from easydistill.errors import EasyDistillError
from easydistill.plain_files import PlainFile, PlainFileError, Reference, place_in


class FunctionFailed(EasyDistillError, RuntimeError):
    """A function of the user's file has raised an error, or returned what it must not."""


@dataclass(frozen=True)
class PlainFunction:
    """A function of a user's file."""

    call: Callable[..., Any]
    file: PlainFile
    reference: Reference

    @cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(self.call).parameters.values())
        except (TypeError, ValueError):
            raise PlainFileError("Python does not know its parameters", "wrap it into a function with `def`") from None

    @cached_property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The parameters that are set in the config, by name."""
        return {each.name: each for each in self._parameters if _is_setting(each)}

    @cached_property
    def given(self) -> dict[str, inspect.Parameter]:
        """The other parameters, by name, but for `*args` and `**kwargs`."""
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {each.name: each for each in self._parameters if each.kind not in several and not _is_setting(each)}

    @cached_property
    def takes_all(self) -> bool:
        """Whether it takes arguments of any name, as `**columns`."""
        return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in self._parameters)

    def required(self) -> list[str]:
        """The names of those that it must be given."""
        return [name for name, each in self.given.items() if each.default is inspect.Parameter.empty]

    @cached_property
    def written(self) -> Any:
        """The function with `def` that a call ends in: without `functools.partial` and decorators that keep its
        signature; of an object that can be called, its `__call__`."""
        call: Any = self.call
        while True:
            inner = call.func if isinstance(call, functools.partial) else inspect.unwrap(call)
            if inner is call:
                break
            call = inner
        return call if inspect.isroutine(call) else type(call).__call__

    def check_named(self, known: Sequence[str], *, may_wait: bool = False) -> None:
        """Refuse parameters that nothing is given to.

        Args:
            known: the names that it may ask for.
            may_wait: whether functions of its kind may be `async`.

        Raises:
            PlainFileError: it asks for another one, takes arguments by position alone, or is `async`.
        """
        # A decorator may have made it wait itself.
        called = self.call if inspect.isroutine(inspect.unwrap(self.call)) else self.written
        if not may_wait and (inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)):
            raise PlainFileError("it is `async`, and only rewards may be", "write `def`, with `asyncio.run` in it")
        for name, each in self.given.items():
            if each.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise PlainFileError(f"its parameter `{name}` has no name for the caller", "remove the `/`")
            if name not in known and each.default is inspect.Parameter.empty:
                names = ", ".join(f"`{one}`" for one in known)
                raise PlainFileError(f"nothing is given to its parameter `{name}`: it may have {names}")

    def config(self, base: type[Section], **more: Any) -> Any:
        """The class of its section: `base` with its settings.

        Args:
            more: further fields, as `create_model` takes them.

        Raises:
            PlainFileError: a setting has the name of a key of `base`, or a type that a config cannot hold.
        """
        taken = [name for name in self.settings if name in base.model_fields or name in more or hasattr(base, name)]
        if taken:
            what = "a key that every section has" if taken[0] in base.model_fields else "something that sections need"
            raise PlainFileError(f"its setting `{taken[0]}` has the name of {what}", "rename it")
        try:
            hints = get_type_hints(self.written)
            fields: Any = {name: (hints[name], each.default) for name, each in self.settings.items()}
            return create_model(
                "Config",
                __base__=base,
                __module__=self.file.module.__name__,
                __doc__=inspect.getdoc(self.call) or f"`{self.reference.short}`.",
                **more,
                **fields,
            )
        except (PydanticUserError, NameError, TypeError) as error:
            raise PlainFileError(
                f"the types of its settings cannot be read: {error}", "use int, float, str …"
            ) from error

    def chosen(self, config: Section) -> dict[str, Any]:
        """The values of its settings."""
        return {name: getattr(config, name) for name in self.settings}

    def taken(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that it has a parameter for."""
        return {name: value for name, value in values.items() if name in self.given}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Whatever is raised inside is an error in it; also `SystemExit`, which would end the run in its name.

        Raises:
            FunctionFailed: it is.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            raise self.failed(error) from error

    def failed(self, error: BaseException) -> FunctionFailed:
        """An error in it, with the line of the user's file."""
        place = place_in(error, self.file.files) or self.reference.short
        hint = f"{self.reference.short} failed; the traceback is in the run's log.txt"
        return FunctionFailed(f"{place}: {type(error).__name__}: {error}\n    → {hint}")

    def wrong(self, problem: str) -> FunctionFailed:
        """What it returned is wrong."""
        return FunctionFailed(f"{self.reference.short} {problem}\n    → see docs/extending.md for what it must return")

    def module(self, **names: Any) -> ModuleType:
        """A module of a kind, with these names."""
        made = ModuleType(f"{self.file.module.__name__}.{self.reference.attribute}", inspect.getdoc(self.call))
        made.__file__ = str(self.file.path)
        for name, value in names.items():
            setattr(made, name, value)
        return made


def _is_setting(parameter: inspect.Parameter) -> bool:
    has_default = parameter.default is not inspect.Parameter.empty
    typed = parameter.annotation is not inspect.Parameter.empty
    return parameter.kind is inspect.Parameter.KEYWORD_ONLY and has_default and typed
