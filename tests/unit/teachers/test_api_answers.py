"""API teachers: tools, variables and thoughts are sent; calls and thoughts are read, whole, streamed and batched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easydistill.asking.answers import read_answer
from easydistill.asking.label import labelled_or_rejected
from easydistill.asking.retry import GROUPS
from easydistill.config.inference import ApiInferenceConfig, SamplingConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, outcome_from_record, request_key
from easydistill.data.messages import Chat, Message
from easydistill.data.records import Rejection, Sample
from easydistill.errors import ConfigError
from easydistill.teachers.openai.batch.collection import _arguments
from easydistill.teachers.openai.chat_completion import StreamParser, parse_body, request_body
from easydistill.teachers.openai.features import Features
from easydistill.teachers.openai.retry import Fault, Verdict
from easydistill.teachers.sizes import TokenEstimator

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALLED: Message = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Hm.",
    "tool_calls": [{"id": "c1", "name": "f", "arguments": {"ä": 1}}],
}
CHAT = Chat(
    (
        {"role": "user", "content": "Go."},
        CALLED,
        {"role": "tool", "content": "done", "tool_call_id": "c1", "name": "f"},
    ),
    (TOOL,),
    {"enable_thinking": True},
)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def config(**values: Any) -> ApiInferenceConfig:
    return ApiInferenceConfig(**{"base_url": "http://localhost:1/v1", **values})


def whole(message: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    """The arguments of a `Completion`, from a whole body."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return parse_body(json.dumps({"id": "x", "choices": [choice]}).encode())


def streamed(*deltas: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    """The same from a stream of deltas."""
    parser = StreamParser()
    for delta in deltas:
        parser.feed(f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}")
    parser.feed(f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': reason}]})}")
    parser.feed("data: [DONE]")
    return parser.result()


def answer(arguments: dict[str, Any], **more: Any) -> Completion:
    return Completion(key="k", **{**arguments, **more})


def message(arguments: dict[str, Any]) -> Message:
    found = read_answer(answer(arguments))
    assert isinstance(found, dict), found
    return found  # type: ignore[return-value]


# --- requests ---------------------------------------------------------------------------------------------------


def test_a_chat_is_sent_whole() -> None:
    body = request_body(config(), "m", GenerationRequest.of("k", CHAT))
    assert body["tools"] == [TOOL]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    _, called, result = body["messages"]
    assert called["reasoning_content"] == "Hm."
    assert called["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"ä": 1}'}}
    ]
    assert result == {"role": "tool", "content": "done", "tool_call_id": "c1", "name": "f"}


def test_a_text_chat_is_sent_as_it_was() -> None:
    body = request_body(config(), "m", GenerationRequest("k", ({"role": "user", "content": "Go."},)))
    assert body == {"model": "m", "messages": [{"role": "user", "content": "Go."}], "max_tokens": 512}


def test_a_row_s_own_variables_take_precedence() -> None:
    given = config(chat_template_kwargs={"enable_thinking": False, "effort": "low"})
    body = request_body(given, "m", GenerationRequest.of("k", CHAT))
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "effort": "low"}


def test_variables_change_a_request_only_where_there_are_some() -> None:
    assert config().sampling() == {name: value for name, value in config().sampling().items() if "kwargs" not in name}
    varied = config(chat_template_kwargs={"enable_thinking": False}).sampling()
    assert varied["chat_template_kwargs"] == {"enable_thinking": False}
    # How thoughts are read changes no request.
    assert config(thoughts="inline").sampling() == config().sampling()
    assert (config(thoughts="inline").reading(), config().reading()) == ({"thoughts": "inline"}, {})
    tools = request_key({}, {}, CHAT), request_key({}, {}, CHAT.messages)
    assert len(set(tools)) == 2


def test_variables_that_hold_the_chat_are_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="messages"):
        config(chat_template_kwargs={"messages": []})


