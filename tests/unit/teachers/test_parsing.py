"""What local models write is read by the form that their own template uses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.data.answers import MalformedCall, read_calls, split_thoughts
from easydistill.data.chat import ChatRenderer
from easydistill.data.messages import Chat, Message, ToolCall, answer_message
from easydistill.errors import TeacherError
from easydistill.teachers.parsing import AnswerReader
from easydistill.teachers.parsing.forms import FORMS, PROBE_TOOL, form_of, shows_tools

_TRL = find_spec("trl")
assert _TRL is not None and _TRL.origin is not None
TEMPLATES = Path(_TRL.origin).parent / "chat_templates"
"""Real templates; the package itself need not be imported."""
ASKED: Message = {"role": "user", "content": "What flows where?"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How many."},
                "exact": {"type": "boolean", "description": "Whether to the minute."},
            },
        },
    },
}
ENDS = (
    *("</s>", "<|im_end|>", "<|eot_id|>", "<|call|>", "<|return|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>"),
    *("<｜end▁of▁sentence｜>", "<turn|>", "<|user|>", "<|eom_id|>", "<|observation|>", "<|endoftext|>", "<|eot|>"),
    "<|tool_response>",
)


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Any:
    """SmolLM2's tokenizer with the end tokens of other families as tokens."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(smollm)
    made.add_tokens(list(ENDS), special_tokens=True)
    return made


def renderer_of(tokenizer: Any, template: str) -> ChatRenderer:
    ends = frozenset(tokenizer.convert_tokens_to_ids(list(ENDS)))
    return ChatRenderer(tokenizer, ends, template)


def written(renderer: ChatRenderer, answer: Message) -> tuple[list[int], list[int]]:
    """(prompt, answer) in tokens: what a model writes that answers just as its template shows the answer."""
    prompt = Chat((ASKED,), (WEATHER,))
    before = renderer.text(prompt, add_generation_prompt=True)
    whole = renderer.text(prompt.with_messages((ASKED, answer)), add_generation_prompt=False)
    if not whole.startswith(before):
        # Thoughts that the generation prompt opens, and a rendered answer shows otherwise or not at all.
        before = before[: len(before.rstrip().removesuffix("<think>").rstrip())]
    if not whole.startswith(before) or ASKED["content"] not in before:
        pytest.skip("the template shows this chat otherwise than it asks for it")
    encode = renderer.tokenizer
    return (
        encode(before, add_special_tokens=False)["input_ids"],
        encode(whole[len(before) :], add_special_tokens=False)["input_ids"],
    )


SHIPPED = sorted(path.name for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))
"""Those that end in `_training` write the same text."""
CALLS: list[ToolCall] = [
    {"id": "call00001", "name": "get_weather", "arguments": {"place": "Łódź", "days": 3, "exact": True}}
]


def stripped(calls: list[ToolCall]) -> list[tuple[str, Any]]:
    return [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("name", SHIPPED)
def test_calls_are_read_back_from_every_template_that_shows_them(tokenizer: Any, name: str) -> None:
    renderer = renderer_of(tokenizer, (TEMPLATES / name).read_text(encoding="utf-8"))
    if not shows_tools(renderer):
        assert AnswerReader(renderer).check_tools() is not None
        return
    prompt, ids = written(renderer, answer_message("", None, CALLS))
    if "get_weather" not in tokenizer.decode(ids):
        assert form_of(renderer) is None, "its calls are unknown, and must not be taken for text"
        with pytest.raises(TeacherError, match="cannot be read back"):
            AnswerReader(renderer).check_tools()
        return
    reader = AnswerReader(renderer)
    assert reader.check_tools() is None
    found = reader.read(ids, prompt, (WEATHER,)).message
    assert stripped(found["tool_calls"]) == stripped(CALLS)
    assert found["content"].strip() == ""


@pytest.mark.parametrize("name", SHIPPED)
def test_plain_answers_are_read_as_they_were_said(tokenizer: Any, name: str) -> None:
    renderer = renderer_of(tokenizer, (TEMPLATES / name).read_text(encoding="utf-8"))
    answer = answer_message("The Warta, to the Oder.\n\n  - and on")
    prompt, ids = written(renderer, answer)
    found = AnswerReader(renderer).read(ids, prompt).message
    assert found["content"].strip() == answer["content"]
    assert found.keys() == {"role", "content"}


@pytest.mark.parametrize("name", SHIPPED)
def test_thoughts_are_read_back_where_the_template_shows_them(tokenizer: Any, name: str) -> None:
    renderer = renderer_of(tokenizer, (TEMPLATES / name).read_text(encoding="utf-8"))
    answer = answer_message("To the Oder.", "Which river?\nThe Warta.")
    prompt, ids = written(renderer, answer)
    if "The Warta." not in tokenizer.decode(ids):
        return
    found = AnswerReader(renderer).read(ids, prompt).message
    assert (found.get("reasoning_content", "").strip(), found["content"].strip()) == (
        "Which river?\nThe Warta.",
        "To the Oder.",
    )


QWEN = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Oslo"\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": ["Oslo"]}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {"x": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>\nand so on',
        "I look. <tool_call>\nget_weather(Oslo)\n</tool_call>",
    ],
)
def test_a_call_that_cannot_be_read_is_never_text(tokenizer: Any, text: str) -> None:
    found = AnswerReader(renderer_of(tokenizer, QWEN)).read(tokenizer(text)["input_ids"], [], (WEATHER,))
    assert found.problem and not found.tool_calls
    assert found.text == text


