"""All chat templates that TRL ships: transformers' text, the templates' own marks, and every turn that is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import chat_templates as corpus
from tests.support import template_table
from tests.support.chat_templates import CHATS, TOOL, called, result, said

from easydistill.data.chat import ChatRenderer, Missing, Rendered
from easydistill.data.messages import Chat, Message
from easydistill.errors import DataError

pytest.importorskip("trl")


def runs(renderer: ChatRenderer, row: Rendered) -> list[str]:
    """The runs of learned tokens, as text."""
    found: list[list[int]] = []
    before = False
    for token, on in zip(row.ids, row.mask, strict=True):
        if on:
            found = found if before else [*found, []]
            found[-1].append(token)
        before = on
    return [renderer.tokenizer.decode(run) for run in found]


def theirs(name: str, chat: Chat, **options: Any) -> Any:
    """What transformers makes of a chat, spelled as the template reads it."""
    renderer = corpus.renderer(name)
    messages = renderer._spelled(renderer._template(chat), chat)
    return corpus.tokenizer(name).apply_chat_template(messages, tools=list(chat.tools) or None, **options)


def rendered(name: str, chat: Chat) -> Rendered | None:
    """A chat; None if the template takes no such chats."""
    try:
        return corpus.renderer(name).render(chat)
    except DataError:
        return None


@pytest.mark.parametrize("name", corpus.names())
def test_the_text_is_transformers(name: str) -> None:
    for chat in CHATS.values():
        for prompt in (False, True):
            try:
                expected = theirs(name, chat, tokenize=False, add_generation_prompt=prompt)
            except Exception:
                with pytest.raises(DataError, match="refuses this chat"):
                    corpus.renderer(name).text(chat, add_generation_prompt=prompt)
            else:
                assert corpus.renderer(name).text(chat, add_generation_prompt=prompt) == expected


def without_what_follows_an_end(ids: list[int], marks: list[int], ends: frozenset[int], tokenizer: Any) -> list[bool]:
    """A template's marks less the line breaks and second ends that some mark behind an end token."""
    mask: list[bool] = []
    ended = False
    for token, mark in zip(ids, marks, strict=True):
        ended = ended and bool(mark) and (token in ends or not tokenizer.decode([token]).strip())
        mask.append(bool(mark) and not ended)
        ended = ended or (bool(mark) and token in ends)
    return mask


MARKED = [name for name in corpus.names() if "generation %}" in corpus.source(name)]


@pytest.mark.parametrize("name", MARKED)
def test_the_mask_is_that_of_the_templates_own_marks(name: str) -> None:
    renderer = corpus.renderer(name)
    for chat in CHATS.values():
        row = rendered(name, chat)
        if row is None:
            continue
        found = theirs(name, chat, return_dict=True, return_assistant_tokens_mask=True)
        expected = without_what_follows_an_end(
            found["input_ids"], found["assistant_masks"], renderer.eos_ids, renderer.tokenizer
        )
        assert (row.ids, row.mask) == (found["input_ids"], expected)


def test_many_templates_have_marks() -> None:
    assert len(corpus.names()) > 60
    assert len(MARKED) > 25


# Chats without calls, system texts or other roles, which a few templates refuse.
PLAIN = ("one turn", "three turns", "thoughts", "thoughts in the text", "an empty answer", "an empty question")


@pytest.mark.parametrize("name", corpus.names())
def test_every_turn_is_learned(name: str) -> None:
    renderer = corpus.renderer(name)
    for about, chat in CHATS.items():
        row = rendered(name, chat)
        if about in PLAIN:
            assert row is not None
        if row is None:
            continue
        answers = [message for message in chat.messages if message["role"] == "assistant"]
        learned = runs(renderer, row)
        assert row.lost_turns == 0
        assert len(learned) == len(answers)
        for text, answer in zip(learned, answers, strict=True):
            assert answer["content"].rpartition("</think>")[2].strip() in text
            assert all(call["arguments"]["animal"] in text for call in answer.get("tool_calls", ()))


@pytest.mark.parametrize("name", corpus.names())
def test_nothing_but_the_assistants_text_is_learned(name: str) -> None:
    renderer = corpus.renderer(name)
    ends = renderer.eos_ids
    for chat in CHATS.values():
        row = rendered(name, chat)
        if row is None:
            continue
        others = [m["content"].strip() for m in chat.messages if m["role"] != "assistant" and m["content"].strip()]
        for text in runs(renderer, row):
            assert not [other for other in others if other in text]
        # Nothing is learned behind an end token.
        assert not any(
            before in ends and on and was for before, was, on in zip(row.ids, row.mask, row.mask[1:], strict=False)
        )


