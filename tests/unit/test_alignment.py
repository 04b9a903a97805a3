"""Two tokenizers on one text: bytes, shared ids, pairs of rows, merged distributions."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tokenizers as made
from tests.support.tokenizers import KINDS, SPACE, corpus, tokenizer
from tests.unit.test_chat_templates import QWEN3
from tokenizers import AddedToken, pre_tokenizers

from easydistill.data.chat import ChatRenderer, Rendered
from easydistill.data.messages import Message
from easydistill.errors import DataError
from easydistill.signals.alignment import (
    TokenBytes,
    align,
    shared_vocabulary,
    token_bytes,
)
from easydistill.signals.columns import ColumnMap

LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} <|im_end|>{% endif %}{% endfor %}"
)
kinds = st.sampled_from(sorted(KINDS))
pieces = st.sampled_from([
    "Hello", " world", "  ", "\n\n", "\t", "import numpy as np\n", "def f(x):\n    return x", "the ", "<think>", "</think>", ".",
    "知识蒸馏", "漢", "é", "👩\u200d👩\u200d👧", "🇩🇪", "1234", "'s", "…", "\x00", "\x07", "\r\n", "Å", "e\u0301",
])  # fmt: skip
texts = st.lists(pieces | st.text(max_size=5), max_size=10).map("".join)
# Without what a template or a tokenizer changes.
plain = st.lists(pieces.filter(lambda p: p.isascii() and "\x00" != p != "\x07" and "think" not in p), max_size=8).map(
    lambda parts: "A" + "".join(parts) + "."
)


def encoded(kind: str, text: str) -> list[int]:
    ids: list[int] = tokenizer(kind)(text, add_special_tokens=False)["input_ids"]
    return ids


@cache
def bytes_of(kind: str) -> TokenBytes:
    return token_bytes(tokenizer(kind))


def joined(kind: str, ids: list[int]) -> bytes:
    return b"".join(bytes_of(kind)[index] or b"\0none\0" for index in ids)


def end(kind: str) -> int:
    index: int = tokenizer(kind).eos_token_id
    return index


def aligned(student: str, first: Rendered, teacher: str, second: Rendered, **more: Any) -> list[tuple[int, int]]:
    found = align(
        first.ids, first.mask, second.ids, second.mask,
        bytes_of(student), bytes_of(teacher), {end(student)}, {end(teacher)}, **more,
    )  # fmt: skip
    assert found.dtype == np.int64
    assert found.shape == (len(found), 2)
    return [(int(t), int(u)) for t, u in found]


def row(kind: str, text: str) -> Rendered:
    """A prompt of one token, an answer, the end."""
    ids = encoded(kind, text)
    return Rendered([end(kind), *ids, end(kind)], [False, *[True] * len(ids), True])


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}  # type: ignore[typeddict-item]


# --- bytes --------------------------------------------------------------------------------------------------


@cache
def smollm_vocabulary() -> frozenset[str]:
    return frozenset(tokenizer("smollm").get_vocab())


def written(kind: str, text: str) -> bytes:
    """The bytes that a tokenizer of a kind keeps of a text, from what the kind is."""
    if kind == "qwen":
        # Added tokens are cut out before anything is normalised.
        for mark in ("<think>", "</think>"):
            text = text.replace(mark, f"\ue000{mark}\ue000")
        text = unicodedata.normalize("NFC", text).replace("\ue000", "")
    elif kind == "smollm":
        vocabulary = smollm_vocabulary()
        alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        symbols = "".join(symbol for symbol, _ in alphabet.pre_tokenize_str(text))
        return bytes(byte for byte, symbol in zip(text.encode(), symbols, strict=True) if symbol in vocabulary)
    elif kind != "gpt2":
        text = text.replace(SPACE, " ")
    return text.encode()


@settings(max_examples=300, deadline=None)
@given(text=texts, kind=kinds)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str, kind: str) -> None:
    found = joined(kind, encoded(kind, text))
    expected = written(kind, text)
    if kind in {"llama2", "unigram-dummy"} and text:
        assert found in (b" " + expected, expected if text[0] in " \u2581" else b" " + expected)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_have_no_bytes_and_all_bytes_can_be_written(kind: str) -> None:
    found = bytes_of(kind)
    for index in tokenizer(kind).all_special_ids:
        assert found[index] is None
    assert len(found) == max(tokenizer(kind).get_vocab().values()) + 1
    assert found.count(None) < 20
    assert b"" not in found
    # Every byte can be written, but for those that SmolLM2's vocabulary lacks.
    assert len({piece for piece in found if piece and len(piece) == 1}) >= (235 if kind == "smollm" else 256)


def test_a_token_that_is_added_but_not_control_stands_for_its_letters() -> None:
    for kind in ("qwen", "gemma"):
        assert bytes_of(kind)[tokenizer(kind).convert_tokens_to_ids("<think>")] == b"<think>"


def test_tokens_that_swallow_white_space_have_no_bytes() -> None:
    changed = made.byte_level(300)
    changed.add_tokens([AddedToken("<a>", special=False), AddedToken("<b>", special=False, rstrip=True)])
    found = token_bytes(changed)
    assert found[changed.convert_tokens_to_ids("<a>")] == b"<a>"
    assert found[changed.convert_tokens_to_ids("<b>")] is None


def test_a_byte_level_vocabulary_may_lack_bytes_and_have_unused_ids() -> None:
    whole = made.byte_level(300)
    # The bytes 0x07 and 0x80 in the alphabet's characters.
    lacking = made.changed(whole, lambda model: [model["vocab"].pop(byte) for byte in ("ć", "Ģ")])
    assert (
        lacking("a\x07b", add_special_tokens=False)["input_ids"] == whole("ab", add_special_tokens=False)["input_ids"]
    )
    found = token_bytes(lacking)
    assert b"\x07" not in found
    assert [found[index] for index in whole.convert_tokens_to_ids(["ć", "Ģ"])] == [None, None]


def test_without_byte_fallback_a_byte_token_is_plain_text() -> None:
    index = tokenizer("gemma").convert_tokens_to_ids("<0x41>")
    assert bytes_of("gemma")[index] == b"A"
    other = made.changed(tokenizer("gemma"), lambda model: model.update(byte_fallback=False))
    assert token_bytes(other)[index] == b"<0x41>"


def test_an_added_run_of_spaces_has_bytes_and_an_unknown_token_has_none() -> None:
    changed = made.spaces()
    changed.add_tokens([AddedToken(SPACE * 2, special=False, normalized=False)])
    assert token_bytes(changed)[:6] == [None, b" ", b" ", b"  ", b"a", b"\n"]


def test_an_added_token_is_normalised_as_its_text_is() -> None:
    changed = made.llama_2(dummy_prefix=True)
    changed.add_tokens([AddedToken("<a>", special=False, normalized=True)])
    ids = changed("x <a>y", add_special_tokens=False)["input_ids"]
    assert changed.convert_tokens_to_ids("<a>") in ids
    found = token_bytes(changed)
    assert b"".join(found[index] or b"?" for index in ids).replace(b" ", b"") == b"x<a>y"
    assert found[changed.convert_tokens_to_ids("<a>")] == b" <a>"


@pytest.mark.parametrize(
    "make", [lambda: made.unigram(byte_fallback=False), lambda: made.llama_2(dummy_prefix=True, byte_fallback=False)]
)
def test_characters_missing_from_the_vocabulary_become_a_token_without_bytes(make: Any) -> None:
    small = make()
    found = token_bytes(small)
    ids = small("abc \u2fa1 def", add_special_tokens=False)["input_ids"]
    assert [index for index in ids if found[index] is None] == [small.convert_tokens_to_ids("<unk>")]


def test_tokenizers_that_lose_text_are_refused() -> None:
    with pytest.raises(DataError, match="WordPiece"):
        token_bytes(made.wordpiece())
    with pytest.raises(DataError, match="fast"):
        token_bytes(object())
    metaspace = made.llama_2(dummy_prefix=False)
    metaspace.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("e")
    with pytest.raises(DataError, match="not understood"):
        token_bytes(metaspace)
    plain = made.byte_level(300)
    plain.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match="not understood"):
        token_bytes(plain)


# --- shared ids ---------------------------------------------------------------------------------------------


def shared(student: str, teacher: str, student_eos: set[int] = frozenset(), teacher_eos: set[int] = frozenset()) -> Any:  # type: ignore[assignment]
    return shared_vocabulary(
        tokenizer(student), tokenizer(teacher), student_eos | {end(student)}, teacher_eos | {end(teacher)}, end(student)
    )


SEVERAL = [
    ("smollm", "qwen"),
    *((first, second) for first, second in product(KINDS, KINDS) if "smollm" not in (first, second)),
]


@pytest.mark.parametrize(("student", "teacher"), SEVERAL)
def test_a_token_maps_to_one_with_the_same_bytes_or_to_nothing(student: str, teacher: str) -> None:
    found = shared(student, teacher)
    assert found.dtype == np.int64
    assert len(found) == len(bytes_of(teacher))
    there = set(bytes_of(student)) - {None}
    for u, (piece, t) in enumerate(zip(bytes_of(teacher), found.tolist(), strict=True)):
        if u == end(teacher):
            assert t == end(student)
        elif piece in there:
            assert bytes_of(student)[t] == piece
        else:
            assert t == -1
    assert (found >= 0).sum() > 250


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_the_tokenizer_writes_map_to_themselves(kind: str) -> None:
    found = shared(kind, kind)
    ids = encoded(kind, "".join(corpus()) + "A B\tC  D ! ~ 漢 \x07")
    assert [int(found[index]) for index in ids] == ids


def test_byte_tokens_give_way_to_characters() -> None:
    for kind in ("llama2", "gemma", "unigram", "unigram-dummy"):
        found = shared(kind, "gpt2")
        names = [
            tokenizer(kind).convert_ids_to_tokens(int(found[encoded("gpt2", text)[0]])) for text in (" ", "e", "\x07")
        ]
        assert names == [SPACE, "e", "<0x07>"]


def test_an_added_token_takes_the_place_of_one_with_the_same_bytes() -> None:
    changed = made.byte_level(600)
    plain = encoded("gpt2", "import")
    assert len(plain) == 1
    changed.add_tokens([AddedToken("import", special=False, normalized=False)])
    written_ids = changed("import", add_special_tokens=False)["input_ids"]
    assert len(written_ids) == 1
    found = shared_vocabulary(changed, tokenizer("gpt2"), {changed.eos_token_id}, {end("gpt2")}, changed.eos_token_id)
    assert found[plain[0]] == written_ids[0]


def test_a_space_is_the_one_that_the_tokenizer_writes_after_text() -> None:
    changed = made.spaces()
    assert 2 not in changed(" ", add_special_tokens=False)["input_ids"]
    found = shared_vocabulary(changed, tokenizer("gpt2"), {6}, {end("gpt2")}, 6)
    assert found[encoded("gpt2", " ")[0]] == 2


def test_a_token_that_ends_turns_for_the_student_stands_for_no_text() -> None:
    (word,) = encoded("gpt2", "import")
    assert shared("gpt2", "gpt2")[word] == word
    assert shared("gpt2", "gpt2", student_eos={word})[word] == -1


def test_all_of_the_teachers_end_tokens_map_to_the_one_the_student_writes() -> None:
    other = tokenizer("gpt2").convert_tokens_to_ids("<|endoftext|>")
    found = shared("llama2", "gpt2", teacher_eos={other})
    assert {int(found[other]), int(found[end("gpt2")])} == {end("llama2")}
    assert int((found == end("llama2")).sum()) == 2
    assert int(shared("llama2", "gpt2")[other]) == -1


# --- pairs --------------------------------------------------------------------------------------------------


def by_brute_force(student: list[bytes], teacher: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of indices among the pieces of an answer without control tokens; the last index is the end token's."""
    first, second = b"".join(student), b"".join(teacher)
    heads = [text[: len(text) - len(text.lstrip(b" \t\n\r\f\v"))] for text in (first, second)]
    if heads[0] == heads[1]:
        heads = [b"", b""]
    first, second = first[len(heads[0]) :], second[len(heads[1]) :]
    found = []
    for t, u in product(range(len(student) + 1), range(len(teacher) + 1)):
        before = b"".join(student[:t]), b"".join(teacher[:u])
        if len(before[0]) < len(heads[0]) or len(before[1]) < len(heads[1]):
            continue
        here = before[0][len(heads[0]) :], before[1][len(heads[1]) :]
        left = first[len(here[0]) :], second[len(here[1]) :]
        if here[0] == here[1] and t < len(student) and u < len(teacher) and left[0][:1] == left[1][:1]:
            found.append((t, u))
        elif (t, u) == (len(student), len(teacher)):
            same = 0
            while same < min(len(first), len(second)) and first[same] == second[same]:
                same += 1
            if not first[same:].strip() and not second[same:].strip():
                found.append((t, u))
    return found


