"""Chats rendered with real models' templates, and with hostile ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.data.chat import ChatRenderer, Missing, Rendered
from easydistill.data.messages import Message
from easydistill.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The part of Qwen3's template that matters: thoughts are shown for the last answer only, and always there.
QWEN3 = """\
{%- set last = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.user %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# As R1's distillations have it: the generation prompt opens a thought, a rendered answer shows none.
OPENS_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def said(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}  # type: ignore[typeddict-item]


USER, ANSWER = said("user", "Why?"), said("assistant", "Because.")


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


def make(tokenizer: Any, template: str, *more_ends: int) -> ChatRenderer:
    return ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id, *more_ends}), template)


def learned(renderer: ChatRenderer, row: Rendered) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = []
    before = False
    for token, on in zip(row.ids, row.mask, strict=True):
        if on:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = on
    return [renderer.tokenizer.decode(run) for run in runs]


# SmolLM2's vocabulary has no token for some bytes, so it cannot write every character.
words = st.text("abc AB.,:;!?'\"()[]{}#*-_/\\0123456789\n\t äöüßéñ漢字жЖα€", min_size=1, max_size=12)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=3), system=st.none() | words)
def test_exactly_the_answers_are_learned(turns: list[tuple[str, str]], system: str | None, tokenizer: Any) -> None:
    renderer = make(tokenizer, CHATML)
    messages = [said("system", system)] if system else []
    for question, answer in turns:
        messages += [said("user", question), said("assistant", answer)]
    row = renderer.render(messages)
    assert learned(renderer, row) == [f"{answer}<|im_end|>" for _, answer in turns]
    assert tokenizer.decode(row.ids) == renderer.text(messages, add_generation_prompt=False)
    # What is learned continues exactly what generation would be given.
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    prompt = renderer.prompt_ids(messages[:first])
    assert row.ids[: len(prompt)] == prompt
    assert row.mask[: len(prompt) + 1] == [*[False] * len(prompt), True]


def test_an_empty_reasoning_block_that_the_model_has_to_write_is_learned(tokenizer: Any) -> None:
    renderer = make(tokenizer, QWEN3)
    assert learned(renderer, renderer.render([USER, ANSWER])) == ["<think>\n\n</think>\n\nBecause.<|im_end|>"]


@pytest.mark.parametrize(
    "answer",
    [
        said("assistant", "Because.", reasoning_content="Hm."),
        said("assistant", "<think>\nHm.\n</think>\n\nBecause."),
    ],
    ids=["apart", "in the text"],
)
def test_reasoning_is_learned_with_its_answer(answer: Message, tokenizer: Any) -> None:
    renderer = make(tokenizer, QWEN3)
    assert learned(renderer, renderer.render([USER, answer])) == ["<think>\nHm.\n</think>\n\nBecause.<|im_end|>"]


def test_an_earlier_answer_is_learned_as_it_is_shown(tokenizer: Any) -> None:
    renderer = make(tokenizer, QWEN3)
    first = said("assistant", "Because.", reasoning_content="Hm.")
    row = renderer.render([USER, first, said("user", "Sure?"), said("assistant", "Yes.", reasoning_content="Ah.")])
    assert learned(renderer, row) == ["Because.<|im_end|>", "<think>\nAh.\n</think>\n\nYes.<|im_end|>"]
    assert "Hm." not in tokenizer.decode(row.ids)
    assert row.missing == (Missing("thoughts", 1),)
    assert row.lost_turns == 0


@pytest.mark.parametrize("text", ["end", "im", "Why?", "assistant", "user", "\n", "<", "|>", "think", "a\nb", "  x "])
def test_an_answer_whose_text_also_appears_elsewhere_is_located(text: str, tokenizer: Any) -> None:
    renderer = make(tokenizer, OPENS_THOUGHT)
    row = renderer.render([USER, said("assistant", text)])
    assert learned(renderer, row) == [f"{text}<|im_end|>"]


def test_a_template_that_hides_the_answer_is_refused(tokenizer: Any) -> None:
    renderer = make(tokenizer, "{% for m in messages %}{{ m.role }}{% endfor %}{{ '?' if add_generation_prompt }}")
    with pytest.raises(DataError, match="does not show the final answer"):
        renderer.render([USER, ANSWER])


