"""Agent trajectories driven by scripted replies: what is played, what is checked, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from easydistill.contracts.operator import Ask, Reply, Result, answer_with
from easydistill.data.messages import Message
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.jobs.agent_trajectories import Job
from easydistill.synthesis.operators import agent_trajectories as operator
from easydistill.synthesis.operators.agent_trajectories.calls import ToolChecks
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.tools import Tools


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


WEATHER = tool(
    "weather",
    type="object",
    properties={"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    required=["city"],
)
FIVES = "<goal>5</goal><calls>5</calls><grounded>5</grounded><conduct>5</conduct>"
DONE = "<decision>satisfied</decision><message>Told.</message>"


def row(identity: str = "a", text: str = "Will it rain?", **meta: Any) -> Sample:
    return Sample(identity, ({"role": "user", "content": text},), meta, tools=(WEATHER,))


def calls(*made: tuple[str, dict[str, Any]], thoughts: str | None = None) -> Reply:
    found: list[Any] = [{"id": f"random-{n}", "name": name, "arguments": given} for n, (name, given) in enumerate(made)]
    return Reply("", thoughts, "tool_calls", key="k", tool_calls=tuple(found))


Script = Callable[[Ask], str | Reply]


def drive(rows: Sequence[Sample], say: dict[str, Script], **config: Any) -> tuple[Result, list[list[Ask]]]:
    """Run the operator; each role has its script."""
    settings = operator.Config(**config)
    waves: list[list[Ask]] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        waves.append(list(asks))
        said = [say[ask.role](ask) for ask in asks]
        return [item if isinstance(item, Reply) else Reply(item, finish_reason="stop", key="k") for item in said]

    result = answer_with(operator.run(settings, rows, Tools(settings, operator)), answer)
    assert result.entered == len(result.accepted) + len(result.rejected)
    return result, waves


def last(ask: Ask) -> Message:
    return ask.messages[-1]


def forecaster(ask: Ask) -> str | Reply:
    """Calls once, then answers; where it is told of an invalid call, it does better."""
    said = last(ask)
    if said["role"] == "user":
        return calls(("weather", {"city": "Oslo"}), thoughts="I look it up.")
    return f"The forecast: {said['content']}"


SCRIPTS: dict[str, Script] = {
    "teacher": forecaster,
    "tools": lambda ask: '<result>{"rain": true}</result>',
    "user": lambda ask: DONE,
    "judge": lambda ask: FIVES,
}


def reason(result: Result) -> str:
    (found,) = result.rejected
    assert not result.accepted
    return found.reason


def test_a_chat_is_played_to_its_end() -> None:
    result, waves = drive([row(goal="Know whether to take an umbrella to Oslo.", topic="x")], SCRIPTS)
    (kept,) = result.accepted
    call = {"id": "call00001", "name": "weather", "arguments": {"city": "Oslo"}}
    assert kept.messages == (
        {"role": "user", "content": "Will it rain?"},
        {"role": "assistant", "content": "", "reasoning_content": "I look it up.", "tool_calls": [call]},
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call00001", "name": "weather"},
        {"role": "assistant", "content": 'The forecast: {"rain": true}'},
    )
    assert kept.tools == (WEATHER,) and kept.meta["topic"] == "x"
    assert (kept.meta["user_messages"], kept.meta["calls"], kept.meta["rubric_mean"]) == (1, 1, 5.0)
    assert [[ask.role for ask in wave] for wave in waves] == [
        [name] for name in ("teacher", "tools", "teacher", "user", "judge")
    ]
    # Who sees what: the goal is kept from the assistant, calls and results from the user.
    first, simulated, _, user, judge = (wave[0] for wave in waves)
    assert first.tools == (WEATHER,) and "umbrella" not in json.dumps(first.messages)
    assert "umbrella" in str(last(user)["content"]) and "weather(" not in str(last(user)["content"])
    assert 'weather({"city": "Oslo"})' in str(last(simulated)["content"])
    assert 'Result: {"rain": true}' in str(last(judge)["content"]) and "- grounded:" in str(last(judge)["content"])
    assert result.facts["calls"] == {"weather": {"answered": 1, "with an error": 0}}


def test_the_user_goes_on_until_it_is_satisfied() -> None:
    def user(ask: Ask) -> str:
        text = str(last(ask)["content"])
        return DONE if "And Rome?" in text else "<decision>Continue.</decision><message>And Rome?</message>"

    result, _ = drive([row()], SCRIPTS | {"user": user})
    (kept,) = result.accepted
    assert [message["role"] for message in kept.messages] == ["user", "assistant", "tool", "assistant"] * 2
    ids = [call["id"] for message in kept.messages for call in message.get("tool_calls", ())]
    assert ids == ["call00001", "call00002"] and kept.meta["user_messages"] == 2
    result, _ = drive([row()], SCRIPTS | {"user": user}, max_turns=1)
    assert reason(result) == "unfinished"


def test_the_user_may_open_the_chat() -> None:
    def user(ask: Ask) -> str:
        opens = "begins with your first message" in str(last(ask)["content"])
        return "<decision>continue</decision><message>Hi, rain?</message>" if opens else DONE

    asked = Sample(
        "a",
        ({"role": "system", "content": "Be kind."}, *row(text="Secretly plan a picnic.").messages),
        {},
        tools=(WEATHER,),
    )
    result, waves = drive([asked], SCRIPTS | {"user": user}, user_opens=True)
    (kept,) = result.accepted
    assert [message["content"] for message in kept.messages[:2]] == ["Be kind.", "Hi, rain?"]
    assert "picnic" not in json.dumps(kept.messages) and "picnic" in str(last(waves[0][0])["content"])


def test_without_a_mock_user_the_first_answer_ends_the_chat() -> None:
    result, waves = drive([row()], SCRIPTS, mock_user=False, rubric=None)
    assert len(result.accepted) == 1 and {ask.role for wave in waves for ask in wave} == {"teacher", "tools"}
    assert "rubric_scores" not in result.accepted[0].meta


BAD = [
    (("forecast", {"city": "Oslo"}), "there is no tool 'forecast'; there are: weather"),
    (("weather", {}), "invalid arguments of weather: 'city' is a required property"),
    (("weather", {"city": 3}), "invalid arguments of weather: city: 3 is not of type 'string'"),
    (("weather", {"city": "Oslo", "days": 0}), "days: 0 is less than the minimum of 1"),
    (("weather", {"city": "Oslo", "unit": "F"}), "it has no parameter 'unit'"),
]


@pytest.mark.parametrize(("bad", "told"), BAD, ids=[str(bad) for bad, _ in BAD])
def test_an_invalid_call_is_told_and_not_learned(bad: tuple[str, dict[str, Any]], told: str) -> None:
    def teacher(ask: Ask) -> str | Reply:
        said = last(ask)
        assert all("weight" not in message for message in ask.messages), "marks of training change no question"
        if said["role"] == "user":
            return calls(bad)
        if "error" in str(said["content"]):
            assert told in json.loads(str(said["content"]))["error"]
            return calls(("weather", {"city": "Oslo"}))
        return "Rain."

    result, waves = drive([row()], SCRIPTS | {"teacher": teacher})
    (kept,) = result.accepted
    assert [message.get("weight") for message in kept.messages] == [None, 0, None, None, None, None]
    assert kept.meta["invalid_calls"] == 1 and kept.meta["calls"] == 1
    assert sum(ask.role == "tools" for wave in waves for ask in wave) == 1, "an invalid call reaches no tool"
    result, _ = drive([row()], SCRIPTS | {"teacher": teacher}, invalid_calls="reject")
    assert reason(result) == "invalid_call" and told in result.rejected[0].detail


def test_who_never_learns_to_call_is_rejected() -> None:
    result, waves = drive([row()], SCRIPTS | {"teacher": lambda ask: calls(("nothing", {}))}, max_invalid_calls=3)
    assert reason(result) == "invalid_call" and len(waves) == 4
    raw = result.rejected[0].raw
    assert len(raw["messages"]) == 8 and result.rejected[0].requests == ("k",)


def test_calls_of_one_message_are_answered_in_order_and_the_valid_ones_of_a_bad_message_too() -> None:
    seen: list[str] = []

    def tools(ask: Ask) -> str:
        seen.append(str(last(ask)["content"]))
        return f"<result>result {len(seen)}</result>"

    def teacher(ask: Ask) -> str | Reply:
        if last(ask)["role"] == "user":
            return calls(("weather", {"city": "Oslo"}), ("nothing", {}), ("weather", {"city": "Rome"}))
        return "Both."

    result, _ = drive([row()], SCRIPTS | {"teacher": teacher, "tools": tools})
    (kept,) = result.accepted
    assert [message["content"] for message in kept.messages[2:5]][::2] == ["result 1", "result 2"]
    assert [message["tool_call_id"] for message in kept.messages[2:5]] == ["call00001", "call00002", "call00003"]
    assert "→ result 1" in seen[1] and kept.messages[1]["weight"] == 0


def test_limits_of_calls() -> None:
    result, _ = drive([row()], SCRIPTS | {"teacher": lambda ask: calls(("weather", {"city": "Oslo"}))}, max_calls=3)
    assert reason(result) == "too_many_calls"
    result, _ = drive([row()], SCRIPTS | {"teacher": lambda ask: "It may."})
    assert reason(result) == "few_calls"
    result, _ = drive([row()], SCRIPTS | {"teacher": lambda ask: "It may."}, min_calls=0)
    assert len(result.accepted) == 1


@pytest.mark.parametrize(
    ("role", "reply", "expected"),
    [
        ("teacher", Reply("The", finish_reason="length", key="k"), "truncated"),
        ("teacher", Reply(None, problem=("malformed_call", "not JSON"), key="k"), "malformed_call"),
        ("tools", "no tags", "malformed_reply"),
        ("user", "no tags", "malformed_reply"),
        ("user", "<decision>maybe</decision><message>Hm.</message>", "malformed_reply"),
        ("user", "<decision>gives_up</decision><message>Useless.</message>", "user_gave_up"),
        ("judge", "<goal>9</goal>", "malformed_score"),
        ("judge", FIVES.replace("5</calls>", "2</calls>"), "low_scores"),
        ("judge", FIVES.replace("5", "3"), "low_scores"),
    ],
)
def test_what_cannot_be_kept_says_why(role: str, reply: Any, expected: str) -> None:
    result, _ = drive([row()], SCRIPTS | {role: lambda ask: reply})
    assert reason(result) == expected and expected in operator.REASONS
    assert result.rejected[0].raw["messages"][0] == {"role": "user", "content": "Will it rain?"}


def test_the_best_of_several_chats_is_kept() -> None:
    def judge(ask: Ask) -> str:
        return FIVES if ask.index == 1 else FIVES.replace("<goal>5", "<goal>4")

    rows = [row("a"), row("b")]
    result, waves = drive(rows, SCRIPTS | {"judge": judge}, samples=3)
    assert [kept.id for kept in result.accepted] == [f"{name}-{number}" for name in "ab" for number in (1, 2, 3)]
    assert {ask.index for ask in waves[0]} == {0, 1, 2} and len(waves[0]) == 6
    result, _ = drive(rows, SCRIPTS | {"judge": judge}, samples=3, keep="best")
    assert [kept.id for kept in result.accepted] == ["a-2", "b-2"]
    assert {item.reason for item in result.rejected} == {"not_best"} and result.facts["tasks_with_a_chat"] == 2


def test_criteria_of_the_row_and_of_the_judge() -> None:
    written: list[str] = []

    def judge(ask: Ask) -> str:
        text = str(last(ask)["content"])
        if "Write exactly 2 criteria" in text:
            return "<criteria>1. It rains.\n- It is told.</criteria>"
        written.append(text)
        return "<criterion_1>4</criterion_1><criterion_2>5</criterion_2>"

    rows = [row("a", rubric=["Oslo is looked up.", "Nothing else is."]), row("b")]
    result, waves = drive(rows, SCRIPTS | {"judge": judge}, rubric={"generated": 2}, samples=2)
    assert len(waves[0]) == 1, "once for a task, and not for one that has its own"
    assert "criterion_1: Oslo is looked up." in written[0] and "criterion_2: It is told." in written[-1]
    assert result.accepted[0].meta["rubric_scores"] == {"criterion_1": 4, "criterion_2": 5}
    result, _ = drive([row()], SCRIPTS | {"judge": lambda ask: "<criteria>One.</criteria>"}, rubric={"generated": 2})
    assert reason(result) == "malformed_reply"


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ((), "no_tools"),
        ((WEATHER, WEATHER), "bad_tools"),
        (({"type": "web_search"},), "bad_tools"),
        ((tool("f", type="object", properties={"a": {"pattern": r"\p{L}"}}),), "bad_tools"),
        ((tool("f", type="nothing"),), "bad_tools"),
        ((tool("f", type="object", properties={"a": {"$ref": "http://localhost:1/s.json"}}),), "bad_tools"),
    ],
)
def test_tools_are_checked(tools: Any, expected: str) -> None:
    with pytest.raises(Unusable) as caught:
        ToolChecks(tools).problem({"name": "f", "arguments": {"a": "x"}})
    assert caught.value.reason == expected
    result, _ = drive(
        [Sample("a", row().messages, {}, tools=tools)], SCRIPTS | {"teacher": lambda ask: calls(("f", {"a": 1}))}
    )
    assert reason(result) == expected


def test_a_schema_that_allows_more_is_obeyed() -> None:
    open_ = ToolChecks([tool("f", type="object", properties={}, additionalProperties={"type": "integer"})])
    assert open_.problem({"name": "f", "arguments": {"a": 1}}) is None
    assert open_.problem({"name": "f", "arguments": {"a": "x"}}) is not None
    assert ToolChecks([{"type": "function", "function": {"name": "f"}}]).problem({"name": "f", "arguments": {}}) is None


def test_recorded_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"name": "weather", "arguments": {"days": 1, "city": "Oslo"}, "result": {"rain": false}}\n')
    asks = lambda ask: calls(("weather", {"city": "Oslo", "days": 1})) if last(ask)["role"] == "user" else "No."  # noqa: E731
    scripts = {name: script for name, script in SCRIPTS.items() if name != "tools"}
    found = {"tools": {"kind": "recorded", "path": str(path)}}
    result, _ = drive([row()], scripts | {"teacher": asks}, **found)
    assert result.accepted[0].messages[2]["content"] == '{"rain": false}'
    result, _ = drive([row()], scripts, **found)
    assert reason(result) == "not_recorded"
    for wrong in ("nonsense", '{"name": "weather"}', path.read_text() * 2 + path.read_text().replace("false", "true")):
        (tmp_path / "wrong.jsonl").write_text(wrong)
        with pytest.raises(DataError, match=r"wrong\.jsonl"):
            drive([row()], scripts, tools={"kind": "recorded", "path": str(tmp_path / "wrong.jsonl")})


def test_definitions_are_for_rows_without_tools(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER["function"]]))
    bare = Sample("a", row().messages, {})
    result, _ = drive([bare], SCRIPTS, definitions=str(path))
    assert result.accepted[0].tools == (WEATHER,)
    (tmp_path / "tools.json").write_text("{}")
    with pytest.raises(DataError, match=r"tools\.json"):
        drive([bare], SCRIPTS, definitions=str(path))


def test_the_identity_follows_the_files_contents_and_not_their_places(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, text in (("a/t.py", "1"), ("t.py", "1"), ("other.py", "2")):
        (tmp_path / name).write_text(text)

    def identity(name: str, **more: Any) -> Any:
        return operator.Config(tools={"kind": "functions", "file": str(tmp_path / name), **more}).identity()  # type: ignore[arg-type]

    assert identity("a/t.py") == identity("t.py", workers=7) != identity("other.py")
    assert identity("t.py") != identity("t.py", replay=False)


@pytest.mark.parametrize(
    "config",
    [
        {"user_opens": True, "mock_user": False},
        {"keep": "best"},
        {"reply": "plain"},
        {"invalid_calls": "reject", "max_invalid_calls": 1},
        {"mock_user": False, "max_turns": 3},
        {"rubric": {"criteria": {"Bad name": "x"}}},
        {"rubric": {"criteria": {"a": "x"}, "generated": 2}},
    ],
)
def test_settings_that_do_not_fit(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        operator.Config(**config)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"user": {"inference": {"base_url": "http://x/v1"}}, "synthesis": {"mock_user": False}}, "user has no effect"),
        (
            {
                "simulator": {"inference": {"base_url": "http://x/v1"}},
                "synthesis": {"tools": {"kind": "recorded", "path": "x"}},
            },
            "simulator has no effect",
        ),
        ({"judge": {"inference": {"base_url": "http://x/v1"}}, "synthesis": {"rubric": None}}, "judge has no effect"),
        ({"models": {"user": "some/model"}}, "models.user is not used"),
        ({"user": {}}, "`user` has no model"),
        ({"inference": {"base_url": "http://x/v1", "system_prompt": "Sell."}}, "would be sent to the user, the tools"),
        ({"synthesis": {"samples": 2}, "inference": {"base_url": "http://x/v1", "temperature": 0}}, "the same"),
    ],
)
def test_models_that_nobody_asks_are_refused(more: dict[str, Any], told: str) -> None:
    base = {"job_type": "agent_trajectories", "dataset": {"instruction_path": "x.jsonl"}}
    with pytest.raises(ValidationError, match=told):
        Job.model_validate({**base, "inference": {"base_url": "http://x/v1"}, **more})


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, {"a": 1}),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}}, {"a": "deep"}),
    ],
)
def test_a_schema_without_end_rejects_its_row_alone(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    if arguments["a"] == "deep":
        for _ in range(800):
            arguments = {"a": [arguments["a"]]}
    with pytest.raises(Unusable, match="refer to themselves without end, or a call of it is nested too deeply"):
        ToolChecks([tool("f", type="object", **schema)]).problem({"name": "f", "arguments": arguments})


def test_numbers_that_cannot_be_checked_are_told() -> None:
    checks = ToolChecks([tool("f", type="object", properties={"a": {"multipleOf": 0.1}})])
    told = checks.problem({"name": "f", "arguments": {"a": json.loads("1e999")}})
    assert told is not None and "they cannot be checked" in told


def test_an_argument_that_is_required_is_named() -> None:
    checks = ToolChecks([tool("f", type="object", required=["a"])])
    assert checks.problem({"name": "f", "arguments": {"a": 1}}) is None
    assert "no parameter 'b'" in (checks.problem({"name": "f", "arguments": {"a": 1, "b": 2}}) or "")
