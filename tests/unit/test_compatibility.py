"""Differences between teacher and student that are reported before anything starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from easydistill.models.compatibility import Side, answer_ids, compare, fatal, real_vocabulary, shared_ids

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


def side(name: str, tokenizer: Any, **values: Any) -> Side:
    ends = frozenset({tokenizer.eos_token_id})
    return Side(name, tokenizer, **({"eos_ids": ends, "rows": real_vocabulary(tokenizer)} | values))


class Renumbered:
    """A tokenizer that gives some tokens other ids, or knows fewer or more; everything else is the original's."""

    def __init__(self, original: Any, changes: dict[str, int | None]) -> None:
        self._original = original
        kept = {token: at for token, at in original.get_vocab().items() if token not in changes}
        self._vocabulary = kept | {token: at for token, at in changes.items() if at is not None}

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._original(*arguments, **options)


def test_models_of_one_family_do_not_differ(tokenizer: Any) -> None:
    assert compare(side("student", tokenizer), side("teacher", tokenizer)) == []


def test_other_ids_are_fatal_and_named(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    first, second = [token for token, at in vocabulary.items() if at in {500, 501}]
    other = Renumbered(tokenizer, {first: vocabulary[second], second: vocabulary[first]})
    (found,) = fatal(compare(side("student", tokenizer), side("teacher", other)))
    assert "2 of 49152 differ" in found.problem
    assert repr(first) in found.problem or repr(second) in found.problem
    assert "bytes" in found.hint
    assert shared_ids(tokenizer, other) is None


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_extra_tokens_at_the_end_are_left_out(tokenizer: Any, who: str) -> None:
    vocabulary = tokenizer.get_vocab()
    last = [token for token, at in vocabulary.items() if at >= 49_150]
    smaller = Renumbered(tokenizer, dict.fromkeys(last))
    sides = (tokenizer, smaller) if who == "student" else (smaller, tokenizer)
    found = compare(side("student", sides[0]), side("teacher", sides[1]))
    assert not fatal(found)
    assert f"2 tokens are known to the {who} alone" in found[0].problem
    assert shared_ids(*sides) == 49_150


def test_a_token_missing_in_the_middle_is_fatal(tokenizer: Any) -> None:
    missing = next(token for token, at in tokenizer.get_vocab().items() if at == 700)
    other = Renumbered(tokenizer, {missing: None})
    assert shared_ids(tokenizer, other) is None
    assert fatal(compare(side("student", tokenizer), side("teacher", other)))


def test_padding_of_the_output_layer_is_reported_but_not_fatal(tokenizer: Any) -> None:
    found = compare(side("student", tokenizer, rows=49_152 + 128), side("teacher", tokenizer, rows=49_152 + 256))
    assert not fatal(found)
    assert [f"{rows} rows" in item.problem for rows, item in zip((49_280, 49_408), found, strict=True)] == [True, True]


def test_an_output_layer_smaller_than_the_tokenizer_is_fatal(tokenizer: Any) -> None:
    (found,) = fatal(compare(side("student", tokenizer, rows=49_000), side("teacher", tokenizer)))
    assert "49000 rows" in found.problem


def test_different_end_tokens_are_reported(tokenizer: Any) -> None:
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    (found,) = compare(side("student", tokenizer), side("teacher", tokenizer, eos_ids=frozenset({start})))
    assert not found.fatal
    assert "'<|im_end|>'" in found.problem
    assert "'<|endoftext|>'" in found.problem


def test_a_teacher_with_one_more_end_token_agrees(tokenizer: Any) -> None:
    more = frozenset({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")})
    assert compare(side("student", tokenizer), side("teacher", tokenizer, eos_ids=more)) == []


def test_different_templates_are_reported(tokenizer: Any) -> None:
    (found,) = compare(side("student", tokenizer, template=CHATML), side("teacher", tokenizer))
    assert not found.fatal
    assert "templates differ" in found.problem


def test_a_begin_token_written_twice_is_fatal(tokenizer: Any) -> None:
    twice = "{{ bos_token }}{{ bos_token }}" + CHATML
    assert any(
        "begin token twice" in item.problem
        for item in fatal(compare(side("student", tokenizer, template=twice), side("teacher", tokenizer)))
    )


def test_the_hint_for_a_student_without_a_template_says_where_to_set_one(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    found = fatal(compare(side("student", bare), side("teacher", tokenizer)))
    assert any("dataset.template" in item.hint for item in found)


# --- tokens of answers --------------------------------------------------------------------------------------------------


class WithControls(Renumbered):
    """A tokenizer with further control tokens."""

    def __init__(self, original: Any, controls: dict[str, int]) -> None:
        super().__init__(original, dict(controls))
        self._controls = controls

    @property
    def all_special_tokens(self) -> list[str]:
        return [*self._original.all_special_tokens, *self._controls]


def test_control_tokens_of_images_may_differ(tokenizer: Any) -> None:
    count = len(tokenizer.get_vocab())
    ours = WithControls(tokenizer, {"<image>": count})
    theirs = WithControls(tokenizer, {"<seen>": count, "<image>": count + 1, "</seen>": count + 2})
    assert shared_ids(ours, theirs) is None
    assert answer_ids(ours, theirs) == answer_ids(theirs, ours) == count
    assert answer_ids(ours, tokenizer) == answer_ids(tokenizer, ours) == count
    assert answer_ids(ours, ours) == count + 1
    (found,) = fatal(compare(side("student", ours), side("teacher", theirs)))
    assert '"answers"' in found.hint


def test_tokens_of_text_may_not(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    count = len(vocabulary)
    first, second = [token for token, at in vocabulary.items() if at in {500, 501}]
    swapped = Renumbered(tokenizer, {first: vocabulary[second], second: vocabulary[first]})
    assert answer_ids(tokenizer, swapped) is None
    # The same text behind control tokens that disagree.
    assert (
        answer_ids(
            Renumbered(WithControls(tokenizer, {"<image>": count}), {"wordless words": count + 1}),
            Renumbered(WithControls(tokenizer, {"<seen>": count}), {"wordless words": count + 1}),
        )
        is None
    )
    # Words that one of them alone knows are none of the other's answers.
    assert answer_ids(Renumbered(tokenizer, {"wordless words": count}), tokenizer) == count
    letters = {f"<{number}>": number for number in range(9)}
    nothing = Renumbered(tokenizer, {**dict.fromkeys(vocabulary), **letters})
    assert answer_ids(tokenizer, nothing) is None


def test_a_control_token_in_the_midst_that_disagrees_parts_two_vocabularies(tokenizer: Any) -> None:
    pads = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    other = Renumbered(tokenizer, {pads[0]: None, "<image>": tokenizer.get_vocab()[pads[0]]})
    assert answer_ids(tokenizer, other) is None
