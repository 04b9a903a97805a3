"""Agent traces from end to end: calls and answers are labelled, scored, learned and reported; results are read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.example_server import server_of
from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill.data.files import read_jsonl
from easydistill.data.messages import call_text, is_learned
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/agent_traces"
TRAINING = {"training__num_train_epochs": 1, "training__per_device_train_batch_size": 8}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(the example's server's URL, the bodies that it is sent)."""
    module = server_of(EXAMPLE)
    bodies: list[dict[str, Any]] = []
    answer = module.message_for

    def recording(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        bodies.append({"messages": messages, "tools": tools})
        answered: dict[str, Any] = answer(messages, tools)
        return answered

    monkeypatch.setattr(module, "message_for", recording)
    server = module.serve(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
    server.shutdown()
    server.server_close()


def _run(name: str, folder: Path, **values: Any) -> None:
    """Run an example in a folder, with other values (`models__student` for `models.student`)."""
    given = {"output_dir": folder / "run", **TRAINING, **values}
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    easydistill.run(EXAMPLE / name, overrides, quiet=True)


def test_the_teacher_s_calls_and_answers_are_learned(
    tmp_path: Path, tiny_model: Path, served: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = served
    monkeypatch.chdir(ROOT)
    _run(
        "kd.json",
        tmp_path,
        dataset__labeled_path=tmp_path / "labeled.json",
        inference__base_url=url,
        models__student=tiny_model,
    )

    # What was asked: whole chats with their tools, calls and results spelled as OpenAI does.
    reading = next(body for body in bodies if body["messages"][-1]["role"] == "tool")
    *_, called, result = reading["messages"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {
        "animal": json.loads(result["content"])["animal"]
    }
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    assert reading["tools"][0]["function"]["name"] == "count_legs"

    # What became of it: calls are calls, thoughts are apart, and both files hold the same chats.
    rows, rejected = read_samples(tmp_path / "labeled.json", labelled=True)
    assert not rejected and len(rows) == 26
    answers = {row.id: row.messages[-1] for row in rows}
    spider = answers["ask-spider"]
    assert [call_text(call) for call in spider["tool_calls"]] == ['count_legs({"animal": "spider"})']
    assert spider["content"] == "" and "spider" in spider["reasoning_content"]
    assert answers["read-spider"]["content"] == "The spider has 8 legs."
    again, _ = read_samples(tmp_path / "run/stages/1-label/labeled.parquet", labelled=True)
    assert [(row.messages, row.tools) for row in again] == [(row.messages, row.tools) for row in rows]

    # What is shown: calls as calls.
    shown = list(read_jsonl(tmp_path / "run/stages/3-evaluate/answers.jsonl"))
    teachers = {row["id"]: row["teacher"] for row in shown}
    assert all(
        text == call_text(answers[name]["tool_calls"][0]) for name, text in teachers.items() if name.startswith("ask")
    )
    assert (tmp_path / "run/report.html").is_file()


def test_signals_cover_the_learned_tokens_and_nothing_else(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from easydistill.data.chat import ChatRenderer
    from easydistill.signals.store import SignalStore

    monkeypatch.chdir(ROOT)
    _run(
        "white_box.json",
        tmp_path,
        models__teacher=tiny_model,
        models__student=tiny_model,
        evaluation__enabled="false",
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template = (EXAMPLE / "chat.jinja").read_text(encoding="utf-8")
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}), template)
    store = SignalStore(tmp_path / "run/stages/1-score/signals")
    rows, _ = read_samples(EXAMPLE / "traces.jsonl", labelled=True)
    learned = 0
    for row in rows:
        rendered = renderer.render(row)
        text = tokenizer.decode([token for token, on in zip(rendered.ids, rendered.mask, strict=True) if on])
        # Every call and answer of the assistant's, with its end; no word of a user or a tool.
        said = [message for message in row.messages if is_learned(message)]
        assert text.count("<|im_end|>") == len(said)
        assert text.count("<tool_call>") == sum(len(message.get("tool_calls", ())) for message in said)
        assert said[-1]["content"] in text and "tool_response" not in text and row.messages[0]["content"] not in text
        learned += sum(rendered.mask)
    assert store.manifest.tokens == learned


def test_answers_that_were_cut_off_teach_no_end(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from easydistill.data.chat import ChatRenderer
    from easydistill.data.records import Sample
    from easydistill.methods.shared.rows import render_all

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}))
    chat = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because the"})
    whole, cut = Sample("a", chat, {}), Sample("b", chat, {"finish_reason": "length"})  # type: ignore[arg-type]
    ((_, first), (_, second)), _ = render_all(renderer, [whole, cut], 200, "train")
    last = max(t for t, on in enumerate(first.mask) if on)
    assert first.ids[last] == tokenizer.eos_token_id
    assert (second.ids, second.mask) == (first.ids[:last], first.mask[:last])
    ((_, same),), _ = render_all(renderer, [cut], last, "train")
    assert same.ids == second.ids


def test_cut_answers_are_counted_wherever_people_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = ScriptedServer()
    server.say = lambda text, number: f"An answer to {text}"
    server.finish = lambda number: "length" if number % 2 else "stop"
    rows = [{"instruction": f"Question {number}?"} for number in range(6)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    job = {
        "job_type": "label",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(tmp_path / "prompts.json")},
        "inference": {"base_url": server.url, "model": "m", "max_concurrency": 1},
    }
    try:
        easydistill.run(job)
    finally:
        server.close()
    assert "3 of 6 answers were cut off at inference.max_new_tokens" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stages"]["label"]["metrics"]["cut_answers"] == 3
    labelled, _ = read_samples(tmp_path / "run/stages/1-label/labeled.parquet", labelled=True)
    assert [row.meta.get("finish_reason") for row in labelled].count("length") == 3
    assert all("finish_reason" not in row.meta or row.meta["finish_reason"] == "length" for row in labelled)
    assert "3 answers were cut off" in (tmp_path / "run/report.md").read_text()
    (planned,) = easydistill.plan({**job, "dataset": {**job["dataset"], "max_samples": 5}})
    # All three are among the first five rows, which were asked in order.
    assert planned.estimate.cut_answers == 3
    # Rejecting them asks for nothing again.
    easydistill.run(
        {
            **job,
            "inference": {**job["inference"], "truncation": "reject"},
            "dataset": {**job["dataset"], "max_rejected_share": 1.0},
        },
        quiet=True,
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stages"]["label"]["rows"]["rejected"] == {"truncated": 3} and len(server.asked) == 6
    assert "cut_answers" not in summary["stages"]["label"]["metrics"]


def test_thoughts_of_labels_that_the_template_drops_wait_for_a_decision(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels are paid: they are kept, and the run goes on from them once it is decided."""
    server = ScriptedServer()
    server.say = lambda text, number: f"<think>\nI thought of it.\n</think>\n\nAn answer to {text}"
    rows = [{"instruction": f"Question {number}?"} for number in range(4)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    config: dict[str, Any] = {
        "job_type": "black_box_kd_api",
        "dataset": {
            "instruction_path": str(tmp_path / "prompts.json"),
            "labeled_path": str(tmp_path / "labels.json"),
        },
        "inference": {"base_url": server.url, "model": "m"},
        "models": {"student": str(tiny_model)},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
        "evaluation": {"enabled": False},
    }
    told = [note for stage in easydistill.plan(config) for note in stage.notes]
    assert any("the student's chat template shows no thoughts" in note and "dataset.thoughts" in note for note in told)
    try:
        with pytest.raises(ConfigError, match="thoughts of 4 of 4 rows") as refused:
            easydistill.run(config)
        (issue,) = refused.value.issues
        assert issue.path == "dataset.thoughts" and "the answers are kept" in issue.hint
        assert "Training" not in capsys.readouterr().err
        assert len(server.asked) == 4
        for how in ("inline", "drop"):
            decided = config | {"dataset": {**config["dataset"], "thoughts": how}}
            assert [stage.state for stage in easydistill.plan(decided)] == ["done", "pending"]
            assert not any("thoughts" in note for stage in easydistill.plan(decided) for note in stage.notes)
            assert easydistill.run(decided, quiet=True).student.is_dir()
        assert len(server.asked) == 4
    finally:
        server.close()


def test_a_teacher_that_does_not_think_needs_no_decision(tmp_path: Path, tiny_model: Path) -> None:
    server = ScriptedServer()
    server.say = lambda text, number: f"An answer to {text}"
    (tmp_path / "prompts.json").write_text(json.dumps([{"instruction": f"Question {n}?"} for n in range(4)]))
    try:
        config = {
            "job_type": "black_box_kd_api",
            "dataset": {"instruction_path": str(tmp_path / "prompts.json")},
            "inference": {"base_url": server.url, "model": "m"},
            "models": {"student": str(tiny_model)},
            "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
            "evaluation": {"enabled": False},
        }
        assert easydistill.run(config, quiet=True).student.is_dir()
    finally:
        server.close()
