"""Pipelines over APIs: shared sections, one budget, and a report that is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import TRAINING, run_here
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.api import load
from easydistill.asking.label import LabelStage
from easydistill.errors import ConfigError, TeacherError

PRICES = {"input": 1.0, "output": 2.0}
TOPICS = ("rivers", "bread", "maps", "bees", "clocks", "snow", "wool", "ships", "salt", "bells")
ANSWER = (10 * 1 + 5 * 2) / 1e6
"""What an answer of the server costs: 15 tokens."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.say = lambda text, number: f"About {text[:40]}: it is so, and for {len(text)} reasons."
    yield server
    server.close()


def pipeline(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    """Two jobs ask an API about 10 rows each, one between them asks nobody."""
    (folder / "seeds.json").write_text(json.dumps([{"instruction": f"Tell me of {topic}."} for topic in TOPICS]))
    return {
        "job_type": "pipeline",
        "output_dir": str(folder / "run"),
        "shared": {
            "inference": {
                "backend": "openai", "base_url": url, "model": "m", "max_new_tokens": 5,
                "prices": PRICES, "max_concurrency": 1,
            }
        },
        "jobs": {
            "first": {"job_type": "label", "dataset": {"instruction_path": str(folder / "seeds.json")}},
            "kept": {"job_type": "deduplicate", "dataset": {"instruction_path": "@first/labeled"},
                     "synthesis": {"too_similar": 1}},
            "second": {"job_type": "cot_generation", "dataset": {"instruction_path": "@kept/labeled"}},
        },
        **more,
    }  # fmt: skip


def student(job: dict[str, Any], job_type: str, model: str = "somewhere") -> dict[str, Any]:
    """The same with a student at its end."""
    sft = {"job_type": job_type, "dataset": {"labeled_path": "@second/labeled"}, "models": {"student": model}}
    return {**job, "jobs": {**job["jobs"], "sft": sft}}


# --- shared sections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_type", ["sft", "black_box_kd_local", "black_box_kd_api"])
def test_one_inference_serves_the_jobs_that_ask(tmp_path: Path, job_type: str) -> None:
    loaded = load(student(pipeline(tmp_path, "http://localhost:1/v1"), job_type))
    jobs: Any = loaded.job
    for name in ("first", "second"):
        assert jobs.jobs[name].inference.base_url == "http://localhost:1/v1"
    assert getattr(getattr(jobs.jobs["sft"], "inference", None), "base_url", None) is None
    told = "\n".join(loaded.notes)
    assert "shared goes to the jobs that have such sections: inference to first, second" in told
    why = {
        "sft": "",
        "black_box_kd_local": "goes to sft without backend, base_url, model, prices",
        "black_box_kd_api": "is not given to sft, which asks no such model: the teacher has no prompts",
    }
    assert why[job_type] in told


def test_what_no_job_has_is_refused_and_a_mistake_names_its_jobs(tmp_path: Path) -> None:
    job = pipeline(tmp_path, "http://localhost:1/v1")
    job["shared"]["inferense"] = {}
    job["shared"]["inference"]["temprature"] = 1
    job["jobs"]["second"]["inference"] = {"max_new_tokens": 0}
    with pytest.raises(ConfigError) as refused:
        load(job)
    said = str(refused.value)
    assert "shared.inferense: none of the jobs has this section\n    → did you mean 'inference'?" in said
    assert "shared.inference.temprature: there is no key 'temprature' here (jobs first, second)" in said
    assert "jobs.second.inference.max_new_tokens: 0 is out of range\n" in said


def test_limits_of_each_job_are_told_as_such(tmp_path: Path) -> None:
    job = pipeline(tmp_path, "http://localhost:1/v1")
    job["shared"]["inference"]["max_cost"] = 20
    told = "\n".join(load(job).notes)
    assert "shared.inference.max_cost limits each of first, second by itself" in told


# --- the budget --------------------------------------------------------------------------------------------------


def test_all_jobs_spend_one_budget_and_a_raised_one_goes_on(tmp_path: Path, server: ScriptedServer) -> None:
    # Room for 14 answers; the last may need more than it takes, so a few less are asked for.
    job = pipeline(tmp_path, server.url, max_cost=14 * ANSWER)
    with pytest.raises(TeacherError, match="the pipeline's budget") as ended:
        easydistill.run(job, quiet=True)
    said = str(ended.value)
    assert said.startswith("second: "), "the job is named"
    assert "first 150" in said and "→ raise the pipeline's max_cost" in said
    asked = len(server.asked)
    assert 10 < asked <= 14
    left = f"{14 * ANSWER:g} for all jobs: {asked * ANSWER:.6g} spent, {(14 - asked) * ANSWER:.6g} left"
    assert f"max_cost {left}" in easydistill.plan(job)[0].notes
    spending = json.loads((tmp_path / "run/spending.json").read_text())
    assert sum(bill["cost"] for bills in spending["jobs"].values() for bill in bills) == pytest.approx(asked * ANSWER)
    report = (tmp_path / "run/report.md").read_text()
    assert "This run failed" in report and f"{asked} requests" in report

    assert easydistill.run({**job, "max_cost": 1}, quiet=True).exit_code == 0
    assert len(server.asked) == 20
    assert len(set(server.asked)) == 20, "nothing was asked twice"


def test_what_a_killed_job_had_spent_counts(
    tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pipeline(tmp_path, server.url, max_tokens_total=1_000_000)

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LabelStage, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            easydistill.run(job, quiet=True)
    # A kill leaves no sums either. The killed job now runs last: what it had spent counts from the start.
    (tmp_path / "run/spending.json").unlink()
    (tmp_path / "other.json").write_text(json.dumps([{"instruction": f"Speak of {n}."} for n in range(10)]))
    other = {"job_type": "label", "dataset": {"instruction_path": str(tmp_path / "other.json")}}
    moved = {**job, "jobs": {"before": other, **job["jobs"]}, "max_tokens_total": 15 * 13}
    assert len(server.asked) == 10
    with pytest.raises(TeacherError, match="the pipeline's budget") as ended:
        easydistill.run(moved, quiet=True)
    assert len(server.asked) <= 13
    assert "first 150" in str(ended.value)

    # The first job's answers are not counted twice once it goes on.
    moved["max_tokens_total"] = 15 * 30 + 60
    assert easydistill.run(moved, quiet=True).exit_code == 0
    assert len(server.asked) == 30


def test_a_job_that_is_removed_has_spent_what_it_has(tmp_path: Path, server: ScriptedServer) -> None:
    job = pipeline(tmp_path, server.url)
    easydistill.run(job, quiet=True)
    (tmp_path / "seeds.json").write_text(json.dumps([{"instruction": f"Sing of {topic}."} for topic in TOPICS]))
    alone = {**job, "jobs": {"first": job["jobs"]["first"]}, "max_cost": 25 * ANSWER}
    with pytest.raises(TeacherError, match="the pipeline's budget"):
        easydistill.run(alone, quiet=True)
    assert len(server.asked) <= 25


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"prices": None},
            "max_cost needs to know what the tokens of jobs.first.inference, jobs.second.inference cost",
        ),
        ({"base_url": "https://api.openai.com/v1", "model": "gpt-4o-mini", "prices": None}, ""),
    ],
)
def test_a_budget_in_money_needs_prices(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    job = pipeline(tmp_path, "http://localhost:1/v1", max_cost=1)
    job["shared"]["inference"] |= change
    if said:
        with pytest.raises(ConfigError, match=said):
            easydistill.plan(job)
    else:
        assert easydistill.plan(job)[0].estimate.cost is not None


def test_a_budget_that_nobody_spends_is_refused(tmp_path: Path) -> None:
    job = pipeline(tmp_path, "http://localhost:1/v1", max_tokens_total=5)
    job["jobs"] = {"kept": {**job["jobs"]["kept"], "dataset": {"instruction_path": str(tmp_path / "seeds.json")}}}
    del job["shared"]
    with pytest.raises(ConfigError, match="no job of this pipeline asks a model behind an API"):
        easydistill.plan(job)


# --- the report --------------------------------------------------------------------------------------------------


def test_the_report_sums_its_jobs_and_leads_to_their_reports(
    tmp_path: Path, server: ScriptedServer, tiny_model: Path
) -> None:
    job = student(pipeline(tmp_path, server.url, max_cost=1), "sft", str(tiny_model))
    job["jobs"]["sft"] |= {"training": {**TRAINING, "num_train_epochs": 1}, "evaluation": {"enabled": False}}
    job["jobs"]["first"], renamed = {**job["jobs"]["first"]}, {"label": job["jobs"]["first"]}
    job["jobs"] = {**renamed, **{name: value for name, value in job["jobs"].items() if name != "first"}}
    job["jobs"]["kept"]["dataset"]["instruction_path"] = "@label/labeled"
    config = tmp_path / "kd.json"
    config.write_text(json.dumps(job))
    code, said = run_here(config)
    assert code == 0
    assert "shared goes to the jobs that have such sections: inference to label, second" in said
    report = (tmp_path / "run/report.md").read_text()
    assert (
        "4 jobs ran: label, kept, second, sft. It took 20 requests, 200 tokens in and 100 out; cost 0.0004." in report
    )
    assert "no teacher was asked" not in report and "config.resolved.json is missing" not in report
    assert "labelled rows" not in report
    assert "| [label](stages/1-label/report.html) (label) | done |" in report
    total = next(line for line in report.splitlines() if line.startswith("| In all"))
    assert total.endswith("| 10 | 10 | 20 | 200 | 100 | 0.0004 |")
    assert "max\\_cost of 1, 0.0004 is spent and 0.9996 left" in report
    html = (tmp_path / "run/report.html").read_text()
    for name in ("1-label", "2-kept", "3-second", "4-sft"):
        assert f'href="stages/{name}/report.html"' in html
        assert (tmp_path / f"run/stages/{name}/report.html").is_file()
    assert (tmp_path / "run/student/model.safetensors").is_file()

    own = (tmp_path / "run/stages/1-label/report.md").read_text()
    assert "## Cost" in own and "| Teacher (stage label) | 10 | 100 | 50 | 0.0002 |" in own
    assert "m answered 10 of 10 prompts. It took 10 requests, 100 tokens in and 50 out; cost 0.0002." in own


def test_sft_is_the_second_half_of_black_box_distillation(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "output": f"{n} it is."} for n in range(8)]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    weights = []
    for job_type in ("sft", "black_box_kd_local"):
        job = {
            "job_type": job_type,
            "output_dir": str(tmp_path / job_type),
            "dataset": {"labeled_path": str(tmp_path / "chats.json")},
            "models": {"student": str(tiny_model)},
            "training": {**TRAINING, "num_train_epochs": 1},
            "evaluation": {"enabled": False},
        }
        easydistill.run(job, quiet=True)
        weights.append((tmp_path / job_type / "student/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    prompts = {**job, "job_type": "sft", "dataset": {"instruction_path": "prompts.json"}}
    with pytest.raises(ConfigError, match="this job asks nobody to answer them\n    → name rows with answers"):
        load(prompts)


def test_rows_without_answers_are_told_before_another_job_is_paid_for(
    tmp_path: Path, server: ScriptedServer, tiny_model: Path
) -> None:
    job = student(pipeline(tmp_path, server.url), "sft", str(tiny_model))
    job["jobs"]["sft"]["dataset"]["labeled_path"] = str(tmp_path / "seeds.json")
    with pytest.raises(ConfigError, match=r"jobs.sft.dataset.labeled_path: .*none of its 10 rows can be used"):
        easydistill.run(job, quiet=True)
    assert server.asked == []
