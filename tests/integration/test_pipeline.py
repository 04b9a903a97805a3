"""Pipelines: jobs read the results of earlier ones and run again only if something they depend on changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import TRAINING
from tests.support.scripted_server import ScriptedServer
from transformers import AutoConfig

import easydistill
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError, DataError

TOPICS = ("rivers", "bread", "maps", "bees", "clocks", "snow", "wool", "ships", "salt", "bells", "kites", "moss")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.say = lambda text, number: f"About {text[:40]}: it is so, and for {len(text)} reasons."
    yield server
    server.close()


def pipeline(folder: Path, url: str, student: Path, heldout: int = 0) -> dict[str, Any]:
    """Deduplicate seeds, have them answered, train on the answers, then train the resulting student again."""
    seeds = [{"instruction": f"Tell me of {topic}.", "note": topic} for topic in TOPICS]
    (folder / "seeds.json").write_text(json.dumps([*seeds, seeds[0]]))
    return {
        "job_type": "pipeline",
        "output_dir": str(folder / "run"),
        "shared": {
            "models": {"student": str(student)},
            "training": {**TRAINING, "num_train_epochs": 1},
            "evaluation": {"enabled": heldout > 0, "heldout": heldout, "max_new_tokens": 4},
        },
        "jobs": {
            "dedup": {
                "job_type": "deduplicate",
                "dataset": {"instruction_path": str(folder / "seeds.json")},
                "synthesis": {"too_similar": 1},
            },
            "sft": {
                "job_type": "black_box_kd_api",
                "dataset": {"instruction_path": "@dedup/labeled"},
                "inference": {"base_url": url, "model": "m", "api_key": "${env:TEACHER_KEY}", "max_new_tokens": 32},
            },
            "again": {
                "job_type": "kd_black_box_train_only",
                "dataset": {"labeled_path": "@sft/labeled.json"},
                "models": {"student": "@sft/student"},
                "training": {"max_seq_length": 64},
            },
        },
    }


def sections(found: easydistill.RunResult) -> dict[str, str]:
    return {name: stage["status"] for name, stage in found.summary["stages"].items()}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret-12345")


def test_from_seeds_to_a_student_of_a_student(tmp_path: Path, server: ScriptedServer, tiny_whole: Path) -> None:
    job = pipeline(tmp_path, server.url, tiny_whole, heldout=3)
    found = easydistill.run(job, quiet=True)
    assert found.exit_code == 0
    assert len(server.asked) == len(TOPICS)
    samples, _ = read_samples(tmp_path / "run/stages/2-sft/stages/1-label/labeled.parquet", labelled=True)
    assert sorted(sample.meta["note"] for sample in samples) == sorted(TOPICS)
    assert found.summary["rows"] == {
        "entered": 13,
        "accepted": 9,  # of 12 answers, 3 are held out
        "rejected": 1,
        "rejected_share": pytest.approx(1 / 34, abs=1e-6),
        "rejected_by_reason": {"duplicate": 1},
    }
    trained = tmp_path / "run/stages/3-again/stages/1-train/model/model.safetensors"
    assert (found.student / "model.safetensors").samefile(trained)
    # The second job started from the student of the first.
    first, second = (
        json.loads((tmp_path / f"run/stages/{name}/summary.json").read_text()) for name in ("2-sft", "3-again")
    )
    assert second["metrics"]["before"]["cross_entropy"] == pytest.approx(first["metrics"]["after"]["cross_entropy"])
    for name in ("1-dedup", "2-sft", "3-again"):
        assert (tmp_path / f"run/stages/{name}/report.html").is_file()
    secret = b"sk-very-secret-12345"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_only_what_a_change_affects_runs_again(tmp_path: Path, server: ScriptedServer, tiny_model: Path) -> None:
    job = pipeline(tmp_path, server.url, tiny_model)
    easydistill.run(job, quiet=True)
    asked = len(server.asked)
    assert not easydistill.run(job, quiet=True).fresh

    job["jobs"]["again"]["training"]["learning_rate"] = 2e-3
    assert sections(easydistill.run(job, quiet=True)) == {"dedup": "skipped", "sft": "skipped", "again": "done"}
    assert len(server.asked) == asked

    # Another seed: only its answer is requested, and everything after it runs.
    seeds = json.loads((tmp_path / "seeds.json").read_text())
    (tmp_path / "seeds.json").write_text(json.dumps([*seeds, {"instruction": "Tell me of glass."}]))
    assert sections(easydistill.run(job, quiet=True)) == {"dedup": "done", "sft": "done", "again": "done"}
    assert len(server.asked) == asked + 1


def test_an_inserted_job_keeps_the_results_of_the_others(
    tmp_path: Path, server: ScriptedServer, tiny_model: Path
) -> None:
    job = pipeline(tmp_path, server.url, tiny_model)
    easydistill.run(job, quiet=True)
    asked = len(server.asked)
    jobs = dict(job["jobs"])
    checked = {
        "job_type": "decontaminate",
        "dataset": {"instruction_path": "@sft/labeled"},
        "synthesis": {"benchmarks": [str(tmp_path / "benchmark.jsonl")]},
    }
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"question": "What is the capital of Peru, and why is it?"}))
    job["jobs"] = {"dedup": jobs["dedup"], "sft": jobs["sft"], "checked": checked, "again": jobs["again"]}
    found = easydistill.run(job, quiet=True)
    assert sections(found) == {"dedup": "skipped", "sft": "skipped", "checked": "done", "again": "skipped"}
    assert len(server.asked) == asked
    assert sorted(path.name for path in (tmp_path / "run/stages").iterdir()) == [
        "1-dedup",
        "2-sft",
        "3-checked",
        "4-again",
    ]


def test_a_failed_job_keeps_the_results_of_the_others(tmp_path: Path, server: ScriptedServer, tiny_model: Path) -> None:
    job = pipeline(tmp_path, server.url, tiny_model)
    job["jobs"]["again"]["dataset"]["labeled_path"] = "@sft/README.md"
    with pytest.raises(ConfigError, match=r'again\.dataset\.labeled_path: sft .* makes no "README.md"'):
        easydistill.run(job, quiet=True)
    job["jobs"]["again"]["dataset"]["labeled_path"] = "@sft/labeled"
    server.say = lambda text, number: ""
    with pytest.raises(DataError, match="no usable answer"):
        easydistill.run(job, quiet=True)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert list(summary["stages"]) == ["dedup"]
    inner = json.loads((tmp_path / "run/stages/2-sft/summary.json").read_text())
    assert inner["status"] == "failed"
    server.say = lambda text, number: f"Now there is an answer about {text}"
    job["jobs"]["sft"]["inference"]["temperature"] = 0.5
    assert sections(easydistill.run(job, quiet=True)) == {"dedup": "skipped", "sft": "done", "again": "done"}


def test_plan_and_preview_before_and_after(tmp_path: Path, server: ScriptedServer, tiny_model: Path) -> None:
    job = pipeline(tmp_path, server.url, tiny_model)
    states = {stage.name: stage.state for stage in easydistill.plan(job)}
    assert states["dedup.synthesise"] == "pending"
    assert states["sft.label"] == "waits for dedup"
    assert states["again.train"] == "waits for sft"
    shown = easydistill.preview(job, rows=2)
    assert [message["content"] for message in shown[0].messages] == ["Tell me of rivers."]
    assert not (tmp_path / "run").exists()
    easydistill.run(job, quiet=True)
    assert {stage.state for stage in easydistill.plan(job)} == {"done"}
    job["jobs"]["dedup"]["synthesis"] = {"too_similar": 0.9}
    states = {stage.name: stage.state for stage in easydistill.plan(job)}
    assert states["sft.label"] == "waits for dedup"


def test_the_exit_code_reflects_inner_jobs(tmp_path: Path, server: ScriptedServer, tiny_model: Path) -> None:
    """The pipeline exits with 3 if one job rejects more than its allowed share."""
    job = pipeline(tmp_path, server.url, tiny_model)
    del job["jobs"]["again"]
    server.say = lambda text, number: "" if "bees" in text or "moss" in text else f"Much is known about {text}"
    assert easydistill.run(job, quiet=True).exit_code == 3
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 3


@pytest.mark.parametrize(
    ("cited", "where", "words"),
    [
        ("@judge/student", "jobs.next.models.student", "judge (reward_model) makes a reward model, but a language"),
        ("@judge/student", "jobs.next.models.teacher", "judge (reward_model) makes a reward model, but a language"),
        ("@tuned/student", "jobs.next.rewards.reward_model.model", "tuned (dpo) makes a language model, but a reward"),
    ],
)  # fmt: skip
def test_only_reward_models_can_be_cited_as_reward_models(
    tmp_path: Path, tiny_model: Path, cited: str, where: str, words: str
) -> None:
    pairs = {"labeled_path": "examples/preference/pairs.json"}
    made = {"dataset": pairs, "models": {"student": str(tiny_model)}}
    asked = {"job_type": "grpo", "dataset": {"instruction_path": "examples/reinforcement/sums.json"}}
    models, rewards = {"student": str(tiny_model)}, {"verify": {}}
    job = {
        "job_type": "pipeline",
        "output_dir": str(tmp_path / "run"),
        "jobs": {
            "judge": {"job_type": "reward_model", **made},
            "tuned": {"job_type": "dpo", **made},
            "next": {**asked, "models": models, "rewards": {**rewards, "reward_model": {"model": "@judge/student"}}},
        },
    }
    easydistill.plan(job)
    *above, key = where.removeprefix("jobs.next.").split(".")
    section = job["jobs"]["next"]
    for name in above:
        section = section[name]
    section[key] = cited
    with pytest.raises(ConfigError, match=f"{re.escape(where)}: {re.escape(words)}"):
        easydistill.plan(job)


def refused(job: dict[str, Any], server: ScriptedServer) -> list[tuple[str, str]]:
    """What is said against a pipeline before anything of it runs."""
    with pytest.raises(ConfigError) as told:
        easydistill.run(job, quiet=True)
    assert not server.asked
    return [(issue.path, issue.problem) for issue in told.value.issues]


def test_later_jobs_are_examined_before_the_first_one_runs(
    tmp_path: Path, server: ScriptedServer, tiny_model: Path
) -> None:
    """A student that cannot be loaded, a template that takes no chats, a student of a student that cannot be packed."""
    job = pipeline(tmp_path, server.url, tiny_model)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "tokenizer.json").write_text("{}")
    job["jobs"]["sft"]["models"] = {"student": str(broken)}
    # Said of the job that names it, not of the one that cites it.
    assert [path for path, _ in refused(job, server)] == ["jobs.sft.models.student"]
    job = pipeline(tmp_path, server.url, tiny_model)
    (tmp_path / "none.jinja").write_text("{{ raise_exception('no chats') }}")
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "Why?", "output": "So."}]))
    job["jobs"]["again"]["dataset"] = {
        "labeled_path": str(tmp_path / "rows.json"),
        "template": str(tmp_path / "none.jinja"),
    }
    ((path, problem),) = refused(job, server)
    assert path == "jobs.again.dataset.template" and "no chats" in problem
    leaking = tmp_path / "leaking"
    shutil.copytree(tiny_model, leaking)
    AutoConfig.for_model("lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2).save_pretrained(leaking)
    job = pipeline(tmp_path, server.url, leaking)
    job["jobs"]["again"]["training"]["packing"] = True
    assert [path for path, _ in refused(job, server)] == ["jobs.again.training.packing"]


def test_plan_tells_of_later_jobs_and_a_run_says_it_once(
    tmp_path: Path, server: ScriptedServer, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = pipeline(tmp_path, server.url, tiny_model)
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 80}))
    job["shared"]["models"]["student"] = str(short)
    told = {stage.name: " ".join(stage.notes) for stage in easydistill.plan(job)}
    assert "80 positions" in told["sft.train"] and "positions" not in told["again.train"]
    # Rows that another job labels may come with thoughts.
    assert "shows no thoughts" in told["sft.train"] and "shows no thoughts" in told["again.train"]
    easydistill.run(job)
    shown = capsys.readouterr().err
    assert shown.count("note: the student has 80 positions and training.max_length is 96") == 1
    assert shown.count("shows no thoughts") == 1
    assert shown.index("shows no thoughts") < shown.index("--- dedup")
