"""Chats: exactly the tokens that the assistant would generate are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easydistill.data.chat import ChatRenderer
from easydistill.errors import DataError

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because it is."}
VERSION_1 = (
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% if add_output %}{{ '<|im_start|>assistant\n' + message.output + '<|im_end|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


@pytest.fixture
def chat(tokenizer: Any) -> ChatRenderer:
    return ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}))


def learned(renderer: ChatRenderer, row: Any) -> str:
    text: str = renderer.tokenizer.decode([token for token, on in zip(row.ids, row.mask, strict=True) if on])
    return text


def test_answer_and_end_token_are_learned_and_nothing_else(chat: ChatRenderer) -> None:
    row = chat.render([USER, ANSWER])
    assert learned(chat, row) == "Because it is.<|im_end|>"
    assert not row.truncated


def test_the_tokens_are_those_of_the_models_own_template(chat: ChatRenderer, tokenizer: Any) -> None:
    own = tokenizer.apply_chat_template([USER, ANSWER], tokenize=True, return_dict=True)["input_ids"]
    assert chat.render([USER, ANSWER]).ids == own


def test_the_prompt_is_exactly_what_generation_is_given(chat: ChatRenderer, tokenizer: Any) -> None:
    row = chat.render([USER, ANSWER])
    prompt = chat.prompt_ids([USER])
    assert row.ids[: len(prompt)] == prompt
    assert row.mask[: len(prompt)] == [False] * len(prompt)
    assert row.mask[len(prompt)]
    assert prompt == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=True)["input_ids"]


def test_a_chat_with_images_is_refused_and_not_rendered_blind(chat: ChatRenderer) -> None:
    content = [{"type": "image", "image": "sha256:0"}, {"type": "text", "text": "Why?"}]
    for render in (chat.prompt_ids, chat.render, chat.chat_ids):
        with pytest.raises(DataError, match="it would not see them"):
            render([{"role": "user", "content": content}, ANSWER])


def test_an_answer_that_starts_with_a_line_break_does_not_merge_with_the_prompt(chat: ChatRenderer) -> None:
    row = chat.render([USER, {"role": "assistant", "content": "\n\nBecause"}])
    assert row.ids[: len(chat.prompt_ids([USER]))] == chat.prompt_ids([USER])
    assert learned(chat, row) == "\n\nBecause<|im_end|>"


def test_every_answer_of_a_chat_is_learned(chat: ChatRenderer) -> None:
    row = chat.render([USER, ANSWER, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}])
    assert learned(chat, row) == "Because it is.<|im_end|>Yes.<|im_end|>"


def test_there_is_at_most_one_start_token(tokenizer: Any) -> None:
    with_start = "{{ bos_token }}" + tokenizer.chat_template
    row = ChatRenderer(tokenizer, frozenset({2}), with_start).render([USER, ANSWER])
    assert row.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(row.ids).count(tokenizer.bos_token + tokenizer.bos_token + "system") == 1


def test_the_end_token_is_added_if_the_template_has_none(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}), template)
    row = renderer.render([USER, ANSWER])
    assert learned(renderer, row) == "Because it is.\n<|im_end|>"
    assert row.ids[-1] == tokenizer.eos_token_id


def test_templates_of_version_1(tokenizer: Any) -> None:
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}), VERSION_1)
    assert renderer.single_turn
    row = renderer.render([USER, ANSWER])
    assert learned(renderer, row) == "Because it is.<|im_end|>"
    assert tokenizer.decode(renderer.prompt_ids([USER])) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert row.ids[: len(renderer.prompt_ids([USER]))] == renderer.prompt_ids([USER])


def test_a_template_that_opens_a_reasoning_block(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}), template)
    assert learned(renderer, renderer.render([USER, ANSWER])) == "Because it is.<|im_end|>"


def test_truncation_cuts_the_end(chat: ChatRenderer) -> None:
    whole = chat.render([USER, ANSWER])
    cut = chat.render([USER, ANSWER], max_length=len(whole.ids) - 3)
    assert cut.truncated
    assert cut.ids == whole.ids[:-3]


def test_a_tokenizer_that_puts_a_space_before_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "</s>", "\n"]
    trainer = trainers.BpeTrainer(special_tokens=special, vocab_size=300, show_progress=False)
    inner.train_from_iterator(["Why? Because it is. user: assistant: abcdefghijklmnopqrstuvwxyz"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
    renderer = ChatRenderer(
        tokenizer, frozenset({1}), template + "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = renderer.render([USER, ANSWER])
    text = renderer.text([USER, ANSWER], add_generation_prompt=False)
    assert row.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert learned(renderer, row).strip() == "Because it is.</s>"


def test_bad_templates_are_clear_errors(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not valid Jinja: line 2"):
        ChatRenderer(tokenizer, frozenset({2}), "x\n{% if %}")
    with pytest.raises(DataError, match="no roles here"):
        ChatRenderer(tokenizer, frozenset({2}), "{{ messages }}{{ raise_exception('no roles here') }}").prompt_ids(
            [USER]
        )
    with pytest.raises(DataError, match="cannot be read"):
        ChatRenderer.from_file(tokenizer, frozenset({2}), str(tmp_path / "nowhere"))

    class Bare:
        chat_template = None
        eos_token_id = 2

    with pytest.raises(DataError, match=r"dataset\.template"):
        ChatRenderer(Bare(), frozenset({2}))


def test_templates_are_sandboxed(tokenizer: Any) -> None:
    renderer = ChatRenderer(tokenizer, frozenset({2}), "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError):
        renderer.prompt_ids([USER])