def test_a_server_that_refuses_thoughts_is_asked_without() -> None:
    features, body = Features(), request_body(config(), "m", GenerationRequest.of("k", CHAT))
    refusal = Fault("http_400", "Extra inputs are not permitted: messages.1.reasoning_content", Verdict.REJECT)
    assert features.adapts_to(refusal, body, features.shape(body))
    shaped = features.shape(body)
    assert not any("reasoning_content" in sent for sent in shaped["messages"])
    assert shaped["tools"] and shaped["chat_template_kwargs"] and shaped["messages"][1]["tool_calls"]
    # What is not there cannot be left out, and tools never are.
    assert not features.adapts_to(refusal, body, shaped)
    assert not features.adapts_to(Fault("http_400", "tools are not supported", Verdict.REJECT), body, shaped)


def test_tools_and_calls_count_in_a_request_s_size() -> None:
    estimator = TokenEstimator(10)
    bare = estimator.size([{"role": "user", "content": "Go."}])
    assert estimator.size(CHAT.messages, CHAT.tools).prompt_bytes > bare.prompt_bytes + len(json.dumps(TOOL)) - 5


# --- calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_an_answer_that_calls_is_an_answer(content: str | None) -> None:
    found = message(whole({"content": content, "tool_calls": [CALL]}, "tool_calls"))
    assert found["tool_calls"] == [{"id": "c1", "name": "f", "arguments": {"a": 1}}]
    assert found["content"] == (content or "")


def test_without_calls_nothing_is_no_answer() -> None:
    assert read_answer(answer(whole({"content": None})))[0] == "null_content"  # type: ignore[literal-required, index]
    assert read_answer(answer(whole({"content": "", "tool_calls": []})))[0] == "empty_content"  # type: ignore[literal-required, index]


def test_arguments_come_in_fragments() -> None:
    found = streamed(
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        reason="tool_calls",
    )
    assert message(found)["tool_calls"] == [
        {"id": "c1", "name": "f", "arguments": {"a": 1}},
        {"id": "c2", "name": "g", "arguments": {}},
    ]


def test_servers_that_number_no_calls_or_all_alike_are_understood() -> None:
    two = [{**CALL, "id": "c1"}, {**CALL, "id": "c2"}]
    alike = streamed({"tool_calls": [{"index": 0, **two[0]}]}, {"tool_calls": [{"index": 0, **two[1]}]})
    bare = streamed({"tool_calls": [two[0]]}, {"tool_calls": [two[1]]})
    nameless = streamed(
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}]},
        {"tool_calls": [{"function": {"arguments": " 1}"}}]},
    )
    assert [len(message(found)["tool_calls"]) for found in (alike, bare, nameless)] == [2, 2, 1]
    assert message(nameless)["tool_calls"][0]["arguments"] == {"a": 1}
    # Two equal calls in a whole answer are two.
    assert len(message(whole({"tool_calls": [CALL, CALL]}))["tool_calls"]) == 2


def test_the_old_function_call_is_a_call() -> None:
    legacy = {"name": "f", "arguments": '{"a": 1}'}
    expected = [{"name": "f", "arguments": {"a": 1}}]
    assert message(whole({"content": None, "function_call": legacy}))["tool_calls"] == expected
    pieces = [{"function_call": {"name": "f", "arguments": '{"a":'}}, {"function_call": {"arguments": " 1}"}}]
    assert message(streamed(*pieces))["tool_calls"] == expected


def test_a_batch_s_line_is_read_like_any_body() -> None:
    choice = {"message": {"content": None, "tool_calls": [CALL], "reasoning": "Hm."}, "finish_reason": "tool_calls"}
    line = {"custom_id": "k", "response": {"status_code": 200, "body": {"choices": [choice]}}}
    found = message(_arguments(line))
    assert (found["reasoning_content"], found["tool_calls"][0]["name"]) == ("Hm.", "f")


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', '{"a": NaN}'])
def test_a_call_that_cannot_be_read_rejects_its_row(arguments: str) -> None:
    broken = {**CALL, "function": {"name": "f", "arguments": arguments}}
    received = answer(whole({"content": "I call.", "tool_calls": [broken]}, "tool_calls"))
    found = labelled_or_rejected(Sample("a", CHAT.messages[:1]), received, "label")
    assert isinstance(found, Rejection) and found.reason == "malformed_call"
    # Asked again by `easydistill retry`, and shown as received.
    assert found.reason in GROUPS["parse"] and found.raw["tool_calls"] == [broken]
    assert found.requests == ("k",)
    cut = labelled_or_rejected(
        Sample("a", CHAT.messages[:1]), answer(whole({"tool_calls": [broken]}, "length")), "label"
    )
    assert isinstance(cut, Rejection) and cut.reason == "truncated"


