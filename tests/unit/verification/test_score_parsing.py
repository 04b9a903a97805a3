"""A judge's scores: nothing malformed gets in."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.verification.fields import MalformedReply
from easydistill.verification.scores import ScoreField, describe_scores, parse_scores, scores_schema

SCORE = [ScoreField("score", 0, 9)]
TWO = [ScoreField("rv"), ScoreField("correct", 0, 1)]


@pytest.mark.parametrize(
    "reply",
    ["<score>7</score>", "It is 3 times better.\n<score>\n 7 </score> of 9", "<score>7</score> yes, <score>7</score>"],
)
def test_a_plain_score_is_read(reply: str) -> None:
    assert parse_scores(reply, SCORE) == {"score": 7}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "missing"),
        ("7", "missing"),
        ("Score: 7/9", "missing"),
        ("<scores>7</scores>", "missing"),
        ("<score>7", "unclosed"),
        ("7</score>", "unclosed"),
        ("<score><score>7</score></score>", "unclosed"),
        ("<score>7</score> <score>", "unclosed"),
        ("<score>7</score> or <score>8</score>", "contradictory"),
        ("<score></score>", "empty"),
        ("<score> \n</score>", "empty"),
        ("<score>10</score>", "out_of_range"),
        ("<score>999999999999</score>", "not_an_integer"),
        ("<score>-1</score>", "not_an_integer"),
        ("<score>+7</score>", "not_an_integer"),
        ("<score>07</score>", "not_an_integer"),
        ("<score>7.0</score>", "not_an_integer"),
        ("<score>7.</score>", "not_an_integer"),
        ("<score>7/9</score>", "not_an_integer"),
        ("<score>7 of 9</score>", "not_an_integer"),
        ("<score>about 7</score>", "not_an_integer"),
        ("<score>7 8</score>", "not_an_integer"),
        ("<score>seven</score>", "not_an_integer"),
        ("<score>７</score>", "not_an_integer"),
        ("<score>٧</score>", "not_an_integer"),
        ("<score>七</score>", "not_an_integer"),
        ("<score>\u00a07</score>", "not_an_integer"),
        ("<score><b>7</b></score>", "not_an_integer"),
        ("<Score>7</Score>", "bad_tag"),
        ("<score>7</SCORE>", "bad_tag"),
        ("< score >7</score>", "bad_tag"),
        ("<score value=7></score>", "bad_tag"),
        ("<score>7</score> < Score>3", "bad_tag"),
        ("<score/>", "bad_tag"),
    ],
)
def test_anything_else_is_malformed_and_says_why(reply: str, reason: str) -> None:
    result = parse_scores(reply, SCORE)
    assert isinstance(result, MalformedReply)
    assert result.reason == reason
    assert result.detail


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"score": 7.0}', "not_an_integer"),
        ('{"score": true}', "not_an_integer"),
        ('{"score": "7"}', "not_an_integer"),
        ('{"score": null}', "not_an_integer"),
        ('{"score": [7]}', "not_an_integer"),
        ('{"score": 10}', "out_of_range"),
        ('{"score": -1}', "out_of_range"),
        ('{"score": NaN}', "not_json"),
        ('{"Score": 7}', "missing"),
        ('{"score": 7, "score": 8}', "contradictory"),
        ('{"score": 1, "score": true}', "contradictory"),
        ("[7]", "not_json"),
        ("7", "not_json"),
        ('{"score": 7', "not_json"),
        ('Here: {"score": 7}', "not_json"),
        ('{"score": ' + "9" * 5000 + "}", "not_json"),
        ("[" * 100_000, "not_json"),
        ('```json\n{"score": 7}', "unclosed"),
        ('```json\n{"score": 7}\n```\n```json\n{"score": 7}\n```', "contradictory"),
    ],
)
def test_objects_are_as_strict(reply: str, reason: str) -> None:
    result = parse_scores(reply, SCORE, "json")
    assert isinstance(result, MalformedReply)
    assert result.reason == reason


def test_named_scores_are_all_needed() -> None:
    assert parse_scores("<rv>9</rv><correct>1</correct>", TWO) == {"rv": 9, "correct": 1}
    assert parse_scores('Well:\n```json\n{"correct": 1, "rv": 9, "why": "good"}\n```', TWO, "json") == {
        "rv": 9,
        "correct": 1,
    }
    for reply, detail in (("<rv>9</rv>", "<correct>"), ("<rv>9</rv><correct>2</correct>", "not from 0 to 1")):
        result = parse_scores(reply, TWO)
        assert isinstance(result, MalformedReply) and detail in result.detail


_PARTS = [
    "<score>",
    "</score>",
    "<score",
    "</",
    ">",
    "<Score>",
    "7",
    "12",
    "9",
    "0",
    "-",
    "7.0",
    "７",
    " ",
    "\n",
    "a",
    "score",
]


@given(st.lists(st.sampled_from(_PARTS) | st.text(max_size=3), max_size=12).map("".join))
def test_a_malformed_score_is_never_accepted(reply: str) -> None:
    result = parse_scores(reply, SCORE)
    if isinstance(result, MalformedReply):
        return
    # Every tag belongs to a well-formed one, and all of them say the same.
    whole = re.findall(r"<score>[ \t\r\n]*([0-9])[ \t\r\n]*</score>", reply)
    assert whole and set(whole) == {str(result["score"])}
    assert reply.count("<score>") == reply.count("</score>") == len(whole)
    assert 0 <= result["score"] <= 9


@given(st.integers(-20, 20), st.integers(0, 5), st.integers(1, 8), st.sampled_from(["tags", "json"]))
def test_what_is_accepted_is_in_range_and_all_in_range_is_accepted(value: int, low: int, width: int, form: str) -> None:
    field = ScoreField("n", low, low + width)
    result = (
        parse_scores(f"<n>{value}</n>", [field])
        if form == "tags"
        else parse_scores(f'{{"n": {value}}}', [field], "json")
    )
    if low <= value <= low + width:
        assert result == {"n": value}
    else:
        assert isinstance(result, MalformedReply)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


@given(st.dictionaries(st.sampled_from(["score", "a"]), json_values))
def test_objects_are_accepted_exactly_where_the_schema_would(value: dict[str, object]) -> None:
    result = parse_scores(json.dumps(value), SCORE, "json")
    score = value.get("score")
    good = (
        type(score) is int
        and 0 <= score <= 9
        and "Infinity" not in json.dumps(value)
        and "NaN" not in json.dumps(value)
    )
    assert (result == {"score": score}) if good else isinstance(result, MalformedReply)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", ["<score>", "< ", "</score>", "```json\n", "{", "<score ", '{"a":'])
def test_long_replies_take_no_time(part: str) -> None:
    for form in ("tags", "json"):
        assert isinstance(parse_scores(part * (1_000_000 // len(part)), SCORE, form), MalformedReply)  # type: ignore[arg-type]
        assert isinstance(parse_scores("<" + " " * 1_000_000, SCORE, form), MalformedReply)  # type: ignore[arg-type]


def test_the_form_is_described_in_both_languages() -> None:
    fields = [ScoreField("rv", description="Reasoning verbosity"), ScoreField("correct", 0, 1)]
    english, chinese = describe_scores(fields), describe_scores(fields, "json", "zh")
    assert "<rv>Reasoning verbosity: an integer from 0 to 9</rv>" in english
    assert '"correct": "0 到 1 之间的整数"' in chinese
    # An echoed description is not a score.
    assert isinstance(parse_scores(english, fields), MalformedReply)
    assert isinstance(parse_scores(chinese.split("\n", 1)[1], fields, "json"), MalformedReply)


def test_the_schema_says_the_same() -> None:
    schema = scores_schema(TWO)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"rv": 9, "correct": 0})
    for wrong in ({"rv": 9}, {"rv": 10, "correct": 0}, {"rv": True, "correct": 0}, {"rv": 9, "correct": 0, "x": 1}):
        assert not validator.is_valid(wrong)


def test_ranges_and_names_are_checked() -> None:
    for arguments in (("Score",), ("a b",), ("n", 5, 5), ("n", -1, 3)):
        with pytest.raises(ValueError):
            ScoreField(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="distinct names"):
        parse_scores("", [ScoreField(), ScoreField()])
