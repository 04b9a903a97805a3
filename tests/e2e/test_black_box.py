"""The main job as a user runs it, against a real server that misbehaves and with real files."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, answer_to, prompt, running
from tests.support.jobs import api_job, local_job, run, run_here, start, write_config, write_prompts

import easydistill
from easydistill.cli import main
from easydistill.errors import ConfigError, TeacherError

KEY = "sk-secret-abcdef-987654"


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def test_api_job_end_to_end(server: Running, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [
        *(f"question {n}" for n in range(40)),
        "question 3",
        prompt("heals", "server_error", 2),
        prompt("empty", "empty"),
        prompt("null", "null"),
        prompt("filtered", "filtered"),
        prompt("broken", "html"),
        prompt("too long", "bad_request"),
        prompt("thinks", "reasoning"),
        prompt("tells", "echo_key"),
        prompt("answers with it", "echo_key_in_answer"),
    ]
    job = api_job(
        tmp_path, server.base_url, tiny_model, prompts, api_key="${env:TEST_KEY}", stream="true", max_retries=2
    )
    # One answer has thoughts, and the student's template shows none.
    job["dataset"]["thoughts"] = "drop"
    config = write_config(tmp_path, job)
    code, out = run(config, "--set", f"inference.api_key={KEY}", TEST_KEY="sk-the-other-key-000")
    # 6 of 50 rows is more than the allowed twentieth.
    assert code == 3, out
    directory = tmp_path / "run"
    summary = read(directory / "summary.json")
    assert summary["rows"]["rejected_by_reason"] == {
        "empty_content": 1, "null_content": 1, "content_filter": 1, "garbage": 1, "http_400": 2
    }  # fmt: skip
    labelled = {row["instruction"]: row for row in read(tmp_path / "labeled.json")}
    assert labelled["question 7"]["output"] == answer_to("question 7")
    assert labelled[prompt("thinks", "reasoning")]["reasoning_content"] == "let me think"
    assert len(read(tmp_path / "labeled.json")) == 44
    rejected = [json.loads(line) for line in (directory / "stages/1-label/rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 6
    assert all(row["id"] and row["reason"] and row["attempts"] for row in rejected)
    assert server.stats()["paid"]["question 3"] == 1
    # Neither the key that was used nor the one that was overridden is anywhere.
    assert KEY not in out
    assert KEY.encode() not in everything_written(tmp_path / "run") + (tmp_path / "labeled.json").read_bytes()
    metrics = summary["metrics"]
    assert metrics["after"]["cross_entropy"] < metrics["before"]["cross_entropy"]
    assert metrics["after"]["kl"] is None
    assert metrics["notes"]["kl"] == "the teacher is not on this machine"
    assert all(stage["seconds"] > 0 for stage in summary["stages"].values())
    assert {"config.source.json", "config.resolved.json", "environment.json", "log.txt", "report.html"} <= {
        path.name for path in directory.iterdir()
    }

    # The student loads with plain transformers, the data with datasets.
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "student")
    model = AutoModelForCausalLM.from_pretrained(directory / "student")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_tensors="pt", return_dict=True)
    assert model.generate(**chat, max_new_tokens=3).shape[0] == 1
    assert "AutoModelForCausalLM" in (directory / "student/README.md").read_text()
    data = load_dataset(
        "parquet", data_files=str(directory / "stages/1-label/labeled.parquet"), cache_dir=str(tmp_path)
    )
    assert data["train"].num_rows == 44

    # A second run does nothing, quickly; another learning rate trains again and asks nobody anything.
    asked = server.stats()["attempts"]
    started = time.monotonic()
    code, out = run(config, "--set", f"inference.api_key={KEY}", TEST_KEY="x")
    assert (code, "everything is already done" in out) == (3, True)
    assert time.monotonic() - started < 3
    monkeypatch.setenv("TEST_KEY", "x")
    code, out = run_here(config, "--set", "training.learning_rate=1e-4", "--set", f"inference.api_key={KEY}")
    assert code == 3
    assert "train again: training.learning_rate changed" in out
    assert server.stats()["attempts"] == asked


def test_quota_keeps_what_is_there_and_the_same_command_goes_on(
    server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    prompts = [*(f"q {n}" for n in range(30)), prompt("poor", "quota", 1), *(f"r {n}" for n in range(10))]
    config = write_config(tmp_path, api_job(tmp_path, server.base_url, tiny_model, prompts, max_concurrency=2))
    code, out = run_here(config)
    assert code == 1
    assert "top up" in out
    assert "Traceback" not in out
    assert read(tmp_path / "run/summary.json")["status"] == "failed"
    assert "top up" in (tmp_path / "run/report.html").read_text()
    code, out = run_here(config)
    assert code == 0, out
    assert max(server.stats()["paid"].values()) == 1
    assert len(read(tmp_path / "labeled.json")) == 41


def test_ctrl_c_drains_and_says_how_to_go_on(tiny_model: Path, tmp_path: Path) -> None:
    with running(latency=0.2) as slow:
        prompts = [f"q {n}" for n in range(200)]
        config = write_config(tmp_path, api_job(tmp_path, slow.base_url, tiny_model, prompts, max_concurrency=4))
        process = start(config)
        journal = tmp_path / "run/stages/1-label/journal.jsonl"
        while not journal.exists() or not journal.stat().st_size:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 130, out
        assert f"easydistill run {config}" in out
        assert "Traceback" not in out
        paid = slow.stats()["paid"]
    assert len(journal.read_bytes().splitlines()) == len(paid)
    assert read(tmp_path / "run/summary.json")["status"] == "interrupted"


def test_a_password_in_the_url_is_nowhere_and_does_not_buy_again(
    server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    url = server.base_url.replace("http://", "http://user:{}@")
    job = api_job(
        tmp_path, url.format("hunter2-first"), tiny_model, [f"q {n}" for n in range(12)], system_prompt="be kind"
    )
    assert easydistill.run(job, quiet=True).fresh
    assert b"hunter2-first" not in everything_written(tmp_path / "run")
    job["inference"]["base_url"] = url.format("hunter2-second")
    assert not easydistill.run(job, quiet=True).fresh
    assert max(server.stats()["paid"].values()) == 1


def test_two_runs_at_once_do_not_mix(tiny_model: Path, tmp_path: Path) -> None:
    with running(latency=0.5) as slow:
        job = api_job(tmp_path, slow.base_url, tiny_model, [f"q {n}" for n in range(100)], max_concurrency=1)
        config = write_config(tmp_path, job)
        first = start(config)
        while not (tmp_path / "run/stages").exists():
            time.sleep(0.05)
        code, out = run_here(config)
        first.kill()
        first.communicate()
    assert code == 1
    assert "another easydistill process" in out


def test_local_job_from_python(tiny_model: Path, tmp_path: Path) -> None:
    prompts = [f"say {n}" for n in range(24)]
    result = easydistill.run(local_job(tmp_path, tiny_model, tiny_model, prompts), quiet=True)
    assert result.exit_code == 0
    assert result.student.is_dir()
    assert result.metrics["after"]["kl"] >= 0
    # Teacher and student are the same model before training.
    assert result.metrics["before"]["kl"] == pytest.approx(0, abs=1e-5)
    assert result.metrics["before"]["agreement"] == 1.0
    again = easydistill.run(local_job(tmp_path, tiny_model, tiny_model, prompts), quiet=True)
    assert not again.fresh
    assert [stage.state for stage in easydistill.plan(local_job(tmp_path, tiny_model, tiny_model, prompts))] == [
        "done"
    ] * 3


def test_train_only(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"count to {n}", "output": " ".join(map(str, range(n)))} for n in range(1, 30)]
    rows.append({"instruction": "no answer here"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    job = {
        "job_type": "kd_black_box_train_only",
        "dataset": {"labeled_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tiny_model)},
        "training": {"output_dir": str(tmp_path / "result"), "num_train_epochs": 1, "max_length": 64},
        "evaluation": {"max_new_tokens": 4},
    }
    result = easydistill.run(job, quiet=True)
    assert result.exit_code == 0
    assert result.run_directory == tmp_path / "result"
    assert result.summary["rows"]["rejected_by_reason"] == {"malformed_row": 1}
    assert list(result.summary["stages"]) == ["train", "evaluate"]


@pytest.mark.parametrize(
    "student",
    [
        {"from": "TINY", "keep_layers": 2},
        {"config": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "num_key_value_heads": 2}},
    ],
    ids=["pruned", "fresh"],
)  # fmt: skip
def test_made_students(student: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    job = local_job(tmp_path, tiny_model, tiny_model, [f"say {n}" for n in range(12)])
    job["models"]["student"] = json.loads(json.dumps(student).replace("TINY", str(tiny_model)))
    job["training"] = {**job["training"], "lora": {"r": 2}} if "from" in student else job["training"]
    result = easydistill.run(job, quiet=True)
    assert result.exit_code == 0
    assert result.metrics["after"]["kl"] is not None


def test_a_chat_that_the_template_refuses_is_a_rejected_row(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    picky = tmp_path / "picky"
    shutil.copytree(tiny_model, picky)
    template = (picky / "chat_template.jinja").read_text()
    refuse = "{% for m in messages %}{% if 'SECRET' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    (picky / "chat_template.jinja").write_text(refuse + template)
    prompts = [*(f"say {n}" for n in range(20)), "say SECRET"]
    for teacher, student in ((picky, tiny_model), (tiny_model, picky)):
        folder = tmp_path / f"{teacher.name}-{student.name}"
        folder.mkdir()
        result = easydistill.run(local_job(folder, teacher, student, prompts), quiet=True)
        assert result.exit_code == 0
        assert result.summary["rows"]["rejected_by_reason"] == {"template_refused": 1}


def test_missing_files_are_told_before_anything_starts(tmp_path: Path) -> None:
    job = {
        "job_type": "black_box_kd_local",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": "nowhere.json", "template": "nowhere.jinja"},
        "models": {"teacher": "./no-such-model", "student": "pkg://no_such_package/x.gguf"},
    }
    with pytest.raises(ConfigError) as caught:
        easydistill.run(job, quiet=True)
    text = str(caught.value)
    for part in ("instruction_path", "dataset.template", "models.teacher", "models.student", "pip install"):
        assert part in text
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_gone_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    job = api_job(tmp_path, "http://127.0.0.1:9/v1", tiny_model, ["a", "b"], max_retries=0)
    with pytest.raises(TeacherError, match=r"inference\.model"):
        easydistill.run(job, quiet=True)


def test_labels_of_the_user_are_not_overwritten(server: Running, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "labeled.json").write_text("[precious]")
    job = api_job(tmp_path, server.base_url, tiny_model, [f"q {n}" for n in range(12)])
    assert easydistill.run(job, quiet=True).exit_code == 0
    assert (tmp_path / "labeled.json.1.bak").read_text() == "[precious]"
    assert len(read(tmp_path / "labeled.json")) == 12


def test_report_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = local_job(tmp_path, tiny_model, tiny_model, [f"say {n}" for n in range(12)])
    easydistill.run(job, quiet=True)
    (tmp_path / "run/report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert (tmp_path / "run/report.html").is_file()
    assert main(["report", str(tmp_path)]) == 1
    assert "no run is here" in capsys.readouterr().err


def test_prompts_file_formats(server: Running, tiny_model: Path, tmp_path: Path) -> None:
    """A chat with history and a system message is sent whole."""
    chat = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"},
                         {"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}]}  # fmt: skip
    write_prompts(tmp_path, [])
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps(row) for row in [chat, *({"instruction": f"q{n}"} for n in range(9))])
    )
    job = api_job(tmp_path, server.base_url, tiny_model, ["x"], system_prompt="be kind", max_concurrency=1)
    job["dataset"]["instruction_path"] = str(tmp_path / "rows.jsonl")
    assert easydistill.run(job, quiet=True).exit_code == 0
    bodies = server.stats()["bodies"]
    assert bodies[0]["messages"] == chat["messages"]
    assert bodies[1]["messages"][0] == {"role": "system", "content": "be kind"}
