"""Recipes: whole pipelines with published settings, one folder each.

A folder has `full.json` (the published settings), `small.json` (the same jobs on two cores, with real weights),
`README.md`, `about.json` (what lists show) and `data/`. `recipe:NAME` and `recipe:NAME:small` name their configs wherever
a config's path is expected. Paths in a config's `data` are relative to its folder, so a copied folder runs where it is.
"""

from __future__ import annotations

import json
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
README = "README.md"
_FOLDER = Path(__file__).parent
_ABOUT = "about.json"
_DATA = "data"


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
    for path in sorted(_FOLDER.glob(f"*/{_ABOUT}")):
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
    """Copy a recipe's config, with its README and its data, into a folder that does not exist yet, or is empty.

    Returns:
        The copied config.

    Raises:
        ConfigError: there is no such recipe, or something is in the folder already.
    """
    found = find(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problem = "this folder is not empty" if target.is_dir() else "this is a file"
        raise ConfigError(ConfigIssue(str(target), "", problem, "name another folder with -o"))
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found.folder / _DATA, target / _DATA)
    for path in (found.config(size), found.folder / README):
        shutil.copyfile(path, target / path.name)
    return target / found.config(size).name
