"""What the documents say is true: commands run, links lead somewhere, the generated page is current."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from easydistill import api
from easydistill.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
PAGES = ("README.md", "ARCHITECTURE.md", "benchmarks/README.md", "examples/README.md")
DOCS = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
OWN = [command for command in COMMANDS if command.startswith(".venv/bin/easydistill")]


def test_there_are_commands() -> None:
    assert len(OWN) >= 5
    assert {"make quickstart", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", OWN)
def test_commands_of_the_readme_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(command)[1:]
    # Files that a command writes go to a place of their own; everything else is read from the repository.
    arguments = [str(tmp_path / name) if name == "kd.jsonc" else name for name in arguments]
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("target", sorted({c.split()[1] for c in COMMANDS if c.startswith("make ")}))
def test_make_targets_exist(target: str) -> None:
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("page", [*PAGES, *(f"docs/{name}" for name in DOCS)])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_tree_in_architecture_is_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    shown = set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE))
    folders = {path.name for path in (ROOT / "src/easydistill").iterdir() if (path / "__init__.py").exists()}
    assert shown == folders


def test_the_page_of_all_keys_is_current() -> None:
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["text"]()
    assert (ROOT / "docs/configuration.md").read_text() == generated, "run: python docs/generate.py"


def test_the_page_of_all_keys_describes_each_section_once() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    text = generate["text"]()
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(anchors)

    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))

    def keys(title: str) -> set[str]:
        """The keys that a reader finds under a heading, and under the section that it refers to."""
        found = set(re.findall(r"^\| `([^`]+)` \|", bodies[title], re.MULTILINE))
        like = re.search(
            r"^The keys of \[(.+?)\](?:\(.*?\))(?:, without (.*?))?(?:[.;:]|$)", bodies[title], re.MULTILINE
        )
        if like is None:
            return found
        return (keys(like[1]) - set(re.findall(r"`([^`]+)`", like[2] or ""))) | found

    page = generate["Page"](api.job_schema())
    for section in page.sections.values():
        assert keys(section.title) == set(section.keys), section.title
    for job in page.jobs:
        assert keys(job.name) | keys("Keys of every job") == set(job.keys), job.name
