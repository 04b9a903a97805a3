"""What `plan` says of a pipeline's later jobs, before the rows that they wait for exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.cli import main
from easydistill.engine.stage import Estimate, PlannedStage, total_of

ROWS = 150
WORDS = "Tell me something of the town that is called number"


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"instruction": f"{WORDS} {number}."} for number in range(ROWS)]))
    return str(path)


def planned(folder: Path, prompts: str, **jobs: Any) -> dict[str, PlannedStage]:
    server = {"base_url": "http://localhost:9/v1", "model": "m", "prices": {"input": 1, "output": 10}}
    config = {
        "job_type": "pipeline",
        "output_dir": str(folder / "run"),
        "shared": {"inference": server},
        "jobs": {"first": {"job_type": "deduplicate", "dataset": {"instruction_path": prompts}}, **jobs},
    }
    return {stage.name: stage for stage in api.plan(config)}


def job(kind: str, rows: str, /, tokens: int | None = None, **synthesis: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"job_type": kind, "dataset": {"instruction_path": f"@{rows}/labeled"}}
    if synthesis:
        made["synthesis"] = synthesis
    return made | ({"inference": {"max_new_tokens": tokens}} if tokens else {})


def test_the_figures_of_what_waits_are_those_of_what_does_not(tmp_path: Path, prompts: str) -> None:
    """Labelling costs the same whether its prompts are there or wait for a job that may drop none of them."""
    found = planned(tmp_path, prompts, label=job("label", "first", 100))["label.label"]
    direct = {**job("label", "first", 100), "dataset": {"instruction_path": prompts}}
    known = planned(tmp_path, prompts, label=direct)["label.label"].estimate
    assert found.state == "waits for first"
    assert (found.estimate.calls, found.estimate.tokens_at_most) == (known.calls, known.tokens_at_most) == (150, 15000)
    assert found.estimate.completion_tokens == known.completion_tokens == (150, 15000)
    assert known.prompt_tokens and found.estimate.prompt_tokens and known.cost and found.estimate.cost
    assert found.estimate.prompt_tokens == pytest.approx(known.prompt_tokens, rel=0.02)
    assert found.estimate.cost == pytest.approx(known.cost, rel=0.02)


def test_answers_are_between_the_shortest_and_the_longest(tmp_path: Path, prompts: str) -> None:
    stages = planned(
        tmp_path,
        prompts,
        label=job("label", "first", 1000),
        score=job("cot_scoring", "label", 10),
        again=job("cot_scoring", "score", 10),
    )
    low, high = stages["score.synthesise"].estimate.prompt_tokens or (0, 0)
    # A prompt of scoring holds its own words, the question and an answer of 1 to 1,000 tokens.
    assert low < 150 * 400 and 150 * 1000 < high < 150 * 2500
    # Scores are no answers: the next job reads the same rows.
    again = stages["again.synthesise"].estimate
    assert again.calls == ROWS and again.prompt_tokens == (low, high)


@pytest.mark.parametrize(
    ("kind", "settings", "rows"),
    [
        ("cot_generation", {"num_samples": 3, "keep": "all", "verify": "never"}, 450),
        ("cot_generation", {"num_samples": 3, "keep": "first", "verify": "never"}, 150),
        ("instruction_expansion", {"num_output_samples": 70}, 70),
        ("task_labelling", {"reply": "json"}, 150),
    ],
)
def test_how_many_rows_a_job_makes(
    kind: str, settings: dict[str, Any], rows: int, tmp_path: Path, prompts: str
) -> None:
    stages = planned(tmp_path, prompts, made=job(kind, "first", 50, **settings), label=job("label", "made", 10))
    assert stages["label.label"].estimate.calls == rows


def test_a_mix_has_the_rows_of_its_inputs(tmp_path: Path, prompts: str) -> None:
    inputs = {"a": {"path": "@first/labeled"}, "b": {"path": "@more/labeled"}}
    stages = planned(
        tmp_path,
        prompts,
        more=job("cot_generation", "first", 20, num_samples=2, keep="all", verify="never"),
        all={"job_type": "mix", "mix": {"inputs": inputs}},
        label=job("label", "all", 10),
    )
    assert stages["all.mix"].estimate == Estimate(rows=450, calls=0)
    assert stages["label.label"].estimate.calls == 450
    first = {"job_type": "label", "dataset": {"instruction_path": "@first/labeled", "max_samples": 7}}
    few = planned(tmp_path, prompts, label={**first, "inference": {"max_new_tokens": 10}})
    assert few["label.label"].estimate.calls == 7


def test_a_training_is_told_with_its_memory(tmp_path: Path, prompts: str, tiny_model: Path) -> None:
    training = {"job_type": "black_box_kd_local", "dataset": {"labeled_path": "@label/labeled"}}
    again = {**training, "models": {"student": "@sft/student"}}
    stages = planned(
        tmp_path,
        prompts,
        label=job("label", "first", 10),
        sft={**training, "models": {"student": str(tiny_model)}},
        again=again,
    )
    memory = stages["sft.train"].estimate.memory_bytes
    # The student of the second training is the first one's.
    assert memory and stages["again.train"].estimate.memory_bytes == memory
    total = total_of(stages.values())
    most = max(stage.estimate.memory_bytes or 0 for stage in stages.values())
    assert total.calls == ROWS and total.memory_bytes == most >= memory
    assert total.disk_bytes == 2 * (stages["sft.train"].estimate.disk_bytes or 0)
    assert total.cost == stages["label.label"].estimate.cost


def test_rows_that_nothing_is_known_of_have_no_figures(tmp_path: Path, prompts: str) -> None:
    """Pairs are no rows that stand-ins could be: the job is shown, without figures."""
    pairs = {"job_type": "dpo", "dataset": {"labeled_path": "@first/labeled"}, "models": {"student": "org/none"}}
    stages = planned(tmp_path, prompts, label=job("label", "first", 10), dpo=pairs)
    assert stages["dpo.train"].state == "waits for first" and stages["dpo.train"].estimate == Estimate()
    assert not (tmp_path / "run").exists()


def test_a_pipeline_that_begins_with_texts(tmp_path: Path, prompts: str, tiny_model: Path) -> None:
    """How many rows are found in a text is not known; the memory of the training is."""
    (tmp_path / "text.md").write_text("Bees live in hives. " * 50)
    stages = planned(
        tmp_path,
        prompts,
        extract={
            "job_type": "instruction_response_extraction",
            "dataset": {"instruction_path": str(tmp_path / "text.md")},
        },
        label=job("label", "extract", 10),
        sft={
            "job_type": "black_box_kd_local",
            "dataset": {"labeled_path": "@label/labeled"},
            "models": {"student": str(tiny_model)},
        },
    )
    assert stages["label.label"].state == "waits for extract" and stages["label.label"].estimate == Estimate()
    assert stages["sft.train"].estimate.memory_bytes


def test_the_command_tells_the_sum(tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    inner = {"first": {"job_type": "deduplicate", "dataset": {"instruction_path": prompts}}}
    server = {"base_url": "http://localhost:9/v1", "model": "m", "max_new_tokens": 100}
    for name, rows in (("one", "first"), ("two", "one")):
        inner[name] = {**job("label", rows), "inference": server}
    path = tmp_path / "kd.json"
    path.write_text(json.dumps({"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": inner}))
    assert main(["plan", str(path)]) == 0
    *_, limits, total = capsys.readouterr().out.splitlines()
    assert limits.startswith("figures of what waits are limits")
    assert total.startswith("in all: 300 calls, tokens in ") and "tokens out 300 to 30,000" in total
    assert main(["plan", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["calls"] == sum(stage["estimate"]["calls"] for stage in found["stages"]) == 300


def test_what_writes_rows_takes_as_much_memory_as_what_labels_them(
    tmp_path: Path, prompts: str, tiny_model: Path
) -> None:
    common = {
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": prompts},
        "inference": {"backend": "transformers", "max_new_tokens": 8},
        "models": {"teacher": str(tiny_model)},
    }
    (label,) = api.plan({"job_type": "label", **common})
    (refine,) = api.plan({"job_type": "instruction_refinement", **common})
    assert refine.estimate.memory_bytes and refine.estimate.memory_bytes == label.estimate.memory_bytes


def test_calls_that_answers_decide_on_are_a_range(
    tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = {"base_url": "http://localhost:9/v1", "model": "m"}
    made = {"job_type": "instruction_expansion", "dataset": {"instruction_path": prompts}, "inference": server}
    (stage,) = api.plan({**made, "output_dir": str(tmp_path / "run")})
    calls, most = stage.estimate.calls, stage.estimate.calls_at_most
    assert calls and most and calls < most
    path = tmp_path / "kd.json"
    path.write_text(json.dumps({**made, "output_dir": str(tmp_path / "run")}))
    assert main(["plan", str(path)]) == 0
    assert f"in all: {calls:,} to {most:,} calls" in capsys.readouterr().out
