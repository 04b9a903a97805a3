"""Answers through the Batch API: every row once, whatever the server leaves out and whenever the run is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.batch_server import BatchServer, batch_server
from tests.support.fault_server import answer_to, prompt
from tests.support.jobs import ROOT
from tests.support.label_in_batches import FAST, label

import easydistill
from easydistill.config.inference import ApiInferenceConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import DataError, Interrupted, QuotaExhausted, TeacherError
from easydistill.jobs import stages_of

PROMPTS = [f"p {n}" for n in range(20)]
PRICES = {"input": 1.0, "output": 2.0}
EACH = (5 * 1.0 + 7 * 2.0) / 1e6


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with batch_server() as found:
        yield found


def labels(folder: Path) -> dict[str, str]:
    rows = json.loads((folder / "stage/labeled.json").read_text())
    return {row["instruction"]: row["output"] for row in rows}


def records(folder: Path) -> list[dict[str, Any]]:
    """What is kept of batches, in the order in which they were made."""
    found = [json.loads(path.read_text()) for path in (folder / "stage/batches").glob("*.json")]
    return sorted(found, key=lambda record: float(record["created"]))


def all_answered(folder: Path, prompts: list[str]) -> bool:
    return labels(folder) == {text: answer_to(text) for text in prompts}


def test_all_rows_are_answered_and_counted(server: BatchServer, tmp_path: Path) -> None:
    batch = FAST | {"max_requests": 8, "completion_window": "1h"}
    sampling: dict[str, Any] = {"system_prompt": "Be brief.", "temperature": 0.5, "seed": 3}
    result = label(tmp_path, server.base_url, PROMPTS, batch=batch, prices=PRICES, **sampling)
    assert all_answered(tmp_path, PROMPTS)
    assert server.submitted == Counter(PROMPTS) and not server.singles
    assert len(server.batches) == 3
    assert {found["completion_window"] for found in server.batches.values()} == {"1h"}
    body = server.lines[0]["body"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["max_tokens"], body["model"]) == (0.5, 3, 50, "teacher-1")
    spent = result.metrics["spent"]
    assert (spent["answers"], spent["prompt_tokens"]) == (20, 100)
    assert spent["cost"] == pytest.approx(20 * EACH)
    kept = records(tmp_path)
    assert [record["rows"] for record in kept] == [8, 8, 4] and all(record["collected"] for record in kept)
    assert not list((tmp_path / "stage/batches").glob("*.jsonl"))
    label(tmp_path, server.base_url, PROMPTS, batch=None, **sampling)
    assert server.submitted == Counter(PROMPTS) and not server.singles, "answers on disk are not asked for again"


def test_a_file_holds_as_many_bytes_as_it_may(server: BatchServer, tmp_path: Path) -> None:
    prompts = [*PROMPTS, "long " * 500]
    result = label(tmp_path, server.base_url, prompts, batch=FAST | {"max_bytes": 1000})
    assert all_answered(tmp_path, PROMPTS) and result.rows.rejected == {"prompt_too_long": 1}
    assert len(server.batches) > 3 and max(map(len, server.files.values())) <= 6 * 1000
    sent = [server.files[batch["input_file_id"]] for batch in server.batches.values()]
    assert max(map(len, sent)) <= 1000


def test_only_what_is_missing_is_submitted_again(server: BatchServer, tmp_path: Path) -> None:
    faults = ("missing", "rate_limit", "server_error", "garbage", "batch_expired")
    healing = [prompt(f"x {name}", name, 2) for name in faults]
    lasting = [prompt(f"y {name}", name) for name in ("missing", "rate_limit", "batch_expired")]
    refused = prompt("z", "bad_request")
    result = label(tmp_path, server.base_url, [*PROMPTS, *healing, *lasting, refused])
    assert all_answered(tmp_path, [*PROMPTS, *healing])
    assert server.submitted == Counter(dict.fromkeys([*PROMPTS, refused], 1)) + Counter(3 * [*healing, *lasting])
    assert result.rows.rejected == {"batch_completed": 1, "rate_limit": 1, "batch_expired": 1, "http_400": 1}
    assert [record["attempt"] for record in records(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("ending", ["expired", "cancelled", "failed:internal_error", "failed:token_limit_exceeded"])
def test_batches_that_end_early(server: BatchServer, tmp_path: Path, ending: str) -> None:
    server.endings.append(ending)
    label(tmp_path, server.base_url, PROMPTS)
    assert all_answered(tmp_path, PROMPTS)
    again = 20 if ending.startswith("failed") else 10
    assert Counter(server.submitted.values()) == Counter({1: 20 - again, 2: again}) - Counter({1: 0})


def test_a_full_server_is_waited_for_without_using_up_attempts(server: BatchServer, tmp_path: Path) -> None:
    """The second of two batches has no room until the first one is through, which takes a while."""
    server.endings.extend([*(["failed:token_limit_exceeded"] * 1), "completed", "completed"])
    label(tmp_path, server.base_url, PROMPTS, batch=FAST | {"max_requests": 10, "max_rounds": 1})
    assert all_answered(tmp_path, PROMPTS)
    assert [record["attempt"] for record in records(tmp_path)] == [1, 1, 1]


def test_a_server_that_stumbles_at_every_call(server: BatchServer, tmp_path: Path) -> None:
    for call in ("upload", "create", "look", "content"):
        server.faults[call].extend([500, 429])
    server.faults["content"].append("half")
    label(tmp_path, server.base_url, PROMPTS)
    assert all_answered(tmp_path, PROMPTS) and server.submitted == Counter(PROMPTS)


def test_a_batch_created_without_an_answer_is_found_not_created_again(server: BatchServer, tmp_path: Path) -> None:
    server.faults["create"].append("hold")
    label(tmp_path, server.base_url, PROMPTS, timeout=0.5)
    assert all_answered(tmp_path, PROMPTS) and server.submitted == Counter(PROMPTS)
    assert server.calls["create"] == 1 and server.calls["list"] == 1


# --- killed -------------------------------------------------------------------------------------------------------


def killed_while(server: BatchServer, folder: Path, call: str, times: int = 1) -> None:
    """Run in a process of its own and kill it when the server has taken a call."""
    command = [
        sys.executable,
        "-m",
        "tests.support.label_in_batches",
        str(folder),
        server.base_url,
        json.dumps(PROMPTS),
    ]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            server.wait_for(call, times)
        finally:
            process.kill()
    assert process.returncode == -9


@pytest.mark.parametrize(
    ("call", "fault", "created"),
    [("create", "hold_before", 0), ("create", "hold", 1), ("look", "hold", 1), ("content", "hold", 1)],
)
def test_kill(server: BatchServer, tmp_path: Path, call: str, fault: str, created: int) -> None:
    """After the upload, after the creation before its id arrived, in polling, and when answers are being read."""
    server.faults[call].append(fault)
    killed_while(server, tmp_path, call)
    assert len(server.batches) == created
    label(tmp_path, server.base_url, PROMPTS)
    assert all_answered(tmp_path, PROMPTS)
    assert server.submitted == Counter(PROMPTS) and len(server.batches) == 1
    assert [record["collected"] for record in records(tmp_path)] == [True]


def interrupted(server: BatchServer, folder: Path, **inference: Any) -> None:
    """Run until the batch is being looked at, then press Ctrl-C."""
    server.looks = 10**9
    stop = StopSignal()

    def press() -> None:
        server.wait_for("look")
        stop.request()

    threading.Thread(target=press).start()
    with pytest.raises(Interrupted):
        label(folder, server.base_url, PROMPTS, stop=stop, **inference)
    server.looks = 0


def test_stopping_is_at_once_and_keeps_everything(server: BatchServer, tmp_path: Path) -> None:
    started = time.monotonic()
    interrupted(server, tmp_path, batch={"poll_interval": 60})
    assert time.monotonic() - started < 5
    assert [record["batch_id"] for record in records(tmp_path)] == ["batch_1"]
    label(tmp_path, server.base_url, [*PROMPTS, "one more"])
    assert all_answered(tmp_path, [*PROMPTS, "one more"])
    assert server.submitted == Counter([*PROMPTS, "one more"])


def test_batches_under_way_are_waited_for_when_the_section_is_dropped(server: BatchServer, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.endings.append("cancelled")
    label(tmp_path, server.base_url, PROMPTS, batch=None)
    assert all_answered(tmp_path, PROMPTS)
    assert server.submitted == Counter(PROMPTS) and server.singles == Counter(PROMPTS[10:])


def test_a_lost_batch_is_found_among_many(server: BatchServer, tmp_path: Path) -> None:
    server.faults["create"].append("hold")
    killed_while(server, tmp_path, "create")
    for _ in range(5):
        asked = {"endpoint": "x", "input_file_id": server.keep(b""), "completion_window": "24h"}
        server.create(asked)
    label(tmp_path, server.base_url, PROMPTS)
    assert server.submitted == Counter(PROMPTS) and server.calls["list"] == 3


# --- giving up ----------------------------------------------------------------------------------------------------


def test_a_server_without_batches_says_so(server: BatchServer, tmp_path: Path) -> None:
    server.faults["upload"].append(404)
    with pytest.raises(TeacherError, match=r"has no Batch API(.|\n)*drop inference\.batch"):
        label(tmp_path, server.base_url, PROMPTS)
    server.faults["create"].append(404)
    with pytest.raises(TeacherError, match=r"has no Batch API(.|\n)*creating a batch"):
        label(tmp_path, server.base_url, PROMPTS)


def test_a_server_that_does_not_list_its_batches(server: BatchServer, tmp_path: Path) -> None:
    """Nobody can tell then whether the batch was created; that is the user's to find out."""
    server.faults["create"].append("hold")
    killed_while(server, tmp_path, "create")
    server.faults["list"].append(404)
    token = records(tmp_path)[0]["token"]
    with pytest.raises(TeacherError, match=rf"does not list(.|\n)*easydistill={token}"):
        label(tmp_path, server.base_url, PROMPTS)
    assert server.submitted == Counter(PROMPTS)