@settings(max_examples=200, deadline=None)
@given(text=texts.filter(lambda text: "<think>" not in text), student=kinds, teacher=kinds)
def test_exactly_the_common_boundaries_are_found(text: str, student: str, teacher: str) -> None:
    first, second = row(student, text), row(teacher, text)
    parts = [[bytes_of(kind)[index] for index in r.ids[1:-1]] for kind, r in ((student, first), (teacher, second))]
    expected = by_brute_force(*parts)  # type: ignore[arg-type]
    assert aligned(student, first, teacher, second) == [(t + 1, u + 1) for t, u in expected]


@settings(max_examples=200, deadline=None)
@given(text=texts, kind=kinds)
def test_equal_tokenizers_pair_every_token_with_itself(text: str, kind: str) -> None:
    one = row(kind, text)
    assert aligned(kind, one, kind, one) == [(t, t) for t in range(1, len(one.ids))]


@settings(max_examples=100, deadline=None)
@given(text=texts, student=kinds, teacher=kinds)
def test_swapping_the_sides_swaps_the_pairs(text: str, student: str, teacher: str) -> None:
    first, second = row(student, text), row(teacher, text)
    there = aligned(student, first, teacher, second)
    assert [(t, u) for u, t in aligned(teacher, second, student, first)] == there
    assert there == sorted(there)
    assert len({t for t, _ in there}) == len({u for _, u in there}) == len(there)


