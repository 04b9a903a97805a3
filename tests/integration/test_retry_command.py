"""`easydistill retry`: asks again exactly what was named, keeps what was paid for, and redoes what follows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.batch_server import batch_server
from tests.support.fault_server import Running, answer_to, prompt
from tests.support.jobs import write_prompts
from tests.support.label_in_batches import label as label_in_batches
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.asking.retry import mark_rejected
from easydistill.cli import main
from easydistill.errors import DataError

TASKS = (
    *("Write a poem about the sea", "Explain how rainbows form", "Translate this letter into French"),
    *("List five uses of a brick", "Who painted the ceiling of the chapel?", "Compute the area of a circle"),
)
SEEDS = [{"instruction": f"{task}, number {n}."} for n, task in enumerate(TASKS)]


def label_job(server: Running, folder: Path, prompts: list[str], **inference: Any) -> Path:
    """A config whose only stage is label."""
    settings = {"base_url": server.base_url, "max_retries": 0, "max_retry_wait": 0.05, "timeout": 2, "model": "m"}
    job = {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {
            "instruction_path": str(write_prompts(folder, prompts)),
            "labeled_path": str(folder / "labeled.json"),
            "max_rejected_share": 0.9,
        },
        "inference": settings | inference,
    }
    path = folder / "kd.json"
    path.write_text(json.dumps(job))
    return path


def stage(folder: Path) -> Path:
    return next((folder / "run/stages").glob("1-*"))


def labels(folder: Path) -> dict[str, str]:
    return {row["instruction"]: row["output"] for row in json.loads((folder / "labeled.json").read_text())}


def rejected(folder: Path) -> Counter[str]:
    lines = (stage(folder) / "rejected.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["reason"] for line in lines)


def test_failures_and_empty_answers_of_a_label_stage(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, oops, empty = prompt("a", "rate_limit_now", 1), prompt("b", "server_error", 1), prompt("c", "empty", 1)
    bad = prompt("d", "bad_request")
    config = label_job(server, tmp_path, ["fine", slow, oops, empty, bad])
    assert main(["run", str(config), "--quiet"]) == 0
    assert rejected(tmp_path) == Counter(["rate_limit", "server_error", "empty_content", "http_400"])
    before = (stage(tmp_path) / "journal.jsonl").read_bytes()

    assert main(["retry", str(config), "--only=rate_limit"]) == 0
    assert "asking again: rate_limit ×1" in capsys.readouterr().err
    assert server.stats()["attempts"] == {"fine": 1, slow: 2, oops: 1, empty: 1, bad: 1}
    assert labels(tmp_path) == {text: answer_to(text) for text in ("fine", slow)}
    assert rejected(tmp_path) == Counter(["server_error", "empty_content", "http_400"])
    assert (stage(tmp_path) / "journal.jsonl").read_bytes().startswith(before), "what was paid for stays on disk"

    assert main(["retry", str(config)]) == 0
    assert server.stats()["attempts"] == {"fine": 1, slow: 2, oops: 2, empty: 2, bad: 1}
    assert rejected(tmp_path) == Counter(["http_400"])
    spent = json.loads((stage(tmp_path) / "manifest.json").read_text())["metrics"]["spent"]
    assert spent["answers"] == sum(server.stats()["paid"].values()) == 5, "the empty answer was paid for, too"

    assert main(["retry", str(config), "--only=http_400,timeout"]) == 0
    assert server.stats()["attempts"][bad] == 2
    capsys.readouterr()
    assert main(["retry", str(config)]) == 0
    assert "nothing to ask again; rejected here: http_400 ×1" in capsys.readouterr().err
    assert server.stats()["attempts"][bad] == 2


def test_names_that_do_not_exist(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = label_job(server, tmp_path, ["fine", prompt("c", "empty", 1)])
    assert main(["run", str(config), "--quiet"]) == 0
    assert main(["retry", str(config), "--only=empty_content,ratelimit"]) == 2
    told = capsys.readouterr().err
    assert "there is no reason 'ratelimit'" in told
    assert "empty_content ×1" in told and "rate_limit" in told and "wrong_answer" in told and "parse" in told
    assert (stage(tmp_path) / "manifest.json").is_file()


def test_a_kill_between_two_steps(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [prompt("a", "empty", 1), prompt("b", "server_error", 1)]
    config = label_job(server, tmp_path, ["fine", *bad])
    assert main(["run", str(config), "--quiet"]) == 0

    class Killed(BaseException):
        pass

    def kill(*arguments: Any) -> None:
        raise Killed

    for step in ("_reopen", "set_aside"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(f"easydistill.asking.retry.{step}", kill)
            main(["retry", str(config), "--only=empty_content"])
        assert labels(tmp_path) == {"fine": answer_to("fine")}
    assert main(["retry", str(config), "--only=empty_content", "--quiet"]) == 0
    assert server.stats()["attempts"] == {"fine": 1, bad[0]: 2, bad[1]: 1}
    assert labels(tmp_path) == {text: answer_to(text) for text in ("fine", bad[0])}


def test_failed_rows_of_batches(tmp_path: Path) -> None:
    lost = prompt("a", "missing", 1)
    with batch_server() as api:

        def label() -> Counter[str]:
            batch = {"poll_interval": 0.02, "max_rounds": 1}
            return Counter(label_in_batches(tmp_path, api.base_url, ["fine", lost], batch=batch).rows.rejected)

        assert label() == Counter(["batch_completed"])
        (tmp_path / "run/stages").mkdir(parents=True)
        (tmp_path / "stage").rename(tmp_path / "run/stages/1-label")
        assert mark_rejected(tmp_path / "run", ["batch_completed"], print) == 1
        (tmp_path / "run/stages/1-label").rename(tmp_path / "stage")
        assert label() == Counter()
        assert api.submitted == Counter(["fine", lost, lost])


# --- synthesis ----------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def synthesis_job(api: ScriptedServer, folder: Path, kind: str) -> dict[str, Any]:
    (folder / "seeds.json").write_text(json.dumps(SEEDS))
    return {
        "job_type": kind,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "seeds.json"), "max_rejected_share": 1.0},
        "inference": {"base_url": api.url, "model": "m"},
    }


def test_the_malformed_reply_is_asked_again_not_the_good_one_before_it(
    scripted: ScriptedServer, tmp_path: Path
) -> None:
    """The judge's third verdict cannot be read; the rewriting that it was about can."""
    verdicts = Counter[str]()

    def say(text: str, number: int) -> str:
        if "[Second]" not in text:
            return f"<instruction>{text.split(']')[1].split('Rewrite')[0].strip()} Use ten words.</instruction>"
        verdicts[text] += 1
        return "perhaps" if "number 3" in text and verdicts[text] == 1 else "<same>1</same>"

    scripted.say = say
    job = synthesis_job(scripted, tmp_path, "instruction_refinement")
    easydistill.run(job, quiet=True)
    assert rejected(tmp_path) == Counter(["malformed_score"])
    assert len(scripted.asked) == 12
    from easydistill import api

    api.retry(job, only=["parse"], quiet=True)
    assert len(scripted.asked) == 13 and "number 3" in scripted.asked[-1] and "[Second]" in scripted.asked[-1]
    assert not rejected(tmp_path)
    assert len(json.loads((stage(tmp_path) / "labeled.json").read_text())) == 6


