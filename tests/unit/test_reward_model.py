"""Reward models: figures by hand, rows and rejections, head and padding, sections, words of the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.tiny import tiny_llama
from transformers import AutoTokenizer, LlamaForCausalLM

from easydistill.config.models import ModelsConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.preferences import Preference
from easydistill.errors import ConfigError, ModelError
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.measure import (
    RowScore,
    best_of_n,
    describe,
    measure,
    measure_gaps,
    pearson,
    spearman,
)
from easydistill.methods.reward_model.rows import RewardRow, tokenise
from easydistill.methods.reward_model.stage import NOTES
from easydistill.models.checks import model_issues, student_issues
from easydistill.models.loading import load_model
from easydistill.models.scalar_head import head_name, scalar_issues, set_padding, with_scalar_head
from easydistill.models.student import Student
from easydistill.report.collect import MetricRow
from easydistill.report.metrics import KINDS, change_words, judgement, why_missing
from easydistill.rewards import reward_model


def row(chosen: int, rejected: int, *, prompt: str = "p", truth: Any = None, gap: str = "pairs") -> RewardRow:
    """A row with answers of the given lengths; answers of equal length are equal."""
    return RewardRow(
        f"{prompt}-{chosen}-{rejected}", prompt, [7] * (3 + chosen), [7] * (3 + rejected), 3, truth=truth, gap=gap
    )


# --- figures ------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    rows = [row(5, 2), row(3, 8, prompt="q"), row(4, 6, prompt="r"), row(2, 1, prompt="s")]
    scores = [RowScore(2, 1), RowScore(1, 3), RowScore(1, 0), RowScore(0.5, 0.5)]
    found = measure(rows, scores)
    assert found["pair_accuracy"] == (1 + 0 + 1 + 0.5) / 4
    assert found["shorter_accuracy"] == 0.5, "of the second and the third pair"
    assert found["score_margin"] == (1 - 2 + 1 + 0) / 4
    assert found["mean_score"] == (3 + 4 + 1 + 1) / 8
    lengths, values = [5, 2, 3, 8, 4, 6, 2, 1], [2, 1, 1, 3, 1, 0, 0.5, 0.5]
    assert found["length_pearson"] == pytest.approx(float(torch.corrcoef(torch.tensor([values, lengths]))[0, 1]))
    assert found["best_of_n_gain"] is None
    assert describe(rows, scores) == {"chosen_shorter": 2, "length_difference": (3 - 5 - 2 + 1) / 4}
    assert set(found) == set(KINDS) & set(found), "the report has words for every figure"
    assert {name for name, value in measure(rows[:1], [RowScore(0, 0)]).items() if value is None} == set(NOTES)


def test_ties_share_their_ranks() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert spearman([1, 2, 2, 9], [10, 20, 30, 40]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1)
    assert pearson([1, 1, 1], [1, 2, 3]) is None and spearman([], []) is None


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 9)), min_size=2, max_size=12, unique_by=lambda at: at[0]))
def test_rank_correlation_only_depends_on_the_order(found: list[tuple[float, int]]) -> None:
    scores, lengths = [score for score, _ in found], [float(length) for _, length in found]
    plain = spearman(scores, lengths)
    squeezed = spearman([sorted(scores).index(score) ** 3 for score in scores], lengths)
    assert plain == (None if squeezed is None else pytest.approx(squeezed, abs=1e-9))


def test_best_of_n() -> None:
    rows = [
        row(1, 2, prompt="a", truth=(1.0, 0.0)),
        row(1, 3, prompt="a", truth=(0.5, 0.25)),  # The first answer again: its mean quality is 0.75.
        row(4, 5, prompt="b", truth=(4.0, 2.0)),
        row(6, 7, prompt="c"),
    ]
    scores = [RowScore(2, 1), RowScore(2, 3), RowScore(0, 0), RowScore(0, 9)]
    found = best_of_n(rows, scores)
    assert found is not None
    mean = (0.75 + 0 + 0.25) / 3
    assert (found.prompts, found.n) == (2, 2.5)
    # For a the worse answer is picked; for b both score the same, which gains nothing.
    assert found.gain == pytest.approx((0.25 - mean + 0) / 2)
    assert found.most == pytest.approx((0.75 - mean + 4 - 3) / 2)
    assert best_of_n(rows[3:], scores[3:]) is None
    described = describe(rows, scores)["best_of_n"]
    assert described["prompts"] == 2 and measure(rows, scores)["best_of_n_gain"] == found.gain


def test_kinds_of_pairs() -> None:
    rows = [row(1, 2), row(2, 1, gap="large"), row(3, 1, gap="large")]
    scores = [RowScore(0, 1), RowScore(1, 0), RowScore(3, 0)]
    assert measure_gaps(rows[1:], scores[1:]) == {}
    assert measure_gaps(rows, scores) == {
        "large": {"pairs": 2, "pair_accuracy": 1, "score_margin": 2},
        "pairs": {"pairs": 1, "pair_accuracy": 0, "score_margin": -1},
    }


def test_figures_without_a_better_direction_get_no_verdict() -> None:
    correlation = MetricRow("length_pearson", -0.2, 0.4, "")
    assert (judgement(correlation), KINDS["length_pearson"].better, change_words(correlation)) == ("", "", ("↑", ""))
    assert judgement(MetricRow("pair_accuracy", 0.5, 0.75, "")) == "better"
    assert "no held-out pair" in why_missing(MetricRow("best_of_n_gain", None, None, NOTES["best_of_n_gain"]))


# --- rows -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def pair(chosen: str = "Because.", rejected: str = "No.", **meta: Any) -> Preference:
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Preference("x", ({"role": "user", "content": "Why?"},), *sides, meta=meta)  # type: ignore[arg-type]


def test_tokens_are_those_of_the_template(tokenizer: Any) -> None:
    renderer = ChatRenderer(tokenizer, frozenset({2}))
    # The answer's first characters could merge with the prompt's last token.
    (found,), _ = tokenise(renderer, [pair("\n\nSo.")], 99, "train", use_margin=False)
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "\n\nSo."}]
    assert found.chosen == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    (plain,), _ = tokenise(renderer, [pair()], 99, "train", use_margin=False)
    written = tokenizer("No.<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert plain.rejected[plain.prompt_tokens :] == written and plain.answer_tokens[1] == len(written)


@pytest.mark.parametrize(
    ("meta", "truth"),
    [
        ({}, None),
        ({"chosen_score": 4, "rejected_score": 2.5}, (4.0, 2.5)),
        ({"score_chosen": 9, "score_rejected": 1}, (9.0, 1.0)),
        ({"chosen_score": True, "rejected_score": False}, (1.0, 0.0)),
        ({"chosen_score": 4}, None),
        ({"chosen_score": "4", "rejected_score": "2"}, None),
        ({"chosen_score": float("nan"), "rejected_score": 2}, None),
        ({"chosen_score": 10**400, "rejected_score": 2}, None),
        ({"chosen_score": 1e308, "rejected_score": -1e308}, None),
    ],
)
def test_known_quality(tokenizer: Any, meta: dict[str, Any], truth: Any) -> None:
    (found,), _ = tokenise(ChatRenderer(tokenizer, frozenset()), [pair(**meta)], 99, "train", use_margin=True)
    assert found.truth == truth and found.margin == 0


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        (pair(margin=-1), "malformed_row", "`margin` is '-1'"),
        (pair(margin=True), "malformed_row", "`margin` is 'True'"),
        (pair(margin="2"), "malformed_row", "`margin` is '2'"),
        (pair(margin=float("inf")), "malformed_row", "`margin` is 'inf'"),
        (pair(margin=10**400), "malformed_row", "`margin` is '1000"),
        (pair(margin=1e300), "malformed_row", "not a number from 0 to 1e+06"),
        (pair("word " * 99), "too_long", "training.max_length is 60"),
    ],
)
def test_rejected_pairs(tokenizer: Any, given: Preference, reason: str, words: str) -> None:
    renderer = ChatRenderer(tokenizer, frozenset())
    rows, rejected = tokenise(renderer, [given, pair(margin=2)], 60, "train", use_margin=True)
    assert [row.margin for row in rows] == [2.0]
    assert (rejected[0].reason, rejected[0].stage) == (reason, "train") and words in rejected[0].detail
    kept, _ = tokenise(renderer, [given], 999, "train", use_margin=False)
    assert kept[0].margin == 0, "margins are ignored unless use_margin is set"


def test_answers_that_the_template_renders_equal(tokenizer: Any) -> None:
    trimming = ChatRenderer(tokenizer, frozenset(), "{% for m in messages %}{{ m.content | trim }}\n{% endfor %}")
    rows, rejected = tokenise(trimming, [pair("Yes.", " Yes.")], 60, "train", use_margin=False)
    assert not rows and rejected[0].reason == "template_refused"


# --- head and padding ------------------------------------------------------------------------------------------


def student(tokenizer: Any, **values: Any) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(tiny_llama(tie_word_embeddings=True, **values))
    return Student(model, tokenizer, frozenset({2}), "float32", "tiny")


def test_the_head_is_small_and_depends_on_the_seed(tokenizer: Any) -> None:
    start = student(tokenizer)
    one, same, other = (with_scalar_head(start, seed).model for seed in (0, 0, 1))
    assert one.model is start.model.model and head_name(one) == "score"
    assert torch.equal(one.score.weight, same.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.shape == (1, 32) and 0.5 / 33 < float(one.score.weight.detach().std()) < 2 / 33
    assert one.config.num_labels == 1 and start.model.config.num_labels == 2, "the language model is unchanged"
    assert not any(value.is_meta for value in [*one.parameters(), *one.buffers()])


def test_no_row_ends_with_the_padding_token(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = with_scalar_head(student(tokenizer), 0)
    assert set_padding(made, {198}) == 2, "the tokenizer's own, if no row ends with it"
    assert set_padding(made, {2}) == tokenizer.pad_token_id == made.model.config.pad_token_id == 0
    with pytest.raises(ConfigError, match="no special token that could pad"):
        set_padding(made, range(49_152))


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "granite"}, "models.student.config.model_type: transformers has no sequence classifier"),
    ],
)
def test_architectures(config: dict[str, Any], where: str) -> None:
    found = scalar_issues(ModelsConfig.model_validate({"student": {"config": config, "tokenizer": "x"}}))
    assert where in str(found[0]) if where else not found


def test_a_classifier_is_not_a_language_model(tokenizer: Any, tmp_path: Path) -> None:
    with_scalar_head(student(tokenizer), 0).model.save_pretrained(tmp_path)
    for named in (str(tmp_path), {"from": str(tmp_path), "keep_layers": 2}):
        (issue,) = student_issues(ModelsConfig.model_validate({"student": named}))
        assert "is a classifier (LlamaForSequenceClassification)" in issue.problem
    assert model_issues("models.teacher", str(tmp_path))[0].path == "models.teacher"
    with pytest.raises(ModelError, match="is a classifier"):
        load_model(str(tmp_path), torch.float32)
    assert not reward_model.issues(reward_model.Config(model=str(tmp_path)))
    student(tokenizer).model.save_pretrained(tmp_path / "language")
    (issue,) = reward_model.issues(reward_model.Config(model=str(tmp_path / "language")))
    assert "is not a reward model (its architecture: LlamaForCausalLM)" in issue.problem


# --- sections ---------------------------------------------------------------------------------------------------


def test_sections() -> None:
    assert RewardModelConfig().center_rewards_coefficient == 0.01 and not RewardModelConfig().use_margin
    training = RewardTrainingConfig()
    assert (training.num_train_epochs, training.learning_rate) == (1, 1e-5)
    for values in ({"center_rewards_coefficient": -1}, {"margin": True}):
        with pytest.raises(ValidationError):
            RewardModelConfig(**values)
    for ignored in ({"packing": True}, {"loss_chunk_bytes": 1 << 20}):
        with pytest.raises(ValidationError, match="not permitted"):
            RewardTrainingConfig(**ignored)
