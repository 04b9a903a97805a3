"""PPO and GRPO with tiny real models: they learn, they resume bit for bit, their arithmetic is the published one."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.integration.test_on_policy_kd import END, assert_same_bits, student, weights
from tests.integration.test_on_policy_kd import tokenizer as tokenizer

from easydistill.config.training import LoraConfig
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError, TeacherError
from easydistill.methods.policy import trl_trainer as policy_trl
from easydistill.methods.policy.config import GrpoConfig, PolicyConfig, PolicyTrainingConfig, PpoConfig
from easydistill.methods.policy.ppo_trl_trainer import ModelCritic, PpoTrainer, ValueHead
from easydistill.methods.policy.rows import PolicyRow
from easydistill.methods.policy.watch import Explorer, PolicyWatch
from easydistill.methods.sft.config import TrainingConfig
from easydistill.models.student import Student
from easydistill.rewards import Rollout, WeightedRewards

FIRST, TOKENS = 20, 32
"""Prompts are pairs of tokens from FIRST on, of TOKENS in all; the right answer begins with the second one."""


class Copies:
    """1 for an answer that begins with the prompt's last token: a tiny task whose answers can be checked."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [float(item.answer_ids[0] == item.prompt_ids[-1]) for item in rollouts]

    def close(self) -> None:
        pass


def rows(count: int = 32, seed: int = 0) -> list[PolicyRow]:
    draw = random.Random(seed)
    made = []
    for n in range(count):
        ids = [draw.randrange(FIRST, FIRST + 8), FIRST + n % 8]
        made.append(PolicyRow(f"row-{n}", ids, ({"role": "user", "content": str(ids)},)))
    return made


def explorer(count: int = 32) -> Explorer:
    return Explorer(rows(count), rows(16, seed=1), WeightedRewards({"copies": Copies()}, {"copies": 1.0}), Copies())


def training(**values: Any) -> PolicyTrainingConfig:
    base: dict[str, Any] = {
        "max_steps": 60,
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "bf16": False,
        "max_length": 32,
        "logging_steps": 1,
        "save_steps": 1000,
    }
    return PolicyTrainingConfig(**(base | values))


def train(
    trained: Student,
    given: Explorer,
    folder: Path,
    policy: PolicyConfig,
    config: TrainingConfig,
    stop: StopSignal | None = None,
    **extra: Any,
) -> Any:
    made = {"trainer_class": PpoTrainer, **extra} if isinstance(policy, PpoConfig) else extra
    reporter = Reporter(folder / "metrics.jsonl")
    return policy_trl.train(
        trained, given, config, policy, folder / "checkpoints", reporter, stop or StopSignal(), **made
    )


SETTINGS: dict[str, PolicyConfig] = {
    "grpo": GrpoConfig(max_new_tokens=2, eval_steps=0, mask_truncated=False),
    "ppo": PpoConfig(
        max_new_tokens=2,
        eval_steps=0,
        num_iterations=2,
        kl_coef=0.0,
        missing_eos_penalty=0.0,
        critic_learning_rate=1e-2,
    ),
}
LEARNING: dict[str, dict[str, Any]] = {
    "grpo": {"max_steps": 50, "per_device_train_batch_size": 128, "learning_rate": 2e-3},
    "ppo": {"max_steps": 80, "per_device_train_batch_size": 256, "learning_rate": 1e-3},
}


def tiny(tokenizer: Any, seed: int = 0) -> Student:
    return student(tokenizer, seed, peaked=1.0, vocabulary=TOKENS)


# --- learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_verifiable_reward_rises(name: str, seed: int, tokenizer: Any, tmp_path: Path) -> None:
    given = explorer()
    outcome = train(tiny(tokenizer, seed), given, tmp_path, SETTINGS[name], training(seed=seed, **LEARNING[name]))
    assert given.measured[0]["verified_accuracy"] < 0.3
    assert given.measured[outcome.steps]["verified_accuracy"] > 0.9
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in entries if entry["stage"] == "policy"]
    assert len(logged) == outcome.steps
    rewards = [entry["reward"] for entry in logged if "reward" in entry]
    assert rewards[0] < 0.3
    assert rewards[-1] > rewards[0] + 0.2, "the reward of sampled answers rises, not only that of greedy ones"
    seen = {name for entry in logged for name in entry}
    wanted = {"entropy", "clipped_low", "clipped_high", "length", "ended", "reward/copies"}
    wanted |= {"zero_variance_groups"} if name == "grpo" else {"value", "return", "value_loss"}
    assert wanted <= seen
    assert "kl" not in seen, "KL is only measured if it has a price"
    spent = [entry for entry in entries if entry["stage"] == "seconds"]
    assert [entry["step"] for entry in spent] == [entry["step"] for entry in logged]
    assert all(entry["update"] > 0 for entry in spent)
    # A round is generated once, and trained on in several steps.
    rounds = [{phase for phase in ("rollouts", "rewards", "scores") if phase in entry} for entry in spent]
    assert {len(phases) for phases in rounds} <= {0, 3}
    assert {"rollouts", "rewards", "scores"} in rounds
    assert any("heldout" in entry for entry in spent)