REPEATING = (
    "{% if not add_generation_prompt %}To be said: {{ messages[-1].content }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_that_is_shown_again_is_learned_once_with_marks(tokenizer: Any) -> None:
    unmarked = REPEATING.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(DataError, match=r"shows it again elsewhere\n *→ .*\{% generation %\}"):
        make(tokenizer, unmarked).render([USER, ANSWER])
    # The way out that is named leads out.
    renderer = make(tokenizer, REPEATING)
    chat = [USER, ANSWER, said("user", "Sure?"), said("assistant", "Yes.")]
    row = renderer.render(chat)
    assert learned(renderer, row) == ["Because.<|im_end|>", "Yes.<|im_end|>"]
    assert renderer.tokenizer.decode(row.ids) == make(tokenizer, unmarked).text(chat, add_generation_prompt=False)


def test_nothing_after_the_first_end_token_is_learned(tokenizer: Any) -> None:
    other_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    template = CHATML.replace("<|im_end|>\n{% endfor %}", "<|im_end|>\n<|endoftext|>{% endfor %}")
    renderer = make(tokenizer, template, other_end)
    row = renderer.render([USER, ANSWER])
    assert learned(renderer, row) == ["Because.<|im_end|>"]
    assert row.ids[-1] == other_end
    assert not row.mask[-1]


def test_every_end_token_of_the_model_ends_an_answer(tokenizer: Any) -> None:
    other_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    renderer = make(tokenizer, CHATML.replace("<|im_end|>", "<|endoftext|>"), other_end)
    assert learned(renderer, renderer.render([USER, ANSWER])) == ["Because.<|endoftext|>"]


def test_generation_tags_are_ignored(tokenizer: Any) -> None:
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert make(tokenizer, marked).render([USER, ANSWER]) == make(tokenizer, CHATML).render([USER, ANSWER])


def test_json_in_a_template_is_written_as_transformers_writes_it(tokenizer: Any) -> None:
    template = "{{ messages[0].content | tojson }}"
    chat = [said("user", "<b> & 'ä'")]
    expected = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    assert make(tokenizer, template).text(chat, add_generation_prompt=False) == expected == "\"<b> & 'ä'\""


def test_the_text_is_what_transformers_renders(tokenizer: Any) -> None:
    chats = [[USER, ANSWER], [said("system", "Be brief."), USER, ANSWER, said("user", " x\n"), said("assistant", "y")]]
    for template in (tokenizer.chat_template, CHATML, QWEN3):
        for chat in chats:
            for prompt in (False, True):
                ours = make(tokenizer, template).text(chat, add_generation_prompt=prompt)
                theirs = tokenizer.apply_chat_template(
                    [dict(message) for message in chat],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
                assert ours == theirs


VERSION_1 = (
    "{{ message.content }}{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
    "{% if add_output %}{{ '\\n' + message.output }}{% endif %}"
)


def test_a_version_1_template_without_end_gets_one(tokenizer: Any) -> None:
    renderer = make(tokenizer, VERSION_1)
    assert renderer.single_turn
    assert learned(renderer, renderer.render([USER, ANSWER])) == ["Because.<|im_end|>"]


def test_a_version_1_template_takes_the_whole_context_as_its_instruction(tokenizer: Any) -> None:
    renderer = make(tokenizer, VERSION_1)
    row = renderer.render([said("system", "Be brief."), USER, ANSWER])
    assert tokenizer.decode(row.ids) == "Be brief.\n\nWhy?\nBecause.<|im_end|>"
    assert learned(renderer, row) == ["Because.<|im_end|>"]


@pytest.mark.parametrize("keep", [1, 5, 12])
def test_truncation_keeps_ids_and_mask_together(keep: int, tokenizer: Any) -> None:
    renderer = make(tokenizer, CHATML)
    whole = renderer.render([USER, ANSWER])
    cut = renderer.render([USER, ANSWER], max_length=keep)
    assert (cut.ids, cut.mask, cut.truncated) == (whole.ids[:keep], whole.mask[:keep], True)
    assert renderer.render([USER, ANSWER], max_length=len(whole.ids)) == whole
    assert cut.trained_tokens == sum(whole.mask[:keep])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only user and assistant') }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ messages[7].content }}",
        "{{ nothing.at.all }}",
        "{{ [].pop() }}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__}'.format(messages) + (1).__class__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error_of_the_data(template: str, tokenizer: Any) -> None:
    renderer = make(tokenizer, template)
    with pytest.raises(DataError, match="refuses this chat"):
        renderer.text([USER], add_generation_prompt=True)


@pytest.mark.parametrize("template", ["{% nonsense %}", "{{ x | nofilter }}", "{% for %}", "{{", "{% generation %}x"])
def test_what_is_no_template_is_told_when_it_is_read(template: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("first\n" + template)
    with pytest.raises(DataError, match="not valid Jinja: line 2"):
        ChatRenderer.from_file(tokenizer, frozenset({2}), str(tmp_path / "t.jinja"))


def test_a_tokenizer_with_several_templates_uses_the_default_one(tokenizer: Any) -> None:
    class Several:
        chat_template: dict[str, str] = {"default": CHATML, "tool_use": "x"}  # noqa: RUF012
        eos_token_id = tokenizer.eos_token_id
        special_tokens_map: dict[str, str] = {}  # noqa: RUF012

        def __call__(self, *args: Any, **options: Any) -> Any:
            return tokenizer(*args, **options)

        def decode(self, ids: list[int]) -> str:
            return str(tokenizer.decode(ids))

    renderer = ChatRenderer(Several(), frozenset())
    assert renderer.eos_ids == {tokenizer.eos_token_id}
    assert learned(renderer, renderer.render([USER, ANSWER])) == ["Because.<|im_end|>"]


# --- tokenizers that put a space before every text, as sentencepiece does ----------------------------------


@pytest.fixture(scope="module")
def spaced() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(special_tokens=[*special, *alphabet], vocab_size=500, show_progress=False)
    inner.train_from_iterator(
        ["Why? Because it is so. [INST] [/INST] abcdefghijklmnopqrstuvwxyz 0123456789"] * 9, trainer
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_spaced_tokenizer_is_recognised(spaced: Any, tokenizer: Any) -> None:
    assert not ChatRenderer(spaced, frozenset({2}), LLAMA_2)._splits_cleanly
    assert ChatRenderer(tokenizer, frozenset({2}), LLAMA_2)._splits_cleanly


@pytest.mark.parametrize("answer", ["Because it is so.", "x", "so\nit is", "größer", "12"])
def test_a_spaced_tokenizer_reads_the_chat_as_a_whole(answer: str, spaced: Any) -> None:
    renderer = ChatRenderer(spaced, frozenset({spaced.eos_token_id}), LLAMA_2)
    chat = [USER, said("assistant", answer), said("user", "So?"), said("assistant", "it is")]
    row = renderer.render(chat)
    text = renderer.text(chat, add_generation_prompt=False)
    assert row.ids == spaced(text, add_special_tokens=False)["input_ids"]
    assert row.ids.count(spaced.bos_token_id) == 1
    assert row.ids[-1] == spaced.eos_token_id
    assert [run.strip() for run in learned(renderer, row)] == [f"{answer} </s>", "it is </s>"]
    assert row.ids.count(spaced.eos_token_id) == 2
    # The prompt is the beginning of the row.
    prompt = renderer.prompt_ids(chat[:1])
    assert row.ids[: len(prompt)] == prompt
    assert not any(row.mask[: len(prompt)])


@pytest.mark.parametrize("text", ["<think>\nHm.\n</think>\n\nYes.", "Hm.\n</think>\nYes.", "Yes."])
def test_dropped_thoughts_are_dropped_from_texts_too(tokenizer: Any, text: str) -> None:
    ends = frozenset({tokenizer.eos_token_id})
    question = said("user", "<think>\nIs it so?\n</think>\nYes or no?")
    expected = ChatRenderer(tokenizer, ends).render([question, said("assistant", "Yes.")])
    row = ChatRenderer(tokenizer, ends, thoughts="drop").render([question, said("assistant", text)])
    assert row.ids == expected.ids
