"""What is given to a pipeline (`models`, `data`) reaches every job that cites it, and shared keys the jobs that know them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.configs import write

from easydistill import api
from easydistill.cli import main
from easydistill.errors import ConfigError

SFT = {
    "job_type": "black_box_kd_local",
    "dataset": {"labeled_path": "@label/labeled"},
    "models": {"student": "@models/student"},
}
LABEL = {
    "job_type": "label",
    "dataset": {"instruction_path": "@data/prompts"},
    "inference": {"model": "@models/teacher"},
}
EVALUATE = {
    "job_type": "evaluate",
    "models": {
        "before": {"model": "@models/student", "inference": {"backend": "transformers"}},
        "after": {"model": "@sft/student", "inference": {"backend": "transformers"}},
    },
    "tasks": [{"task": "gsm8k", "data": "@data/test"}],
}


STUDENT = 'The student: a model, `{"from": …, "keep_layers": n}` or `{"config": {…}}`.'


def pipeline(**more: Any) -> dict[str, Any]:
    return {
        "job_type": "pipeline",
        "models": {"teacher": "big", "student": "org/small"},
        "data": {"prompts": "prompts.json", "test": "test.jsonl"},
        "shared": {"inference": {"base_url": "http://localhost:8000/v1", "api_key": "k", "temperature": 0.5}},
        "jobs": {"label": LABEL, "sft": SFT, "evaluate": EVALUATE},
        **more,
    }


def jobs_of(config: Any, *overrides: str) -> Any:
    return api.load(config, overrides).job.jobs  # type: ignore[attr-defined]


def problems(config: Any, *overrides: str) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        api.load(config, overrides)
    return [(issue.path, issue.problem, issue.hint) for issue in caught.value.issues]


def test_one_value_reaches_every_job_that_cites_it() -> None:
    jobs = jobs_of(pipeline(), "models.student=org/other", "models.teacher=bigger")
    assert jobs["label"].inference.model == "bigger"
    assert jobs["sft"].models.student == "org/other"
    assert jobs["evaluate"].models["before"].model == "org/other"
    assert jobs["evaluate"].models["after"].model == "@sft/student"


def test_a_student_may_be_a_section() -> None:
    jobs = jobs_of(pipeline(), 'models.student={"from": "org/big", "keep_layers": 4}')
    assert jobs["sft"].models.student.keep_layers == 4
    assert jobs["evaluate"].models["before"].model.from_model == "org/big"
    inner = jobs_of(pipeline(jobs={"label": LABEL, "sft": {**SFT, "models": {"student": pruned()}}}, data=prompts()))
    assert inner["sft"].models.student.from_model == "org/small"


def pruned() -> dict[str, Any]:
    return {"from": "@models/student", "keep_layers": 2}


def prompts() -> dict[str, str]:
    return {"prompts": "prompts.json"}


def test_data_lies_beside_the_file_and_overrides_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = write(folder / "kd.json", pipeline(data={"prompts": "a/prompts.json", "test": "/abs/test.jsonl"}))
    jobs = jobs_of(path)
    assert jobs["label"].dataset.instruction_path == str(folder / "a/prompts.json")
    assert jobs["evaluate"].tasks[0].data == "/abs/test.jsonl"
    assert jobs_of(path, "data.prompts=mine.json")["label"].dataset.instruction_path == "mine.json"
    hub = write(folder / "hub.json", pipeline(data={"prompts": "hf://a/b?split=train", "test": "~/test.jsonl"}))
    assert jobs_of(hub)["label"].dataset.instruction_path == "hf://a/b?split=train"
    assert jobs_of(hub)["evaluate"].tasks[0].data == "~/test.jsonl"
    # From Python there is no folder.
    assert jobs_of(pipeline())["label"].dataset.instruction_path == "prompts.json"


def test_where_it_lies_changes_nothing_of_what_runs(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.json").write_text(json.dumps([{"instruction": "What is a bee?"}]))
        jobs = jobs_of(write(tmp_path / name / "kd.json", pipeline(jobs={"label": LABEL, "sft": SFT}, data=prompts())))
        from easydistill.jobs import stages_of

        found.append([stage.fingerprint() for stage in stages_of(jobs["label"])])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("models.stdent=x", "models.stdent", "the jobs use @models/student, @models/teacher"),
        ("data.prompt=x", "data.prompt", "the jobs use @data/prompts, @data/test"),
        ("models.student=3", "models.student", STUDENT),
    ],
)
def test_what_no_job_uses_is_refused(override: str, path: str, hint: str) -> None:
    where, _, fix = problems(pipeline(), override)[0]
    assert (where, fix) == (path, hint)


def test_what_is_cited_must_be_given() -> None:
    missing = problems(pipeline(models={"teacher": "big", "studnt": "x"}))
    assert ("jobs.sft.models.student", "nothing is given as models.student", "did you mean @models/studnt?") in missing


def test_a_pipeline_that_names_its_models_itself_says_where() -> None:
    config = {
        "job_type": "pipeline",
        "shared": {"models": {"teacher": "big"}},
        "jobs": {
            "label": {"job_type": "label", "dataset": {"instruction_path": "x.json"}, "inference": {}},
            "sft": {**SFT, "models": {"student": "org/small"}},
        },
    }
    (student,) = problems(config, "models.student=x")
    assert student[1:] == (
        "this pipeline's jobs name their models themselves",
        "use --set jobs.sft.models.student=…, or cite @models/student there",
    )
    (teacher,) = problems(config, "models.teacher=x")
    assert teacher[2].startswith("use --set shared.models.teacher=…")


def test_a_job_may_be_called_data_where_nothing_is_given_under_that_name() -> None:
    jobs = {"data": {**LABEL, "dataset": {"instruction_path": "x.json"}}, "sft": SFT}
    jobs["sft"] = {**SFT, "dataset": {"labeled_path": "@data/labeled"}}
    config = pipeline(jobs=jobs)
    config.pop("data")
    assert jobs_of(config)["sft"].dataset.labeled_path == "@data/labeled"
    (found,) = problems({**config, "data": {"x": "y.json"}})[:1]
    assert found[1] == "a job cannot be called 'data' where the pipeline has data of its own"


def test_shared_keys_are_given_to_the_jobs_that_know_them(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(pipeline())
    assert jobs["label"].inference.base_url == "http://localhost:8000/v1"
    # A job that asks models on this machine has no server.
    assert jobs["sft"].inference.backend == "auto" and jobs["sft"].inference.temperature == 0.5
    # A key that no job knows is an error, reported once.
    config = pipeline()
    config["shared"]["inference"]["tempratur"] = 1
    assert len(problems(config)) == 1
    assert main(["validate", "recipe:nothing"]) == 2
    assert "there is no recipe" in capsys.readouterr().err