LETTERS: TokenBytes = [
    None,
    None,
    *(bytes([letter]) for letter in b"abcdefgh \n"),
    b"ab",
    b"cd",
    b"bc",
    b"<think>",
    b"</think>",
]
"""0 control, 1 end, then single characters, then longer tokens."""


def letters(text: str) -> list[int]:
    """One token a character: `.` is the end, `#` a control token."""
    return [{".": 1, "#": 0}.get(c) if c in ".#" else LETTERS.index(c.encode()) for c in text]  # type: ignore[misc]


def pairs(first: list[int], second: list[int], **more: Any) -> list[tuple[int, int]]:
    """Of rows whose first token is the prompt's, as is every control token that follows an end token."""
    masks = []
    for ids in (first, second):
        assert ids[0] == 0
        masks.append([not (token == 0 and (t == 0 or ids[t - 1] == 1)) for t, token in enumerate(ids)])
    return [(int(t), int(u)) for t, u in align(first, masks[0], second, masks[1], LETTERS, LETTERS, {1}, {1}, **more)]


AB, CD, BC, THINK, THOUGHT = range(len(LETTERS) - 5, len(LETTERS))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param("#abcd.", [0, AB, CD, 1], [(1, 1), (3, 2), (5, 3)], id="longer tokens"),
        pytest.param("#abcd.", [0, *letters("a"), BC, *letters("d.")], [(1, 1), (2, 2), (4, 3), (5, 4)], id="across"),
        pytest.param("#abcd.", "#abed.", [(1, 1), (2, 2)], id="another text from a byte on"),
        pytest.param("#abc.", "#abcd.", [(1, 1), (2, 2), (3, 3)], id="one goes on where the other ends"),
        pytest.param("#ab.", "#ab \n.", [(1, 1), (2, 2), (3, 5)], id="white space before the end"),
        pytest.param("#ab .", "#ab\n.", [(1, 1), (2, 2), (4, 4)], id="other white space before the end"),
        pytest.param("#ab.", "# ab.", [(1, 2), (2, 3), (3, 4)], id="white space before the answer"),
        pytest.param("# ab.", "# ab.", [(1, 1), (2, 2), (3, 3), (4, 4)], id="the same white space"),
        pytest.param("#.", "#.", [(1, 1)], id="nothing said"),
        pytest.param("#.", "# .", [(1, 2)], id="only white space"),
        pytest.param("#a#b.", "#a#b.", [(1, 1)], id="a control token inside"),
        pytest.param("#ab", "#ab.", [(1, 1), (2, 2)], id="cut before the end"),
        pytest.param("#", "#ab.", [], id="cut before the answer"),
        pytest.param("#ab.#cd.", "#ab.#cd.", [(t, t) for t in (1, 2, 3, 5, 6, 7)], id="two turns"),
        pytest.param("#ab.cd.", "#ab.#cd.", [(1, 1), (2, 2), (3, 3), (4, 5), (5, 6), (6, 7)], id="nothing between turns"),
        pytest.param("#ax.#cd.".replace("x", "e"), "#ab.#cd.", [(1, 1), (5, 5), (6, 6), (7, 7)], id="the next turn pairs again"),
        pytest.param("#ab.#cd.#ef.", "#ef.", [(9, 1), (10, 2), (11, 3)], id="only the last is learned"),
        pytest.param("#ab.#cd.#ef.", "#ab.#c", [(1, 1), (2, 2), (3, 3), (5, 5)], id="cut in the second turn"),
        pytest.param(
            [0, THINK, *letters("\n\n"), THOUGHT, *letters("\n\nab.")], "#ab.", [(7, 1), (8, 2), (9, 3)], id="empty thought"
        ),
        pytest.param(
            [0, THINK, *letters("a"), THOUGHT, *letters("b.")], "#b.", [], id="a thought that one side lacks"
        ),
        pytest.param(
            [0, THINK, THOUGHT, *letters("a.")], [0, THINK, THOUGHT, *letters("a.")], [(t, t) for t in range(1, 5)], id="the same empty thought"
        ),
    ],
)  # fmt: skip
def test_pairs_of_small_rows(first: Any, second: Any, expected: list[tuple[int, int]]) -> None:
    one, other = (letters(side) if isinstance(side, str) else side for side in (first, second))
    assert pairs(one, other) == expected
    assert pairs(other, one) == [(u, t) for t, u in expected]


