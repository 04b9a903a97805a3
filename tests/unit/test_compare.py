"""`easydistill compare`: runs side by side, whatever state they are in."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report_fixtures import HOSTILE, Page, change_json, make_run, make_synthesis_run, stage, write_lines

from easydistill.cli import main
from easydistill.errors import DataError
from easydistill.report.build import build_report
from easydistill.report.comparison.page import build_comparison
from easydistill.report.comparison.runs import names_of, read_runs
from easydistill.report.comparison.tables import best, environment_table, settings_table, spending_table, task_table


def change_config(run: Path, path: str, value: Any) -> None:
    file = run / "config.resolved.json"
    config = json.loads(file.read_text())
    *sections, key = path.split(".")
    target = config
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = value
    file.write_text(json.dumps(config))


def answer(run: Path, *rows: tuple[str, str]) -> None:
    """Give a run's student its answers, by row id."""
    prompt = [{"role": "user", "content": "What?"}]
    found = [{"id": i, "prompt": prompt, "teacher": "Right.", "before": "", "after": text} for i, text in rows]
    write_lines(run / "stages/3-evaluate/answers.jsonl", found)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return make_run(tmp_path / "a"), make_run(tmp_path / "b")


def built(*runs: Path) -> tuple[Page, str]:
    target = build_comparison(runs, runs[0].parent / "out/compare.html")
    return Page(target.read_text(encoding="utf-8")), target.with_suffix(".md").read_text(encoding="utf-8")


def test_two_runs(runs: tuple[Path, Path]) -> None:
    one, two = runs
    metrics = {"before": {"kl": 0.9, "rouge_l": 0.1}, "after": {"kl": 0.25, "rouge_l": 0.1}}
    change_json(two / "summary.json", metrics=metrics)
    change_json(one / "summary.json", metrics={**metrics, "after": {"kl": 0.5, "rouge_l": 0.1}})
    change_config(two, "training.learning_rate", 5e-5)
    answer(one, ("same", "Yes."), ("other", "No."))
    answer(two, ("same", "Yes."), ("other", "Maybe."))
    page, text = built(one, two)
    assert page.sections() == ["runs", "results", "loss", "settings", "time", "answers", "reports"]
    assert "b is ahead in KL divergence (0.250, not 0.500)." in page.text
    assert "All runs held out the same 2 rows." in page.text
    row = re.search(r"\| KL divergence from the teacher \|(.*)\|(.*)\|", text)
    assert row is not None and "best" not in row[1] and "0.250 (best, from 0.900)" in row[2]
    rouge = next(line for line in text.splitlines() if line.startswith("| ROUGE-L"))
    assert "best" not in rouge, "equal values have no best one"
    assert "| `training.learning_rate` | 0.0001 | 5e-05 |" in text
    assert "training.max\\_length" not in text and "`training.max_length`" not in text
    assert page.text.index("Maybe.") < page.text.index("Yes."), "answers that differ come first"


def test_nothing_in_a_run_becomes_part_of_the_page(runs: tuple[Path, Path]) -> None:
    one, two = runs
    change_json(two / "summary.json", name=HOSTILE, job_type=HOSTILE)
    change_config(two, "inference.system_prompt", HOSTILE)
    page, _ = built(one, two)
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy is not None and "default-src 'none'" in policy


