"""What the guide shows works: files are saved and commands run in the order of each page, with models that are tiny."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.e2e.test_white_box import white_box_job
from tests.support.guide import GUIDE, ROOT, blocks, commands, table
from tests.support.jobs import write_config
from tests.support.scripted_server import ScriptedServer

from easydistill import api
from easydistill.cli import main
from easydistill.jobs import stages_of

QUICK = {
    "training": {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 128},
    "inference": {"max_new_tokens": 8},
    "evaluation": {"heldout": 2, "max_new_tokens": 4},
}
"""What makes a job short. What a page shows is kept wherever it is more than a size."""
PAGES = [page for page in sorted(GUIDE.glob("*.md")) if any(block.language == "bash" for block in blocks(page))]
PROMPTS = [{"instruction": f"Say something about the number {number}."} for number in range(24)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    one = ScriptedServer()
    one.say = lambda text, number: f"{number} is a number."
    yield one
    one.close()


def shortened(command: list[str], folder: Path) -> list[str]:
    """A `run` or `plan` with settings that make it short, as far as its job has them."""
    if command[0] not in {"run", "plan"}:
        return command
    job = api.load(folder / command[1]).job.model_dump()
    quick = [(name, key, value) for name, keys in QUICK.items() if job.get(name) for key, value in keys.items()]
    return [*command, *(item for name, key, value in quick for item in ("--set", f"{name}.{key}={value}"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(
    page: Path,
    tiny_model: Path,
    server: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_KEY", "sk-guide")
    for name in ("prompts.json", "train.json"):
        (tmp_path / name).write_text(json.dumps(PROMPTS))
    here = dict.fromkeys(("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"), str(tiny_model))
    here["http://localhost:8000/v1"] = server.url
    ran = 0
    for line in commands(page, tmp_path, here):
        assert line.startswith("easydistill "), line
        code = main(shortened(shlex.split(line)[1:], tmp_path))
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
        ran += 1
    assert ran
    if page.stem == "cost":
        # The first 20 rows are not asked again.
        assert len(server.asked) == len(PROMPTS)


def pages_with_configs() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", pages_with_configs(), ids=lambda page: page.stem)
def test_every_config_of_the_documents_is_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_KEY", "sk-guide")
    monkeypatch.setenv("TEACHER_KEY", "sk-guide")
    for number, block in enumerate(blocks(page)):
        if block.language not in {"json", "jsonc"} or '"job_type"' not in block.text or '"..."' in block.text:
            continue
        path = tmp_path / f"{number}.jsonc"
        path.write_text(block.text)
        api.validate(path)


# --- what runs again ---------------------------------------------------------------------------------------------

CHANGES = {
    "training.logging_steps": "3",
    "save_steps": "4",
    "training.learning_rate": "2e-3",
    "epochs": "3",
    "batch size": "2",
    "lora": '{"r": 2}',
    "distillation.kd_ratio": "0.25",
    "signals.kind": "top_k",
    "training.max_length": "64",
    "models.student": "",
    "models.teacher": "",
    "inference.temperature": "0.5",
    "max_new_tokens": "12",
    "seed": "1",
    "system_prompt": "Be brief.",
    "inference.batch_size": "4",
    "workers": "2",
    "dataset.max_samples": "20",
    "other rows in the file": "",
    "evaluation.heldout": "6",
    "evaluation.max_new_tokens": "6",
    "output_dir": "elsewhere",
}
"""A value for each setting of the table. An empty one is made by the test."""
KEYS = {
    "epochs": "training.num_train_epochs",
    "batch size": "training.per_device_train_batch_size",
    "lora": "training.lora",
    "save_steps": "training.save_steps",
    "max_new_tokens": "inference.max_new_tokens",
    "seed": "inference.seed",
    "system_prompt": "inference.system_prompt",
    "workers": "inference.workers",
    # The job's own name for it.
    "training.max_length": "distillation.max_seq_length",
}


def changes_of(cell: str) -> list[str]:
    """The settings that a line of the table names, with or without ticks."""
    plain = re.sub(r"\([^)]*\)", "", cell).replace("`", "")
    return [name.strip() for name in plain.split(",") if not name.strip().startswith("of the same")]


@pytest.fixture(scope="module")
def white_box(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A white-box job's config, and another model of the family."""
    folder = tmp_path_factory.mktemp("again")
    other = folder / "other"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    return write_config(folder, white_box_job(folder, tiny_model, tiny_model)), other


def stages_that_differ(before: Path, overrides: list[str]) -> dict[str, str]:
    """Stage → `again` where what it depends on differs after a change, as the runner decides it, else `–`."""
    was, now = api.load(before), api.load(before, overrides)
    elsewhere = was.run_directory != now.run_directory
    found: dict[str, str] = {}
    for old, new in zip(stages_of(was.job), stages_of(now.job), strict=True):
        changed = json.dumps(old.fingerprint(), sort_keys=True) != json.dumps(new.fingerprint(), sort_keys=True)
        waits = any(found[name] == "again" for name in new.inputs)
        found[new.name] = "again" if elsewhere or changed or waits else "–"
    return found


@pytest.mark.parametrize("row", table(GUIDE / "running_again.md", "change"), ids=lambda row: row[0][:30])
def test_what_runs_again_is_what_the_table_says(row: list[str], white_box: tuple[Path, Path], tmp_path: Path) -> None:
    config, other = white_box
    for name in changes_of(row[0]):
        key, value = KEYS.get(name, name), CHANGES[name]
        if name.startswith("models."):
            value = str(other)
        elif name == "output_dir":
            value = str(tmp_path / value)
        elif name == "other rows in the file":
            rows = json.loads((config.parent / "prompts.json").read_text())[1:]
            changed = tmp_path / "rows.json"
            changed.write_text(json.dumps(rows))
            key, value = "dataset.instruction_path", str(changed)
        found = stages_that_differ(config, [f"{key}={value}"])
        assert found == dict(zip(("label", "score", "train", "evaluate"), row[1:], strict=True)), name