def test_truncation_decides_between_answers_with_the_same_text() -> None:
    first, second = letters("#ab.#cd.#ab."), letters("#ab.")
    assert pairs(first, second) == [(9, 1), (10, 2), (11, 3)]
    assert pairs(first, second, truncated=True) == [(1, 1), (2, 2), (3, 3)]


def test_the_turns_with_the_least_in_common_stay_unpaired() -> None:
    # One byte in common with both, but only the second ends there.
    assert pairs(letters("#ab.#a."), letters("#a."), truncated=True) == [(5, 1), (6, 2)]
    # Two boundaries in common with both, but more text with the second.
    assert pairs([*letters("#abe.#"), AB, CD], letters("#abcd."), truncated=True) == [(6, 1), (7, 3)]


def test_equal_numbers_of_turns_are_paired_one_to_one() -> None:
    assert pairs(letters("#ab.#cd."), letters("#cd.#ef.")) == []


def test_the_first_token_of_a_row_is_predicted_by_nothing() -> None:
    found = align(letters("ab."), [True] * 3, letters("ab."), [True] * 3, LETTERS, LETTERS, {1}, {1})
    assert found.tolist() == [[1, 1], [2, 2]]
    for sides in (("ab.", "#ab."), ("#ab.", "ab.")):
        first, second = (letters(side) for side in sides)
        masks = [[token != 0 for token in ids] for ids in (first, second)]
        assert len(align(first, masks[0], second, masks[1], LETTERS, LETTERS, {1}, {1})) == 2
    assert align([], [], [], [], LETTERS, LETTERS, {1}, {1}).shape == (0, 2)


