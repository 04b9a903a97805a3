"""What pyproject.toml declares: every package that is imported, with one lower bound each, and the licence."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
lowest = runpy.run_path(str(ROOT / "constraints/lowest.py"))["lowest"]
# pydantic pins its core to the one release that fits, as torch for CUDA does Triton, which no other torch needs.
PINNED_BY_ANOTHER = {"pydantic-core", "sympy", "triton"}
# What a result becomes a table of, where the user has it.
OF_THE_USER = {"pandas"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def imported(folder: str) -> dict[str, Path]:
    """Top-level names of other packages → a file that imports each."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = path
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "easydistill"}}


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    listed = [
        *PROJECT["dependencies"],
        *(each for extra in extras if extra not in {"dev", "docs"} for each in extras[extra]),
    ]
    declared = {name_of(requirement) for requirement in listed} | PINNED_BY_ANOTHER | OF_THE_USER
    # vLLM's build for CPUs brings the same module under another name, and so does the small build of MLflow.
    of = {**packages_distributions(), "vllm": ["vllm"], "mlflow": ["mlflow-skinny"]}
    missing = {
        name: str(path)
        for name, path in imported("src").items()
        if not {name_of(package) for package in of.get(name, [name])} & declared
    }
    assert not missing


def test_the_lowest_versions_are_those_declared() -> None:
    found = lowest(PROJECT)
    assert found["openai"] == "3.0" and found["httpx2"] == "2.7" and "pytest" not in found
    # An extra of a package, and a bound that holds on some machines only.
    some = {"dependencies": ["a[b]>=1.2,<2"], "optional-dependencies": {"x": ["c>=3; platform_machine != 'z'"]}}
    assert lowest(some) == {"a": "1.2", "c": "3"}


@pytest.mark.parametrize("listed", [["a"], ["a<2"], ["a>=1", "a>=2"]])
def test_a_package_has_one_lower_bound(listed: list[str]) -> None:
    with pytest.raises(ValueError, match="lower bound"):
        lowest({"dependencies": listed})


def test_the_licence_is_there() -> None:
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
