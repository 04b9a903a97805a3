"""What is in the wheel and in the sdist, both built offline from this tree."""

from __future__ import annotations

import email
import re
import subprocess
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from tests.support.wheels import build

import easydistill

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DATA = {".json", ".jsonc", ".txt", ".md", ".jinja", ".css", ".js", ".typed"}
FOR_BUILDERS = {"dev", "docs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    (text,) = (text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src/easydistill"
    expected = {
        f"easydistill/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in {".py", *DATA}
    }
    found = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert found == expected
    # One of each kind, in case that the suffix of a kind is forgotten above.
    assert {
        "easydistill/py.typed",
        "easydistill/config/recorded_identities.json",
        "easydistill/recipes/data/seeds.json",
        "easydistill/recipes/quickstart/prompts.json",
        "easydistill/recipes/quickstart/quickstart.jsonc",
        "easydistill/recipes/thoughtx/README.md",
        "easydistill/report/templates/report.html.jinja",
        "easydistill/report/templates/report.css",
        "easydistill/report/templates/report.js",
        "easydistill/rewards/prompts/judge.en.txt",
        "easydistill/synthesis/prompts/answer_comparison.zh.txt",
    } <= found


def test_all_that_the_package_reads_beside_its_code_is_of_a_known_kind() -> None:
    kept = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not kept:
        pytest.skip("this is no checkout of git")
    assert {Path(name).suffix for name in kept.splitlines()} == {".py", *DATA}


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "made")
    with tarfile.open(sdist) as opened:
        names = opened.getnames()
        opened.extractall(tmp_path, filter="data")
    top = sdist.name.removesuffix(".tar.gz")
    assert {"Makefile", "LICENSE", "tests", "docs", "examples"} <= {name.split("/")[1] for name in names if "/" in name}
    # Nothing that happens to lie in the working tree.
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|/runs/|/\.git/|/dist/|/\.venv", name)]
    again = build("wheel", tmp_path / top, tmp_path / "again")
    assert contents(again) == contents(wheel)


def test_metadata(metadata: Message, wheel: Path) -> None:
    assert wheel.name == f"easydistill_toolkit-{easydistill.__version__}-py3-none-any.whl"
    assert metadata["Version"] == easydistill.__version__
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    (points,) = (text for name, text in contents(wheel).items() if name.endswith("entry_points.txt"))
    assert points.decode().split("\n")[1] == "easydistill = easydistill.cli:main"


def test_the_description_stands_alone_and_names_every_extra(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    # A page on an index has no files beside it.
    assert not [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|(.*?)\|", text, re.MULTILINE))))
    assert named == set(PROJECT["optional-dependencies"]) - FOR_BUILDERS
