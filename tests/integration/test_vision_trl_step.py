"""A GRPO step on rows with images is TRL's own: the same answers, rewards, losses and gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_vision_rollouts import FirstToken
from tests.support.vision_models import FAMILIES
from tests.support.vision_rows import Scene, scene

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.policy import trl_trainer as policy_trl
from easydistill.methods.policy.config import GrpoConfig, PolicyTrainingConfig
from easydistill.methods.policy.rows import PolicyRow
from easydistill.methods.policy.watch import Explorer
from easydistill.methods.shared.rollouts import Written
from easydistill.models.multimodal.parts import freeze_others
from easydistill.rewards import WeightedRewards

pytestmark = pytest.mark.slow
GROUP, STEPS = 2, 2


def answer(row: int, number: int) -> list[int]:
    """An answer to a prompt, of its own length."""
    return [70 + 3 * row + number, *range(90, 92 + row + number)]


def settings(prompts: int) -> tuple[PolicyTrainingConfig, GrpoConfig]:
    config = PolicyTrainingConfig(
        max_steps=STEPS,
        per_device_train_batch_size=GROUP * prompts,
        learning_rate=3e-3,
        warmup_ratio=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        bf16=False,
        max_length=400,
        logging_steps=1,
    )
    return config, GrpoConfig(
        num_generations=GROUP, max_new_tokens=12, mask_truncated=False, eval_steps=0, num_iterations=STEPS
    )


def ours(found: Scene, rows: list[PolicyRow], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    def given(model: Any, asked: Any, *others: Any, **named: Any) -> list[Written]:
        counts: dict[str, int] = {}
        found: list[Written] = []
        for name, prompt in asked:
            row = name.partition(":")[0]
            number = counts[row] = counts.get(row, -1) + 1
            found.append(Written(name, prompt, answer(int(row[1:]), number), rolled=True, ended=False))
        return found

    logs: list[dict[str, Any]] = []
    original = policy_trl.PolicyTrainer.log

    def logged(self: Any, values: dict[str, Any], *others: Any) -> None:
        logs.append(dict(values))
        original(self, values, *others)

    monkeypatch.setattr(policy_trl, "roll_out", given)
    monkeypatch.setattr(policy_trl.PolicyTrainer, "log", logged)
    config, policy = settings(len(rows))
    explorer = Explorer(rows, [], WeightedRewards({"first": FirstToken()}, {"first": 1.0}), None)
    reporter, stop = Reporter(None, quiet=True), StopSignal()
    policy_trl.train(
        found.student, explorer, config, policy, folder / "checkpoints", reporter, stop, vision=found.vision
    )
    return [line for line in logs if "loss" in line]


def theirs(found: Scene, rows: list[PolicyRow], folder: Path) -> list[dict[str, Any]]:
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from datasets import Sequence as Several
    from trl import GRPOTrainer

    class Given(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> tuple[list[list[int]], None]:
            return [answer(at // GROUP, at % GROUP) for at in range(len(prompt_ids))], None

    def reward(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [ids[0] % 7 / 7 for ids in completion_ids]

    config, policy = settings(len(rows))
    arguments = policy_trl.arguments(config, policy, folder)
    arguments.shuffle_dataset = False
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "What?"}],
                "images": [{"path": str(found.store.path(one))} for one in row.images],
            }
            for row in rows
        ]
    ).cast_column("images", Several(ImageFeature()))
    freeze_others(found.student.model, ("language", "connector"))
    assert found.student.processor is not None
    # TRL asks for it, and does not check: it would pad the types of tokens on the other side than the prompts.
    found.student.tokenizer.padding_side = "left"
    trainer = Given(
        model=found.student.model,
        reward_funcs=[reward],
        args=arguments,
        train_dataset=data,
        processing_class=found.student.processor.wrapped,
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("images", [((0,), (1,), (2,)), ((0,), (1, 2), (2,))], ids=["one", "one or two"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_trls_own(
    family: str, images: tuple[tuple[int, ...], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = scene(family, tmp_path / "here"), scene(family, tmp_path / "there")
    rows = [PolicyRow(f"r{at}", here.prompt(*own), here.messages(*own)) for at, own in enumerate(images)]
    mine, its = ours(here, rows, tmp_path / "here", monkeypatch), theirs(there, rows, tmp_path / "there")
    assert len(mine) == len(its) == STEPS
    for one, other in zip(mine, its, strict=True):
        for name in ("loss", "grad_norm"):
            assert math.isclose(one[name], other[name], rel_tol=1e-4, abs_tol=1e-5), (name, one[name], other[name])
    assert mine[0]["grad_norm"] > 1e-3 and abs(mine[1]["loss"]) > 1e-5
