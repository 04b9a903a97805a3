"""Recipes: whole pipelines with published settings, one folder each.

A folder has `full.json` (the published settings), `small.json` (the same jobs on two cores, with real weights),
`README.md`, and `about.json` (what lists show); rows are in `data/`, beside the folders. `recipe:NAME` and
`recipe:NAME:small` name their configs wherever a config's path is expected. Paths in a pipeline's `data` are relative
to its file's folder, so a copy runs where it is.

`quickstart/` is no recipe: a first job for two cores, and its prompts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from easydistill.errors import ConfigError, ConfigIssue

PREFIX = "recipe:"
Size = Literal["full", "small"]
SIZES: tuple[Size, ...] = ("full", "small")
QUICKSTART = "quickstart"
README = "README.md"
ABOUT = "about.json"
_FOLDER = Path(__file__).parent
_SHARED = re.compile(r'"\.\./data/([\w.]+)"')
"""Data of several recipes, as their configs name it."""


@dataclass(frozen=True)
class Recipe:
    """A recipe, and what lists show of it."""

    name: str
    folder: Path
    does: str
    """What it makes, in a sentence."""
    teachers: str
    """The published teachers."""
    students: str
    """The published students."""
    cost: str
    """What `plan` foretells of `full` with 10,000 prompts."""

    def config(self, size: Size) -> Path:
        """Its config."""
        return self.folder / f"{size}.json"


def recipes() -> Iterator[Recipe]:
    """All recipes, by name."""
    for path in sorted(_FOLDER.glob(f"*/{ABOUT}")):
        yield Recipe(path.parent.name, path.parent, **json.loads(path.read_text(encoding="utf-8")))


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: there is none.
    """
    known = {recipe.name: recipe for recipe in recipes()}
    if name.lower() in known:
        return known[name.lower()]
    guess = get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {guess[0]}? " if guess else ""
    hint += f"There are {', '.join(known)}"
    raise ConfigError(ConfigIssue("command line", "", f'there is no recipe "{name}"', hint))


def config_of(reference: str) -> Path:
    """The config that `recipe:NAME` or `recipe:NAME:small` names.

    Raises:
        ConfigError: there is none.
    """
    name, _, written = reference.removeprefix(PREFIX).partition(":")
    size = next((size for size in SIZES if size == (written or "full")), None)
    if size is None:
        problem = f'a recipe is full or small, not "{written}"'
        raise ConfigError(ConfigIssue(reference, "", problem, f"{PREFIX}{name} or {PREFIX}{name}:small"))
    return find(name).config(size)


def copy(name: str, target: Path, size: Size) -> Path:
    """Copy a recipe's config, with its README and the data that it names, into a folder that is new or empty.

    Returns:
        The copied config.

    Raises:
        ConfigError: there is no such recipe, or something is in the folder already.
    """
    found = find(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problem = "this folder is not empty" if target.is_dir() else "this is a file"
        raise ConfigError(ConfigIssue(str(target), "", problem, "name another folder with -o"))
    text = found.config(size).read_text(encoding="utf-8")
    data = target / "data"
    data.mkdir(parents=True)
    for shared in sorted(set(_SHARED.findall(text))):
        shutil.copyfile(_FOLDER / "data" / shared, data / shared)
    shutil.copyfile(found.folder / README, target / README)
    config = target / f"{size}.json"
    config.write_text(_SHARED.sub(r'"data/\1"', text), encoding="utf-8")
    return config


def copy_quickstart(target: Path) -> list[Path]:
    """Copy the quickstart's config and prompts into a folder, which is made if it is not there.

    Returns:
        The copies, the config first.

    Raises:
        ConfigError: a file of that name is there already, or the folder is a file.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(ConfigIssue(str(target), "", "this is a file", "name a folder with -o"))
    copies = {target / path.name: path for path in sorted((_FOLDER / QUICKSTART).iterdir(), reverse=True)}
    if present := [path for path in copies if path.exists()]:
        problem = f"{' and '.join(path.name for path in present)} exist{'s' * (len(present) == 1)} already"
        hint = "name an empty folder with -o, or remove what is there"
        raise ConfigError(ConfigIssue(str(target), "", problem, hint))
    target.mkdir(parents=True, exist_ok=True)
    for made, shipped in copies.items():
        shutil.copyfile(shipped, made)
    return list(copies)
