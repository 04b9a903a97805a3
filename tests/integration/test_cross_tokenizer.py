"""A teacher with another tokenizer: its signals over the student's ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import tokenizers as made
from tests.support.aligned import (
    NO_SYSTEM,
    PADDING,
    TOP,
    aligner_of,
    chats,
    make_teacher,
    mixed_rows,
    rows_of,
    said,
    scorer_of,
    sharpen,
    stored,
)
from tests.support.tokenizers import CHATML
from tests.unit.test_chat_templates import QWEN3

from easydistill.config.models import ModelsConfig
from easydistill.errors import DataError
from easydistill.models.compatibility import Side, fatal, side_of
from easydistill.models.student import build_student
from easydistill.signals.aligned import AlignedRow, compare_aligned, coverage
from easydistill.signals.alignment import token_bytes
from easydistill.signals.config import SignalsConfig, TopPSignals
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.store import shard_path

KINDS = ["gpt2", "llama2", "gemma", "unigram", "qwen"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Teachers by the kind of their tokenizer."""
    return cache(lambda kind: make_teacher(tmp_path_factory.mktemp(f"teacher-{kind}"), kind))


def teacher_logits(teacher: Path, row: AlignedRow) -> torch.Tensor:
    """Float64 logits [N, T] that predict the aligned tokens, padding left out."""
    model = build_student(ModelsConfig(student=str(teacher)), torch.float32).model
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(row.teacher_ids)])).logits[0]
    return logits[row.pairs[:, 1] - 1, :-PADDING].double()


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def equal_teacher(tiny_whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the student's tokenizer; its control tokens are improbable, because only they have no counterpart."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("equal-teacher")
    model = AutoModelForCausalLM.from_pretrained(tiny_whole, dtype=torch.float32)
    sharpen(model, 5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_whole)
    added = tokenizer.added_tokens_decoder
    control = [index for index, token in added.items() if token.special and index != tokenizer.eos_token_id]
    with torch.no_grad():
        model.get_input_embeddings().weight[control] = 0.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("config", [TOP, TopPSignals(kind="top_p", top_p=0.5, k_max=30, dtype="float32")])
def test_equal_tokenizers_give_the_signals_of_plain_scoring(
    tiny_whole: Path, equal_teacher: Path, config: SignalsConfig, temperature: float
) -> None:
    aligner = aligner_of(tiny_whole, equal_teacher)
    rows = rows_of(aligner, chats(6))
    found = scorer_of(aligner, equal_teacher, config, temperature).score(rows)
    plain = ModelScorer([str(equal_teacher)], [1.0], config, 49_152, temperature)
    wanted = plain.score([RowToScore(row.id, row.ids, row.learned) for row in rows])
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.id == theirs.id
        assert ours.present.all()
        np.testing.assert_array_equal(ours.present, theirs.present)
        np.testing.assert_array_equal(ours.signal.head_ids_NK, theirs.signal.head_ids_NK)
        for name in ("head_logprobs_NK", "log_rest_N", "target_logprob_N"):
            np.testing.assert_allclose(
                np.exp(getattr(ours.signal, name)), np.exp(getattr(theirs.signal, name)), atol=1e-5
            )
        np.testing.assert_allclose(ours.signal.target_logprob_N, theirs.signal.target_logprob_N, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_signals_are_the_teacher_s_distribution_by_bytes(
    tiny_whole: Path, teachers: Callable[[str], Path], kind: str
) -> None:
    """Against a dictionary from bytes to probability, for every aligned token; what has no id is in the rest."""
    teacher = teachers(kind)
    aligner = aligner_of(tiny_whole, teacher)
    rows = rows_of(aligner, chats(4, seed=1))
    ours, theirs = token_bytes(aligner.student.tokenizer), token_bytes(aligner.teacher.tokenizer)
    end, their_end = aligner.student.tokenizer.eos_token_id, aligner.teacher.tokenizer.eos_token_id
    mapped = {*ours, b"<end>"} - {None}
    scored = scorer_of(aligner, teacher).score(rows)
    assert sum(len(row.pairs) for row in rows) > 40
    unmapped = 0.0
    for row, sample in zip(rows, scored, strict=True):
        probs = teacher_logits(teacher, row).softmax(-1).numpy()
        signal = sample.signal
        assert len(signal) == len(row.pairs) == sample.present.sum()
        for n, (t, _) in enumerate(row.pairs):
            of_bytes: dict[bytes | None, float] = {}
            for index, piece in enumerate(theirs):
                named = b"<end>" if index == their_end else piece
                of_bytes[named] = of_bytes.get(named, 0.0) + float(probs[n, index])
            listed = signal.head_ids_NK[n][np.isfinite(signal.head_logprobs_NK[n])]
            assert len(set(listed.tolist())) == len(listed) == TOP.k
            head = [of_bytes[b"<end>" if index == end else ours[index]] for index in listed.tolist()]
            np.testing.assert_allclose(np.exp(signal.head_logprobs_NK[n]), head, atol=1e-5)
            # None of the student's tokens is more probable than the last one listed.
            left = {piece: p for piece, p in of_bytes.items() if piece in mapped}
            for index in listed.tolist():
                del left[b"<end>" if index == end else ours[index]]
            assert max(left.values()) <= min(head) + 1e-6
            token = row.ids[int(t)]
            expected = of_bytes.get(b"<end>" if token == end else ours[token], 0.0)
            assert np.exp(signal.target_logprob_N[n]) == pytest.approx(expected, abs=1e-5)
            assert np.isneginf(signal.target_logprob_N[n]) == (expected == 0.0)
            unmapped += 1 - sum(head) - sum(left.values())
        total = np.exp(signal.head_logprobs_NK.astype(np.float64)).sum(-1) + np.exp(signal.log_rest_N)
        np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert unmapped > 0.01


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ranked_signals_keep_the_teachers_whole_distribution(
    tiny_whole: Path, teachers: Callable[[str], Path], temperature: float
) -> None:
    teacher = teachers("llama2")
    aligner = aligner_of(tiny_whole, teacher)
    rows = rows_of(aligner, chats(3, seed=2))
    scored = scorer_of(aligner, teacher, TOP, temperature, by_rank=True).score(rows)
    by_token = scorer_of(aligner, teacher, TOP, temperature).score(rows)
    for row, sample, other in zip(rows, scored, by_token, strict=True):
        wanted = (teacher_logits(teacher, row) / temperature).softmax(-1).topk(TOP.k).values.numpy()
        np.testing.assert_allclose(np.exp(sample.signal.head_logprobs_NK), wanted, atol=1e-5)
        np.testing.assert_allclose(np.exp(sample.signal.log_rest_N), 1 - wanted.sum(-1), atol=1e-5)
        # The target token is the same in both, and temperature does not apply to it.
        np.testing.assert_array_equal(sample.signal.target_logprob_N, other.signal.target_logprob_N)
    at_one = scorer_of(aligner, teacher, TOP).score(rows)
    for sample, other in zip(scored, at_one, strict=True):
        np.testing.assert_array_equal(sample.signal.target_logprob_N, other.signal.target_logprob_N)


def test_top_p_does_not_count_the_unmapped_mass(tiny_whole: Path, teachers: Callable[[str], Path]) -> None:
    config = TopPSignals(kind="top_p", top_p=0.4, k_max=30, dtype="float32")
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_whole, teacher)
    for sample in scorer_of(aligner, teacher, config).score(rows_of(aligner, chats(3))):
        probs_NK = np.exp(sample.signal.head_logprobs_NK)
        used_N = (probs_NK > 0).sum(-1)
        for probs, used in zip(probs_NK, used_N, strict=True):
            assert probs[: used - 1].sum() < 0.4
            assert used == 30 or probs.sum() >= 0.4 - 1e-6
        np.testing.assert_allclose(probs_NK.sum(-1) + np.exp(sample.signal.log_rest_N), 1.0, atol=1e-5)


# --- rows ---------------------------------------------------------------------------------------------------------


LAST_ANSWER = (
    "{% for message in messages %}{% if message.role != 'assistant' or loop.last %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_cut_chat_is_aligned_as_far_as_it_goes(tiny_whole: Path, teachers: Callable[[str], Path]) -> None:
    """The teacher's template shows the first answer without its empty thoughts: both answers are aligned."""
    aligner = aligner_of(tiny_whole, teachers("qwen"), QWEN3)
    chat = [
        said("user", "Why?"),
        said("assistant", "It rains a lot."),
        said("user", "Sure?"),
        said("assistant", "Yes."),
    ]
    whole = rows_of(aligner, [chat])[0]
    learned = np.flatnonzero(whole.learned)
    (gap,) = np.flatnonzero(np.diff(learned) > 1)
    end = int(learned[gap]) + 1
    assert whole.pairs[:, 0].min() < end < whole.pairs[:, 0].max()
    cut = rows_of(aligner, [chat], longest=end)[0]
    np.testing.assert_array_equal(cut.pairs, whole.pairs[whole.pairs[:, 0] < end])


def test_a_cut_chat_is_not_aligned_with_another_answer(tiny_whole: Path, teachers: Callable[[str], Path]) -> None:
    """The teacher's template shows the last answer alone, and the student's row ends inside the first."""
    aligner = aligner_of(tiny_whole, teachers("qwen"), LAST_ANSWER)
    first, second = "The answer is that rivers are blue and green.", "The answer is that rivers are wet and long."
    chat = [said("user", "Why?"), said("assistant", first), said("user", "Sure?"), said("assistant", second)]
    whole = rows_of(aligner, [chat])[0]
    learned = np.flatnonzero(whole.learned)
    where = [int(at) for at in np.flatnonzero(np.diff(learned) > 1)]
    assert len(where) == 1
    start = learned[where[0] + 1]
    assert len(whole.pairs) > 5
    assert whole.pairs[:, 0].min() >= start
    cut = rows_of(aligner, [chat], longest=int(learned[where[0]]))[0]
    assert sum(cut.learned) > 5
    assert len(cut.pairs) == 0
    inside = rows_of(aligner, [chat], longest=int(start) + 6)[0]
    np.testing.assert_array_equal(inside.pairs, whole.pairs[whole.pairs[:, 0] < start + 6])
    assert len(inside.teacher_ids) == inside.pairs[-1, 1] < len(whole.teacher_ids)


def test_rows_without_a_signal_are_kept(tiny_whole: Path, teachers: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_whole, teacher, NO_SYSTEM)
    rows = mixed_rows(aligner)
    assert [row.refused is None for row in rows] == [True] * 6 + [False] * 3
    store = stored(aligner, teacher, rows, tmp_path)
    found = coverage("teacher", rows)
    assert found["rows_without_signal"] == found["rows_refused_by_template"] == 3
    assert 0 < found["aligned_share"] < 1
    assert store.manifest.tokens == sum(len(row.pairs) for row in rows)
    unknown = 0
    for row in rows:
        signal, present = store.read(row.id, row.ids, row.learned)
        np.testing.assert_array_equal(present, row.present)
        assert len(signal) == present.sum() == len(row.pairs)
        assert np.isfinite(signal.log_rest_N).all()
        unknown += int(np.isneginf(signal.target_logprob_N).sum())
    # The store also distinguishes target tokens without a counterpart in the teacher from improbable ones.
    scored = [sample for row in rows for sample in scorer_of(aligner, teacher).score([row])]
    assert unknown == sum(int(np.isneginf(sample.signal.target_logprob_N).sum()) for sample in scored) > 0


def test_a_store_of_rows_without_signals_alone(tiny_whole: Path, teachers: Callable[[str], Path]) -> None:
    """One batch of such rows, and no forward pass; a stage refuses a store with no signals at all."""
    aligner = aligner_of(tiny_whole, teachers("gpt2"), NO_SYSTEM)
    rows = mixed_rows(aligner)[6:]
    for sample in scorer_of(aligner, teachers("gpt2")).score(rows):
        assert len(sample.signal) == 0
        assert not sample.present.any()
    with pytest.raises(DataError, match="not one token of the rows"):
        coverage("teacher", rows)


def test_scoring_resumes_after_any_shard(tiny_whole: Path, teachers: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_whole, teacher, NO_SYSTEM)
    rows = [*mixed_rows(aligner), *(replace(row, id=f"more-{row.id}") for row in rows_of(aligner, chats(12, seed=6)))]
    whole = stored(aligner, teacher, rows, tmp_path / "whole")
    assert whole.manifest.shards >= 4
    for kept in range(whole.manifest.shards):
        torn = tmp_path / f"torn-{kept}"
        torn.mkdir()
        for number in range(kept):
            shutil.copy(shard_path(tmp_path / "whole", number), shard_path(torn, number))
        stored(aligner, teacher, rows, torn)
        for number in range(whole.manifest.shards):
            assert shard_path(torn, number).read_bytes() == shard_path(tmp_path / "whole", number).read_bytes()


# --- the comparison before anything starts --------------------------------------------------------------------------


def side(tokenizer: Any, name: str, rows: int | None = None, template: str | None = CHATML) -> Side:
    return Side(name, tokenizer, frozenset({tokenizer.eos_token_id}), rows, template)


def problems(student: Side, teacher: Side, *, by_rank: bool = False) -> list[str]:
    return [found.problem for found in fatal(compare_aligned(student, teacher, by_rank=by_rank))]


def test_the_comparison_of_two_tokenizers(tiny_whole: Path, teachers: Callable[[str], Path]) -> None:
    student = side_of(str(tiny_whole), "student")
    found = compare_aligned(student, side_of(str(teachers("gpt2")), "teacher"), by_rank=False)
    assert not fatal(found)
    assert [difference for difference in found if "tokens are also the student's" in difference.problem]
    equal = compare_aligned(student, side_of(str(tiny_whole), "teacher"), by_rank=False)
    assert not fatal(equal)
    assert any("alike" in difference.problem and '"none"' in difference.hint for difference in equal)


def test_tokenizers_with_too_few_common_tokens_are_refused_unless_ranks_are_compared() -> None:
    few, many = side(made.spaces(), "student"), side(made.tokenizer("smollm"), "teacher")
    assert any("only" in problem and "also the student's" in problem for problem in problems(few, many))
    assert problems(few, many, by_rank=True) == []


@pytest.mark.parametrize(
    ("teacher", "problem"),
    [
        (lambda: side(made.wordpiece(), "teacher"), "does not keep a text's white space"),
        (lambda: side(made.wrapped(made.tokenizer("gpt2").backend_tokenizer), "teacher", 100), "has 100 rows"),
        (lambda: side(made.spaces(), "teacher", template=None), "no chat template"),
        (lambda: side(made.tokenizer("gpt2"), "teacher", template="{% raise %}"), "not valid Jinja"),
        (lambda: side(made.tokenizer("gpt2"), "teacher", template="{{ raise_exception('no') }}"), "refuses this chat"),
    ],
)
def test_teachers_that_cannot_be_aligned(teacher: Callable[[], Side], problem: str) -> None:
    assert any(problem in found for found in problems(side(made.tokenizer("smollm"), "student"), teacher()))
