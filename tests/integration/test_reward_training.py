"""Reward models: the loss against a calculation by hand, learning, saving, a kill."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.jobs import run_here, start, write_config
from tests.support.rollouts import rollout
from transformers import AutoTokenizer

import easydistill
from easydistill.config.dataset import PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.models import ModelsConfig
from easydistill.data.files import hash_file
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError
from easydistill.methods.reward_model import measure as measuring
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.measure import score_rows
from easydistill.methods.reward_model.rows import RewardRow
from easydistill.methods.reward_model.trl_trainer import ScoreTrainer, ScoreWatch, train
from easydistill.methods.shared import ranks
from easydistill.methods.shared.pairs import PairRows
from easydistill.methods.shared.strategies.base import Strategy
from easydistill.models.scalar_head import set_padding, with_scalar_head
from easydistill.models.student import Student, build_student
from easydistill.rewards import RewardContext
from easydistill.rewards.reward_model import Config, make

F = torch.nn.functional
END = 2
"""The tiny model's end-of-turn token, which also pads."""


def student_of(path: Path, seed: int = 0) -> Student:
    student = with_scalar_head(build_student(ModelsConfig(student=str(path)), torch.float32), seed)
    set_padding(student, {END})
    return student


def rows_of(count: int, seed: int = 0) -> list[RewardRow]:
    """Chats of random tokens that end with the padding token of the student's tokenizer."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(10, 4000) for _ in range(draw.randint(least, most))]

    rows = []
    for number in range(count):
        prompt = tokens(3, 9)
        chosen, rejected = ([*prompt, *tokens(2, 12), END] for _ in range(2))
        rows.append(RewardRow(f"r{number}", f"p{number}", chosen, rejected, len(prompt), draw.choice([0, 0.5, 1.7])))
    return rows


def trainer_of(folder: Path, student: Student, rows: list[RewardRow], reward: RewardModelConfig) -> ScoreTrainer:
    config = RewardTrainingConfig(bf16=False, per_device_train_batch_size=len(rows))
    watch = ScoreWatch(Reporter(folder / "metrics.jsonl"), StopSignal(), config)
    return ScoreTrainer(student, rows, config, reward, folder / "checkpoints", watch)


def by_hand(model: Any, rows: list[RewardRow], centring: float, margins: bool) -> float:
    """Bradley–Terry with centring, one chat at a time, in float64: nothing is padded."""
    model = model.double().eval()

    def score(chat: list[int]) -> torch.Tensor:
        hidden_D = model.model(input_ids=torch.tensor([chat])).last_hidden_state[0, -1]
        return model.score.weight[0] @ hidden_D

    with torch.no_grad():
        found = [
            -F.logsigmoid(score(row.chosen) - score(row.rejected) - (row.margin if margins else 0))
            + centring * (score(row.chosen) + score(row.rejected)) ** 2
            for row in rows
        ]
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("centring", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("margins", [False, True])
def test_the_loss_equals_a_calculation_by_hand(
    tiny_model: Path, tmp_path: Path, centring: float, margins: bool
) -> None:
    rows, student = rows_of(6), student_of(tiny_model)
    with torch.no_grad():
        # Scores of several log-odds, so that each part of the loss counts.
        student.model.score.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    reward = RewardModelConfig(center_rewards_coefficient=centring, use_margin=margins)
    trainer = trainer_of(tmp_path, student, rows, reward)
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(rows))])
    assert set(batch) == {"input_ids", "attention_mask", *(["margin"] if margins else [])}
    found = float(trainer.compute_loss(trainer.model, batch).detach())
    assert found == pytest.approx(by_hand(student.model, rows, centring, margins), rel=1e-5, abs=1e-6)


def test_scores_are_read_at_the_last_token_with_any_padding(tiny_model: Path) -> None:
    """These chats end with the tokenizer's padding token, so another token must pad."""
    student, rows = student_of(tiny_model), rows_of(9)
    pad = student.model.config.pad_token_id
    assert student.tokenizer.pad_token_id == pad != END
    together = score_rows(student.model, rows, pad, StopSignal())
    for row, score in zip(rows, together, strict=True):
        for chat, value in ((row.chosen, score.chosen), (row.rejected, score.rejected)):
            with torch.no_grad():
                hidden_D = student.model.model(input_ids=torch.tensor([chat])).last_hidden_state[0, -1]
                wanted = float(student.model.score.weight[0] @ hidden_D)
            assert wanted == pytest.approx(value, abs=1e-6)


