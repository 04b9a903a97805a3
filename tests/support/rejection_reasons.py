"""Every reason under which the code rejects a row, found in its syntax trees: nothing is imported or run.

A reason is a word in the place of a parameter called `reason`, of one of our classes or functions; a constant there,
which is followed through imports; the first of two values that are returned as (reason, detail); or a constant of which
a variable called `reason` is made. Reasons that are put together (`http_404`) are not found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import easydistill

SOURCE = Path(easydistill.__file__).parent
ELSEWHERE = ("sandbox", "verification", "cloud", "doctor", "report", "serving")
"""Packages whose reasons are not those of rows."""
_WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass
class _Module:
    path: Path
    tree: ast.Module
    constants: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[Path, str]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    """Name of a class or function → position of its parameter `reason`."""


class Reasons:
    """Reasons by the place where the code gives them."""

    def __init__(self, source: Path = SOURCE) -> None:
        self._source = source

    @cached_property
    def _modules(self) -> Mapping[Path, _Module]:
        return {path: self._read(path) for path in sorted(self._source.rglob("*.py"))}

    def found(self) -> dict[str, str]:
        """Reason → `file:line` of a place."""
        found: dict[str, str] = {}
        for path, module in self._modules.items():
            parts = path.relative_to(self._source).parts
            if parts[0] in ELSEWHERE:
                continue
            for line, value in self._given(module):
                for reason in self._words(module, value):
                    found.setdefault(reason, f"{'/'.join(parts)}:{line}")
        return found

    def _read(self, path: Path) -> _Module:
        module = _Module(path, ast.parse(path.read_text(encoding="utf-8")))
        for node in module.tree.body:
            if isinstance(node, ast.Assign):
                module.constants |= dict(_texts(node.targets[0], node.value))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("easydistill"):
                for name in node.names:
                    module.imported[name.asname or name.name] = (self._file(str(node.module)), name.name)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef) and (at := _place(node)) is not None:
                module.places[node.name] = at
        return module

    def _file(self, module: str) -> Path:
        path = self._source.parent / module.replace(".", "/")
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def _given(self, module: _Module) -> Iterator[tuple[int, ast.expr]]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                at = self._place_of(module, name)
                if at is not None and at < len(node.args):
                    yield node.lineno, node.args[at]
                if at is not None:
                    yield from ((node.lineno, given.value) for given in node.keywords if given.arg == "reason")
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
                reason, detail = node.value.elts
                if not isinstance(detail, ast.Constant) or " " in str(detail.value):
                    yield node.lineno, reason
            elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
                at = next((at for at, item in enumerate(node.target.elts) if _is_reason(item)), None)
                if at is not None and isinstance(node.iter, ast.Tuple):
                    yield from ((node.lineno, each.elts[at]) for each in node.iter.elts if isinstance(each, ast.Tuple))
            elif isinstance(node, ast.Assign) and _is_reason(node.targets[0]):
                yield from ((node.lineno, name) for name in ast.walk(node.value) if isinstance(name, ast.Name))

    def _place_of(self, module: _Module, name: str) -> int | None:
        if name in module.places:
            return module.places[name]
        if name in module.imported:
            owner = self._owner(*module.imported[name])
            return owner[0].places.get(owner[1]) if owner else None
        return None

    def _owner(self, path: Path, name: str) -> tuple[_Module, str] | None:
        """The module that defines what another one imports, also through packages that pass it on."""
        module = self._modules.get(path)
        if module is None:
            return None
        if name in module.places or name in module.constants or name not in module.imported:
            return module, name
        return self._owner(*module.imported[name])

    def _words(self, module: _Module, value: ast.expr) -> Iterator[str]:
        if isinstance(value, ast.IfExp):
            yield from self._words(module, value.body)
            yield from self._words(module, value.orelse)
        elif isinstance(value, ast.Constant) and isinstance(value.value, str) and _WORD.fullmatch(value.value):
            yield value.value
        elif isinstance(value, ast.Name):
            if value.id in module.constants:
                yield module.constants[value.id]
            elif owner := self._owner(*module.imported.get(value.id, (Path(), ""))):
                yield from filter(None, [owner[0].constants.get(owner[1])])


def _is_reason(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "reason"


def _texts(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=False):
            yield from _texts(one, its)
    elif isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield target.id, value.value


def _place(node: ast.ClassDef | ast.FunctionDef) -> int | None:
    if isinstance(node, ast.FunctionDef):
        names = [argument.arg for argument in node.args.args if argument.arg not in {"self", "cls"}]
    else:
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        if inits:
            return _place(inits[0])
        fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
        names = [item.id for item in fields if isinstance(item, ast.Name)]
    return names.index("reason") if "reason" in names else None
