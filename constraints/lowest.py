"""Constraints that hold every package `pyproject.toml` names to the lowest version it declares: `python lowest.py`.

What those packages need in turn is left to pip. Development tools and the documents' are not ours to hold down: users
never meet them.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = frozenset({"dev", "docs"})
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[^]]*\])?(?P<bounds>[^;]*)(;.*)?")


def lowest(project: dict[str, Any]) -> dict[str, str]:
    """Package → its lowest declared version, for the dependencies and every extra that users install.

    Raises:
        ValueError: a package has no lower bound, or two.
    """
    extras = {name: listed for name, listed in project.get("optional-dependencies", {}).items() if name not in TOOLS}
    found: dict[str, str] = {}
    for requirement in (*project["dependencies"], *(each for listed in extras.values() for each in listed)):
        parts = _REQUIREMENT.fullmatch(requirement.strip())
        bounds = parts["bounds"].split(",") if parts else []
        floors = {bound.strip()[2:].strip() for bound in bounds if bound.strip().startswith((">=", "=="))}
        if parts is None or len(floors) != 1:
            raise ValueError(f"{requirement}: one lower bound is needed")
        (floor,) = floors
        if found.setdefault(parts["name"], floor) != floor:
            raise ValueError(f"{parts['name']}: lower bounds {found[parts['name']]} and {floor}; declare one")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--except", action="append", default=[], metavar="PACKAGE", dest="left", help="leave it to pip")
    left = parser.parse_args().left
    for name, floor in sorted(lowest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]).items()):
        if name not in left:
            print(f"{name}=={floor}")


if __name__ == "__main__":
    main()