def trained(folder: Path, model: Path, rows: list[RewardRow], **training: Any) -> Student:
    folder.mkdir()
    student = student_of(model)
    config = RewardTrainingConfig(**{"bf16": False, "learning_rate": 1e-3, "logging_steps": 1, **training})
    reporter = Reporter(folder / "metrics.jsonl")
    train(student, rows, config, RewardModelConfig(), folder / "c", reporter, StopSignal())
    return student


def test_micro_batches_do_not_matter(tiny_model: Path, tmp_path: Path) -> None:
    rows = rows_of(16)
    one, other = (
        trained(
            tmp_path / str(size), tiny_model, rows, per_device_train_batch_size=size, optim="sgd",
            gradient_accumulation_steps=8 // size, group_by_length=False, max_grad_norm=0, learning_rate=0.5,
        ).model
        for size in (8, 2)
    )  # fmt: skip
    start_model = student_of(tiny_model).model
    for first, second, begun in zip(one.parameters(), other.parameters(), start_model.parameters(), strict=True):
        assert torch.allclose(first, second, rtol=0, atol=2e-6)
        assert not torch.equal(first, begun)


@pytest.mark.parametrize("lora", [None, {"r": 4}, {"r": 4, "target_modules": ["q_proj", "v_proj"]}])
def test_it_memorises_pairs_and_adapters_are_merged(tiny_model: Path, tmp_path: Path, lora: Any) -> None:
    rows = rows_of(16)
    training = {"num_train_epochs": 10, "learning_rate": 3e-3, "gradient_accumulation_steps": 2}
    student = trained(tmp_path / "a", tiny_model, rows, lora=lora, **training)
    assert type(student.model).__name__ == "LlamaForSequenceClassification"
    scores = score_rows(student.model, rows, student.model.config.pad_token_id, StopSignal())
    # Adapters of rank 4 memorise less.
    assert sum(score.margin > 0 for score in scores) >= (15 if lora is None else 12)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["stage"] == "reward_model"]
    assert {"pair_accuracy", "score_margin", "mean_score", "lowest_score", "highest_score"} <= set(logged[-1])
    assert logged[-1]["score_margin"] > logged[0]["score_margin"]