@pytest.mark.parametrize("name", [name for name in corpus.names() if name not in MARKED])
def test_what_generation_is_given_is_not_learned(name: str) -> None:
    """Tokens that a turn shares with its generation prompt are context; what follows them is learned."""
    renderer = corpus.renderer(name)
    chat = CHATS["one turn"]
    row = renderer.render(chat)
    prompt = renderer.prompt_ids(chat.messages[:1])
    common = next((t for t, pair in enumerate(zip(prompt, row.ids, strict=False)) if pair[0] != pair[1]), len(prompt))
    assert row.mask.index(True) == common
    # The turn ends with an end token of the model.
    assert row.ids[max(t for t, on in enumerate(row.mask) if on)] in renderer.eos_ids


@pytest.mark.parametrize("name", corpus.names())
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_turn_of_weight_0_is_context(name: str, kept: int) -> None:
    renderer = corpus.renderer(name)
    messages: list[Message] = []
    for turn, answer in enumerate(("Alpha.", "Beta.", "Gamma.")):
        weight = {} if turn == kept else {"weight": 0}
        messages += [said("user", "Why?"), said("assistant", answer, **weight)]
    row = renderer.render(messages)
    (learned,) = runs(renderer, row)
    assert [answer for answer in ("Alpha.", "Beta.", "Gamma.") if answer in learned] == [
        ("Alpha.", "Beta.", "Gamma.")[kept]
    ]
    unweighted = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    whole = renderer.render(unweighted)  # type: ignore[arg-type]
    assert all(on for on, kept_on in zip(whole.mask, row.mask, strict=False) if kept_on)


SPEAKING = ("chatml", "qwen3", "qwen3_training", "llama3_1", "gptoss", "glm4moe", "gemma4_v5", "nemotron_3_nano")
words = st.text("abc ABC.,:;!?'\"()[]{}#*-_/\\0123456789\n\t äöüß漢字Ж€<|>", max_size=12)
calls = st.builds(lambda animal, content: called(animal, content), words.filter(str.strip), st.just(""))


@st.composite
def chats(draw: Any) -> Chat:
    """Chats with calls, thoughts, flags, odd white space and empty answers."""
    messages: list[Message] = [said("system", draw(words))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        # Every template wants the user to ask something.
        messages.append(said("user", f"Question {turn}?" + draw(words)))
        if draw(st.booleans()):
            messages += [draw(calls), result(f"Result {turn}." + draw(words))]
        answer = said("assistant", draw(words))
        thought = draw(words)
        if draw(st.booleans()) and thought.strip():
            answer["reasoning_content"] = thought
        if draw(st.integers(0, 3)) == 0:
            answer["weight"] = 0
        messages.append(answer)
    messages[-1].pop("weight", None)
    return Chat(tuple(messages), (TOOL,))


@pytest.mark.parametrize("name", SPEAKING)
@settings(max_examples=40, deadline=None)
@given(chat=chats())
def test_random_chats(name: str, chat: Chat) -> None:
    renderer = chatml() if name == "chatml" else corpus.renderer(name)
    try:
        row = renderer.render(chat)
    except DataError as error:
        # ChatML shows no calls, and where thoughts are not shown, an answer of thoughts alone says nothing.
        unsaid = any(m.get("reasoning_content") and not m["content"].strip() for m in chat.messages)
        assert unsaid or (name == "chatml" and any("tool_calls" in m for m in chat.messages)), error
        return
    text = renderer.text(chat, add_generation_prompt=False)
    # A template that ends no answer gets an end.
    decoded = renderer.tokenizer.decode(row.ids)
    assert decoded == text or (decoded.removeprefix(text) in corpus.ends(name) and row.ids[-1] in renderer.eos_ids)
    learned = runs(renderer, row)
    answers = [m for m in chat.messages if m["role"] == "assistant" and m.get("weight", 1)]
    # What generation is given before the last answer is not learned, if it is what the row begins with.
    prompt = renderer.text(chat.with_messages(chat.messages[:-1]), add_generation_prompt=True)
    if text.startswith(prompt) and name not in MARKED:
        given = len(renderer.prompt_ids(chat.with_messages(chat.messages[:-1])))
        assert not row.mask[given - 1]
        assert row.mask[given]
    # Two answers without anything between them are one run.
    assert len(learned) + row.lost_turns == len(answers)
    assert not [run for run in learned if "Question " in run or "Result " in run]
    for run, answer in zip(learned, answers, strict=False):
        if not row.lost_turns and "</think>" not in answer["content"]:
            assert answer["content"].strip() in run


def chatml() -> ChatRenderer:
    own = corpus.tokenizer("qwen2_5")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return ChatRenderer(own, frozenset({own.eos_token_id}), template)


# --- what a template cannot show ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "about", "missing"),
    [
        ("llama3", "thoughts", {("thoughts", 1), ("thoughts", 3)}),
        ("qwen3", "thoughts", {("thoughts", 1)}),
        ("qwen3_8", "thoughts", set()),
        ("deepseekv3", "thoughts in the text", {("thoughts", 1), ("thoughts", 3)}),
        ("qwen2_5", "developer", {("developer", 0)}),
        ("gptoss", "developer", set()),
        ("phi3", "calls", {("tool call", 1), ("tool result", 2), ("tool call", 5), ("tool result", 6), ("tools", -1)}),
        ("llama3_1", "calls", set()),
    ],
)
def test_what_is_not_shown_is_found(name: str, about: str, missing: set[tuple[str, int]]) -> None:
    renderer = corpus.renderer(name)
    found = set(renderer.missing(CHATS[about]))
    assert found == {Missing(kind, message) for kind, message in missing}
    if not any(kind == "tool call" for kind, _ in missing):
        assert set(renderer.render(CHATS[about]).missing) == found