# --- whole chats --------------------------------------------------------------------------------------------


def rendered(kind: str, messages: list[Message], template: str | None = None, length: int | None = None) -> Rendered:
    return ChatRenderer(tokenizer(kind), frozenset({end(kind)}), template).render(messages, length)


def chat(answers: list[str]) -> list[Message]:
    return [m for answer in answers for m in (said("user", f"Why not {len(answer)}?"), said("assistant", answer))]


@settings(max_examples=100, deadline=None)
@given(answers=st.lists(plain, min_size=1, max_size=3), student=kinds, teacher=kinds, data=st.data())
def test_a_cut_row_has_the_pairs_of_the_whole_row_up_to_the_cut(
    answers: list[str], student: str, teacher: str, data: st.DataObject
) -> None:
    messages = chat(answers)
    first, second = rendered(student, messages), rendered(teacher, messages)
    whole = aligned(student, first, teacher, second)
    # Every answer's start and end at least.
    assert len(whole) >= 2 * len(answers)
    lengths = [data.draw(st.integers(1, len(one.ids))) for one in (first, second)]
    cut = aligned(
        student, rendered(student, messages, length=lengths[0]),
        teacher, rendered(teacher, messages, length=lengths[1]), truncated=True,
    )  # fmt: skip
    assert cut == [(t, u) for t, u in whole if t < lengths[0] and u < lengths[1]]


