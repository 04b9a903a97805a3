"""Extensions in plain files of the user's: `my_rewards.py:brevity`, or `my_rewards.py` for a whole module.

A file is imported once for each state of its text and of the modules beside it that it imports; a changed file is
imported again, also in a notebook that has imported it before. Its functions can be pickled: the module's name holds
the file's path, and importing `easydistill.plain_files` is all that another process needs to find it.

Loading a file runs it, with all the rights of the user.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import hashlib
import importlib
import linecache
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

__path__: list[str] = []
"""Makes this module a package for the import system, whose submodules `_Finder` finds."""

_REFERENCE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[^\W\d]\w*))?")
_LOCK = threading.RLock()


class PlainFileError(Exception):
    """A file cannot be used: what is wrong, and what to do."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


@dataclass(frozen=True)
class Reference:
    """A file, and what is meant in it."""

    path: str
    """Relative to the working directory, or absolute."""
    attribute: str = ""
    """A name in the file; empty for the whole module."""

    @classmethod
    def read(cls, text: str) -> Reference | None:
        """The reference that a text is; None if it is none."""
        match = _REFERENCE.fullmatch(text)
        return None if match is None else cls(match["path"], match["attribute"] or "")

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}" if self.attribute else self.path

    @property
    def short(self) -> str:
        """Without folders: the file's name, and what is meant in it."""
        name = Path(self.path).name
        return f"{name}:{self.attribute}" if self.attribute else name

    def beside(self, folder: Path) -> Reference:
        """The same as written in a file of `folder`, to be read from the working directory."""
        path = os.path.normpath(folder / Path(self.path).expanduser())
        if Path(path).is_absolute() and not Path(self.path).expanduser().is_absolute():
            path = os.path.relpath(path)
        # What begins with an underscore cannot be the name of a section's field.
        return Reference(f"./{path}" if path.startswith("_") else path, self.attribute)