# --- thoughts ---------------------------------------------------------------------------------------------------

THOUGHTS = [
    {"reasoning_content": "Hm."},
    {"reasoning": "Hm."},
    {"reasoning_content": "", "reasoning": "Hm."},
    {"reasoning_content": None, "reasoning": "Hm."},
    {"reasoning": "", "reasoning_content": "Hm."},
    {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
    {"reasoning": None, "reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}]},
    {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
]


@pytest.mark.parametrize("named", THOUGHTS)
def test_thoughts_are_found_under_every_name(named: dict[str, Any]) -> None:
    expected = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert message(whole({"content": "Yes.", **named})) == expected
    assert message(streamed(named, {"content": "Ye"}, {"content": "s."})) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "reasoning", "text": "Hm."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
    ],
)
def test_thoughts_may_be_a_part_of_the_content(part: dict[str, Any]) -> None:
    expected = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    text = {"type": "text", "text": "Yes."}
    assert message(whole({"content": [part, text]})) == expected
    assert message(streamed({"content": [part]}, {"content": [text]})) == expected


@pytest.mark.parametrize("text", ["<think>\nHm.\n</think>\n\nYes.", "Hm.\n</think>\n\nYes.", "<think>Hm.</think>Yes."])
def test_thoughts_in_the_text_are_put_apart_unless_they_shall_stay(text: str) -> None:
    received = answer(whole({"content": text}))
    prompt = Sample("a", CHAT.messages[:1])
    apart = labelled_or_rejected(prompt, received, "label")
    inline = labelled_or_rejected(prompt, received, "label", SamplingConfig(thoughts="inline"))
    assert isinstance(apart, Sample) and isinstance(inline, Sample)
    assert apart.messages[-1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert inline.messages[-1] == {"role": "assistant", "content": text}


def test_thoughts_alone_are_no_answer() -> None:
    for received in (whole({"content": "<think>Hm"}, "length"), whole({"content": None, "reasoning": "Hm"}, "length")):
        reason, _ = read_answer(answer(received))  # type: ignore[misc]
        assert reason in {"empty_content", "null_content"}


# --- cut answers and old journals -------------------------------------------------------------------------------


def test_a_cut_answer_is_marked_and_a_finished_one_is_not() -> None:
    prompt = Sample("a", CHAT.messages[:1], {"topic": "x"})
    cut = labelled_or_rejected(prompt, answer(whole({"content": "Because the"}, "length")), "label")
    done = labelled_or_rejected(prompt, answer(whole({"content": "Because."})), "label")
    assert isinstance(cut, Sample) and isinstance(done, Sample)
    assert (cut.meta, done.meta) == ({"topic": "x", "finish_reason": "length"}, {"topic": "x"})
    # A mark that the row brought belongs to another answer.
    again = labelled_or_rejected(cut, answer(whole({"content": "Because."})), "label")
    assert isinstance(again, Sample) and "finish_reason" not in again.meta


def test_plain_answers_of_old_journals_read_as_before() -> None:
    old = {
        "kind": "completion",
        "key": "k",
        "text": " Yes.\n",
        "reasoning": None,
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "model": "m",
        "attempts": 1,
        "seconds": 0.1,
        "extra": {},
    }
    found = labelled_or_rejected(Sample("a", CHAT.messages[:1]), outcome_from_record(old), "label")
    assert isinstance(found, Sample)
    assert found.messages[-1] == {"role": "assistant", "content": " Yes.\n"} and found.meta == {}