def test_the_head_cannot_have_adapters(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.lora.target_modules: score is the reward model's head"):
        trained(tmp_path / "a", tiny_model, rows_of(2), lora={"target_modules": ["score"]})


# --- the job ------------------------------------------------------------------------------------------------


def even_numbers(seed: int = 0) -> list[dict[str, Any]]:
    """Two pairs per prompt: even numbers are right, odd ones wrong."""
    draw = random.Random(seed)

    def said(number: int) -> str:
        return draw.choice([f"{number}", f"The number {number}.", f"How about {number}?", f"{number} is one."])

    rows = []
    for least in draw.sample(range(100, 9000), 300):
        for _ in range(2):
            even = 2 * draw.randint(least // 2 + 1, 4999)
            odd = 2 * draw.randint(least // 2 + 1, 4999) + 1
            rows.append(
                {
                    "prompt": f"Name an even number above {least}.",
                    "chosen": said(even),
                    "rejected": said(odd),
                    "chosen_score": 1,
                    "rejected_score": 0,
                    "gap": "small" if abs(even - odd) < 1000 else "large",
                }
            )
    return rows


def job(folder: Path, student: Any, rows: list[dict[str, Any]], **training: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "job_type": "reward_model",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "pairs.jsonl")},
        "models": {"student": str(student) if isinstance(student, Path) else student},
        "training": {"bf16": False, "logging_steps": 4, **training},
        "evaluation": {"heldout": 100},
    }


def loaded_scores(folder: Path, heldout: int) -> list[tuple[float, float]]:
    """Scores of the held-out pairs' answers by the reward that loads a job's saved model."""
    dataset = PairsConfig(labeled_path=str(folder / "pairs.jsonl"))
    _, pairs, _ = PairRows(dataset, HeldoutConfig(heldout=heldout)).read()
    assert len(pairs) == heldout
    rollouts = [
        rollout(answer[0]["content"], asked=pair.prompt[0]["content"])
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    reward = make(Config(model=str(folder / "run/student"), dtype="float32"), RewardContext(device="cpu"))
    scores = [score for score in reward(rollouts) if score is not None]
    return list(zip(scores[::2], scores[1::2], strict=True))


def test_the_job_learns_a_verifiable_rule_and_the_reward_loads_its_model(tiny_model: Path, tmp_path: Path) -> None:
    rows = even_numbers()
    training = {
        "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant_with_warmup",
    }  # fmt: skip
    described = job(tmp_path, tiny_model, [*rows, {"prompt": "no answers"}], **training)
    assert easydistill.run(described, quiet=True).exit_code == 0
    stage = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["train"]
    assert stage["rows"]["rejected"] == {"malformed_row": 1}
    found = stage["metrics"]
    assert found["heldout_rows"] == 100 and found["train_rows"] == 500
    assert found["before"]["pair_accuracy"] < 0.7
    assert found["after"]["pair_accuracy"] > 0.9 and found["after"]["shorter_accuracy"] > 0.75
    assert found["after"]["score_margin"] > 1 and abs(found["after"]["length_pearson"]) < 0.5
    assert found["after"]["best_of_n_gain"] > 0.4
    assert found["heldout_pairs"]["best_of_n"] == {
        "prompts": 50, "n": 4, "gain": found["after"]["best_of_n_gain"], "most": 0.5,
    }  # fmt: skip
    assert set(found["gaps"]) == {"small", "large"}
    report = (tmp_path / "run/report.md").read_text()
    assert "On 100 pairs that the student never saw, accuracy on pairs rose" in report
    assert "AutoModelForSequenceClassification" in (tmp_path / "run/student/README.md").read_text()

    # The reward reproduces the figures of the summary.
    margins = [better - worse for better, worse in loaded_scores(tmp_path, 100)]
    assert sum(margin > 0 for margin in margins) == round(found["after"]["pair_accuracy"] * 100)
    assert sum(margins) / 100 == pytest.approx(found["after"]["score_margin"], abs=1e-5)
    # Again: nothing to do.
    assert not easydistill.run(described, quiet=True).fresh


def test_a_student_in_parts_is_measured_on_the_cpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without memory, the whole student would lose its values."""
    monkeypatch.setattr(Strategy, "shards", True)
    monkeypatch.setattr(ranks, "device", lambda: torch.device("meta"))
    described = job(tmp_path, tiny_model, even_numbers()[:40], max_steps=1) | {"evaluation": {"heldout": 8}}
    code, out = run_here(write_config(tmp_path, described))
    assert code == 0, out
    assert out.count("scored on the CPU") == 1
    metrics = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["train"]["metrics"]
    assert {"before", "after"} <= metrics.keys()


def test_without_held_out_pairs_nothing_is_scored(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "score_rows", lambda *args: pytest.fail("the student was moved and scored"))
    described = job(tmp_path, tiny_model, even_numbers()[:40], max_steps=1) | {"evaluation": {"heldout": 0}}
    code, out = run_here(write_config(tmp_path, described))
    assert code == 0, out


@pytest.mark.parametrize("made", ["pruned", "fresh"])
def test_made_students_and_the_saved_dtype(tiny_model: Path, tmp_path: Path, made: str) -> None:
    """A fresh student is saved in bfloat16: the figures are those of the rounded weights.

    Both learn in bfloat16, and are measured in float32.
    """
    llama = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    student = {
        "pruned": {"from": str(tiny_model), "keep_layers": 2},
        "fresh": {"config": llama | {"num_hidden_layers": 1}, "tokenizer": str(tiny_model)},
    }[made]
    rows = even_numbers()[:40]
    described = job(tmp_path, student, rows, learning_rate=1e-2, per_device_train_batch_size=8, bf16=True)
    easydistill.run(described | {"evaluation": {"heldout": 10}}, quiet=True)
    saved = json.loads((tmp_path / "run/student/config.json").read_text())
    assert saved["architectures"] == ["LlamaForSequenceClassification"]
    assert saved["dtype"] == {"pruned": "float32", "fresh": "bfloat16"}[made]
    figures = json.loads((tmp_path / "run/summary.json").read_text())["metrics"]["after"]
    scores = [score for both in loaded_scores(tmp_path, 10) for score in both]
    assert sum(scores) / len(scores) == pytest.approx(figures["mean_score"], abs=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "run/student").pad_token_id == saved["pad_token_id"]


def test_a_killed_job_ends_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    training = {"num_train_epochs": 2, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "save_steps": 2}
    whole, torn = (
        job(tmp_path / name, tiny_model, even_numbers()[:60], **training) | {"evaluation": {"heldout": 10}}
        for name in ("whole", "torn")
    )
    easydistill.run(whole, quiet=True)
    process = start(write_config(tmp_path / "torn", torn))
    while process.poll() is None and not list((tmp_path / "torn/run").glob("stages/*/checkpoints/*/*/whole.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "torn/run/student").exists()
    easydistill.run(torn, quiet=True)
    weights = [hash_file(tmp_path / name / "run/student/model.safetensors") for name in ("whole", "torn")]
    assert weights[0] == weights[1]
    figures = [json.loads((tmp_path / name / "run/summary.json").read_text())["metrics"] for name in ("whole", "torn")]
    assert figures[0] == figures[1]


class StopAfter(StopSignal):
    """Ctrl-C after the given number of steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def test_adapters_and_head_go_on_from_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    rows, found = rows_of(16), []
    settings = {"bf16": False, "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    config = RewardTrainingConfig(**settings, lora={"r": 4, "dropout": 0.1})
    for name, stops in (("whole", [StopSignal()]), ("stopped", [StopAfter(3), StopSignal()])):
        for stop in stops:
            student = student_of(tiny_model)
            reporter = Reporter(tmp_path / "metrics.jsonl")
            outcome = train(student, rows, config, RewardModelConfig(), tmp_path / name, reporter, stop)
        found.append(student.model)
    assert outcome.resumed_from_step == 3 and outcome.steps == 8
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_made_a_reward_model_is_told_before_training(tiny_model: Path, tmp_path: Path) -> None:
    described = job(tmp_path, tiny_model, even_numbers()[:40])
    with pytest.raises(DataError, match=r"reward_model\.use_margin: no pair has a `margin`"):
        easydistill.run(described | {"reward_model": {"use_margin": True}}, quiet=True)
    (tmp_path / "v1.jinja").write_text("Q: {{ message.content }} A: {{ message.output }}")
    dataset = described["dataset"] | {"template": str(tmp_path / "v1.jinja")}
    with pytest.raises(ConfigError, match=r"dataset.template: .* is an EasyDistill 1 template"):
        easydistill.run(described | {"dataset": dataset}, quiet=True)
    classifier = tmp_path / "classifier"
    student_of(tiny_model).model.save_pretrained(classifier)
    with pytest.raises(ConfigError, match=r"models.student: .* is a classifier "):
        easydistill.run(described | {"models": {"student": str(classifier)}}, quiet=True)