def test_without_tools_nothing_is_a_call(tokenizer: Any) -> None:
    text = 'The mark is <tool_call>{"name": "f", "arguments": {}}</tool_call>.'
    found = AnswerReader(renderer_of(tokenizer, QWEN)).read(tokenizer(text)["input_ids"], [])
    assert found.problem is None and found.message == {"role": "assistant", "content": text}


def test_a_call_that_is_only_thought_about_is_none(tokenizer: Any) -> None:
    text = "<think>\nI could write <tool_call> here.\n</think>\n\nNo need."
    found = AnswerReader(renderer_of(tokenizer, QWEN)).read(tokenizer(text)["input_ids"], [], (WEATHER,)).message
    assert found == answer_message("No need.", "I could write <tool_call> here.")


def test_thoughts_that_the_prompt_opens_get_their_beginning_back(tokenizer: Any) -> None:
    prompt = tokenizer("<|im_start|>assistant\n<think>\n")["input_ids"]
    reader = AnswerReader(renderer_of(tokenizer, QWEN))
    found = reader.read(tokenizer("Hm.\n</think>\n\nYes.")["input_ids"], prompt)
    assert found.text == "<think>\nHm.\n</think>\n\nYes."
    assert found.message == answer_message("Yes.", "Hm.")
    # Cut off inside the thoughts: there is no answer.
    assert reader.read(tokenizer("Hm, well")["input_ids"], prompt).message == answer_message("", "Hm, well")
    # Thoughts that the prompt opens and closes are none.
    closed = tokenizer("<think>\n\n</think>\n\n")["input_ids"]
    assert reader.read(tokenizer("Yes.")["input_ids"], closed).message == answer_message("Yes.")


def test_only_the_end_token_is_dropped(tokenizer: Any) -> None:
    ids = tokenizer("a<|im_start|>b<|im_end|>c")["input_ids"]
    assert AnswerReader(renderer_of(tokenizer, QWEN)).text(ids) == "a<|im_start|>b"


HARMONY = (
    "<|channel|>analysis<|message|>Which river?<|end|><|start|>assistant",
    "<|channel|>final<|message|>The Warta.",
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
)


def harmony(tokenizer: Any) -> AnswerReader:
    template = "{{ '<|channel|><|message|>' if false }}{% for m in messages %}{{ m.content }}{% endfor %}"
    return AnswerReader(renderer_of(tokenizer, template))


def test_channels_are_told_apart(tokenizer: Any) -> None:
    thoughts, final, call = HARMONY
    reader = harmony(tokenizer)
    assert reader.read(tokenizer(thoughts + final)["input_ids"], []).message == answer_message(
        "The Warta.", "Which river?"
    )
    called = reader.read(tokenizer(thoughts + call + '{"place": "Oslo"}')["input_ids"], [], (WEATHER,)).message
    assert called["tool_calls"] == [{"name": "get_weather", "arguments": {"place": "Oslo"}}]
    assert (called["content"], called["reasoning_content"]) == ("", "Which river?")
    assert reader.read(tokenizer(call + '{"place": ')["input_ids"], [], (WEATHER,)).problem
    assert reader.read(tokenizer("Plainly said.")["input_ids"], []).message == answer_message("Plainly said.")
    assert reader.read(tokenizer(thoughts.partition("river")[0])["input_ids"], []).message == answer_message(
        "", "Which "
    )


def test_a_form_of_the_template_s_own_is_learned_from_its_rendering(tokenizer: Any) -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<<CALL>>{{ c.function.name }}:::{{ c.function.arguments | tojson }}<<END>>"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = renderer_of(tokenizer, template)
    two = [*CALLS, {"name": "get_weather", "arguments": {"place": "}<<END>>"}}]
    prompt, ids = written(renderer, answer_message("So:", None, two))  # type: ignore[arg-type]
    found = AnswerReader(renderer).read(ids, prompt, (WEATHER,)).message
    assert (found["content"], stripped(found["tool_calls"])) == ("So:", stripped(two))  # type: ignore[arg-type]