def shown(kind: str, one: Rendered, index: int) -> bytes:
    """The learned text before a token, since its answer began."""
    start = index
    while start and one.mask[start - 1] and one.ids[start - 1] != end(kind):
        start -= 1
    return joined(kind, one.ids[start:index])


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(plain, min_size=1, max_size=3), student=kinds, teacher=kinds)
def test_templates_that_put_space_around_answers_still_align(answers: list[str], student: str, teacher: str) -> None:
    messages = chat(answers)
    first, second = rendered(student, messages), rendered(teacher, messages, LLAMA_2)
    found = aligned(student, first, teacher, second)
    ends = [(t, u) for t, u in found if first.ids[t] == end(student)]
    assert len(ends) == len(answers)
    assert all(second.ids[u] == end(teacher) for _, u in ends)
    for t, u in set(found) - set(ends):
        assert shown(student, first, t).lstrip() == shown(teacher, second, u).lstrip()


@pytest.mark.parametrize("teacher", ["qwen", "gemma", "gpt2"])
@pytest.mark.parametrize("student", KINDS)
def test_an_empty_thinking_block_of_the_teacher_is_skipped(student: str, teacher: str) -> None:
    answers = ["Because it is.", "Yes, and the code of it is import numpy as np"]
    first, second = rendered(student, chat(answers)), rendered(teacher, chat(answers), QWEN3)
    found = aligned(student, first, teacher, second)
    # Qwen3's template shows an empty thought before the last answer only.
    begins = first.ids.index(end(student), first.mask.index(True)) + 1
    earlier, found = [pair for pair in found if pair[0] <= begins], [pair for pair in found if pair[0] > begins]
    assert (first.ids[earlier[-1][0]], second.ids[earlier[-1][1]]) == (end(student), end(teacher))
    assert shown(teacher, second, found[0][1]).replace(b"\n", b"") == b"<think></think>"
    assert shown(student, first, found[0][0]) == b""
    assert (first.ids[found[-1][0]], second.ids[found[-1][1]]) == (end(student), end(teacher))
    for t, u in found:
        assert shown(teacher, second, u).endswith(shown(student, first, t))