# --- resuming ---------------------------------------------------------------------------------------------------

GOING_ON = {
    "grpo": GrpoConfig(max_new_tokens=4, num_generations=2, eval_steps=2, beta=0.1, mask_truncated=False),
    "grpo in rounds": GrpoConfig(
        max_new_tokens=4, num_generations=2, eval_steps=0, steps_per_rollout=2, num_iterations=2, mask_truncated=False
    ),
    "ppo": PpoConfig(max_new_tokens=4, eval_steps=3, num_iterations=2, steps_per_rollout=1),
}


def interruptible(lora: bool) -> PolicyTrainingConfig:
    values: dict[str, Any] = {"max_steps": 12, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    return training(**values, lora=LoraConfig(r=4) if lora else None)


Uninterrupted = Callable[[str, bool], tuple[dict[str, torch.Tensor], Explorer, int]]


@pytest.fixture(scope="module")
def uninterrupted(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Weights, findings and trained tokens of a training that nothing interrupts, made once for all comparisons."""

    @cache
    def made(name: str, lora: bool) -> tuple[dict[str, torch.Tensor], Explorer, int]:
        whole, through = tiny(tokenizer), explorer()
        folder = tmp_path_factory.mktemp("uninterrupted")
        outcome = train(whole, through, folder, GOING_ON[name], interruptible(lora))
        return weights(whole), through, outcome.trained_tokens

    return made


class StopAfter(Copies):
    """Requests a stop during the given call."""

    def __init__(self, stop: StopSignal, calls: int) -> None:
        self._stop, self._left = stop, calls

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        self._left -= 1
        if self._left == 0:
            self._stop.request()
        return super().__call__(rollouts)


# Rounds without adapters and adapters without rounds are resumed here; both at once are slow.
@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *[(name, False) for name in GOING_ON],
        *[("grpo", True), ("ppo", True), pytest.param("grpo in rounds", True, marks=pytest.mark.slow)],
    ],
)
def test_a_stopped_run_ends_like_an_uninterrupted_one(
    name: str, lora: bool, tokenizer: Any, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config, broken = interruptible(lora), tiny(tokenizer)
    whole, through, tokens = uninterrupted(name, lora)
    stop = StopSignal()
    first = explorer()
    first.rewards = WeightedRewards({"copies": StopAfter(stop, 3)}, {"copies": 1.0})
    outcome = train(copy.deepcopy(broken), first, tmp_path / "broken", GOING_ON[name], config, stop)
    assert 0 < outcome.steps < 12
    second = explorer()
    outcome = train(broken, second, tmp_path / "broken", GOING_ON[name], config)
    assert outcome.resumed_from_step > 0
    assert_same_bits(whole, weights(broken))
    assert second.measured == through.measured
    assert second.alarms.raised == through.alarms.raised
    assert outcome.trained_tokens == tokens


class FailsAt(Copies):
    """A judge that is unreachable at the given call."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        self._left -= 1
        if self._left == 0:
            raise TeacherError("the judge is out of reach")
        return super().__call__(rollouts)


@pytest.mark.parametrize("name", ["grpo", "ppo", pytest.param("grpo in rounds", marks=pytest.mark.slow)])
def test_rounds_before_a_judges_failure_are_kept(
    name: str, tokenizer: Any, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config, broken = interruptible(lora=False), tiny(tokenizer)
    whole, through, tokens = uninterrupted(name, False)
    first = explorer()
    first.rewards = WeightedRewards({"copies": FailsAt(4)}, {"copies": 1.0})
    with pytest.raises(TeacherError):
        train(copy.deepcopy(broken), first, tmp_path / "broken", GOING_ON[name], config)
    second = explorer()
    outcome = train(broken, second, tmp_path / "broken", GOING_ON[name], config)
    assert outcome.resumed_from_step > 0
    assert_same_bits(whole, weights(broken))
    assert second.measured == through.measured
    assert outcome.trained_tokens == tokens


def test_absolute_positions_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    made = tiny(tokenizer)
    made.model = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(DataError, match="wpe"):
        train(made, explorer(), tmp_path, SETTINGS["grpo"], training(max_steps=1))


def test_truncated_answers_are_in_no_mean(tokenizer: Any, tmp_path: Path) -> None:
    """Answers of one token are complete only if it is the end token; in some steps none is."""
    policy = SETTINGS["grpo"].model_copy(update={"max_new_tokens": 1, "mask_truncated": True})
    made = explorer()
    train(tiny(tokenizer), made, tmp_path, policy, training(max_steps=6, per_device_train_batch_size=8))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["stage"] == "policy"]
    whole = [line for line in logged if line["ended"] > 0]
    assert len(whole) < len(logged), "in some step every answer was cut off"
    assert all(("entropy" in line) == (line["ended"] > 0) for line in logged)
    assert "entropy_collapse" not in made.alarms.raised


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_rollouts_by_vllm_need_a_gpu(tokenizer: Any, tmp_path: Path) -> None:
    policy = SETTINGS["grpo"].model_copy(update={"rollouts": "vllm"})
    with pytest.raises(ConfigError, match=r"policy\.rollouts: .*GPU"):
        train(tiny(tokenizer), explorer(), tmp_path, policy, training(max_steps=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's trainers may generate with vLLM")
def test_without_a_gpu_trl_does_not_import_vllm() -> None:
    """Contract with TRL of `importing_trl`: its modules ask what is installed when they are imported."""
    from trl import import_utils
    from trl.generation import vllm_client, vllm_generation

    for module in (vllm_client, vllm_generation):
        assert not module.is_vllm_available()
        assert module.is_vllm_available is not import_utils.is_vllm_available


def test_the_highest_ratio_depends_on_the_loss() -> None:
    assert GrpoConfig().highest == 0.28
    assert GrpoConfig(loss_type="cispo").highest == 5
    assert PpoConfig(epsilon=0.1).highest == 0.1
    with pytest.raises(ValidationError, match="highest ratio"):
        GrpoConfig(loss_type="cispo", epsilon_high=0.28)
    with pytest.raises(ValidationError, match="does not clip"):
        GrpoConfig(loss_type="sapo", epsilon=0.1)


def test_a_value_head_ignores_generation(tokenizer: Any) -> None:
    trained = tiny(tokenizer)
    head = ValueHead(trained.model)
    ids = torch.tensor([[20, 21, 22]])
    trained.model(ids)
    assert not head._seen
    head.begin()
    trained.model(ids)
    assert head.values(ids, torch.ones_like(ids), 2).shape == (1, 2)
    trained.model(ids)
    assert not head._seen


def test_only_the_students_own_weights_remain(tokenizer: Any, tmp_path: Path) -> None:
    trained = tiny(tokenizer)
    names = set(trained.model.state_dict())
    train(trained, explorer(), tmp_path, SETTINGS["ppo"], training(max_steps=2))
    assert set(trained.model.state_dict()) == names
    assert not trained.model.model._forward_hooks
    assert trained.model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, TOKENS)


# --- the critic, the loss ---------------------------------------------------------------------------------------


def classifier(seed: int = 3) -> Any:
    """A reward model with the tiny student's tokens."""
    from transformers import LlamaForSequenceClassification

    config = student(None, seed, vocabulary=TOKENS).model.config
    config.num_labels, config.pad_token_id = 1, END
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(config).eval()


def test_a_critic_from_a_reward_model_starts_with_its_scores(tokenizer: Any, tmp_path: Path) -> None:
    made = classifier()
    critic = ModelCritic(copy.deepcopy(made))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids)
    values = critic.values(ids, mask, 2)
    for at in (0, 1):
        seen = ids[:, : 3 + at]
        assert values[0, at].item() == pytest.approx(made(input_ids=seen).logits.item(), abs=1e-5)
    before = copy.deepcopy(made.state_dict())
    train(tiny(tokenizer), explorer(), tmp_path, SETTINGS["ppo"], training(max_steps=2), critic=made)
    assert any(not torch.equal(value, before[name]) for name, value in made.state_dict().items()), (
        "the critic is trained further"
    )


def test_the_loss_is_that_of_ppo(tokenizer: Any, tmp_path: Path) -> None:
    """The clipped objective with advantages of tokens, and the value's loss, against a float64 calculation by hand."""
    given = explorer()
    policy = PpoConfig(max_new_tokens=4, kl_coef=0.1, vf_coef=0.3, eval_steps=0, epsilon=0.1)
    config = training(max_steps=2, per_device_train_batch_size=8)
    with Journal(tmp_path / "heldout.jsonl") as journal:
        watch = PolicyWatch(Reporter(None, quiet=True), StopSignal(), config, policy, given, journal)
        trainer = PpoTrainer(tiny(tokenizer), given, config, policy, tmp_path, watch)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    torch.nn.init.normal_(trainer._critic.linear.weight, std=0.5)
    batch = trainer._prepare_inputs([{"prompt": n} for n in range(8)])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for value in trainer.model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    found = trainer._compute_loss(trainer.model, batch)

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = batch["completion_mask"].double()
    width = mask.shape[1]
    own = copy.deepcopy(trainer.model)
    own.__dict__.pop("forward")
    output = own.double()(input_ids=ids, output_hidden_states=True)
    logps = output.logits[:, -width - 1 : -1].log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]
    ratio = (logps - batch["old_per_token_logps"].double()).exp()
    advantage = batch["advantages"].double()
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
    linear = copy.deepcopy(trainer._critic.linear).double()
    values = linear(output.hidden_states[-1][:, -width - 1 : -1])[..., 0]
    old, returns = batch["values"].double(), batch["returns"].double()
    clipped = old + (values - old).clamp(-policy.value_clip, policy.value_clip)
    worst = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    by_hand = ((-objective + 0.3 * 0.5 * worst) * mask).sum() / mask.sum()
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert not torch.equal(ratio, ratio.clamp(0.9, 1.1)), "something must be clipped"
