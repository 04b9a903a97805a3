"""Reads the guide as a user does: saves the files that a page shows, and gives the commands in their order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs/guide"
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
_NAMED = re.compile(r"`([\w./-]+\.\w+)`:$")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    text: str
    file: str = ""
    """The file that it is to be saved as, which the line before it names: "Save it as `kd.json`:"."""


def blocks(page: Path) -> list[Block]:
    found = []
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        named = _NAMED.search(block["before"])
        found.append(Block(block["language"], block["text"], named[1] if named else ""))
    return found


def commands(page: Path, folder: Path, here: Mapping[str, str]) -> Iterator[str]:
    """Save the page's files in `folder`, and give each command of its `bash` blocks when its turn has come.

    Args:
        here: what stands in place of names that only a user has: models, a server's address.
    """
    for block in blocks(page):
        text = block.text
        for name, ours in here.items():
            text = text.replace(name, ours)
        if block.file:
            (folder / block.file).write_text(text, encoding="utf-8")
        elif block.language == "bash":
            yield from (line.split("  #")[0].strip() for line in text.splitlines() if line.strip())


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of all tables whose first column is headed `first`, as cells."""
    rows, within = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            within = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first:
            within = True
        elif within and not set(cells[0]) <= {"-", ":"}:
            rows.append(cells)
    return rows
