"""What a path `hf://…` names: a data set of the Hugging Face hub. Nothing here asks the hub."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from easydistill.data.row_files.broken import PlaceError

_HUB = re.compile(r"hf:/{1,2}(?=[^/])")
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
HUB_SPELLING = "hf://owner/name?split=train&revision=…&config=…&data_files=…"


@dataclass(frozen=True)
class HubPlace:
    """A data set of the Hugging Face hub."""

    repository: str
    split: str | None = None
    revision: str | None = None
    """A branch, a tag or a commit; None is the main branch."""
    config: str | None = None
    data_files: tuple[str, ...] = ()
    """Files of the repository, or globs; empty reads those that the repository names."""

    def __str__(self) -> str:
        return f"hf://{self.repository}"


def is_hub(where: str | Path) -> bool:
    """Whether a path names a data set of a hub. A `Path` has lost one of the two slashes."""
    return _HUB.match(str(where)) is not None


def hub_place(name: str) -> HubPlace:
    """The data set that a name such as `hf://owner/name?split=train` means.

    Raises:
        PlaceError: it is no name of a data set.
    """
    rest, _, query = _HUB.sub("", name, count=1).partition("?")
    rest = rest.strip("/")
    named, files = _hub_options(name, query)
    # Some of the oldest data sets have no owner.
    owned, rest = not rest.startswith("datasets/"), rest.removeprefix("datasets/")
    repository, _, revision = rest.partition("@")
    revision, _, inside = revision.partition("/")
    parts = repository.split("/")
    if not revision and len(parts) > 2:
        repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    known = _REPOSITORY.fullmatch(repository) is not None and ("/" in repository or not owned)
    if not known or (revision and "revision" in named):
        raise PlaceError(name, "not the name of a hub's data set", f"it is {HUB_SPELLING}")
    revision = named.get("revision", revision)
    return HubPlace(
        repository,
        named.get("split"),
        revision if revision not in ("", "main") else None,
        named.get("config"),
        tuple(files + _in_folder(inside)),
    )


def _hub_options(name: str, query: str) -> tuple[dict[str, str], list[str]]:
    """The options behind a hub's name, and the files among them."""
    named: dict[str, str] = {}
    files: list[str] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "data_files":
            files += [part for part in value.split(",") if part]
        elif key not in {"split", "revision", "config"} or not value or key in named:
            raise PlaceError(name, f"{key}={value} is not understood", f"it is {HUB_SPELLING}")
        else:
            named[key] = value
    return named, files


def _in_folder(inside: str) -> list[str]:
    """The path behind a repository's name: a file, a glob, or a folder."""
    if not inside:
        return []
    return [inside if glob.has_magic(inside) or Path(inside).suffix else f"{inside}/**"]
