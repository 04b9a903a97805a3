"""Texts in structured replies."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.verification.fields import (
    Form,
    MalformedReply,
    TextField,
    describe_fields,
    fields_schema,
    parse_fields,
)

PAIR = [TextField("instruction", "a new task"), TextField("output")]
ONE = [TextField("instruction")]


@pytest.mark.parametrize(
    ("reply", "form"),
    [
        ("Sure!\n<instruction>\nAdd 1 < 2\n</instruction>\n<output> 3 </output> bye", "tags"),
        ("<output>3</output><instruction>Add 1 < 2</instruction><output> 3</output>", "tags"),
        ('{"output": "3", "instruction": " Add 1 < 2", "n": 1}', "json"),
        ('Sure:\n```json\n{"instruction": "Add 1 < 2", "output": "3"}\n```\nDone.', "json"),
    ],
)
def test_fields_are_read(reply: str, form: Form) -> None:
    assert parse_fields(reply, PAIR, form) == {"instruction": "Add 1 < 2", "output": "3"}


def test_a_plain_reply_is_the_field() -> None:
    assert parse_fields("\n<b>Write</b> a poem. ", ONE, "plain") == {"instruction": "<b>Write</b> a poem."}
    with pytest.raises(ValueError, match="exactly one field"):
        parse_fields("x", PAIR, "plain")


@pytest.mark.parametrize(
    ("reply", "form", "reason"),
    [
        ("", "plain", "empty"),
        (" \u200b\n", "plain", "empty"),
        ("half \ud83d", "plain", "half_character"),
        ("a", "tags", "missing"),
        ("<instruction> </instruction>", "tags", "empty"),
        ("<instruction>a", "tags", "unclosed"),
        ("a</instruction>", "tags", "unclosed"),
        ("<instruction>a</instruction", "tags", "unclosed"),
        ("<instruction>a<instruction>b</instruction>", "tags", "unclosed"),
        ("<instruction>a</instruction><instruction>b</instruction>", "tags", "contradictory"),
        ("<Instruction>a</Instruction>", "tags", "missing"),
        ('{"instruction": ""}', "json", "empty"),
        ('{"instruction": 5}', "json", "wrong_type"),
        ('{"instruction": null}', "json", "wrong_type"),
        ('{"instruction": ["a"]}', "json", "wrong_type"),
        ('{"other": "a"}', "json", "missing"),
        ('{"instruction": "a", "instruction": "b"}', "json", "contradictory"),
        ('{"instruction": "a \\ud83d"}', "json", "half_character"),
        ('"a"', "json", "not_json"),
        ('{"instruction": "a"', "json", "not_json"),
        ('```json\n{"instruction": "a"}', "json", "unclosed"),
        ('```json\n{"instruction": "a"}\n```\n```json\n{"instruction": "b"}\n```', "json", "contradictory"),
    ],
)
def test_anything_else_is_malformed_and_says_why(reply: str, form: Form, reason: str) -> None:
    result = parse_fields(reply, ONE, form)
    assert isinstance(result, MalformedReply)
    assert result.reason == reason
    assert result.detail


def test_fields_do_not_overlap() -> None:
    for reply in (
        "<instruction>a <output>b</output></instruction>",
        "<instruction>a <output>b</instruction> c</output>",
    ):
        result = parse_fields(reply, PAIR)
        assert isinstance(result, MalformedReply) and result.reason == "nested"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: any(char.isprintable() and not char.isspace() for char in text)
)


@given(texts, texts)
def test_what_is_written_is_read(instruction: str, output: str) -> None:
    wanted = {"instruction": instruction.strip(), "output": output.strip()}
    tags = f"<instruction>{instruction}</instruction>\n<output>{output}</output>"
    assert parse_fields(tags, PAIR) == wanted
    assert parse_fields(json.dumps(wanted), PAIR, "json") == wanted
    assert parse_fields(f"Here:\n```json\n{json.dumps(wanted, indent=1)}\n```", PAIR, "json") == wanted


@given(st.lists(st.sampled_from(["<output>", "</output>", "<instruction>", "</instruction>", "a", " "]), max_size=12))
def test_what_is_read_is_there_whole(parts: list[str]) -> None:
    result = parse_fields("".join(parts), PAIR)
    if not isinstance(result, MalformedReply):
        for name, text in result.items():
            assert text and "<" not in text
            assert f"<{name}>" in "".join(parts) and f"</{name}>" in "".join(parts)


def test_the_form_is_described_in_both_languages() -> None:
    assert describe_fields(PAIR).endswith("<instruction>a new task</instruction>\n<output>the output</output>")
    chinese = describe_fields([TextField("instruction", "新的任务")], "json", "zh")
    assert chinese.startswith("请") and json.loads(chinese.split("\n", 1)[1]) == {"instruction": "新的任务"}
    assert "a new task alone" in describe_fields(PAIR[:1], "plain")
    assert (
        describe_fields([TextField("instruction", "新的任务")], "plain", "zh")
        == "请只回复新的任务，不要有任何开场白或解释。"
    )


def test_the_schema_says_the_same() -> None:
    schema = fields_schema(PAIR)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"instruction": "a", "output": "b"})
    for wrong in ({"instruction": "a"}, {"instruction": "a", "output": ""}, {"instruction": "a", "output": 1}):
        assert not validator.is_valid(wrong)


def test_names_are_checked() -> None:
    for name in ("", "A", "a b", "1a", "a>"):
        with pytest.raises(ValueError, match="lower-case"):
            TextField(name)
    with pytest.raises(ValueError, match="distinct names"):
        parse_fields("", [*ONE, *ONE])
