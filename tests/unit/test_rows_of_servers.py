"""Rows as servers and their fine-tuning formats spell them, and fields beside a chat that change what it means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from easydistill.data.reading import Reading, chats_of, read_rows
from easydistill.data.row_files import MalformedRow

ASK = {"role": "user", "content": "How many legs?"}
ANSWER = {"role": "assistant", "content": "Eight."}
COUNT = {"name": "count", "parameters": {"type": "object", "properties": {"animal": {"type": "string"}}}}


def chat(row: dict[str, Any]) -> Any:
    (only,) = chats_of(row, labelled=True)
    return only


def read(tmp_path: Path, *rows: dict[str, Any]) -> Reading:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return read_rows(path, labelled=True)


def test_gemini_calls_results_and_thoughts() -> None:
    contents = [
        {"role": "user", "parts": [{"text": "How many legs?"}]},
        {
            "role": "model",
            "parts": [
                {"text": "Let me count.", "thought": True},
                {"functionCall": {"name": "count", "args": {"animal": "spider"}}},
            ],
        },
        {"role": "user", "parts": [{"functionResponse": {"name": "count", "response": {"legs": 8}}}]},
        {"role": "model", "parts": [{"text": "Eight."}]},
    ]
    row = {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": contents,
        "tools": [{"functionDeclarations": [COUNT]}],
    }
    found = chat(row)
    assert found.messages == [
        {"role": "system", "content": "Be brief."},
        ASK,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Let me count.",
            "tool_calls": [{"name": "count", "arguments": {"animal": "spider"}}],
        },
        {"role": "tool", "content": '{"legs": 8}', "name": "count"},
        ANSWER,
    ]
    assert found.tools == ({"type": "function", "function": COUNT},)


def test_an_image_in_gemini_parts_is_read() -> None:
    parts = [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}, {"text": "What is it?"}]
    row = {"contents": [{"role": "user", "parts": parts}, {"role": "model", "parts": [{"text": "A spider."}]}]}
    held = [{"type": "image", "image": {"bytes": "AA=="}}, {"type": "text", "text": "What is it?"}]
    assert chat(row).messages[0]["content"] == held


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"inlineData": {"mimeType": "audio/wav", "data": "AA=="}}, "audio_not_supported"),
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b"}}, "video_not_supported"),
        ({"fileData": {"mimeType": "application/pdf", "fileUri": "gs://a/b"}}, "file_not_supported"),
    ],
)
def test_another_file_in_gemini_parts_is_refused(part: dict[str, Any], reason: str) -> None:
    row = {"contents": [{"role": "user", "parts": [part, {"text": "What is it?"}]}]}
    with pytest.raises(MalformedRow, match="not read") as refused:
        chat(row)
    assert refused.value.reason == reason


@pytest.mark.parametrize("name", ["input_schema", "inputSchema"])
def test_a_tools_schema_has_one_name(name: str) -> None:
    row = {"messages": [ASK, ANSWER], "tools": [{"name": "count", name: COUNT["parameters"]}]}
    assert chat(row).tools == ({"type": "function", "function": COUNT},)


def test_system_texts_in_parts() -> None:
    row = {"system": [{"type": "text", "text": "Be brief."}], "messages": [ASK, ANSWER]}
    assert chat(row).messages == [{"role": "system", "content": "Be brief."}, ASK, ANSWER]


def test_texts_that_take_turns() -> None:
    row = {"conversations": ["How many legs?", "Eight."], "source": "x"}
    assert chat(row).messages == [ASK, ANSWER]


def test_a_turn_that_is_not_trained_on() -> None:
    wrong = {"from": "gpt", "value": "Six.", "train_on_turn": False}
    turns = [{"from": "human", "value": "How many legs?"}, wrong, {"from": "human", "value": "Sure?"}]
    found = chat({"conversations": [*turns, {"from": "gpt", "value": "Eight.", "train_on_turn": True}]})
    assert [message.get("weight") for message in found.messages] == [None, 0, None, None]


@pytest.mark.parametrize("name", ["mask", "training_detail", "eot"])
def test_other_marks_of_a_turn_are_told(tmp_path: Path, name: str) -> None:
    reading = read(tmp_path, {"messages": [ASK, {**ANSWER, name: False}]})
    assert [line for line in reading.notices if f"`{name} of a turn`" in line]


def test_a_message_of_another_channel_is_refused() -> None:
    thought = {"role": "assistant", "content": "Spiders have eight.", "channel": "analysis"}
    with pytest.raises(MalformedRow, match=r"channel 'analysis'.*reasoning_content"):
        chat({"messages": [ASK, thought, {**ANSWER, "channel": "final"}]})
    assert chat({"messages": [ASK, {**ANSWER, "channel": "final"}]}).messages == [ASK, ANSWER]


def test_steps_of_a_chain_are_not_answers() -> None:
    row = {"question": "How many legs?", "reasoning": ["Arachnids.", "So eight."], "answer": "8"}
    with pytest.raises(MalformedRow, match=r"`reasoning` is a list of texts.*join the steps"):
        chat(row)


@pytest.mark.parametrize("name", ["developer", "starter_code", "examples", "instructions"])
def test_texts_beside_a_chat_are_told(tmp_path: Path, name: str) -> None:
    reading = read(tmp_path, {"messages": [ASK, ANSWER], name: "Answer in French."})
    assert [line for line in reading.notices if f"`{name}`" in line]


@pytest.mark.parametrize("name", ["is_safe", "resolved", "solution_is_valid", "is_correct"])
def test_a_bad_mark_on_an_answer_is_told(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "How many legs?", "response": f"{number}", name: number == 8} for number in (6, 8, 9)]
    assert [line for line in read(tmp_path, *rows).notices if f"`{name}: false`" in line and "2 of 3" in line]


def test_an_object_in_the_place_of_a_text_names_its_part() -> None:
    row = {"question": {"full_text": "How many legs?"}, "answer": "8"}
    with pytest.raises(MalformedRow, match=re.escape('dataset.columns: {"prompt": "question.full_text"}')):
        chat(row)


@pytest.mark.parametrize(
    "turns",
    [
        [
            {"input": "How many legs?", "output": "Six.", "output_with_loss": False},
            {"input": "Sure?", "output": "Eight."},
        ],
        [
            ASK,
            {"role": "assistant", "content": "Six.", "loss_scale": 0.0},
            {"role": "user", "content": "Sure?"},
            ANSWER,
        ],
    ],
    ids=["XTuner", "ms-swift"],
)
def test_turns_without_loss(turns: list[dict[str, Any]]) -> None:
    assert [message.get("weight") for message in chat({"conversation": turns}).messages] == [None, 0, None, None]


def test_calls_under_the_role_of_functions() -> None:
    calling = {"role": "function", "content": '{"name": "count", "arguments": {"animal": "spider"}}'}
    (_, made, *_) = chat({"messages": [ASK, calling, {"role": "tool", "content": "8"}, ANSWER]}).messages
    assert made == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "count", "arguments": {"animal": "spider"}}],
    }
    # A result, as OpenAI's older protocol has it, names the function.
    (_, result, _) = chat({"messages": [ASK, {**calling, "name": "find"}, ANSWER]}).messages
    assert result["role"] == "tool"


def test_thoughts_in_parts() -> None:
    thinking = {**ANSWER, "reasoning_content": [{"text": "Spiders "}, {"text": "are arachnids."}]}
    assert chat({"messages": [ASK, thinking]}).messages[-1]["reasoning_content"] == "Spiders are arachnids."


@pytest.mark.parametrize("name", ["reasoning_content", "tool_calls"])
def test_what_only_the_assistant_has_is_told_elsewhere(tmp_path: Path, name: str) -> None:
    reading = read(tmp_path, {"messages": [{**ASK, name: ["x"]}, ANSWER]})
    assert [line for line in reading.notices if f"`{name} of a user turn`" in line]


def test_another_answer_is_told(tmp_path: Path) -> None:
    reading = read(tmp_path, {"question": "How many legs?", "solution": "Eight.", "r1_generation": "Surely eight."})
    assert [line for line in reading.notices if "`r1_generation`" in line]


def test_a_placeholder_without_its_image_is_told(tmp_path: Path) -> None:
    reading = read(tmp_path, {"messages": [{"role": "user", "content": "<image>\nWhat is it?"}, ANSWER]})
    assert [line for line in reading.notices if "`<image> in a text`" in line]


def test_a_row_that_is_a_list_of_messages() -> None:
    (only,) = chats_of([ASK, ANSWER], labelled=True)
    assert only.messages == [ASK, ANSWER]
    with pytest.raises(MalformedRow, match=re.escape("belongs in a .json file")):
        chats_of([{"instruction": "a", "output": "b"}], labelled=True)


def test_calls_survive_pandas(tmp_path: Path) -> None:
    """pandas keeps no Arrow types of its own: lists of JSON become lists of texts."""
    import pandas as pd

    from easydistill.data.preferences import Preference, read_pairs
    from easydistill.data.records import Sample
    from easydistill.data.writing import write_pairs_parquet, write_parquet

    call: Any = {"name": "count", "arguments": {"animal": "spider"}}
    calling: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked: Any = ASK
    path = tmp_path / "rows.parquet"
    samples = [
        Sample("a", (asked, calling), tools=({"type": "function", "function": COUNT},)),
        Sample("b", (asked, ANSWER), template_kwargs={"enable_thinking": False}),  # type: ignore[arg-type]
    ]
    write_parquet(path, samples)
    pd.read_parquet(path).to_parquet(path)
    found = read_rows(path, labelled=True).samples
    assert [(one.messages, one.tools, one.template_kwargs) for one in found] == [
        (one.messages, one.tools, one.template_kwargs) for one in samples
    ]
    pair = Preference("a", (asked,), (calling,), (ANSWER,))  # type: ignore[arg-type]
    write_pairs_parquet(path, [pair])
    pd.read_parquet(path).to_parquet(path)
    (read_again,) = read_pairs(path).pairs
    assert (read_again.prompt, read_again.chosen, read_again.rejected) == (pair.prompt, pair.chosen, pair.rejected)