SAMPLES: dict[str, str] = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Oslo", "days": 2}}\n</tool_call>',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"place": "Oslo", "days": 2}}]',
    "granite_plain": '<tool_call>[{"name": "get_weather", "arguments": {"place": "Oslo", "days": 2}}]',
    "nemotron": '<TOOLCALL>[{"name": "get_weather", "arguments": {"place": "Oslo", "days": 2}}]</TOOLCALL>',
    "cohere": '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"place": "Oslo", '
    '"days": 2}}\n]<|END_ACTION|>',
    "command": 'Action: ```json\n[{"tool_name": "get_weather", "parameters": {"place": "Oslo", "days": 2}}]\n```',
    "command_close": 'Action:```json\n[{"tool_name": "get_weather", "parameters": {"place": "Oslo", "days": 2}}]\n```',
    "internlm": '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"place": "Oslo", "days": 2}}'
    "<|action_end|>",
    "jamba": '<tool_calls>[{"name": "get_weather", "arguments": {"place": "Oslo", "days": 2}}]</tool_calls>',
    "mistral": '[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{"place": "Oslo", "days": 2}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"place": "Oslo", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"place": "Oslo", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
    "llama": '<|python_tag|>{"name": "get_weather", "parameters": {"place": "Oslo", "days": 2}}',
    "qwen_coder": "<tool_call>\n<function=get_weather>\n<parameter=place>\nOslo\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
    "seed": "<seed:tool_call>\n<function=get_weather>\n<parameter=place>Oslo</parameter>\n<parameter=days>2"
    "</parameter>\n</function>\n</seed:tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "minimax": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="place">Oslo</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "deepseek_dsml": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="place" '
    'string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "atem": '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="place">Oslo'
    '</atem:parameter>\n<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
    "invoke": '<function_calls>\n<invoke name="get_weather">\n<parameter name="place">Oslo</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</function_calls>',
    "lfm2": '<|tool_call_start|>[get_weather(place="Oslo", days=2)]<|tool_call_end|>',
    "olmo": '<function_calls>\nget_weather(place="Oslo", days=2)\n</function_calls>',
    "llama4": '<|python_start|>[get_weather(place="Oslo", days=2)]<|python_end|>',
    "gemma4": '<|tool_call>call:get_weather{place:<|"|>Oslo<|"|>,days:2}<tool_call|>',
    "functiongemma": "<start_function_call>call:get_weather{place:<escape>Oslo<escape>,days:2}<end_function_call>",
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_each_form_reads_its_calls_and_refuses_cut_ones(form: Any) -> None:
    text = SAMPLES[form.name]
    content, calls = form.parse(text, (WEATHER,))
    assert content == "" and stripped(calls) == [("get_weather", {"place": "Oslo", "days": 2})]
    if not form.whole:
        assert form.parse(f"I look.\n{text}", (WEATHER,))[0] == "I look."
    with pytest.raises(MalformedCall):
        form.parse(text[: text.index("Oslo") + 2], (WEATHER,))
    assert form.parse("Nothing is called.", (WEATHER,)) == ("Nothing is called.", [])


places = st.text("abcŁódź <>[]{}'\"\\:,\n", max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=places, days=st.integers(-9, 9), said=st.sampled_from(["", "I look."]))
@pytest.mark.parametrize("name", ["qwen3.jinja", "llama3_1.jinja", "gemma4.jinja"])
def test_whatever_a_call_says_it_is_read_back(tokenizer: Any, name: str, place: str, days: int, said: str) -> None:
    renderer = renderer_of(tokenizer, (TEMPLATES / name).read_text(encoding="utf-8"))
    said = "" if name == "llama3_1.jinja" else said  # it shows calls alone
    calls: list[ToolCall] = [{"name": "get_weather", "arguments": {"place": place, "days": days}}]
    prompt, ids = written(renderer, answer_message(said, None, calls))
    found = AnswerReader(renderer).read(ids, prompt, (WEATHER,)).message
    assert stripped(found["tool_calls"]) == stripped(calls)


@pytest.mark.parametrize(
    ("text", "thoughts", "rest"),
    [
        ("Plain.", None, "Plain."),
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\na\n\nb\n</think>\n\n  c", "a\n\nb", "  c"),
        ("<think>\n\n</think>\n\nb", None, "b"),
        ("a\n</think>\n\nb", "a", "b"),
        ("</think>b", None, "b"),
        ("<think>cut", "cut", ""),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<think>\n</think>\n<think>a</think>b", "a", "b"),
        ("Close it with </think> at the end.", None, "Close it with </think> at the end."),
        ("First, <think>a</think>", None, "First, <think>a</think>"),
    ],
)
def test_thoughts_at_the_beginning_are_split_off(text: str, thoughts: str | None, rest: str) -> None:
    assert split_thoughts(text) == (thoughts, rest)


@pytest.mark.parametrize("arguments", ["[]", '"x"', "{", "3", '{"a": NaN}', '{"a": "\\ud800"}', ["a"]])
def test_arguments_are_an_object_or_an_error(arguments: Any) -> None:
    with pytest.raises(MalformedCall):
        read_calls([{"function": {"name": "f", "arguments": arguments}}])


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_a_function_without_parameters_is_called_with_nothing(arguments: Any) -> None:
    assert read_calls([{"id": "a", "function": {"name": "f", "arguments": arguments}}]) == [
        {"id": "a", "name": "f", "arguments": {}}
    ]


def test_the_probe_is_a_tool_like_any_other() -> None:
    assert PROBE_TOOL["function"]["name"] != WEATHER["function"]["name"]