def test_a_batch_the_server_has_forgotten(server: BatchServer, tmp_path: Path) -> None:
    server.faults["look"].append(404)
    with pytest.raises(TeacherError, match=r"does not know batch batch_1(.|\n)*remove .*\.json"):
        label(tmp_path, server.base_url, PROMPTS)
    (tmp_path / "stage/batches" / f"{records(tmp_path)[0]['token']}.json").unlink()
    label(tmp_path, server.base_url, PROMPTS)
    assert all_answered(tmp_path, PROMPTS)


def test_no_credit_ends_the_run_with_all_answers_kept(server: BatchServer, tmp_path: Path) -> None:
    poor = [prompt(f"poor {n}", "quota", 1) for n in range(3)]
    with pytest.raises(QuotaExhausted):
        label(tmp_path, server.base_url, [*PROMPTS, *poor])
    label(tmp_path, server.base_url, [*PROMPTS, *poor])
    assert all_answered(tmp_path, [*PROMPTS, *poor])
    assert server.submitted == Counter(PROMPTS) + Counter(2 * poor)


def test_a_budget_holds_over_batches_and_runs(server: BatchServer, tmp_path: Path) -> None:
    """A row may take about 56 tokens and takes 12."""
    with pytest.raises(TeacherError, match=r"spent so far(.|\n)*max_tokens_total"):
        label(tmp_path, server.base_url, PROMPTS, max_tokens_total=200)
    first = sum(server.submitted.values())
    assert 200 - 70 <= 12 * first <= 200
    with pytest.raises(TeacherError, match=f"{5 * first} tokens in"):
        label(tmp_path, server.base_url, PROMPTS, max_tokens_total=200)
    assert sum(server.submitted.values()) == first
    label(tmp_path, server.base_url, PROMPTS, prices=PRICES, max_cost=1.0)
    assert server.submitted == Counter(PROMPTS)