def test_an_answer_whose_calls_are_not_shown_is_refused() -> None:
    with pytest.raises(DataError, match=r"tool calls of message 2(.|\n)*→ set dataset\.template"):
        corpus.renderer("llama3").render(CHATS["calls"])
    # As context it is only told.
    messages = [{**m, "weight": 0} if m.get("tool_calls") else m for m in CHATS["calls"].messages]
    row = corpus.renderer("llama3").render(Chat(tuple(messages)))  # type: ignore[arg-type]
    assert Missing("tool call", 1) in row.missing
    assert runs(corpus.renderer("llama3"), row) == ["It has eight.<|eot_id|>", "It has six.<|eot_id|>"]


def test_calls_are_given_as_a_template_reads_them() -> None:
    """DeepSeek's first templates show a call only if the content is None, and want its arguments as text."""
    own = corpus.tokenizer("qwen2_5")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is none and m.tool_calls %}{% for call in m.tool_calls %}"
        "{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = ChatRenderer(own, frozenset({own.eos_token_id}), template)
    row = renderer.render((said("user", "Legs?"), called("spider")))
    assert runs(renderer, row) == ['count_legs {"animal": "spider"}<|im_end|>']
    with pytest.raises(DataError, match="does not show the tool calls"):
        renderer.render((said("user", "Legs?"), called("spider", "I ask.")))


