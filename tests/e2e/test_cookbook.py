"""The cookbook is true: pages show the files that are run, and every command does what its page says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
from tests.support.cookbook import COOKBOOK, ROOT, TASKS, Ran, commands, make_tiny, run
from tests.support.wheels import build, install

from easydistill import api
from easydistill.cli import main
from easydistill.command_line import parser
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError

PAGES = ROOT / "docs/guide/cookbook"
EVERY = pytest.mark.parametrize("task", TASKS)
WRONG = {"typos.jsonc"}
"""Configs with mistakes, on purpose."""


@pytest.fixture(autouse=True)
def _an_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def test_there_are_ten() -> None:
    assert [name[:2] for name in TASKS] == [f"{number:02}" for number in range(1, 11)]
    index = (PAGES / "index.md").read_text()
    assert re.findall(r"\]\((\w+)\.md\)", index) == TASKS


@EVERY
def test_a_page_shows_every_file_and_tells_how_long_it_took(task: str) -> None:
    page = (PAGES / f"{task}.md").read_text()
    shown = re.findall(r"\{literalinclude\} (\S+)", page)
    files = [(PAGES / name).resolve() for name in shown]
    assert len(set(files)) == len(files)
    # Prompts are many; a page that shows rows shows some.
    assert {path.name for path in files} >= {path.name for path in (COOKBOOK / task).glob("*.*")} - {"prompts.jsonl"}
    assert all(path.is_file() and path.parent == COOKBOOK / task for path in files)
    assert re.search(r"took \d+ (seconds|minutes)", page)


@EVERY
def test_commands_are_those_of_the_command_line_and_recorded(task: str) -> None:
    printed = (COOKBOOK / task / "printed.txt").read_text()
    for line in commands(task):
        assert f"$ {line.split('  #')[0].rstrip()}\n" in printed
        words = shlex.split(line, comments=True)
        if "easydistill" in words:
            given = takewhile(lambda word: word not in {"||", "&"}, words[words.index("easydistill") + 1 :])
            parser().parse_args(list(given))


@EVERY
def test_configs_are_valid_and_rows_are_read(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(COOKBOOK / task)
    for config in COOKBOOK.glob(f"{task}/*.jsonc"):
        if config.name in WRONG:
            with pytest.raises(ConfigError):
                api.validate(config.name)
        else:
            api.load(config.name)
    for rows in COOKBOOK.glob(f"{task}/*s.jsonl"):
        broken = (task, rows.name) == ("08_break_it", "rows.jsonl")
        if not broken and rows.name != "pairs.jsonl":
            samples, rejected = read_samples(str(rows), labelled=rows.name == "chats.jsonl")
            assert samples and not rejected


def test_mistakes_are_told_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(COOKBOOK / "08_break_it")
    assert main(["validate", "typos.jsonc"]) == 2
    printed = (COOKBOOK / "08_break_it/printed.txt").read_text()
    assert capsys.readouterr().err.strip() in printed


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    return install(build("wheel", ROOT, folder / "dist"), folder / "venv")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


def _asked_once(ran: Ran) -> None:
    assert ran.asked and set(ran.asked.values()) == {1}


def _budget(ran: Ran) -> None:
    _asked_once(ran)
    assert len(json.loads((ran.folder / "answers.json").read_text())) == ran.asked.total()


def _chats(ran: Ran) -> None:
    assert (ran.folder / "runs/sft/student/model.safetensors").exists()


def _seeds(ran: Ran) -> None:
    rows = json.loads((ran.folder / "answers.json").read_text())
    assert len(rows) == len({row["instruction"] for row in rows}) == 2000


def _changed(ran: Ran) -> None:
    _asked_once(ran)
    assert ran.asked.total() == 70
    assert "everything is already done" in ran.shown


def _broken(ran: Ran) -> None:
    # What was in flight when the plug was pulled is asked again; the rest is not.
    assert len(ran.asked) == 41 and max(ran.asked.values()) <= 2
    assert "exit code 2" in ran.shown
    assert json.loads((ran.folder / "runs/kd/summary.json").read_text())["rows"]["rejected"] == 0


CHECKS: dict[str, Callable[[Ran], None]] = {
    "02_api_budget": _budget,
    "03_own_chats_lora": _chats,
    "04_expand_seeds": _seeds,
    "07_change_one_key": _changed,
    "08_break_it": _broken,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.vllm] if "vllm" in task else []) for task in TASKS]
)
def test_the_commands_of_a_page_run_from_the_wheel(task: str, tmp_path: Path, bin: Path, tiny: Path) -> None:
    if "vllm" in task:
        pytest.importorskip("vllm")
    ran = run(task, tmp_path, bin, tiny)
    # A random student of two layers does not learn, and the script refuses it.
    assert set(ran.codes[:-1]) <= {0} and ran.codes[-1] == (task == "09_python_script"), ran.shown
    CHECKS.get(task, lambda ran: None)(ran)


def test_rows_to_train_on_are_previewed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(COOKBOOK / "03_own_chats_lora")
    assert main(["preview", "-n", "1", "sft.jsonc", "--set", f"models.student={tiny_model}"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("[assistant]") == 2 and "learned: 2 answers of the assistant" in shown
    assert shown.strip() in (COOKBOOK / "03_own_chats_lora/printed.txt").read_text()