def test_a_parameter_the_server_does_not_know_is_renamed(server: BatchServer, tmp_path: Path) -> None:
    server.wants_max_completion_tokens = True
    label(tmp_path, server.base_url, PROMPTS, batch=FAST | {"max_rounds": 1})
    assert all_answered(tmp_path, PROMPTS)
    assert server.lines[-1]["body"]["max_completion_tokens"] == 50


@pytest.mark.parametrize(
    "values",
    [
        {"stream": True},
        {"requests_per_minute": 5},
        {"max_concurrency": 4},
        {"base_url": ["http://a/v1", "http://b/v1"]},
    ],
)
def test_what_does_not_go_with_batches_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="batch"):
        ApiInferenceConfig(**{"base_url": "http://a/v1", "batch": {}, **values})


# --- jobs ---------------------------------------------------------------------------------------------------------


def job(server: BatchServer, folder: Path, kind: str, **sections: Any) -> dict[str, Any]:
    seeds = folder / "seeds.json"
    seeds.write_text(json.dumps([{"instruction": text} for text in PROMPTS]))
    return {
        "job_type": kind,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(seeds), "labeled_path": str(folder / "out.json")},
        "inference": {"base_url": server.base_url, "batch": FAST, "seed": 7},
        **sections,
    }


def test_a_synthesis_job_in_batches(server: BatchServer, tmp_path: Path) -> None:
    made = job(server, tmp_path, "cot_generation", synthesis={"num_samples": 2, "keep": "all"})
    assert easydistill.run(made, quiet=True).exit_code == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 40
    assert len(server.batches) == 1 and not server.singles
    assert Counter(line["body"]["seed"] for line in server.lines) == {7: 20, 8: 20}


def test_a_reply_with_a_schema(server: BatchServer, tmp_path: Path) -> None:
    made = job(server, tmp_path, "task_labelling", synthesis={"reply": "json"})
    with pytest.raises(DataError, match="malformed_reply"):
        easydistill.run(made, quiet=True)
    assert server.lines[0]["body"]["response_format"]["type"] == "json_schema"


def test_black_box_jobs_label_in_batches(server: BatchServer, tmp_path: Path) -> None:
    config = job(server, tmp_path, "black_box_kd_api", models={"student": "student/"})
    stage = stages_of(easydistill.validate(config))[0]
    assert stage.name == "label"
    from easydistill.engine.progress import Reporter
    from easydistill.engine.secrets import Redactor
    from easydistill.engine.stage import StageContext

    directory = tmp_path / "stage"
    directory.mkdir()
    context = StageContext(directory, tmp_path, {}, "f", StopSignal(), Reporter(None, quiet=True), Redactor())
    stage.run(context)
    assert all_answered(tmp_path, PROMPTS) and server.submitted == Counter(PROMPTS)
