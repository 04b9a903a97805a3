"""docs/extending.md and docs/python.md: their files are written from the pages, their code is run."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.jobs import ROOT

import easydistill
from easydistill.config.sink import SINKS
from easydistill.contracts.loss import Outcomes
from easydistill.contracts.reward import RewardContext, Rollout
from easydistill.contracts.task import Reply
from easydistill.engine import events
from easydistill.evaluation.metrics import METRICS
from easydistill.losses import LOSSES
from easydistill.rewards import build
from easydistill.tasks import TASKS

EXTENDING, PYTHON = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("extending.md", "python.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {
    found[1]: text
    for kind, text in BLOCK.findall(EXTENDING)
    if kind == "python" and (found := re.match(r"# (\S+)\n", text))
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and some rows."""
    assert len(FILES) == 7
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": f"Name {n} rivers."} for n in range(2, 6)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(**more: Any) -> dict[str, Any]:
    return {
        "job_type": "my_operators.py:titled",
        "output_dir": "run",
        "dataset": {"instruction_path": "rows.json", "max_rejected_share": 1},
        "inference": {"backend": "my_teachers.py:parrot", "mark": "?"},
        "synthesis": {"most_words": 15},
        **more,
    }


def test_operators_teachers_and_sinks_of_the_page_run(folder: Path) -> None:
    result = easydistill.run(job(track={"my_sinks.py": {"separator": ";"}}), quiet=True)
    assert result.rows().head(1)[0]["title"].endswith("Name 2 rivers.?")
    (figures,) = folder.rglob("figures.txt")
    assert "rows;" in figures.read_text()
    short = job(job_type="my_operators.py:short", output_dir="short", synthesis={"most": 5})
    del short["inference"]
    assert easydistill.validate(short).job_type == "my_operators.py:short"


def test_rewards_losses_metrics_and_tasks_of_the_page_are_called(folder: Path) -> None:
    (example,) = (text for kind, text in BLOCK.findall(EXTENDING) if kind == "json" and text.startswith('"rewards"'))
    base = {"dataset": {"instruction_path": "rows.json"}, "models": {"student": "org/student"}}
    rewards = json.loads(f"{{{example}}}")["rewards"] | {"my_rewards.py:right": {}}
    typed: Any = easydistill.validate({**base, "job_type": "grpo", "rewards": rewards})
    del rewards["verify"]
    typed = easydistill.validate({**base, "job_type": "grpo", "rewards": rewards})
    rollout = Rollout(({"role": "user", "content": "2+3?"},), "it is 5", (), (), True, {"answer": 5})
    with build(typed.rewards, RewardContext()) as made:
        assert made.values([rollout]) == {"my_rewards.py:brevity": [1.0], "my_rewards.py:right": [1.0]}

    white_box = {
        "job_type": "white_box_kd_local",
        **base,
        "models": {"teacher": "org/teacher", "student": "org/student"},
        "signals": {"kind": "top_k", "k": 8},
        "distillation": {"distillation_type": "my_losses.py:hellinger", "power": 2.0, "kd_ratio": 1.0},
        "evaluation": {"metrics": {"my_metrics.py:length_ratio": {"limit": 2}, "my_metrics.py:entropy": {}}},
    }
    typed = easydistill.validate(white_box)
    same = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    loss = LOSSES.module("my_losses.py:hellinger")
    assert loss.divergence(typed.distillation, same, same, Outcomes()).tolist() == pytest.approx([0, 0], abs=1e-6)
    ratio = METRICS.module("my_metrics.py:length_ratio")
    assert ratio.Metric(ratio.Config(limit=2)).score("a b c d", "a") == 2

    evaluated = {"job_type": "evaluate", "models": {"student": "org/student"}, "tasks": []}
    evaluated["tasks"] = [{"task": "my_tasks.py:last_word", "data": "rows.json"}]
    (task,) = easydistill.validate(evaluated).tasks  # type: ignore[attr-defined]
    module = TASKS.module(task.task)
    problem = module.problem(task, {"question": "2+3?", "answer": "5"}, 0)
    (score,) = module.scorer(task, None)([(problem, Reply("It is 5."))])
    assert score.value == 1.0


def test_the_package_of_the_page_is_the_file_under_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = (text for kind, text in BLOCK.findall(EXTENDING) if kind == "toml")
    ((name, where),) = tomllib.loads(text)["project"]["entry-points"]["easydistill.sinks"].items()
    package = folder / where.partition(".")[0]
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{where.rpartition('.')[2]}.py").write_text(FILES["my_sinks.py"])
    monkeypatch.syspath_prepend(str(folder))
    point = EntryPoint(name, where, "easydistill.sinks")
    monkeypatch.setitem(SINKS.__dict__, "_external", {name: point})
    assert SINKS.module(name).Config().separator == " "


def test_the_code_about_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = job()
    (folder / "kd.json").write_text(json.dumps(config))
    names: dict[str, Any] = {"easydistill": easydistill, "config": config}
    for kind, text in BLOCK.findall(PYTHON):
        if kind == "python":
            (folder / "run/stages/1-synthesise/manifest.json").unlink(missing_ok=True)
            exec(text, names)
    assert len(names["rows"]) == 4 and len(names["rejected"]) == 0
    printed = capsys.readouterr().out
    assert "run/report.html {}" in printed and "1/1 synthesise" in printed and "4 4 None" in printed


def _table(head: str) -> str:
    """The table of the page about Python whose first column is called so."""
    return PYTHON.partition(f"| {head} |")[2].partition("\n\n")[0]


def test_the_tables_name_what_there_is() -> None:
    for name in re.findall(r"^\| `(\w+)\(", PYTHON, re.MULTILINE):
        assert callable(getattr(easydistill, name)), name
    for name, shown in re.findall(r"^\| `([A-Z]\w+)` \| [^|]*\| ((?:`\w+`(?:, )?)+)", _table("event"), re.MULTILINE):
        fields = getattr(events, name).__dataclass_fields__
        assert re.findall(r"`(\w+)`", shown) == list(fields), name
    import easydistill.errors as errors
    from easydistill.config import plain_functions

    classes = {**vars(errors), **vars(plain_functions), "NoPandas": __import__("easydistill.results").results.NoPandas}
    listed = re.findall(r"^\| `(\w+)`[^|]*\| (?:`(\w+)`)? ?\| `", _table("error"), re.MULTILINE)
    assert len(listed) >= 10
    for name, parent in listed:
        bases = {base.__name__ for base in classes[name].__mro__}
        assert "EasyDistillError" in bases and (not parent or parent in bases), name
