"""On-policy distillation with tiny real models: it learns, it resumes to the bit, both kinds of teacher agree."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tests.support.jobs import TRAINING, run, run_here, start, write_config, write_prompts
from tests.support.killed import Killed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from easydistill.config.inference import ApiInferenceConfig
from easydistill.config.training import LoraConfig
from easydistill.data.files import hash_file
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.errors import DataError, Interrupted, TeacherError
from easydistill.kernels.logprobs import completion_logprobs
from easydistill.methods.on_policy import generalized_jsd
from easydistill.methods.on_policy import trainer as on_policy
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.trainer import train as fine_tune
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint, mark_whole
from easydistill.methods.shared.restored import trim_vocabulary, trimmed_vocabulary
from easydistill.methods.shared.rollouts import LocalScores, PromptOrder, PromptRow, Writer, assign, roll_out
from easydistill.models.loading import load_model, load_tokenizer
from easydistill.models.student import Student
from easydistill.report.curve import read_curve
from easydistill.teachers.openai.scores import ServerScores

VOCABULARY = 64
END = 2
CHUNK = 1 << 20
OBJECTIVES = ["generalized_jsd", "sampled_reverse_kl"]


def model(seed: int, vocabulary: int = VOCABULARY, peaked: float = 12.0, tied: bool = False) -> Any:
    """A two-layer Llama whose distributions are far from uniform."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=None,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(peaked)
    return made


@pytest.fixture(scope="session")
def tokenizer(smollm: Path) -> Any:
    """Only its end and padding tokens matter."""
    return AutoTokenizer.from_pretrained(smollm)


def student(tokenizer: Any, seed: int = 0, **values: Any) -> Student:
    return Student(model(seed, **values), tokenizer, frozenset({END}), "float32", "tiny")


def prompts(count: int, seed: int = 0) -> list[PromptRow]:
    generator = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [generator.randrange(5, VOCABULARY) for _ in range(length)]

    made = []
    for n in range(count):
        prompt = ids(generator.randint(2, 9))
        made.append(PromptRow(f"row-{n}", prompt, (prompt, [*ids(generator.randint(1, 9)), END])))
    return made


def config(**values: Any) -> TrainingConfig:
    base: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0,
        "weight_decay": 0,
        "bf16": False,
        "max_length": 64,
        "logging_steps": 1,
        "save_steps": 2,
        "lr_scheduler_type": "constant",
    }
    return TrainingConfig(**(base | values))


def train(
    objective: str,
    trained: Student,
    teacher: Any,
    rows: Sequence[PromptRow],
    folder: Path,
    training: TrainingConfig | None = None,
    stop: StopSignal | None = None,
    reporter: Reporter | None = None,
    writer: Writer | None = None,
    **settings: Any,
) -> Any:
    section = OnPolicyConfig(objective=objective, **({"max_new_tokens": 12} | settings))
    told = reporter or Reporter(None, quiet=True)
    shared = (training or config(), section, folder, told, stop or StopSignal(), writer)
    if objective == "generalized_jsd":
        return generalized_jsd.train(trained, rows, teacher, *shared)
    return on_policy.train(trained, rows, LocalScores(teacher, END, CHUNK), *shared)


def weights(trained: Student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.model.state_dict().items()}


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def scored(own: Any, sequences: Sequence[tuple[list[int], int]]) -> list[list[float]]:
    return LocalScores(own, END, CHUNK).score(sequences, StopSignal())


def reverse_kl(own: Any, teacher: Any) -> float:
    """Estimated from fresh rollouts, with the same random numbers for every model."""
    asked = [(row.id, row.prompt) for row in prompts(256, seed=99)]
    written = roll_out(own, asked, 10_000, frozenset({END}), 12, 1.0, seed=5)
    sequences = [(item.ids, len(item.prompt)) for item in written]
    both = zip(scored(own, sequences), scored(teacher, sequences), strict=True)
    return fmean(s - t for mine, theirs in both for s, t in zip(mine, theirs, strict=True))


# --- log-probabilities and rollouts -----------------------------------------------------------------------------


