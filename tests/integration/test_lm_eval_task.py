"""Tasks of lm-evaluation-harness through our teachers: the scores are those of lm-eval itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

import easydistill
from easydistill.data.files import read_jsonl
from easydistill.errors import DataError

YAML = """\
task: own_sums
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
fewshot_split: train
output_type: generate_until
doc_to_text: "What is {{{{a}}}} + {{{{b}}}}?"
doc_to_target: "{{{{c}}}}"
generation_kwargs:
  until: {until}
  max_gen_toks: 12
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: first
    filter:
      - function: take_first
  - name: number
    filter:
      - function: regex
        regex_pattern: "(\\\\d+)"
      - function: take_first
"""


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def write_task(folder: Path, rows: list[dict[str, Any]], until: str = '["\\n"]') -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "sums.yaml"
    path.write_text(YAML.format(data=folder / "rows.jsonl", until=until))
    return path


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"a": n, "b": n + 1, "c": str(2 * n + 1)} for n in range(count)]


def job_of(folder: Path, model: dict[str, Any], yaml: Path, **task: Any) -> dict[str, Any]:
    tasks = [{"lm_eval": str(yaml), **task}]
    return {"job_type": "evaluate", "output_dir": str(folder / "run"), "models": {"m": model}, "tasks": tasks}


def scores(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/stages/1-tasks/scores.json").read_text())
    return found["tasks"][0]


def served(scripted: ScriptedServer) -> dict[str, Any]:
    return {"inference": {"base_url": scripted.url, "model": "m"}}


def test_replies_end_at_the_stops_and_are_asked_once(tmp_path: Path, scripted: ScriptedServer) -> None:
    def say(text: str, number: int) -> str:
        a, b = int(text.split()[2]), int(text.split()[4].rstrip("?"))
        return f"{a + b}\nand more" if a % 2 else f"The sum is {a + b}."

    scripted.say = say
    scripted.finish = lambda number: "length"
    config = job_of(tmp_path, served(scripted), write_task(tmp_path / "task", rows_of(6)))
    (planned,) = easydistill.plan(config)
    assert (planned.estimate.rows, planned.estimate.calls, planned.estimate.tokens_at_most) == (6, 6, 72)
    easydistill.run(config)
    task = scores(tmp_path)
    found = task["models"]["m"]
    assert found["parts"]["exact_match,first"]["mean"] == 0.5
    assert found["parts"]["exact_match,number"]["mean"] == 1.0
    assert found["score"]["mean"] == 0.5, "the task's first metric counts"
    assert found["cut"] == 3, "those that reached a stop were not cut off"
    assert task["sampling"]["max_new_tokens"] == 12 and task["sampling"]["temperature"] == 0
    assert any("stops at" in note for note in task["notes"])
    assert len(scripted.asked) == 6
    config["tasks"][0]["metric"] = "exact_match,number"
    easydistill.run(config)
    assert scores(tmp_path)["models"]["m"]["score"]["mean"] == 1.0
    assert len(scripted.asked) == 6


def test_changed_rows_and_metrics_that_are_not_there(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.say = lambda text, number: "1"
    config = job_of(tmp_path, served(scripted), write_task(tmp_path / "task", rows_of(2)))
    easydistill.run(config)
    assert scores(tmp_path)["models"]["m"]["score"]["mean"] == 0.5
    write_task(tmp_path / "task", [{"a": 0, "b": 1, "c": "1"}])
    easydistill.run(config)
    assert scores(tmp_path)["models"]["m"]["score"]["mean"] == 1.0
    config["tasks"][0]["metric"] = "bleu"
    with pytest.raises(DataError, match=r"no metric 'bleu'; it has exact_match,first"):
        easydistill.run(config)


def test_few_shot_examples_are_turns(tmp_path: Path) -> None:
    model = {"inference": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}
    config = job_of(tmp_path, model, write_task(tmp_path / "task", rows_of(4)), num_fewshot=1, limit=2)
    shown = easydistill.preview(config, rows=1)
    assert [message["role"] for message in shown[0].messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("output_type: generate_until", "output_type: loglikelihood"), "probabilities of given texts"),
        (("task: own_sums", "task: own_sums\nunsafe_code: true"), "runs programs unprotected"),
        (("max_gen_toks: 12", "max_gen_toks: 12\n  typical_p: 0.5"), "typical_p"),
    ],
)
def test_tasks_that_cannot_be_honoured_are_refused(
    tmp_path: Path, scripted: ScriptedServer, change: tuple[str, str], problem: str
) -> None:
    path = write_task(tmp_path / "task", rows_of(2))
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=problem):
        easydistill.run(job_of(tmp_path, served(scripted), path))
    assert scripted.asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("{{a}}", "{{nothing}}"), "UndefinedError: 'nothing'"),
        (lambda text: text + "doc_to_image: a\n", "multimodal"),
        (lambda text: "task: [x", "cannot load"),
    ],
)
def test_tasks_that_lm_eval_cannot_take_are_told_in_a_line(tmp_path: Path, change: Any, said: str) -> None:
    path = write_task(tmp_path, [{"a": 1, "b": 2, "c": 3}])
    path.write_text(change(path.read_text()))
    config = {
        "job_type": "evaluate",
        "output_dir": str(tmp_path / "run"),
        "models": {"m": {"inference": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}},
        "tasks": [{"lm_eval": str(path)}],
    }
    with pytest.raises(DataError, match=said):
        easydistill.plan(config)


def test_code_tasks_of_lm_eval_are_refused_before_they_are_loaded(tmp_path: Path, scripted: ScriptedServer) -> None:
    config = job_of(tmp_path, served(scripted), Path("humaneval"))
    with pytest.raises(DataError, match="runs programs unprotected"):
        easydistill.run(config)


def test_the_scores_are_those_of_lm_eval_with_its_own_model(tiny_model: Path, tmp_path: Path) -> None:
    """lm-eval's `hf` model writes the same greedy replies, and its scores of them are ours."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = {"model": str(tiny_model), "inference": {"backend": "transformers", "dtype": "float32", "batch_size": 1}}
    first = tmp_path / "first"
    first.mkdir()
    rows = rows_of(6)
    easydistill.run(job_of(first, model, write_task(first / "task", rows, until='["zzz"]')))
    ours = [row["reply"] for row in read_jsonl(first / "run/stages/1-tasks/replies.jsonl")]
    # A random model is right about nothing: half of the known answers become what it says.
    for row, reply in list(zip(rows, ours, strict=True))[::2]:
        row["c"] = reply
    yaml = write_task(tmp_path / "task", rows, until='["zzz"]')
    easydistill.run(job_of(tmp_path, model, yaml))
    manager = TaskManager(include_path=yaml.parent, include_defaults=False)
    theirs = evaluator.simple_evaluate(
        model=HFLM(pretrained=str(tiny_model), dtype="float32", batch_size=1, device="cpu"),
        tasks=["own_sums"],
        task_manager=manager,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    samples = [sample for sample in theirs["samples"]["own_sums"] if sample["filter"] == "first"]
    assert [sample["resps"][0][0] for sample in samples] == ours
    parts = scores(tmp_path)["models"]["m"]["parts"]
    for name in ("exact_match,first", "exact_match,number"):
        assert parts[name]["mean"] == pytest.approx(theirs["results"]["own_sums"][name])
    assert parts["exact_match,first"]["mean"] == 0.5
