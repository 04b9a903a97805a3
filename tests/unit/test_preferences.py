"""Pairs of answers: accepted shapes, rejected rows, writing and reading back, rendering; the `preference` section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from easydistill.data.chat import ChatRenderer
from easydistill.data.messages import Message
from easydistill.data.preferences import Preference, read_preferences
from easydistill.data.records import Rejection, split_heldout
from easydistill.data.writing import pair_row, write_pairs_json, write_pairs_parquet
from easydistill.errors import DataError
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.rows import PairRow, render_pairs

USER = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Because."}
BAD = {"role": "assistant", "content": "No."}


def read(folder: Path, *rows: Any) -> tuple[list[Preference], list[str]]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, rejected = read_preferences(path)
    return pairs, [rejection.detail for rejection in rejected]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"instruction": "Why?", "chosen": "Because.", "rejected": "No."},
        {"question": "Why?", "chosen": GOOD, "rejected": BAD},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"messages": [USER], "chosen": [GOOD], "rejected": "No."},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_shapes(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,), _ = read(tmp_path, {**row, "beta": 0.5, "gap": "large", "margin": 3})
    assert pair.prompt == (USER,)
    assert (pair.chosen, pair.rejected, pair.beta) == ((GOOD,), (BAD,), 0.5)
    assert pair.meta == {"gap": "large", "margin": 3}


def test_a_system_message_and_earlier_turns_belong_to_the_prompt(tmp_path: Path) -> None:
    (pair,), _ = read(
        tmp_path,
        {
            "system": "Be short.", "history": [["Hi", "Hello"]], "instruction": "Why?", "input": "Today.",
            "chosen": "So.", "rejected": "Not so.",
        },
    )  # fmt: skip
    assert [message["role"] for message in pair.prompt] == ["system", "user", "assistant", "user"]
    assert pair.prompt[-1]["content"] == "Why?\n\nToday."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "a"}, "no `chosen` and `rejected`"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "both answers are the same"),
        ({"prompt": "x", "chosen": "a", "rejected": "  "}, "an answer is empty"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"chosen": "a", "rejected": "b"}, "no `prompt`"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "How?"}, BAD]}, "do not begin with the same"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "does not end with the assistant's"),
        ({"prompt": "x", "chosen": [USER, GOOD], "rejected": "b"}, "does not begin with the prompt"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, "`chosen`"),
        ({"prompt": "x", "chosen": "a\ud800", "rejected": "b"}, "surrogate"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": 0}, "`beta` is '0', not a number from 1e-06 to 10000"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": 1e300}, "`beta` is '1e+300'"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": 1e-300}, "`beta` is '1e-300'"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": 10**400}, "`beta` is '1000"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": True}, "`beta` is 'True'"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "beta": "0.1"}, "`beta` is '0.1'"),
        ([1], "a row is an object"),
    ],
)
def test_rows_that_are_not_pairs(tmp_path: Path, row: Any, words: str) -> None:
    pairs, rejected = read(tmp_path, row, {"prompt": "y", "chosen": "a", "rejected": "b"})
    assert len(pairs) == 1
    assert words in rejected[0]


def test_a_file_without_pairs_is_an_error_that_shows_the_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'rows are \{"prompt"'):
        read(tmp_path, {"instruction": "x", "output": "y"})


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts, texts, st.none() | st.floats(0.001, 10)), min_size=1, max_size=8))
def test_written_pairs_are_read_back(tmp_path_factory: pytest.TempPathFactory, found: list[Any]) -> None:
    pairs = [
        Preference(
            f"p{n}", ({"role": "user", "content": prompt},), ({"role": "assistant", "content": one},),
            ({"role": "assistant", "content": f"{one}, not"},), beta, {"gap": gap[:3]},
        )
        for n, (prompt, one, gap, beta) in enumerate(found)
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs_json(folder / "pairs.json", pairs)
    write_pairs_parquet(folder / "pairs.parquet", pairs)
    assert read_preferences(folder / "pairs.json") == (pairs, [])
    assert read_preferences(folder / "pairs.parquet") == (pairs, [])


def test_pairs_of_one_prompt_stay_on_the_same_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n % 10}", "chosen": f"a{n}", "rejected": "b"} for n in range(40)]
    train, heldout = split_heldout(read(tmp_path, *rows)[0], 8, 0)
    assert len(train) + len(heldout) == 40 and len(heldout) >= 8
    assert not {pair.prompt_hash for pair in train} & {pair.prompt_hash for pair in heldout}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def rendered(tokenizer: Any, answer: str, other: str, max_length: int) -> tuple[list[PairRow], list[Rejection]]:
    messages = [(Message(role="assistant", content=text),) for text in (answer, other)]
    pair = Preference("p", (Message(role="user", content="Why?"),), *messages, None, {})
    return render_pairs(ChatRenderer(tokenizer, frozenset()), [pair], max_length, "train")


def test_pairs_without_a_difference_are_rejected(tokenizer: Any) -> None:
    (row,), _ = rendered(tokenizer, "Because it is so. Yes.", "Because it is so. No.", 99)
    until_they_differ = next(
        len(row.prompt) + number
        for number, (one, other) in enumerate(zip(row.chosen, row.rejected, strict=False))
        if one != other
    )
    rows, rejected = rendered(tokenizer, "Because it is so. Yes.", "Because it is so. No.", until_they_differ)
    assert not rows and (rejected[0].id, rejected[0].reason) == ("p", "same_tokens")
    assert f"max_length ({until_they_differ} tokens)" in rejected[0].detail
    assert rendered(tokenizer, "Because it is so. Yes.", "Because it is so. No.", until_they_differ + 1)[0]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_end_is_learned_behind_an_answer_that_was_cut_off(side: str, tokenizer: Any) -> None:
    """Neither as a good thing nor as a bad one: it is not where the model stopped."""
    answers = [(Message(role="assistant", content=text),) for text in ("Because it is", "No, since")]
    renderer = ChatRenderer(tokenizer, frozenset(), CHATML)
    prompt = (Message(role="user", content="Why?"),)
    (whole,), _ = render_pairs(renderer, [Preference("p", prompt, *answers)], 99, "train")
    (end,) = {whole.chosen[-1], whole.rejected[-1]}
    assert end in renderer.eos_ids
    cut = Preference("p", prompt, *answers, None, {f"{side}_finish_reason": "length"})
    (row,), _ = render_pairs(renderer, [cut], 99, "train")
    assert getattr(row, side) == getattr(whole, side)[:-1]
    other = "rejected" if side == "chosen" else "chosen"
    assert getattr(row, other) == getattr(whole, other)
    stopped = Preference("p", prompt, *answers, None, {f"{side}_finish_reason": "stop"})
    assert render_pairs(renderer, [stopped], 99, "train")[0] == [whole]


def test_marks_of_cut_answers_are_read_from_pairs_of_every_kind(tmp_path: Path) -> None:
    kinds: list[tuple[list[dict[str, Any]], tuple[bool, bool]]] = [
        ([{"prompt": "q", "chosen": "a", "rejected": "b", "rejected_finish_reason": "length"}], (False, True)),
        # Of two answers in one row it is not said whose reason it is.
        ([{"prompt": "q", "chosen": "a", "rejected": "b", "finish_reason": "length"}], (False, False)),
        (
            [
                {
                    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                    "rejected_response": "b",
                    "finish_reason": "length",
                }
            ],
            (True, False),
        ),
        (
            [
                {
                    "prompt": "q",
                    "completions": [
                        {"text": "a", "score": 9, "finish_reason": "stop"},
                        {"text": "b", "score": 1, "finish_reason": "length"},
                    ],
                }
            ],
            (False, True),
        ),
        (
            [
                {"prompt": "q", "completion": "a", "label": True, "finish_reason": "stop"},
                {"prompt": "q", "completion": "b", "label": False, "finish_reason": "length"},
            ],
            (False, True),
        ),
    ]
    for rows, cut in kinds:
        (pair,), _ = read(tmp_path, *rows)
        assert pair.cut == cut, rows
        # And they are still there when the pair is written and read again.
        ((again,), _) = read(tmp_path, pair_row(pair))
        assert again.cut == cut and again.chosen == pair.chosen


def test_an_answer_of_several_messages_is_learned_without_the_results_in_it(tokenizer: Any) -> None:
    prompt = (
        Message(role="user", content="Hi."),
        Message(role="assistant", content="Hello."),
        Message(role="user", content="2 + 2?"),
    )
    used = (
        Message(role="assistant", content="Let me add."),
        Message(role="tool", content="4"),
        Message(role="assistant", content="Four."),
    )
    pair = Preference("p", prompt, used, (Message(role="assistant", content="Five."),))
    renderer = ChatRenderer(tokenizer, frozenset(), CHATML)
    (row,), _ = render_pairs(renderer, [pair], 999, "train")
    assert tokenizer.decode(row.prompt).endswith("2 + 2?<|im_end|>\n<|im_start|>assistant\n")
    text = tokenizer.decode(row.chosen)
    assert text.startswith("Let me add.") and "tool\n4" in text and "Four." in text
    learned = [token for at, token in enumerate(row.chosen) if at not in row.unlearned[0]]
    assert "4" not in tokenizer.decode(learned) and "Let me add." in tokenizer.decode(learned)
    assert "Four." in tokenizer.decode(learned) and not row.unlearned[1]
    assert row.learned_tokens == (len(learned), len(row.rejected))
    # Cut inside the result of the tool: what is left is as long as what is learned of it and what is not.
    inside = len(row.prompt) + min(row.unlearned[0]) + 1
    (cut,), _ = render_pairs(renderer, [pair], inside, "train")
    assert cut.cut and cut.unlearned[0] == {len(cut.chosen) - 1}


def test_reasoning_that_the_template_hides_is_no_difference(tokenizer: Any) -> None:
    answers = [
        (Message(role="assistant", content="3", reasoning_content=text),) for text in ("one and two", "who knows")
    ]
    pair = Preference("p", (Message(role="user", content="1 + 2?"),), *answers, None, {})
    renderer = ChatRenderer(tokenizer, frozenset())
    rows, rejected = render_pairs(renderer, [pair], 99, "train")
    assert not rows and rejected[0].reason == "same_tokens"


def test_answers_that_fit_exactly_are_not_cut(tokenizer: Any) -> None:
    (row,), _ = rendered(tokenizer, "Because it is so.", "No.", 99)
    for room, cut in ((row.longest, False), (row.longest - 1, True)):
        (found,), _ = rendered(tokenizer, "Because it is so.", "No.", room)
        assert found.cut is cut and found.longest == room


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss_type": "exo_pair"}, "exo_pair divides by label_smoothing"),
        ({"label_smoothing": 0.1}, "no effect with sigmoid"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1]}, "1 loss_weights and 2 losses"),
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [0, 0]}, "every loss has weight 0"),
        ({"beta": 1e300}, "less than or equal to 10000"),
        ({"loss_type": "aot", "weighting": True}, "aot sorts"),
        ({"loss_type": "bco_pair", "f_divergence": "forward_kl"}, "f_divergence cannot be combined with bco_pair"),
        ({"loss_type": []}, "at least 1"),
        ({"beta": 0}, "greater than 0"),
    ],
)
def test_invalid_sections(values: dict[str, Any], words: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=words):
        PreferenceConfig(**values)


def test_pairs_are_not_packed() -> None:
    with pytest.raises(ValidationError, match=r"packing\n.*not permitted"):
        DpoTrainingConfig(packing=True)