def test_scores_are_the_models_own_whatever_the_batch_and_the_slices() -> None:
    teacher = model(1)
    sequences = [(row.prompt + row.label[1], len(row.prompt)) for row in prompts(9) if row.label]
    expected = []
    for ids, first in sequences:
        logprobs_TV = teacher(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append([float(logprobs_TV[at - 1, ids[at]].detach()) for at in range(first, len(ids))])
    found = scored(teacher, sequences)
    assert [len(row) for row in found] == [len(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    sliced_N, entropy_N = completion_logprobs(teacher, sequences, pad=9, chunk_bytes=4 * VOCABULARY * 3)
    assert sliced_N.tolist() == pytest.approx([value for row in expected for value in row], abs=1e-5)
    assert not entropy_N.any()
    with torch.no_grad():
        entropy_N = completion_logprobs(teacher, sequences, pad=9, chunk_bytes=CHUNK)[1]
    assert 0 < float(entropy_N.min()) < float(entropy_N.max()) < math.log(VOCABULARY) + 1e-5


def test_slices_do_not_change_the_gradient() -> None:
    sequences = [(row.prompt + row.label[1], len(row.prompt)) for row in prompts(5) if row.label]
    gradients = []
    for chunk in (CHUNK, 4 * VOCABULARY * 3):
        own = model(1)
        completion_logprobs(own, sequences, END, chunk)[0].sum().backward()
        gradients.append([parameter.grad for parameter in own.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_rollout_keeps_its_end_token_and_does_not_depend_on_its_neighbours() -> None:
    own = model(3)
    asked = [(row.id, row.prompt) for row in prompts(40)]
    # Of two end tokens each answer keeps the one that it drew.
    ends = frozenset({END, 7})
    written = roll_out(own, asked, 4, ends, 12, 1.0, seed=1)
    ended = [item for item in written if item.ended]
    assert {item.completion[-1] for item in ended} == ends
    assert all(not ends & set(item.completion[:-1]) for item in written)
    assert all(len(item.completion) == 12 for item in written if not item.ended)
    assert all(not ends & set(item.completion) for item in written if not item.ended)
    assert roll_out(own, asked, 4, ends, 12, 1.0, seed=1) == written
    assert roll_out(own, asked, 5, ends, 12, 1.0, seed=1) != written
    assert roll_out(own, asked[:3], 4, ends, 12, 1.0, seed=1) == written[:3]


@pytest.mark.parametrize("lora", [False, True])
def test_rollouts_ignore_the_generation_config(lora: bool) -> None:
    """Qwen2.5's has a repetition penalty, under which answers are not drawn from the distribution of the loss."""
    own, asked = model(3), [(row.id, row.prompt) for row in prompts(20)]
    expected = roll_out(own, asked, 4, frozenset({END}), 12, 1.0, seed=1)
    own.generation_config.update(repetition_penalty=1.5, suppress_tokens=[7, 8, 9], temperature=0.2, do_sample=True)
    before = own.generation_config.to_dict()
    asking = with_adapters(own, config(lora=LoraConfig(r=2))) if lora else own
    assert roll_out(asking, asked, 4, frozenset({END}), 12, 1.0, seed=1) == expected
    assert own.generation_config.to_dict() == before


def test_the_biases_of_padding_rows_are_restored() -> None:
    """Phi's output layer has biases, and 943 padding rows that must not become probable."""
    own = PhiForCausalLM(PhiConfig(vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    with torch.no_grad():
        own.lm_head.bias.normal_()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with trimmed_vocabulary(own, VOCABULARY):
        assert own(torch.tensor([[5, 6]])).logits.shape[-1] == VOCABULARY
    after = own.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("tied", [True, False])
def test_padding_rows_of_the_vocabulary_are_restored(tied: bool) -> None:
    own = model(0, vocabulary=VOCABULARY + 16, tied=tied)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with trimmed_vocabulary(own, VOCABULARY):
        assert own(torch.tensor([[5, 6]])).logits.shape[-1] == VOCABULARY
    after = own.state_dict()
    assert own.config.vocab_size == VOCABULARY + 16
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (own.get_output_embeddings().weight is own.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_models_that_pad_their_vocabulary_differently_can_be_compared(
    objective: str, tokenizer: Any, tmp_path: Path
) -> None:
    trained = student(tokenizer, vocabulary=VOCABULARY + 8)
    teacher = model(1, vocabulary=VOCABULARY + 32)
    before = weights(trained)["lm_head.weight"]
    with trimmed_vocabulary(trained.model, VOCABULARY):
        trim_vocabulary(teacher, VOCABULARY)
        train(objective, trained, teacher, prompts(8), tmp_path, config(max_steps=2))
    after = weights(trained)["lm_head.weight"]
    assert torch.equal(before[VOCABULARY:], after[VOCABULARY:])
    assert not torch.equal(before[:VOCABULARY], after[:VOCABULARY])


# --- learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_student_moves_towards_its_teacher(objective: str, seed: int, tokenizer: Any, tmp_path: Path) -> None:
    trained, teacher = student(tokenizer, seed), model(100 + seed)
    before = reverse_kl(trained.model, teacher)
    training = config(max_steps=60, per_device_train_batch_size=16, gradient_accumulation_steps=1, logging_steps=20)
    settings: dict[str, Any] = {"steps_per_rollout": 2} if objective == "sampled_reverse_kl" else {"beta": 1.0}
    reporter = Reporter(tmp_path / "metrics.jsonl", quiet=True)
    outcome = train(
        objective,
        trained,
        teacher,
        prompts(64, seed),
        tmp_path,
        training,
        reporter=reporter,
        rollout_share=1.0,
        **settings,
    )
    after = reverse_kl(trained.model, teacher)
    print(f"{objective} seed {seed}: reverse KL {before:.3f} -> {after:.3f}")
    assert after < 0.6 * before
    assert outcome.steps == 60
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "train"]
    assert losses[-1] < losses[0]
    watched = [line for line in lines if line["stage"] == "rollouts"]
    assert [line["step"] for line in watched] == [20, 40, 60]
    # Only a teacher that scores sampled tokens can leave one out.
    assert set(watched[0]) - {"unscored"} == {
        "time", "stage", "step", "ended", "entropy", "repetition", "reverse_kl", "rollout_length",
    }  # fmt: skip
    assert watched[-1]["reverse_kl"] < watched[0]["reverse_kl"]
    spent = [line for line in lines if line["stage"] == "seconds"]
    assert [line["step"] for line in spent] == [20, 40, 60]
    assert all(line[phase] > 0 for line in spent for phase in ("rollouts", "teacher", "update"))
    # Each second is in one phase.
    taken = [20 * line["seconds_per_step"] for line in lines if line["stage"] == "train"]
    phases = [sum(value for name, value in line.items() if name not in {"time", "step", "stage"}) for line in spent]
    assert phases == pytest.approx(taken, rel=0.2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_rollouts_it_learns_from_the_teachers_answers(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    trained, teacher = student(tokenizer), model(1)
    rows = prompts(8)
    sequences = [(row.prompt + row.label[1], len(row.prompt)) for row in rows if row.label]
    before = fmean(value for row in scored(trained.model, sequences) for value in row)
    training = config(max_steps=30, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    outcome = train(objective, trained, teacher, rows, tmp_path, training, rollout_share=0.0)
    assert outcome.trained_tokens == 30 * sum(len(row.label[1]) for row in rows if row.label)
    if objective == "sampled_reverse_kl":
        assert fmean(value for row in scored(trained.model, sequences) for value in row) > before + 1


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trls_divergence_is_the_one_that_is_documented(
    beta: float, temperature: float, tokenizer: Any, tmp_path: Path
) -> None:
    trained, teacher, rows = student(tokenizer), model(1), prompts(8)
    total, count = 0.0, 0
    for prompt, completion in (row.label for row in rows if row.label):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            own_TV, teacher_TV = (
                (who(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
                for who in (trained.model, teacher)
            )
        mixed_TV = (beta * teacher_TV.exp() + (1 - beta) * own_TV.exp()).log()
        forward_T = (teacher_TV.exp() * (teacher_TV - (own_TV if beta == 0 else mixed_TV))).sum(-1)
        reverse_T = (own_TV.exp() * (own_TV - (teacher_TV if beta == 1 else mixed_TV))).sum(-1)
        divergence_T = {0.0: forward_T, 1.0: reverse_T}.get(beta, beta * forward_T + (1 - beta) * reverse_T)
        total, count = total + float(divergence_T.sum()), count + len(completion)
    training = config(max_steps=1)
    training = training.model_copy(update={"gradient_accumulation_steps": 4})
    settings = {"rollout_share": 0.0, "beta": beta, "temperature": temperature}
    outcome = train("generalized_jsd", trained, teacher, rows, tmp_path, training, **settings)
    assert outcome.final_loss == pytest.approx(total / count, rel=1e-4)
    assert outcome.trained_tokens == count


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_unused_answers_of_the_teacher_are_in_no_mean(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    """Contract: with rollouts alone, N counts their tokens (TRL's GKD trainer counts the data set's answers)."""
    found = []
    for longer in (0, 40):
        rows = [
            PromptRow(row.id, row.prompt, (row.label[0], [*[9] * longer, *row.label[1]]))
            for row in prompts(8)
            if row.label
        ]
        trained = student(tokenizer)
        outcome = train(
            objective, trained, model(1), rows, tmp_path / str(longer), config(max_steps=2), rollout_share=1.0
        )
        found.append((outcome.final_loss, outcome.trained_tokens, weights(trained)))
    assert found[0][:2] == found[1][:2]
    assert_same_bits(found[0][2], found[1][2])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_split_into_micro_batches_does_not_change_the_step(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    found = []
    for n, (size, accumulation) in enumerate([(8, 1), (2, 4), (1, 8)]):
        trained = student(tokenizer)
        training = config(
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
        )
        train(objective, trained, model(1), prompts(8), tmp_path / str(n), training)
        found.append(weights(trained))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_gradient_checkpointing_does_not_change_the_step(
    lora: LoraConfig | None, objective: str, tokenizer: Any, tmp_path: Path
) -> None:
    found = []
    for on in (False, True):
        trained = student(tokenizer)
        training = config(max_steps=2, optim="sgd", learning_rate=0.1, gradient_checkpointing=on, lora=lora)
        train(objective, trained, model(1), prompts(8), tmp_path / str(on), training)
        found.append(weights(trained))
    start = weights(student(tokenizer))
    assert any(not torch.equal(value, start[name]) for name, value in found[0].items())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


# --- resuming ---------------------------------------------------------------------------------------------------


Uninterrupted = Callable[..., tuple[dict[str, torch.Tensor], Any]]


@pytest.fixture(scope="module")
def uninterrupted(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Weights and outcome of a training of ten rows that nothing interrupts, made once for all that compare with it."""

    @cache
    def made(objective: str, training: str, **settings: Any) -> tuple[dict[str, torch.Tensor], Any]:
        trained, folder = student(tokenizer), tmp_path_factory.mktemp("uninterrupted")
        parsed = TrainingConfig.model_validate_json(training)
        outcome = train(objective, trained, model(1), prompts(10), folder, parsed, **settings)
        return weights(trained), outcome

    return lambda objective, training, **settings: made(objective, training.model_dump_json(), **settings)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("die_at", [1, 4, 7])
@pytest.mark.parametrize(("objective", "settings"), [(objective, {"steps_per_rollout": 3}) for objective in OBJECTIVES])
def test_a_killed_training_ends_in_the_same_weights_bit_for_bit(
    objective: str,
    settings: dict[str, Any],
    die_at: int,
    lora: bool,
    tokenizer: Any,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten rows, four per step: the run crosses epochs. Checkpoints every two steps cut rollouts of three."""
    training = config(max_steps=9, lora=LoraConfig(r=2, dropout=0.1) if lora else None)
    teacher, rows = model(1), prompts(10)
    whole, expected = uninterrupted(objective, training, **settings)

    with monkeypatch.context() as patch:
        place, name = on_policy.SampledTraining, "update"
        original, count = getattr(place, name), 0

        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == die_at:
                raise Killed
            return original(*arguments, **options)

        patch.setattr(place, name, dying)
        with pytest.raises(Killed):
            train(objective, student(tokenizer), teacher, rows, tmp_path / "killed", training, **settings)
    resumed = student(tokenizer)
    found = train(objective, resumed, teacher, rows, tmp_path / "killed", training, **settings)
    assert found.resumed_from_step == (die_at - 1) // 2 * 2
    assert_same_bits(whole, weights(resumed))
    assert (found.trained_tokens, found.final_loss) == (expected.trained_tokens, expected.final_loss)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_killed_after_its_last_step_is_not_trained_further(
    objective: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Ten rows, four per step: the fifth and last step is in the middle of an epoch."""
    teacher, rows, training = model(1), prompts(10), config(max_steps=5)
    whole, again = student(tokenizer), student(tokenizer)
    expected = train(objective, whole, teacher, rows, tmp_path, training)
    found = train(objective, again, teacher, rows, tmp_path, training)
    assert (found.steps, found.resumed_from_step, found.final_loss) == (5, 5, expected.final_loss)
    assert found.trained_tokens == expected.trained_tokens
    assert_same_bits(weights(whole), weights(again))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_adapters_of_the_cold_start_are_merged_before_new_ones(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    """As in the stage: a run that is killed after the cold start ends with the same weights."""
    teacher, rows = model(1), prompts(10)
    training = config(max_steps=2, lora=LoraConfig(r=2))
    cold = training.model_copy(update={"max_steps": 4})
    written = [assign(row, rolled=False) for row in rows]
    labels = [TokenRow(w.id, w.ids, [False] * len(w.prompt) + [True] * len(w.completion)) for w in written]
    found = []
    for folder, killed in (("whole", False), ("killed", True), ("killed", False)):
        trained = student(tokenizer, vocabulary=VOCABULARY + 8)
        with trimmed_vocabulary(trained.model, VOCABULARY):
            fine_tune(trained, labels, cold, tmp_path / folder / "cold", Reporter(None, quiet=True), StopSignal())
            if not killed:
                train(objective, trained, teacher, rows, tmp_path / folder / "on", training)
        assert trained.model.get_output_embeddings().weight.shape[0] == VOCABULARY + 8
        found.append(weights(trained))
    assert_same_bits(found[0], found[2])
    assert set(found[0]) == set(weights(student(tokenizer)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_learning_rate_schedule_survives_a_kill(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    training = config(max_steps=7, lr_scheduler_type="cosine", warmup_ratio=0.4)
    teacher, rows, whole, resumed = model(1), prompts(10), student(tokenizer), student(tokenizer)
    train(objective, whole, teacher, rows, tmp_path / "whole", training)
    stop = StopSignal()

    class Stopping(Reporter):
        def metric(self, stage: str, **values: Any) -> None:
            if stage == "train" and values["step"] == 3:
                stop.request()

    with contextlib.suppress(Interrupted):
        train(objective, student(tokenizer), teacher, rows, tmp_path / "killed", training, stop, Stopping(None))
    assert train(objective, resumed, teacher, rows, tmp_path / "killed", training).resumed_from_step in {3, 4}
    assert_same_bits(weights(whole), weights(resumed))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_objectives_take_rows_in_the_given_order(
    objective: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, taken = prompts(10), []
    monkeypatch.setattr(on_policy, "assign", lambda row, rolled: taken.append(row.id) or assign(row, rolled))
    train(objective, student(tokenizer), model(1), rows, tmp_path, config(max_steps=7))
    order = PromptOrder(10, 4, config().seed)
    expected = [rows[index].id for epoch in range(3) for batch in order.batches(epoch) for index in batch]
    assert taken == expected[: 7 * 4]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_training_resumes_to_the_same_weights(
    objective: str, stop_at: int, tokenizer: Any, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    teacher, rows = model(1), prompts(10)
    whole, _ = uninterrupted(objective, config(save_steps=50))
    stop = StopSignal()

    class Stopping(Reporter):
        def metric(self, stage: str, **values: Any) -> None:
            if stage == "train" and values["step"] == stop_at:
                stop.request()

    stopping = Stopping(None, quiet=True)
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(objective, student(tokenizer), teacher, rows, folder, config(save_steps=50), stop, stopping)
    checkpoint = last_whole_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{stop_at}"
    resumed = student(tokenizer)
    outcome = train(objective, resumed, teacher, rows, folder, config(save_steps=50))
    assert outcome.resumed_from_step > 0
    assert_same_bits(whole, weights(resumed))


def test_checkpoints_of_an_earlier_version_are_told_and_training_starts_anew(tokenizer: Any, tmp_path: Path) -> None:
    """Generalised JSD was trained by transformers' Trainer once, which has other files."""
    whole, again, said = student(tokenizer), student(tokenizer), []
    train("generalized_jsd", whole, model(1), prompts(10), tmp_path / "whole")
    old = tmp_path / "old" / "checkpoint-40"
    old.mkdir(parents=True)
    (old / "optimizer.pt").write_bytes(b"of another kind")
    mark_whole(old, 1, "ddp")

    class Listening(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    outcome = train("generalized_jsd", again, model(1), prompts(10), tmp_path / "old", reporter=Listening(None))
    assert outcome.resumed_from_step == 0
    assert any("starts anew" in line for line in said)
    assert_same_bits(weights(whole), weights(again))
    assert last_whole_checkpoint(tmp_path / "old") == tmp_path / "old" / "checkpoint-6"


def test_incomplete_checkpoints_are_not_used_and_old_ones_are_removed(tokenizer: Any, tmp_path: Path) -> None:
    teacher, rows = model(1), prompts(10)
    whole = student(tokenizer)
    train("sampled_reverse_kl", whole, teacher, rows, tmp_path, config(save_steps=1, save_total_limit=2))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    (tmp_path / "checkpoint-6" / "whole.json").unlink()
    (tmp_path / "checkpoint-6" / "state.pt").write_bytes(b"garbage")
    resumed = student(tokenizer)
    outcome = train("sampled_reverse_kl", resumed, teacher, rows, tmp_path, config(save_steps=1, save_total_limit=2))
    assert outcome.resumed_from_step == 5
    assert_same_bits(weights(whole), weights(resumed))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_non_finite_losses_and_empty_training_sets_are_errors(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    broken = student(tokenizer)
    with pytest.raises(DataError, match="nothing to train on"):
        train(objective, broken, model(1), [], tmp_path / "none")
    with pytest.raises(DataError, match="learning_rate"):
        training = config(learning_rate=1e30, optim="sgd", max_grad_norm=0, max_steps=40)
        train(objective, broken, model(1), prompts(8), tmp_path / "inf", training, rollout_share=0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_leaves_the_configs_of_the_model_alone(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    trained = student(tokenizer)
    trained.model.config.use_cache = True

    def settings() -> list[Any]:
        configs = (trained.model.config, trained.model.generation_config)
        return [
            [item.to_dict().get(name) for item in configs] for name in ("pad_token_id", "eos_token_id", "use_cache")
        ]

    before = settings()
    train(objective, trained, model(1), prompts(4), tmp_path, config(max_steps=1, gradient_checkpointing=True))
    assert settings() == before
    assert not trained.model.training
    assert not trained.model.is_gradient_checkpointing


# --- a teacher behind a server ----------------------------------------------------------------------------------


class FakeVllm(http.server.ThreadingHTTPServer):
    """Serves prompt_logprobs of a tiny model as vLLM 0.32 does, after the given `faults`."""

    daemon_threads = True

    def __init__(self, teacher: Any, spell: Any = str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.teacher, self.spell = teacher, spell
        self.faults: list[str] = []
        self.always: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the test."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def prompt_logprobs(self, ids: list[int]) -> list[Any]:
        with self.lock:
            values = scored(self.teacher, [(ids, 1)])[0]
        return [
            None,
            *(
                {str(token): {"logprob": value, "rank": 1, "decoded_token": self.spell(token)}}
                for token, value in zip(ids[1:], values, strict=True)
            ),
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeVllm

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, status: int, value: Any, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(asked)
            fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        logprobs = self.server.prompt_logprobs(asked["prompt"])
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": logprobs}
        if fault == "429":
            self.reply(429, {"error": {"message": "slow down"}}, **{"retry-after": "0.05"})
        elif fault == "500":
            self.reply(500, {"error": {"message": "engine died"}})
        elif fault == "401":
            self.reply(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
        elif fault == "400":
            self.reply(400, {"error": {"message": "max_tokens must be at least 1, got 0."}})
        elif fault == "404":
            self.reply(404, {"detail": "Not Found"})
        elif fault == "hang":
            time.sleep(1.5)
        elif fault == "half":
            self.reply(200, b'{"choices": [{"text": "x", "prompt_logpro')
        elif fault == "missing":
            self.reply(200, {"choices": [{"text": "x", "finish_reason": "length", "logprobs": None}]})
        elif fault == "short":
            self.reply(200, {"choices": [{**choice, "prompt_logprobs": logprobs[:-1]}]})
        else:
            self.reply(200, {"choices": [choice]})


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    server = FakeVllm(model(1))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(fake: FakeVllm, spell: Any = str, **values: Any) -> ServerScores:
    settings: dict[str, Any] = {
        "base_url": fake.base_url,
        "api_key": "sk-a-secret-key",
        "timeout": 0.5,
        "max_retry_wait": 0.02,
        "max_concurrency": 4,
    }
    inference, redactor = ApiInferenceConfig(**(settings | values)), Redactor()
    redactor.register_config(inference)
    return ServerScores(inference, redactor, spell)


SEQUENCES = [(row.prompt + row.label[1], len(row.prompt)) for row in prompts(9) if row.label]


def test_a_server_gives_the_models_own_scores(fake: FakeVllm) -> None:
    found = remote(fake).score(SEQUENCES, StopSignal())
    for mine, theirs in zip(found, scored(fake.teacher, SEQUENCES), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert {tuple(item["prompt"]) for item in fake.asked} == {tuple(ids) for ids, _ in SEQUENCES}
    assert all(item["prompt_logprobs"] == 0 and item["max_tokens"] == 1 for item in fake.asked)
    assert {item["model"] for item in fake.asked} == {"tiny"}


def test_training_with_a_server_equals_training_with_the_model(fake: FakeVllm, tokenizer: Any, tmp_path: Path) -> None:
    here, there = student(tokenizer), student(tokenizer)
    train("sampled_reverse_kl", here, fake.teacher, prompts(10), tmp_path / "here", config(optim="sgd"))
    section = OnPolicyConfig(objective="sampled_reverse_kl", max_new_tokens=12)
    quiet, stop = Reporter(None, quiet=True), StopSignal()
    on_policy.train(there, prompts(10), remote(fake), config(optim="sgd"), section, tmp_path / "there", quiet, stop)
    for name, value in weights(here).items():
        torch.testing.assert_close(value, weights(there)[name], rtol=1e-4, atol=1e-6)


class Punctured:
    """Scores of a model, with a placeholder for the second token of each answer."""

    def __init__(self, scores: Any, placeholder: float) -> None:
        self._scores, self.placeholder = scores, placeholder

    def score(self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal) -> list[list[float]]:
        found: list[list[float]] = self._scores.score(sequences, stop)
        self.asked = list(sequences)
        return [[row[0], self.placeholder, *row[2:]] if len(row) > 1 else row for row in found]


@pytest.mark.parametrize("placeholder", [-9999.0, float("nan"), float("-inf")], ids=str)
def test_tokens_without_a_score_are_left_out_and_counted(placeholder: float, tokenizer: Any, tmp_path: Path) -> None:
    """The loss is that over the other tokens, divided by their number."""
    trained, teacher = student(tokenizer), model(1)
    scores = Punctured(LocalScores(teacher, END, 1 << 20), placeholder)
    section = OnPolicyConfig(objective="sampled_reverse_kl", max_new_tokens=12, rollout_share=1)
    reporter = Reporter(tmp_path / "metrics.jsonl", quiet=True)
    settings = config(max_steps=1, learning_rate=1e-12, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    outcome = on_policy.train(trained, prompts(8), scores, settings, section, tmp_path / "run", reporter, StopSignal())
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {name: value for entry in entries for name, value in entry.items()}
    drawn = roll_out(trained.model, [(row.id, row.prompt) for row in written_prompts(settings)], 0,
                     trained.eos_ids, 12, 1.0, settings.seed)  # fmt: skip
    asked = [(item.ids, len(item.prompt)) for item in drawn]
    assert asked == scores.asked
    gaps = [
        own - theirs
        for own_row, their_row in zip(scored(trained.model, asked), scored(teacher, asked), strict=True)
        for at, (own, theirs) in enumerate(zip(own_row, their_row, strict=True))
        if at != 1
    ]
    total = sum(len(item.completion) for item in drawn)
    assert total - len(gaps) == sum(len(item.completion) > 1 for item in drawn) > 0
    assert logged["unscored"] == pytest.approx(1 - len(gaps) / total)
    assert logged["reverse_kl"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    # On the first step the ratio is 1, so the loss is the mean gap.
    assert logged["loss"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert logged["grad_norm"] < 100
    assert outcome.trained_tokens == len(gaps)


def written_prompts(settings: TrainingConfig) -> list[PromptRow]:
    """The prompts of the first step, in order."""
    rows = prompts(8)
    return [rows[index] for index in PromptOrder(len(rows), 8, settings.seed).batches(0)[0]]


def test_a_teacher_without_any_score_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    class Nothing:
        def score(self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal) -> list[list[float]]:
            return [[-9999.0] * (len(ids) - start) for ids, start in sequences]

    section = OnPolicyConfig(objective="sampled_reverse_kl", max_new_tokens=4)
    reporter = Reporter(None, quiet=True)
    with pytest.raises(TeacherError, match="no usable log-probability"):
        on_policy.train(
            student(tokenizer), prompts(4), Nothing(), config(max_steps=1), section, tmp_path, reporter, StopSignal()
        )


def test_passing_faults_are_retried(fake: FakeVllm) -> None:
    fake.faults = ["429", "500", "hang", "half", "429", "500"]
    found = remote(fake).score(SEQUENCES, StopSignal())
    assert [len(row) for row in found] == [len(ids) - start for ids, start in SEQUENCES]
    assert len(fake.asked) == len(SEQUENCES) + 6


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("429", r"after 3 attempts: rate_limit(.|\n)*→"),
        ("500", r"after 3 attempts: server_error(.|\n)*last checkpoint"),
        ("hang", r"timeout(.|\n)*→"),
        ("half", "garbage"),
        ("401", r"refuses to answer(.|\n)*inference\.api_key"),
        ("400", "--max-model-len"),
        ("404", r"http_404(.|\n)*→"),
        ("missing", r"no prompt_logprobs(.|\n)*needs a vLLM server"),
        ("short", "prompt_logprobs is not a list of"),
    ],
)
def test_unsuitable_servers_are_explained(fault: str, words: str, fake: FakeVllm) -> None:
    fake.always = fault
    with pytest.raises(TeacherError, match=words) as raised:
        remote(fake, max_retries=2, timeout=0.3).score(SEQUENCES, StopSignal())
    assert "sk-a-secret-key" not in str(raised.value)
    # No request is repeated: a server that cannot work ends the run.
    assert len(fake.asked) <= 3 * len(SEQUENCES)


def test_a_different_tokenizer_is_detected(fake: FakeVllm) -> None:
    with pytest.raises(TeacherError, match="tokenizer is not the student's"):
        remote(fake, spell=lambda token: f"t{token + 1}").score(SEQUENCES, StopSignal())


def test_tokenizers_are_compared_as_soon_as_there_is_plain_text(fake: FakeVllm) -> None:
    """A first rollout may consist of partial characters only."""
    tokens = dict.fromkeys(range(32), "…")
    scores = remote(fake, spell=lambda token: tokens.get(token, f"t{token}"))
    scores.score([([5, 6, 7], 1)], StopSignal())
    with pytest.raises(TeacherError, match="tokenizer is not the student's"):
        scores.score([([40, 41, 42], 1)], StopSignal())


def test_a_server_that_does_not_answer(fake: FakeVllm) -> None:
    with pytest.raises(TeacherError, match="→"):
        remote(fake, base_url="http://127.0.0.1:9/v1", model="tiny", max_retries=1).score(SEQUENCES, StopSignal())


def test_a_request_to_stop_ends_scoring(fake: FakeVllm) -> None:
    stop = StopSignal()
    stop.request()
    with pytest.raises(Interrupted):
        remote(fake).score(SEQUENCES, stop)


# --- the whole job ----------------------------------------------------------------------------------------------

TEXTS = [f"Name {n + 2} things that are {kind}." for n in range(8) for kind in ("red", "round", "warm")]


def job(folder: Path, teacher: Path, trained: Any, **on_policy_section: Any) -> dict[str, Any]:
    return {
        "job_type": "on_policy_kd",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, TEXTS))},
        "inference": {"backend": "transformers", "max_new_tokens": 8},
        "models": {"teacher": str(teacher), "student": trained},
        "on_policy": {"max_new_tokens": 8, **on_policy_section},
        "training": {**TRAINING, "num_train_epochs": 1},
        "evaluation": {"heldout": 4, "max_new_tokens": 4},
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_whole_job_with_a_local_teacher(objective: str, tiny_model: Path, tmp_path: Path) -> None:
    student_config = {"config": {**json.loads((tiny_model / "config.json").read_text()), "num_hidden_layers": 1}}
    code, out = run_here(
        write_config(tmp_path, job(tmp_path, tiny_model, student_config, objective=objective, sft_steps=2))
    )
    assert code == 0, out
    assert "cold start: 2 steps" in out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stages"]["train"]["metrics"]["steps"] == 3
    assert summary["stages"]["train"]["metrics"]["train_rows"] == len(TEXTS) - 4
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if line["stage"] == "cold_start"] == [1, 2]
    # The report's curve is that of on-policy training alone.
    assert [point.step for point in read_curve(tmp_path / "run/metrics.jsonl").points] == [1, 2, 3]
    assert set(summary["metrics"]["after"]) >= {"cross_entropy", "kl"}
    assert (tmp_path / "run/student/model.safetensors").is_file()
    assert not (tmp_path / "run/stages/2-train/checkpoints").exists()
    again, out = run_here(
        write_config(tmp_path, job(tmp_path, tiny_model, student_config, objective=objective, sft_steps=2))
    )
    assert (again, "everything is already done" in out) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_process_killed_twice_ends_with_the_same_weights(objective: str, tiny_model: Path, tmp_path: Path) -> None:
    """kill -9, once after the cold start and once later: the files are the same in the end."""
    files = []
    for name, kills in (("whole", []), ("killed", [2, 5])):
        folder = tmp_path / name
        folder.mkdir()
        made = job(folder, tiny_model, {"from": str(tiny_model), "keep_layers": 2}, objective=objective, sft_steps=2)
        made["training"] |= {"num_train_epochs": 3, "save_steps": 1}
        made["evaluation"] = {"enabled": False}
        path = write_config(folder, made)
        for step in kills:
            process = start(path)
            pattern = "run/stages/2-train/checkpoints/*/on_policy/checkpoint-*/whole.json"
            while process.poll() is None:
                if any(int(found.parent.name.rsplit("-", 1)[1]) >= step for found in folder.glob(pattern)):
                    process.kill()
                    break
                time.sleep(0.01)
            out, _ = process.communicate()
            assert process.returncode == -9, out
        code, out = run(path)
        assert code == 0, out
        assert ("already done" in out) == bool(kills)
        files.append(hash_file(folder / "run/student/model.safetensors"))
    assert files[0] == files[1]


def test_the_whole_job_with_a_server_and_prompts_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, spelling = load_model(str(tiny_model), torch.float32), load_tokenizer(str(tiny_model))
    server = FakeVllm(teacher, lambda token: spelling.decode([token]))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made = job(tmp_path, tiny_model, str(tiny_model), objective="sampled_reverse_kl", rollout_share=1.0)
    made["inference"] = {"base_url": server.base_url, "api_key": "${env:VLLM_KEY}"}
    made["models"] = {"student": str(tiny_model)}
    made["evaluation"] = {"enabled": False}
    monkeypatch.setenv("VLLM_KEY", "sk-vllm-test-key")
    code, out = run_here(write_config(tmp_path, made))
    server.shutdown()
    server.server_close()
    assert code == 0, out
    assert "[1/1] train" in out
    assert len(server.asked) == len(TEXTS)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # The student equals its teacher: only the rounding of bfloat16 and float32 differs.
    assert abs(next(line["reverse_kl"] for line in lines if line["stage"] == "rollouts")) < 0.02


def test_teachers_of_another_vocabulary_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model(0, vocabulary=1000).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<|another|>"])
    tokenizer.save_pretrained(other)
    made = job(tmp_path, other, str(tiny_model), objective="sampled_reverse_kl", rollout_share=1.0)
    made["evaluation"] = {"enabled": False}
    code, out = run_here(write_config(tmp_path, made))
    assert code == 2, out
    assert "different vocabularies" in out
    assert "black_box_kd_local" in out