def test_arguments_are_json_and_not_python() -> None:
    own = corpus.tokenizer("qwen2_5")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}: {{ call.function.arguments }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = ChatRenderer(own, frozenset({own.eos_token_id}), template)
    row = renderer.render((said("user", "Legs?"), called("spider")))
    assert runs(renderer, row) == ['count_legs: {"animal": "spider"}<|im_end|>']


@pytest.mark.parametrize("how", ["inline", "drop"])
def test_thoughts_can_be_written_into_the_text_or_left_out(how: str) -> None:
    own = corpus.tokenizer("llama3")
    renderer = ChatRenderer(own, corpus.renderer("llama3").eos_ids, thoughts=how)
    row = renderer.render(CHATS["thoughts"])
    assert row.missing == ()
    shown = {"inline": "<think>\nFirst thought.\n</think>\n\nBecause.<|eot_id|>", "drop": "Because.<|eot_id|>"}
    assert runs(renderer, row)[0] == shown[how]


# --- texts in which sentinels change something ---------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        "{{ m.content | length }}:{{ m.content }}",
        "{% if m.content[0] == 'A' %}a{% endif %}{{ m.content }}",
        "{% if m.content.startswith('Al') %}a{% endif %}{{ m.content }}",
        "{{ m.content | tojson(ensure_ascii=True) }}",
        "{{ m.content.encode }}{{ m.content }}",
    ],
)
def test_turns_are_found_by_another_answer_in_their_place(shown: str) -> None:
    own = corpus.tokenizer("qwen2_5")
    template = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{shown}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = ChatRenderer(own, frozenset({own.eos_token_id}), template)
    row = renderer.render(
        (said("user", "Why?"), said("assistant", "Alpha."), said("user", "So?"), said("assistant", "Beta."))
    )
    first, second = runs(renderer, row)
    assert "Alpha." in first and first.endswith("<|im_end|>")
    assert "Beta." in second and second.endswith("<|im_end|>")
    assert not [text for text in (first, second) if "So?" in text or "user" in text]
    assert row.missing == ()


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1].content }}\nTURNS",
        "TURNS",
        "TURNS{{ messages[0].content }}",
        "TURNS{{ messages[1].content }}",
    ],
    ids=["the answer twice", "in reverse", "the system's text behind", "a question behind"],
)
def test_no_other_message_is_ever_learned(template: str) -> None:
    own = corpus.tokenizer("qwen2_5")
    order = "messages | reverse" if template == "TURNS" else "messages"
    turns = f"{{% for m in {order} %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    renderer = ChatRenderer(own, frozenset({own.eos_token_id}), template.replace("TURNS", turns) + prompt)
    chat = (
        said("system", "Be brief."),
        said("user", "Why is that?"),
        said("assistant", "Alpha."),
        said("user", "Is it so?"),
        said("assistant", "Beta."),
    )
    try:
        row = renderer.render(chat)
    except DataError as error:
        assert "final answer" in str(error)
        return
    assert not [text for text in runs(renderer, row) if "brief" in text or "?" in text or "user" in text]
    assert set(runs(renderer, row)) <= {"Alpha.<|im_end|>", "Beta.<|im_end|>"}
    assert len(runs(renderer, row)) + row.lost_turns == 2


def test_texts_with_noncharacters_are_rendered() -> None:
    renderer = corpus.renderer("qwen2_5")
    row = renderer.render((said("user", "\ufde0\ufdd0Why?"), said("assistant", "\ufde2x\ufde3 \ufde1\ufdd0.")))
    assert runs(renderer, row) == ["\ufde2x\ufde3 \ufde1\ufdd0.<|im_end|>"]


# --- variables and the date ------------------------------------------------------------------------------------


def test_variables_of_the_config_and_of_the_row() -> None:
    own = corpus.tokenizer("qwen3")
    renderer = ChatRenderer(own, corpus.renderer("qwen3").eos_ids, template_kwargs={"enable_thinking": False})
    closed = "<think>\n\n</think>\n\n"
    chat = CHATS["one turn"].messages[:1]
    assert renderer.text(chat, add_generation_prompt=True).endswith(closed)
    opened = Chat(chat, template_kwargs={"enable_thinking": True})
    assert not renderer.text(opened, add_generation_prompt=True).endswith(closed)
    with pytest.raises(DataError, match="variable tools"):
        renderer.text(Chat(chat, template_kwargs={"tools": []}), add_generation_prompt=True)


def test_the_date_is_the_one_given() -> None:
    import datetime

    own = corpus.tokenizer("llama3_2")
    chat = CHATS["one turn"]
    for day in (1, 2):
        renderer = ChatRenderer(own, corpus.renderer("llama3_2").eos_ids, date=datetime.date(2024, 5, day))
        assert f"Today Date: 0{day} May 2024" in renderer.text(chat, add_generation_prompt=False)
        assert renderer.shows_date
    assert not corpus.renderer("qwen3").shows_date


# --- the table in the documentation ----------------------------------------------------------------------------


def test_the_table_in_the_documentation_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "templates.md"
    text = page.read_text(encoding="utf-8")
    if template_table.version() not in text:
        pytest.skip("the page is of another version of TRL")
    assert text == template_table.page()


@pytest.mark.parametrize("text", ["<", "e", "im", "|>", "a"])
def test_a_text_that_stands_in_the_closing_of_a_turn_hides_no_empty_answer(text: str) -> None:
    chat = Chat((said("system", text), said("user", "Question 0?"), said("assistant", "")), tools=(TOOL,))
    row = corpus.renderer("nemotron_3_nano").render(chat)
    assert row.trained_tokens == 2
