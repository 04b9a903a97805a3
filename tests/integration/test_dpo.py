"""Training on pairs: losses against a calculation by hand, β of each pair, the job, a kill."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.jobs import run, run_here, start, write_config

from easydistill.config.models import ModelsConfig
from easydistill.data.files import hash_file
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError
from easydistill.methods.dpo import measure as measuring
from easydistill.methods.dpo.config import DpoTrainingConfig, PairLoss, PreferenceConfig
from easydistill.methods.dpo.measure import measure, measure_gaps, score_pairs
from easydistill.methods.dpo.rows import PairRow
from easydistill.methods.dpo.trl_trainer import PairTrainer, PairWatch, train
from easydistill.methods.shared import ranks
from easydistill.methods.shared.rollouts import LocalScores
from easydistill.methods.shared.strategies.base import Strategy
from easydistill.models.student import Student, build_student

F = torch.nn.functional


def student_of(path: Path) -> Student:
    return build_student(ModelsConfig(student=str(path)), torch.float32)


def pairs(count: int, betas: bool = False, seed: int = 0) -> list[PairRow]:
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(10, 4000) for _ in range(draw.randint(least, most))]

    return [
        PairRow(
            f"p{n}", tokens(3, 9), [*tokens(2, 12), 2], [*tokens(2, 12), 2], draw.uniform(0.05, 0.6) if betas else None,
            "small" if n % 2 else "large",
        )
        for n in range(count)
    ]  # fmt: skip


def trainer_of(
    folder: Path, model: Path, rows: list[PairRow], preference: PreferenceConfig, **training: Any
) -> PairTrainer:
    config = DpoTrainingConfig(**{"bf16": False, "per_device_train_batch_size": len(rows), **training})
    reporter = Reporter(folder / "metrics.jsonl")
    watch = PairWatch(reporter, StopSignal(), config)
    return PairTrainer(student_of(model), rows, config, preference, folder / "checkpoints", watch, StopSignal())


def logp(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p(answer | prompt), by hand, in float64."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


def moved(model: Path) -> tuple[Any, Any]:
    """(policy, reference) in float64, which differ."""
    reference = student_of(model).model.double()
    policy = student_of(model).model.double()
    with torch.no_grad():
        for number, weight in enumerate(policy.parameters()):
            generator = torch.Generator().manual_seed(number)
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return policy, reference


def by_hand(kind: PairLoss, beta: torch.Tensor, w: Any, l: Any, rw: Any, rl: Any, lengths: Any) -> torch.Tensor:
    """Published formulas, one pair each, a mean over pairs. `lengths`: tokens of the two answers."""
    m = (w - rw) - (l - rl)
    chosen, rejected = w - rw, l - rl
    each = {
        "sigmoid": lambda: -F.logsigmoid(beta * m),
        "hinge": lambda: (1 - beta * m).clamp(min=0),
        "ipo": lambda: (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2,
        "robust": lambda: (-0.9 * F.logsigmoid(beta * m) + 0.1 * F.logsigmoid(-beta * m)) / 0.8,
        "nca_pair": lambda: (
            -F.logsigmoid(beta * chosen) - 0.5 * F.logsigmoid(-beta * chosen) - 0.5 * F.logsigmoid(-beta * rejected)
        ),
        "bco_pair": lambda: -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected),
        "sppo_hard": lambda: (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2,
        "apo_zero": lambda: 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected),
        "apo_down": lambda: torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * m),
        "sigmoid_norm": lambda: -F.logsigmoid(beta * (chosen / lengths[0] - rejected / lengths[1])),
    }[kind]()
    return each.mean()


@pytest.mark.parametrize("betas", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["sigmoid", "hinge", "ipo", "robust", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm"],
)
def test_losses_equal_a_calculation_by_hand(tiny_model: Path, tmp_path: Path, kind: PairLoss, betas: bool) -> None:
    rows = pairs(4, betas)
    smoothing = 0.1 if kind == "robust" else 0.0
    trainer = trainer_of(
        tmp_path, tiny_model, rows, PreferenceConfig(loss_type=kind, beta=0.3, label_smoothing=smoothing)
    )
    policy, reference = moved(tiny_model)
    trainer.model.load_state_dict({name: value.float() for name, value in policy.state_dict().items()})
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
    found = trainer.compute_loss(trainer.model, batch)
    with torch.no_grad():
        sums = [
            torch.stack([logp(model, row.prompt, getattr(row, side)) for row in rows])
            for model in (policy, reference)
            for side in ("chosen", "rejected")
        ]
    beta = torch.tensor([row.beta or 0.3 for row in rows], dtype=torch.float64)
    lengths = [torch.tensor([float(len(getattr(row, side))) for row in rows]) for side in ("chosen", "rejected")]
    wanted = by_hand(kind, beta, *sums, lengths)
    assert float(found.detach()) == pytest.approx(float(wanted), rel=2e-4, abs=1e-6)


def test_what_the_model_does_not_write_is_not_learned(tiny_model: Path, tmp_path: Path) -> None:
    """The results of tools inside an answer condition what follows, and count in no sum."""
    rows = [
        replace(row, unlearned=(frozenset(range(1, len(row.chosen) - 1)), frozenset({0} if n % 2 else ())))
        for n, row in enumerate(pairs(4))
    ]
    trainer = trainer_of(tmp_path, tiny_model, rows, PreferenceConfig(beta=0.3))
    policy, reference = moved(tiny_model)
    trainer.model.load_state_dict({name: value.float() for name, value in policy.state_dict().items()})
    trainer.model.train()
    found = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[n] for n in range(4)]))

    def learned(model: Any, row: PairRow, side: int) -> torch.Tensor:
        answer = (row.chosen, row.rejected)[side]
        ids = torch.tensor([row.prompt + answer])
        logits = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].double()
        each = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        return each[[at for at in range(len(answer)) if at not in row.unlearned[side]]].sum()

    with torch.no_grad():
        chosen, rejected, ref_chosen, ref_rejected = (
            torch.stack([learned(model, row, side) for row in rows]) for model in (policy, reference) for side in (0, 1)
        )
    wanted = -F.logsigmoid(0.3 * (chosen - ref_chosen - rejected + ref_rejected)).mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=2e-4, abs=1e-6)
    student = student_of(tiny_model)
    student.model.load_state_dict({name: value.float() for name, value in policy.state_dict().items()})
    scored = score_pairs(LocalScores(student.model, 0, 1 << 24), rows, StopSignal())
    assert [score.chosen for score in scored] == pytest.approx(chosen.tolist(), rel=1e-4)
    assert [score.rejected for score in scored] == pytest.approx(rejected.tolist(), rel=1e-4)


def trained(folder: Path, model: Path, rows: list[PairRow], preference: PreferenceConfig, **training: Any) -> Any:
    folder.mkdir()
    student = student_of(model)
    config = DpoTrainingConfig(
        **{"bf16": False, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "logging_steps": 1, **training}
    )
    train(student, rows, config, preference, folder / "c", Reporter(folder / "metrics.jsonl"), StopSignal())
    return student


def test_equal_betas_of_pairs_act_like_the_configs_beta(tiny_model: Path, tmp_path: Path) -> None:
    """CogPO with one β is DPO, to the bit."""
    plain = pairs(12)
    own = [PairRow(row.id, row.prompt, row.chosen, row.rejected, 0.25, row.gap) for row in plain]
    dpo = trained(tmp_path / "a", tiny_model, plain, PreferenceConfig(beta=0.25)).model
    cogpo = trained(tmp_path / "b", tiny_model, own, PreferenceConfig(beta=0.9)).model
    for one, other in zip(dpo.parameters(), cogpo.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired"])
def test_a_loss_that_sorts_a_batch_needs_one_beta(tiny_model: Path, tmp_path: Path, kind: PairLoss) -> None:
    loss = PreferenceConfig(loss_type=kind, beta=0.1)
    trainer_of(tmp_path / "same", tiny_model, pairs(2), loss)
    own = [replace(row, beta=0.1 if number else None) for number, row in enumerate(pairs(2))]
    trainer_of(tmp_path / "own", tiny_model, own, loss)
    with pytest.raises(DataError, match=f"{kind} sorts the answers of a batch, but the pairs have different β"):
        trainer_of(tmp_path / "different", tiny_model, pairs(2, betas=True), loss)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_it_learns_to_tell_pairs_apart(tiny_model: Path, tiny_whole: Path, tmp_path: Path, lora: Any) -> None:
    # Adapters leave the output layer alone: with the small vocabulary there is too little to learn.
    path = tiny_whole if lora else tiny_model
    rows = pairs(16)
    student = student_of(path)
    before = score_pairs(LocalScores(student.model, 2, 1 << 24), rows, StopSignal())
    rate = 2e-2 if lora else 3e-3
    student = trained(tmp_path / "a", path, rows, PreferenceConfig(), num_train_epochs=8, learning_rate=rate, lora=lora)
    after = score_pairs(LocalScores(student.model, 2, 1 << 24), rows, StopSignal())
    found = measure(rows, after, before)
    assert found["reward_accuracy"] > 0.8 and found["margin"] > 1
    assert set(measure_gaps(rows, after, before)) == {"small", "large"}
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["stage"] == "preferences"]
    assert logged[0]["margin"] == pytest.approx(0, abs=1e-4), "at the first step the student is the reference"
    assert logged[0]["reward_accuracy"] == 0.5, "a tie counts half, as in held-out figures"
    assert {"margin_small", "margin_large", "reward_accuracy", "entropy"} <= set(logged[-1])


def job(folder: Path, student: Path, rows: int = 24) -> dict[str, Any]:
    draw = random.Random(1)
    made = [
        {
            "prompt": f"Say a number, please, number {n}.",
            "chosen": f"Certainly: {draw.randrange(100)}.",
            "rejected": f"No! {draw.randrange(100)} is none of your business.",
            "beta": 0.1 + n % 3 / 10,
            "gap": ("small", "medium", "large")[n % 3],
        }
        for n in range(rows)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*made, {"prompt": "no answers"}]))
    return {
        "job_type": "dpo",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "pairs.jsonl")},
        "models": {"student": str(student)},
        "training": {
            "num_train_epochs": 3, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "logging_steps": 1,
            "save_steps": 2,
        },
        "evaluation": {"heldout": 10},
    }  # fmt: skip


def test_the_job(tiny_model: Path, tmp_path: Path) -> None:
    code, out = run_here(write_config(tmp_path, job(tmp_path, tiny_model)))
    assert code == 0, out
    stage = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["train"]
    assert stage["rows"]["rejected"] == {"malformed_row": 1}
    assert stage["metrics"]["heldout_rows"] == 10 and stage["metrics"]["train_rows"] == 14
    before, after = stage["metrics"]["before"], stage["metrics"]["after"]
    assert before["reward_accuracy"] == 0.5 and before["margin"] == 0
    assert after["reward_accuracy"] == 1.0 and after["margin"] > 0.5
    assert set(stage["metrics"]["gaps"]) == {"small", "medium", "large"}
    assert (tmp_path / "run/student/model.safetensors").exists()
    # Again: nothing to do.
    code, out = run_here(write_config(tmp_path, job(tmp_path, tiny_model)))
    assert code == 0 and "train" in out


@pytest.mark.slow
def test_the_trained_student_is_saved_before_it_is_measured(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def failing(*args: Any) -> Any:
        called.append(args)
        if len(called) == 2:
            raise torch.OutOfMemoryError("no room to measure it")
        return score_pairs(*args)

    monkeypatch.setattr(measuring, "score_pairs", failing)
    code, _ = run_here(write_config(tmp_path, job(tmp_path, tiny_model)))
    assert code != 0 and len(called) == 2
    (saved,) = (tmp_path / "run/stages").glob("*/model/model.safetensors")
    assert saved.stat().st_size > 0


def test_without_held_out_pairs_nothing_is_scored(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "score_pairs", lambda *args: pytest.fail("the student was moved and scored"))
    code, out = run_here(write_config(tmp_path, job(tmp_path, tiny_model) | {"evaluation": {"heldout": 0}}))
    assert code == 0, out


def test_a_student_in_parts_is_measured_on_the_cpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without memory, the whole student would lose its values."""
    found = []
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        folder.mkdir()
        code, out = run_here(write_config(folder, job(folder, tiny_model)))
        assert code == 0, out
        found.append(json.loads((folder / "run/summary.json").read_text())["stages"]["train"]["metrics"])
        monkeypatch.setattr(Strategy, "shards", True)
        monkeypatch.setattr(ranks, "device", lambda: torch.device("meta"))
    assert "scored on the CPU" in out
    for name in ("before", "after", "gaps"):
        assert found[0][name] == found[1][name]


def test_a_killed_job_ends_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    code, out = run(write_config(tmp_path / "whole", job(tmp_path / "whole", tiny_model)))
    assert code == 0, out
    config = write_config(tmp_path / "torn", job(tmp_path / "torn", tiny_model))
    process = start(config)
    while process.poll() is None and not list((tmp_path / "torn/run").glob("stages/*/checkpoints/*/*/whole.json")):
        pass
    process.kill()
    process.communicate()
    code, out = run(config)
    assert code == 0, out
    assert "Reference: 14 of 14 rows already done" in out
    weights = [hash_file(tmp_path / name / "run/student/model.safetensors") for name in ("whole", "torn")]
    assert weights[0] == weights[1]