def is_reference(name: object) -> bool:
    """Whether a name in a config means a file, and not a registered extension."""
    return isinstance(name, str) and Reference.read(name) is not None


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name as it is shown and fingerprinted: a file without its folders, unless two would then be the same."""
    short = {name: found.short if (found := Reference.read(name)) else name for name in names}
    taken = list(short.values())
    return {name: shown if taken.count(shown) == 1 else name for name, shown in short.items()}


@dataclass(frozen=True)
class PlainFile:
    """A file that was imported."""

    module: ModuleType
    path: Path
    digest: str
    """SHA-256 of the file, or of the hashes of all, if it imports modules beside it."""
    files: tuple[Path, ...]
    """The file, and the modules beside it that it imports."""

    def attribute(self, name: str) -> Any:
        """What the file calls `name`.

        Raises:
            PlainFileError: nothing.
        """
        found = getattr(self.module, name, None)
        if found is not None:
            return found
        own = [
            key for key, value in vars(self.module).items() if getattr(value, "__module__", "") == self.module.__name__
        ]
        known = [key for key in own if not key.startswith("_")]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it defines {', '.join(known) or 'nothing'}"
        raise PlainFileError(f"{self.path} has no {name!r}", hint)


_loaded: dict[Path, PlainFile] = {}


def load(path: str) -> PlainFile:
    """Import a file, again if it or a module beside it that it imports has changed.

    Raises:
        PlainFileError: there is no such file, or it cannot be imported.
    """
    file = Path(path).expanduser().absolute()
    file = Path(os.path.normpath(file))
    if not file.is_file():
        raise PlainFileError(f"there is no file {file}", "a path is relative to the folder of the config")
    with _LOCK:
        files = tuple(_files_of(file))
        digest = _digest(files)
        known = _loaded.get(file)
        if known is not None and known.digest == digest and known.files == files:
            return known
        found = PlainFile(_imported(file, files), file, digest, files)
        _loaded[file] = found
        return found


def place_in(error: BaseException, files: Sequence[Path]) -> str:
    """The innermost line of the user's files that an error came from, as `name.py:12`; empty if there is none."""
    own = {str(path): path.name for path in files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{own[frames[-1].filename]}:{frames[-1].lineno}" if frames else ""


def _digest(files: Sequence[Path]) -> str:
    hashes = [(path.relative_to(files[0].parent).as_posix(), _sha256(path.read_bytes())) for path in files]
    return hashes[0][1] if len(hashes) == 1 else _sha256(repr(sorted(hashes)).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _files_of(file: Path) -> list[Path]:
    """A file and the modules beside it that it imports, directly or through others; the file is the first."""
    found, waiting = {file: None}, [file]
    while waiting:
        for name in _imports(waiting.pop()):
            for path in _beside(file.parent, name):
                if path not in found:
                    found[path] = None
                    waiting.append(path)
    first, *others = found
    return [first, *sorted(others)]


def _beside(folder: Path, name: str) -> list[Path]:
    """The files of a module, or of a package, in a folder; what `import` runs is the first."""
    if (folder / name / "__init__.py").is_file():
        first = folder / name / "__init__.py"
        return [first, *sorted(path for path in first.parent.rglob("*.py") if path != first)]
    path = folder / f"{name}.py"
    return [path] if path.is_file() else []


def _imports(path: Path) -> Iterator[str]:
    """The top-level names that a file imports anywhere in it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError):
        # Importing it tells where.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _imported(file: Path, files: Sequence[Path]) -> ModuleType:
    """Import a file and the modules beside it anew."""
    own = {str(path) for path in files}
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{__name__}.") and getattr(module, "__file__", None) in own:
            del sys.modules[name]
    for path in own:
        linecache.checkcache(path)
    try:
        return importlib.import_module(_module_name(file))
    except SyntaxError as error:
        # Null bytes have no line.
        place = Path(error.filename or file).name + (f":{error.lineno}" if error.lineno else "")
        raise PlainFileError(f"{place}: {error.msg}", "correct it") from error
    except (Exception, SystemExit) as error:
        place = place_in(error, files) or file.name
        dotted = isinstance(error, ImportError) and str(error.name or "").startswith(__name__)
        hint = "for a module beside the file write `import helpers`, without a dot" if dotted else "correct it"
        raise PlainFileError(f"{place}: {type(error).__name__}: {error}", hint) from error


def _module_name(file: Path) -> str:
    """The name of a file's module, from which `_Finder` gets the path."""
    name = file.parent.name if file.name == "__init__.py" else file.stem
    return f"{__name__}.{re.sub(r'[^0-9A-Za-z_]', '_', name)}_{os.fsencode(file).hex()}"


class _Loader(SourceFileLoader):
    """Runs a file in whose imports the modules beside it come first, without being in the way of anybody else's: two
    folders may both have a `utils.py`, and an installed library may have a module of that name.
    """

    def __init__(self, fullname: str, path: str, root: Path) -> None:
        super().__init__(fullname, path)
        self.root = root
        """The folder whose modules it imports by their names."""

    def get_code(self, fullname: str) -> CodeType:
        # Cached bytecode is compared by whole seconds and sizes only.
        code: CodeType = compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": partial(_import, self.root)}
        super().exec_module(module)


def _import(
    root: Path,
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`import` in a module of the user's: `__import__` with modules of `root` first."""
    top, dot, rest = name.partition(".")
    file = None if level else next(iter(_beside(root, top)), None)
    if file is None:
        return __import__(name, globals, locals, fromlist or (), level)
    package = importlib.import_module(_module_name(file))
    module = importlib.import_module(f"{package.__name__}.{rest}") if dot else package
    for each in (fromlist or ()) if hasattr(module, "__path__") else ():
        if each != "*" and not hasattr(module, each):
            with suppress(ModuleNotFoundError):
                importlib.import_module(f"{module.__name__}.{each}")
    return module if fromlist else package


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent == __name__ and (found := re.search(r"_((?:[0-9a-f]{2})+)$", name)):
            file = Path(os.fsdecode(bytes.fromhex(found[1])))
            root = file.parent.parent if file.name == "__init__.py" else file.parent
        elif parent.startswith(f"{__name__}.") and path:
            # A module of a package beside a file.
            beside = _beside(Path(path[0]), name)
            loader = getattr(sys.modules[parent].__spec__, "loader", None)
            if not beside or not isinstance(loader, _Loader):
                return None
            file, root = beside[0], loader.root
        else:
            return None
        folder = [str(file.parent)] if file.name == "__init__.py" else None
        loaded = _Loader(fullname, str(file), root)
        return spec_from_file_location(fullname, file, loader=loaded, submodule_search_locations=folder)


# Before the finder that would load a module of a package like any other.
sys.meta_path.insert(0, _Finder())