def test_unfinished_and_damaged_runs_are_told(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = runs
    torn = make_run(tmp_path / "torn")
    (torn / "summary.json").write_text('{"name": "to')
    (torn / "config.resolved.json").unlink()
    (torn / "metrics.jsonl").write_text('{"stage": "train"\n')
    change_json(two / "summary.json", status="interrupted", stages={"label": stage(9, 9)}, metrics={})
    page, text = built(one, two, torn)
    assert "b is interrupted" in page.text
    assert "torn is damaged: summary.json is missing or cannot be read, config.resolved.json is missing" in page.text
    assert "No config was kept of torn." in page.text
    assert "Fewer than two logged losses: torn." in text


def test_runs_of_different_jobs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_synthesis_run(tmp_path / "new")
    page, text = built(runs[0], other)
    assert "The runs are of different jobs (black_box_kd_local, instruction_expansion)" in page.text
    assert "cost 0.5" in text, "the teacher's and the judge's"


def test_different_held_out_rows_are_told(runs: tuple[Path, Path]) -> None:
    answer(runs[0], ("1", "x"), ("2", "y"))
    answer(runs[1], ("2", "y"), ("3", "z"))
    page, _ = built(*runs)
    assert "The runs held out different rows (1 in common): compare their figures with care." in page.text
    assert "no metric says by itself which student is better" in page.text


def test_a_pipeline_shows_its_jobs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    make_run(pipeline / "stages/2-sft")
    summary = json.loads((runs[0] / "summary.json").read_text())
    (pipeline / "summary.json").write_text(json.dumps(summary | {"job_type": "pipeline", "stages": {}}))
    page, text = built(runs[0], pipeline)
    assert "| sft.train | n/a |" in text
    chart = next(attributes["aria-label"] for tag, attributes in page.tags if attributes.get("class") == "chart")
    assert chart is not None and "pipeline ends at 0.167 at step 30" in chart


def test_scores_of_tasks(runs: tuple[Path, Path]) -> None:
    for run, mean in zip(runs, (0.25, 0.5), strict=True):
        scores = {
            "models": {"student": {"role": "after"}},
            "tasks": [
                {"task": "gsm8k", "models": {"student": {"score": {"mean": mean, "low": mean - 0.1, "high": 0.9}}}}
            ],
        }
        (run / "stages/4-tasks").mkdir()
        (run / "stages/4-tasks/scores.json").write_text(json.dumps(scores))
    table = task_table(read_runs(runs))
    assert table is not None
    (row,) = table.rows
    assert (row.name, row.texts) == ("gsm8k, after", ("25.0%", "50.0%"))
    assert [cell.note for cell in row.cells] == ["15.0% to 90.0%", "best, 40.0% to 90.0%"]


def scored(run: Path, mean: float, **task: Any) -> None:
    models = {"qwen2.5": {"score": {"mean": mean}}}
    scores = {"models": {"qwen2.5": {"role": "after"}}, "tasks": [{"name": "gsm8k", "models": models, **task}]}
    (run / "stages/4-tasks").mkdir()
    (run / "stages/4-tasks/scores.json").write_text(json.dumps(scores))


def test_scores_on_different_problems_are_told(runs: tuple[Path, Path]) -> None:
    scored(runs[0], 0.25, prompt_hash="aa", samples=1, sampling={"temperature": 0.0})
    scored(runs[1], 0.5, prompt_hash="bb", samples=8, sampling={"temperature": 0.6})
    table = task_table(read_runs(runs))
    assert table is not None
    (row,) = table.rows
    assert row.name == "gsm8k, after", "a model's name may have a dot"
    assert row.notes == ("different problems or prompts", "sampled differently")
    assert all("best" not in cell.note for cell in row.cells)
    assert "different problems or prompts" in built(*runs)[1]


def test_settings_that_differ_deep_within_are_shown(runs: tuple[Path, Path]) -> None:
    for run, tokens, end, rate in zip(runs, (512, 256), ("x", "y"), (0.1, 0.10000001), strict=True):
        tasks = [{"task": "gsm8k", "data": "d" * 200}, {"task": "aime", "max_new_tokens": tokens}]
        for path, value in {"tasks": tasks, "prompt": "p" * 300 + end, "rate": rate, "same": ["a", 1]}.items():
            change_config(run, path, value)
    rows = {row.name: row.texts for row in settings_table(read_runs(runs)).rows}
    assert rows["tasks.1.max_new_tokens"] == ("512", "256")
    assert rows["rate"] == ("0.1", "0.10000001")
    assert [text[-1] for text in rows["prompt"]] == ["x", "y"] and rows["prompt"][0].startswith("…p")
    assert "same" not in rows and not any(name.startswith("tasks.0") for name in rows)


def test_the_page_has_a_name_of_a_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("page.md", "page", "a"):
        with pytest.raises(DataError, match=r"→ name it .*\.html"):
            build_comparison(runs, tmp_path / name)
    assert not (tmp_path / "page.md").exists()


def test_settings_of_nested_and_odd_values(runs: tuple[Path, Path]) -> None:
    one, two = runs
    for path, value in (("a.list", [1, 2]), ("a.flag", True), ("a.none", None), ("output_dir", "x"), ("a.number", 1)):
        change_config(one, path, value)
    change_config(two, "a.flag", False)
    change_config(two, "a.number", 1.0)
    rows = {row.name: row.texts for row in settings_table(read_runs(runs)).rows}
    assert rows == {"a.list": ("[1, 2]", "–"), "a.flag": ("yes", "no")}


def test_machines_that_differ(runs: tuple[Path, Path]) -> None:
    change_json(runs[1] / "environment.json", packages={"torch": "2.14"})
    assert [(row.name, row.texts) for row in environment_table(read_runs(runs)).rows] == [("torch", ("2.13", "2.14"))]


def test_spending(runs: tuple[Path, Path]) -> None:
    table = spending_table(read_runs(runs))
    assert [row.name for row in table.rows] == ["label", "train", "evaluate", "All stages"]
    assert table.rows[0].cells[0].note == "1,234 prompt tokens, 20 completion tokens"
    assert table.rows[-1].texts == ("3 min 03 s", "3 min 03 s")


def test_best() -> None:
    assert best([1.0, 2.0, None, 1.0], "lower") == {0, 3}
    assert best([1.0, 2.0], "higher") == {1}
    assert best([1.0, 1.0], "lower") == best([1.0, None], "lower") == best([1.0, 2.0], "") == set()


def test_names_tell_runs_apart() -> None:
    assert names_of([Path("/x/runs/a"), Path("/x/runs/b")]) == ["a", "b"]
    assert names_of([Path("/x/one/run"), Path("/x/two/run")]) == ["one/run", "two/run"]


def test_seven_runs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    others = [Path(shutil.copytree(runs[0], tmp_path / f"c{number}")) for number in range(5)]
    page, _ = built(*runs, *others)
    lines = [attributes["class"] or "" for tag, attributes in page.tags if tag == "path"]
    assert any("line run-1 again" in line for line in lines)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "nothing"]])
def test_no_two_runs(names: list[str], runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_runs([tmp_path / name for name in names])


def test_command(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b"]) == 0
    assert capsys.readouterr().out == "compare.html\n"
    assert (tmp_path / "compare.md").is_file()
    assert main(["compare", "a", "missing"]) == 1
    assert "no run is here" in capsys.readouterr().err


def test_a_draft_model_in_the_report(runs: tuple[Path, Path]) -> None:
    change_json(runs[0] / "summary.json", metrics={"before": {}, "after": {"acceptance": 0.5, "agreement": 0.8}})
    text = (build_report(runs[0]).parent / "report.md").read_text()
    assert "| Drafts | Sampled, temperature 1: 50.0% accepted | Greedy: 80.0% accepted |" in text
    assert "| 8 drafted | 2.00 | 4.33 |" in text
    (command,) = (line for line in text.splitlines() if line.startswith("vllm serve "))
    told = json.loads(shlex.split(command)[-1])
    assert told["method"] == "draft_model" and told["model"].endswith("student")