def test_a_thinking_block_is_aligned_whether_its_tags_are_tokens_or_letters() -> None:
    answer = "<think>\nHm, so it is.\n</think>\n\nBecause."
    first, second = rendered("smollm", chat([answer])), rendered("qwen", chat([answer]), QWEN3)
    found = aligned("smollm", first, "qwen", second)
    befores = [shown("smollm", first, t) for t, _ in found]
    assert befores[0] == b""
    assert befores == [shown("qwen", second, u) for _, u in found]
    assert {b"<think>", b"<think>\nHm, so it is.\n</think>\n\n", answer.encode()} <= set(befores)


# --- distributions ------------------------------------------------------------------------------------------


def drawn(rows: int, columns: int, seed: int, scale: float = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale
    return logits.log_softmax(-1)


def merge_columns(logprobs_NT: torch.Tensor, targets: Any, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    return ColumnMap.of(targets, logprobs_NT.shape[1], vocabulary, logprobs_NT.device).merge(logprobs_NT)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    targets=st.lists(st.integers(-1, 11), min_size=1, max_size=30),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_merging_keeps_all_mass_where_it_belongs(
    seed: int, targets: list[int], scale: float, dtype: torch.dtype
) -> None:
    logprobs = drawn(3, len(targets), seed, scale, dtype)
    merged, unmapped = merge_columns(logprobs, np.array(targets), 12)
    assert merged.dtype == unmapped.dtype == dtype
    assert merged.shape == (3, 12)
    assert (merged.exp().sum(1) + unmapped.exp() - 1).abs().max() < 1e-6
    for column in [*range(12), -1]:
        sources = [at for at, target in enumerate(targets) if target == column]
        expected = logprobs[:, sources].logsumexp(1)
        torch.testing.assert_close(merged[:, column] if column >= 0 else unmapped, expected)


def test_small_probabilities_survive_beside_large_ones() -> None:
    logprobs = torch.tensor([[0.0, -200.0, -300.0, -300.0, -torch.inf, -torch.inf]])
    merged, unmapped = merge_columns(logprobs, np.array([0, 1, 2, 2, 3, 3]), 5)
    torch.testing.assert_close(merged[0, :3], torch.tensor([0.0, -200.0, -300.0 + float(np.log(2.0))]))
    assert merged[0, 3:].tolist() == [-torch.inf, -torch.inf]
    assert unmapped.tolist() == [-torch.inf]


def test_columns_of_padding_count_as_unmapped() -> None:
    logprobs = drawn(4, 10, 0)
    merged, unmapped = merge_columns(logprobs, np.arange(7), 9)
    torch.testing.assert_close(merged[:, :7], logprobs[:, :7])
    assert bool(merged[:, 7:].isinf().all())
    torch.testing.assert_close(unmapped, logprobs[:, 7:].logsumexp(1))


def test_half_precision_is_merged_in_single() -> None:
    merged, unmapped = merge_columns(drawn(2, 5, 0).bfloat16(), np.array([0, 0, 1, -1, 2]), 3)
    assert merged.dtype == unmapped.dtype == torch.float32


@pytest.mark.parametrize(("student", "teacher"), [("smollm", "qwen"), ("llama2", "smollm"), ("unigram", "gemma")])
def test_real_vocabularies_keep_all_mass(student: str, teacher: str) -> None:
    found = shared(student, teacher)
    for dtype in (torch.float64, torch.float32):
        logprobs = drawn(5, len(found), 1, dtype=dtype)
        merged, unmapped = merge_columns(logprobs, found, len(bytes_of(student)))
        # In single precision the mass that enters is itself 1 to a few 1e-6 only.
        mass = logprobs.double().exp().sum(1)
        assert (merged.double().exp().sum(1) + unmapped.double().exp() - mass).abs().max() < 1e-6