def test_a_stage_of_which_nothing_was_left(scripted: ScriptedServer, tmp_path: Path) -> None:
    from easydistill import api

    scripted.say = lambda text, number: "nothing"
    job = synthesis_job(scripted, tmp_path, "task_labelling")
    with pytest.raises(DataError, match="malformed_reply ×6"):
        easydistill.run(job, quiet=True)
    scripted.say = lambda text, number: "<label>Math</label>"
    with pytest.raises(DataError, match="malformed_reply ×6"):
        easydistill.run(job, quiet=True)
    assert len(scripted.asked) == 6, "answers stand until they are asked again on purpose"
    result = api.retry(job, only=["parse"], quiet=True)
    assert result.exit_code == 0 and len(scripted.asked) == 12


def test_what_follows_in_a_pipeline_is_made_anew(scripted: ScriptedServer, tmp_path: Path) -> None:
    from easydistill import api

    asked = Counter[str]()

    def say(text: str, number: int) -> str:
        asked[text] += 1
        return "nothing" if "number 3" in text and asked[text] == 1 else "<label>Math</label>"

    scripted.say = say
    first = synthesis_job(scripted, tmp_path, "task_labelling")
    first.pop("output_dir")
    unique = {"job_type": "deduplicate", "dataset": {"instruction_path": "@tasks/labeled", "max_rejected_share": 1.0}}
    job = {"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": {"tasks": first, "unique": unique}}
    easydistill.run(job, quiet=True)

    def rows() -> int:
        return len(json.loads(next((tmp_path / "run/stages/2-unique/stages").glob("*/labeled.json")).read_text()))

    assert rows() == 5
    api.retry(job, quiet=True)
    assert rows() == 6 and len(scripted.asked) == 7
