"""Reading rows: what is not read is told, named columns, ids of several answers, rows that are written and read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.test_cases import CASES, images_beside, written

from easydistill.config.dataset import ColumnsConfig, DatasetConfig, PairColumnsConfig, PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import Message
from easydistill.data.preferences import read_pairs
from easydistill.data.reading import Reading, read_rows, read_samples
from easydistill.data.reading.columns import KNOWN_AS
from easydistill.data.reading.keys import CHAT_KEYS
from easydistill.data.records import Sample
from easydistill.data.writing import paper_row, paths_beside, write_parquet
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import PairRows
from easydistill.methods.shared.rows import LabelledRows, PromptRows

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def read(folder: Path, *rows: Any, labelled: bool | None = True, **options: Any) -> Reading:
    return read_rows(written(folder, list(rows), "jsonl"), labelled=labelled, **options)


# --- what is not read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": CHAT, "context": "Greetings."}, "context"),
        ({"messages": CHAT, "systemic_prompt": "Be short."}, "systemic_prompt"),
        ({"instruction": "hi", "question": "how are you?", "output": "ho"}, "question"),
        ({"instruction": "hi", "output": "ho", "label": 0}, "label"),
        ({"instruction": "hi", "output": "ho", "weight": 0.5}, "weight"),
        ({"question": "hi", "choices": ["ho", "hu"], "answer": "ho"}, "choices"),
        ({"messages": CHAT, "enable_thinking": False}, "enable_thinking"),
        ({"messages": CHAT, "xml_tools": "[]x"}, "xml_tools"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]}, "weight"),
        ({"messages": [{**CHAT[0], "weight": 1}, CHAT[1]]}, "weight of a user turn"),
        ({"messages": [CHAT[0], {**CHAT[1], "reasoning": {"summary": 3}}]}, "reasoning"),
    ],
)
def test_a_field_that_is_not_read_is_named_once_with_its_rows(row: dict[str, Any], field: str, tmp_path: Path) -> None:
    found = read(tmp_path, row, {"messages": CHAT}, row)
    assert len(found.samples) == 3
    assert len(found.notices) == 1
    assert f"`{field}` is not read (in 2 of 3 rows)" in found.notices[0] and "dataset.columns" in found.notices[0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT, "source": "x", "category": "y", "id": "1"},
        {"messages": CHAT, "prompt": "hi", "prompt_id": "1"},
        {"instruction": "hi", "response": "ho", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"instruction": "hi", "output": "ho", "input": "", "system": None, "tools": "[]", "label": True},
        {"messages": CHAT, "reasoning": "off", "weight": 1},
        {"question": "hi", "solution": "ho", "answer": "1"},
        {"instruction": "hi", "context": "there", "output": "ho"},
    ],
)  # fmt: skip
def test_what_says_nothing_more_is_not_named(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, row).notices == []


def test_answers_that_are_marked_as_incorrect_are_told(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "generations": ["2", "3"], "correctness_math_verify": [True, False]}
    found = read(tmp_path, row)
    assert [sample.meta["correct"] for sample in found.samples] == [1, 0]
    assert "cot_selection" in found.notices[0]


def test_a_solution_alone_is_an_answer_only_where_one_is_needed(tmp_path: Path) -> None:
    """Problems with known answers, which chains of thought are made for, may hold them so."""
    row = {"problem": "1+1?", "solution": "2"}
    read_as = {labelled: read(tmp_path, row, labelled=labelled).samples[0] for labelled in (True, None, False)}
    assert {labelled: sample.answer for labelled, sample in read_as.items()} == {True: "2", None: None, False: None}
    assert all(sample.meta["solution"] == "2" for sample in read_as.values())
    (chain,) = read(tmp_path, {**row, "solution": "It is 2.", "answer": "2"}, labelled=None).samples
    assert (chain.answer, chain.meta["final_answer"]) == ("It is 2.", "2")


def test_an_empty_list_that_parquet_filled_in_hides_no_other_shape(tmp_path: Path) -> None:
    found = read(tmp_path, {"instruction": "hi", "output": "ho", "messages": []})
    assert found.samples[0].answer == "ho"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"tools": [{"name": "f", "description": "\ud800"}]}, "surrogate"),
        ({"tools": [{"name": "f", "parameters": {"x": float("nan")}}]}, "not JSON"),
        ({"chat_template_kwargs": {"x": "\udfff"}}, "surrogate"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": float("inf")}}]}]}, "not JSON"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": "\\ud800"}'}]}]}, "surrogate"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": NaN}'}]}]}, "not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_again_is_refused(part: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": CHAT}, {"messages": CHAT, **part})
    assert len(found.samples) == 1 and words in found.rejected[0].detail


# --- several answers --------------------------------------------------------------------------------------


def test_several_answers_have_readable_ids_that_do_not_depend_on_other_rows(tmp_path: Path) -> None:
    row = {"instruction": "hi", "output": ["ho", "hu"]}
    own = read(tmp_path, {**row, "id": "a"}, {"instruction": "x", "output": "y", "id": "a-1"}).samples
    assert [sample.id for sample in own] == ["a-1", "a-2", "a-1-2"]
    hashed = [sample.id for sample in read(tmp_path, row).samples]
    later = [sample.id for sample in read(tmp_path, {"instruction": "x", "output": "y"}, row).samples]
    assert later[1:] == hashed and len(set(later)) == 3
    (prompt,) = read(tmp_path, {**row, "id": "a"}, labelled=False).samples
    assert prompt.id == "a" and [message["content"] for message in prompt.messages] == ["hi"]


# --- named columns ----------------------------------------------------------------------------------------


def test_every_option_is_read_and_everything_read_is_an_option() -> None:
    assert set(PairColumnsConfig.model_fields) == set(KNOWN_AS)
    assert set(ColumnsConfig.model_fields) == set(KNOWN_AS) - {"chosen", "rejected"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "a", "messages": "b"}, "both prompt and messages"),
        ({"prompt": "a", "answer": "a"}, "name the same column"),
        ({"prompt": " "}, "pattern"),
        ({"question": "a"}, "not permitted"),
    ],
)
def test_columns_that_are_not_clear(values: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ColumnsConfig(**values)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        {"Messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]'},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"instruction": "Hi", "output": "Hello."},
        {"Instruction": "Hi", "Output": "Hello."},
        {"data": ["Hi", "Hello."]},
    ],
)
def test_a_rendered_text_beside_a_chat_does_not_take_its_place(row: dict[str, Any], tmp_path: Path) -> None:
    """As files have it that were prepared for other trainers; ids would change, and teachers be asked again."""
    text = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nOther.<|im_end|>\n"
    found = {}
    for name, each in {"plain": row, "rendered": {**row, "text": text}}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(each) + "\n")
        (found[name],) = read_rows(path, labelled=True).samples
    assert found["rendered"].messages == found["plain"].messages
    assert found["rendered"].messages[-1]["content"] == "Hello."
    assert found["rendered"].id == found["plain"].id


def test_named_columns_take_the_place_of_known_ones(tmp_path: Path) -> None:
    row = {
        "q": "Which?",
        "instruction": "not this",
        "gold": "A",
        "output": "not this",
        "context": "nor this",
        "task": "t",
    }
    found = read(tmp_path, row, columns={"prompt": "q", "answer": "gold"})
    assert [message["content"] for message in found.samples[0].messages] == ["Which?", "A"]
    assert found.samples[0].meta["task"] == "t"
    # What is passed over is told.
    assert {notice.split("`")[1] for notice in found.notices} == {"instruction", "output", "context"}


def test_columns_with_everything(tmp_path: Path) -> None:
    row = {
        "s": "Be short.", "h": [["a", "b"]], "q": "Which?", "c": "These.", "i": "Now.", "t": "Hm.", "r": "A", "f": 7,
        "x": [{"name": "look", "parameters": {}}], "k": {"enable_thinking": False},
    }  # fmt: skip
    columns = ColumnsConfig(
        system="s", history="h", prompt="q", context="c", input="i", thoughts="t", answer="r", final_answer="f",
        tools="x", template_kwargs="k",
    )  # fmt: skip
    (sample,) = read(tmp_path, row, columns=columns.names()).samples
    assert [message["content"] for message in sample.messages] == [
        "Be short.",
        "a",
        "b",
        "Which?\n\nThese.\n\nNow.",
        "A",
    ]
    assert sample.messages[-1]["reasoning_content"] == "Hm." and sample.meta["final_answer"] == 7
    assert sample.tools[0]["function"]["name"] == "look" and sample.template_kwargs == {"enable_thinking": False}


def test_a_column_that_no_row_has_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row has the column 'antwort'.*\n.*the columns are frage, x"):
        read(tmp_path, {"frage": "a", "x": "b"}, labelled=False, columns={"prompt": "frage", "answer": "antwort"})


def test_a_row_without_the_named_prompt_is_refused(tmp_path: Path) -> None:
    found = read(tmp_path, {"q": "a", "r": "b"}, {"r": "b"}, columns={"prompt": "q", "answer": "r"})
    assert len(found.samples) == 1 and "no column 'q'" in found.rejected[0].detail


def test_an_unknown_shape_names_its_fields_and_the_way_to_name_them(tmp_path: Path) -> None:
    found = read(tmp_path, {"frage": "a", "antwort": "b"}, {"instruction": "x", "output": "y"})
    assert "it has: frage, antwort" in found.rejected[0].detail
    assert 'dataset.columns: {"prompt": …, "answer": …}' in found.rejected[0].detail
    with pytest.raises(DataError, match=r"dataset\.columns"):
        read_pairs(written(tmp_path, [{"a": "b", "c": "d"}], "json"))


def test_named_columns_run_stages_again_and_their_absence_does_not(tmp_path: Path) -> None:
    path = str(written(tmp_path, [{"instruction": "x", "output": "y"}], "json"))
    plain = DatasetConfig(labeled_path=path, instruction_path=path)
    named = plain.model_copy(update={"columns": ColumnsConfig(prompt="instruction")})
    heldout = HeldoutConfig()
    for kind in (LabelledRows, PromptRows):
        prints = [kind(dataset, heldout, False).fingerprint() for dataset in (plain, named)]
        assert "columns" not in prints[0] and prints[1] == {**prints[0], "columns": {"prompt": "instruction"}}
    pairs = PairsConfig(labeled_path=path)
    later = pairs.model_copy(update={"columns": PairColumnsConfig(chosen="output")})
    assert "columns" not in PairRows(pairs, heldout).fingerprint()
    assert PairRows(later, heldout).fingerprint()["columns"] == {"chosen": "output"}
    assert "columns" not in plain.identity()


# --- written and read again -------------------------------------------------------------------------------


def text_cases() -> list[Any]:
    """The cases whose chats are plain text and thoughts."""
    found = []
    for line in (CASES / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        chats = case["expect"] if isinstance(case["expect"], list) else []
        plain = [
            set(message) <= {"role", "content", "reasoning_content"} for chat in chats for message in chat["messages"]
        ]
        if chats and all(plain) and not any("tools" in chat or "template_kwargs" in chat for chat in chats):
            found.append(pytest.param(case, id=case["name"]))
    return found


@pytest.mark.parametrize("case", text_cases())
def test_a_row_that_is_written_is_read_as_the_same_chat(case: dict[str, Any], tmp_path: Path) -> None:
    """No field that is kept beside a chat is taken for a part of it later."""
    path = written(tmp_path, case["rows"], case["container"])
    images_beside(path, case)
    store = ImageStore(tmp_path / "images")
    images = ImageReader(store)
    labelled = read_rows(path, labelled=True, columns=case.get("columns"), images=images).samples
    prompts = read_rows(path, labelled=False, columns=case.get("columns"), images=images).samples
    answer: Message = {"role": "assistant", "content": "A new answer."}
    answered = [replace(prompt, messages=(*prompt.messages, answer)) for prompt in prompts]
    for samples in (labelled, answered):
        write_parquet(tmp_path / "again.parquet", samples, store)
        paths = paths_beside(tmp_path / "again.json", store)
        (tmp_path / "again.json").write_text(json.dumps([paper_row(sample, paths) for sample in samples]))
        for name in ("again.parquet", "again.json"):
            again, rejected = read_samples(tmp_path / name, labelled=True, images=images)
            assert not rejected
            assert [(row.id, row.messages) for row in again] == [(row.id, row.messages) for row in samples]


ODD = st.sampled_from(
    [
        '[{"role": "user", "content": "x"}]', '{"from": "Berlin", "to": "Paris"}', "\n\nHuman: a\n\nAssistant: b", "no",
        "0", " high ", "<think>a</think>b", "<image>", "[]", "null", '{"name": "f", "arguments": {}}', "#### 4",
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=ODD, answer=ODD, thoughts=st.none() | ODD)
def test_texts_that_look_like_something_else_stay_texts(
    prompt: str, answer: str, thoughts: str | None, tmp_path: Path
) -> None:
    last: Message = {"role": "assistant", "content": answer}
    if thoughts is not None:
        last["reasoning_content"] = thoughts
    sample = Sample("1", ({"role": "user", "content": prompt}, last))
    write_parquet(tmp_path / "a.parquet", [sample])
    (tmp_path / "a.json").write_text(json.dumps([paper_row(sample)]))
    for name in ("a.parquet", "a.json"):
        (found,), _ = read_samples(tmp_path / name, labelled=True)
        assert found.messages == sample.messages


KEYS = sorted(
    {
        *CHAT_KEYS, "role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "reasoning",
        "generations", "r1_solution_1", "r1_solution_2", "thinking_trajectories", "attempt", "chosen", "rejected",
        "label", "weight", "images", "data", "conversation", "response_1", "response_2", "preference_strength", "winner",
        "completions", "score", "rating", "instances", "metadata", "answers", "context", "solution", "reward_model",
    }
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["", "x", "user", "assistant", "human", "gpt", "tool", "function_call", "[]", "{}", "[{", '{"a": 1}', "0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), labelled=st.none() | st.booleans())
def test_no_row_breaks_the_readers(row: Any, labelled: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "hi", "output": "ho"}) + "\n" + json.dumps(row) + "\n")
    found = read_rows(path, labelled=labelled)
    assert len(found.samples) + len(found.rejected) >= 2
    for sample in found.samples:
        json.dumps([sample.messages, sample.tools, sample.template_kwargs], ensure_ascii=False).encode()
        assert labelled is not True or sample.messages[-1]["role"] == "assistant"
    path.write_text(json.dumps({"prompt": "hi", "chosen": "ho", "rejected": "hu"}) + "\n" + json.dumps(row) + "\n")
    pairs = read_pairs(path)
    assert len(pairs.pairs) + len(pairs.rejected) == 2
