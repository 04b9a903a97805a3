"""Learning from own answers about images, in five families: what is written, how probable it is, what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.vision_models import FAMILIES
from tests.support.vision_rows import Scene, scene

from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError, ModelError
from easydistill.kernels import logprobs
from easydistill.kernels.logprobs import completion_logprobs
from easydistill.methods.on_policy import generalized_jsd
from easydistill.methods.on_policy import trainer as sampled
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.policy import trl_trainer as policy_trl
from easydistill.methods.policy.config import GrpoConfig, PolicyConfig, PolicyTrainingConfig, PpoConfig
from easydistill.methods.policy.ppo_trl_trainer import PpoTrainer
from easydistill.methods.policy.rows import PolicyRow
from easydistill.methods.policy.watch import Explorer, PolicyWatch
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared import shown_images
from easydistill.methods.shared.rollouts import LocalScores, PromptRow, Written, roll_out
from easydistill.methods.shared.shown_images import ShownImages
from easydistill.models.head import Head, body_of, decoder_of
from easydistill.rewards import Rollout, WeightedRewards
from easydistill.rewards import teacher_kl as teacher_kl_reward

ASKED = ((0,), (), (1, 2), (2,), (0, 0))
"""Pictures of each prompt: one, none, two, and the same one twice."""
QUIET = Reporter(None, quiet=True)


@pytest.fixture(params=FAMILIES)
def seen(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return scene(request.param, tmp_path)


def own_logprobs(found: Scene, ids: list[int], start: int, images: Sequence[str]) -> torch.Tensor:
    """Of the tokens from `start` on, by the model's whole forward pass over this row alone."""
    ids_1T = torch.tensor([ids])
    given = found.vision.inputs(ids_1T, [(ids, images)])
    logits_TV = found.student.model(input_ids=ids_1T, use_cache=False, **given).logits[0]
    return logits_TV.float().log_softmax(-1)[torch.arange(start - 1, len(ids) - 1), ids[start:]]


def written(found: Scene, count: int = 6) -> list[Written]:
    prompts = [found.prompt(*own) for own in ASKED]
    images = [found.images(*own) for own in ASKED]
    asked = [(f"r{number}", prompt) for number, prompt in enumerate(prompts)]
    return roll_out(
        found.student.model, asked, 0, found.student.eos_ids, count, 1.0, 3, images=images, vision=found.vision
    )


def test_answers_about_images_do_not_depend_on_their_neighbours(seen: Scene) -> None:
    together = written(seen)
    reserved = set(seen.vision.processor.reserved_ids)
    for number, (own, item) in enumerate(zip(ASKED, together, strict=True)):
        assert item.images == seen.images(*own) and item.completion and not reserved & set(item.completion)
        asked = [(f"r{number}", item.prompt)]
        (alone,) = roll_out(
            seen.student.model,
            asked,
            0,
            seen.student.eos_ids,
            6,
            1.0,
            3,
            [number],
            [item.images],
            seen.vision,
        )
        assert alone == item


def test_log_probabilities_are_those_of_the_models_own_forward_pass(seen: Scene) -> None:
    items = written(seen)
    sequences, images = [(item.ids, len(item.prompt)) for item in items], [item.images for item in items]
    with torch.no_grad():
        ours, _ = completion_logprobs(seen.student.model, sequences, 0, None, vision=seen.vision, images=images)
        own = [own_logprobs(seen, ids, start, shown) for (ids, start), shown in zip(sequences, images, strict=True)]
    torch.testing.assert_close(ours, torch.cat(own), rtol=1e-4, atol=1e-4)


def policy_rows(found: Scene) -> list[PolicyRow]:
    return [
        PolicyRow(f"r{number}", found.prompt(*own), found.messages(*own), {"answer": "a"})
        for number, own in enumerate(ASKED)
    ]


class FirstToken:
    """A reward that differs between answers of a group."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [item.answer_ids[0] % 7 / 7 for item in rollouts]

    def close(self) -> None:
        pass


def policy_trainer(found: Scene, folder: Path, policy: PolicyConfig | None = None, **training: Any) -> Any:
    """A trainer of GRPO or PPO on the prompts, before its first step."""
    values = {
        "max_steps": 2,
        "per_device_train_batch_size": 10,
        "learning_rate": 1e-3,
        "bf16": False,
        "max_length": 400,
    }
    config = PolicyTrainingConfig(**{**values, "logging_steps": 1, "save_steps": 1, **training})
    policy = policy or GrpoConfig(num_generations=2, max_new_tokens=6, mask_truncated=False, beta=0.1, eval_steps=0)
    explorer = Explorer(policy_rows(found), [], WeightedRewards({"first": FirstToken()}, {"first": 1.0}), None)
    watch = PolicyWatch(QUIET, StopSignal(), config, policy, explorer, None)
    kind = PpoTrainer if isinstance(policy, PpoConfig) else policy_trl.PolicyTrainer
    made = kind(found.student, explorer, config, policy, folder / "checkpoints", watch, vision=found.vision)
    watch.trainer = made
    return made


def padded_round(found: Scene, items: Sequence[Written]) -> dict[str, torch.Tensor]:
    """The answers as TRL holds them: prompts padded on the left, answers on the right."""
    pad = found.student.tokenizer.pad_token_id
    longest, most = max(len(item.prompt) for item in items), max(len(item.completion) for item in items)
    ids, mask, answers, answered = [], [], [], []
    for item in items:
        before, after = longest - len(item.prompt), most - len(item.completion)
        ids.append([*[pad] * before, *item.prompt])
        mask.append([*[0] * before, *[1] * len(item.prompt)])
        answers.append([*item.completion, *[pad] * after])
        answered.append([*[1] * len(item.completion), *[0] * after])
    named = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": answers, "completion_mask": answered}
    return {name: torch.tensor(value) for name, value in named.items()}


@pytest.mark.parametrize("size", [None, 2])
def test_grpos_log_probabilities_are_the_models_own(seen: Scene, size: int | None, tmp_path: Path) -> None:
    items = written(seen)
    with torch.no_grad():
        own = [own_logprobs(seen, item.ids, len(item.prompt), item.images) for item in items]
    trainer = policy_trainer(seen, tmp_path)
    found = padded_round(seen, items)
    ids_BL = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)
    mask_BL = torch.cat([found["prompt_mask"], found["completion_mask"]], 1)
    tokens = found["completion_ids"].shape[1]
    for model, entropies in ((trainer.model, True), (trainer.ref_model, False)):
        with torch.no_grad(), trainer._showing(list(range(len(ASKED)))):
            ours_BT, entropy_BT, _ = trainer._get_per_token_logps_and_entropies(
                model.train(entropies), ids_BL, mask_BL, tokens, size, compute_entropy=entropies
            )
        assert (entropy_BT.shape == ours_BT.shape) if entropies else entropy_BT is None
        for row, wanted in zip(ours_BT, own, strict=True):
            torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-4, atol=1e-4)


# --- blindness ------------------------------------------------------------------------------------------------------


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return any(not torch.allclose(value, second[name], rtol=1e-3, atol=1e-6) for name, value in first.items())


class Decoder(torch.nn.Module):
    """A body that takes no notice of images, without a word."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # Not a module of this one: the model's own attributes may lead back here.
        self.decoder = (decoder_of(model),)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: Any = None, **_: Any) -> Any:
        return self.decoder[0](input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def grpo_loss(found: Scene, trainer: Any, items: Sequence[Written], rows: Sequence[int]) -> torch.Tensor:
    batch = padded_round(found, items)
    count = batch["completion_mask"].sum()
    advantages = torch.linspace(-1, 1, len(items))
    given = {**batch, "advantages": advantages, "num_items_in_batch": count, policy_trl.ROW: torch.tensor(rows)}
    trainer.beta = 0.0
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss: torch.Tensor = trainer._compute_loss(trainer.model, given)
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_is_another_loss_and_gradient_of_grpo(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.pictures import BLUE, GREEN, picture

    found = scene(family, tmp_path, pictures=[picture(GREEN, (16, 16)), picture(BLUE, (16, 16))] * 2)
    prompt = found.prompt(0)
    items = [Written(f"r{n}", prompt, [70 + n, 80, 90], rolled=True, images=found.images(0)) for n in range(2)]
    trainer = policy_trainer(found, tmp_path)
    rows = trainer._images.rows
    results = {}
    blinded, head = Decoder(found.student.model), found.student.model.get_output_embeddings()
    # It is found by way of the body.
    monkeypatch.setattr(found.student.model, "get_output_embeddings", lambda: head)
    for blind in (False, True):
        if blind:
            monkeypatch.setattr(type(found.student.model), "base_model", property(lambda model: blinded))
        for name in (0, 1):
            object.__setattr__(trainer._images, "rows", [(prompt, found.images(name))] * 2)
            loss = grpo_loss(found, trainer, items, [0, 1])
            results[blind, name] = loss.item(), gradients(found.student.model, loss)
    object.__setattr__(trainer._images, "rows", rows)
    seen_by = results[False, 0], results[False, 1]
    # The loss of a first step is −Σ A whatever the policy; what is learned is the gradient.
    assert differ(seen_by[0][1], seen_by[1][1])
    blind_to = results[True, 0], results[True, 1]
    assert blind_to[0][0] == blind_to[1][0] and not differ(blind_to[0][1], blind_to[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_is_another_reverse_kl(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.pictures import BLUE, GREEN, picture

    found = scene(family, tmp_path, pictures=[picture(GREEN, (16, 16)), picture(BLUE, (16, 16))])
    model, prompt = found.student.model, found.prompt(0)

    def learned(image: int) -> tuple[float, dict[str, torch.Tensor]]:
        asked = [([*prompt, 70, 80, 90], len(prompt))]
        shown = [found.images(image)]
        own_N, _ = completion_logprobs(model, asked, 0, None, vision=found.vision, images=shown)
        loss = sampled.sampled_reverse_kl(own_N, torch.full((3,), -2.0), torch.full((3,), -1.0), 0.9)
        return loss.item(), gradients(model, loss)

    green, blue = learned(0), learned(1)
    assert abs(green[0] - blue[0]) > 1e-6 and differ(green[1], blue[1])
    monkeypatch.setattr(logprobs, "body_of", Decoder)
    green, blue = learned(0), learned(1)
    assert green[0] == blue[0] and not differ(green[1], blue[1])


# --- whole trainings ------------------------------------------------------------------------------------------------


def prompt_rows(found: Scene) -> list[PromptRow]:
    return [
        PromptRow(
            f"r{number}", found.prompt(*own), (found.prompt(*own), [70 + number, 80, end_of(found)]), found.images(*own)
        )
        for number, own in enumerate(ASKED)
    ]


def end_of(found: Scene) -> int:
    return min(found.student.eos_ids)


def on_policy(found: Scene, teacher: Scene, objective: str, folder: Path, **training: Any) -> Any:
    values = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "bf16": False, "max_length": 400}
    config = TrainingConfig(**{**values, "logging_steps": 1, "save_steps": 1, **training})
    section = OnPolicyConfig(objective=objective, max_new_tokens=6)
    shared = (config, section, folder, QUIET, StopSignal())
    if objective == "generalized_jsd":
        visions = found.vision, teacher.vision
        return generalized_jsd.train(found.student, prompt_rows(found), teacher.student.model, *shared, visions=visions)
    scores = LocalScores(teacher.student.model, 0, None, teacher.vision)
    return sampled.train(found.student, prompt_rows(found), scores, *shared, vision=found.vision)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["generalized_jsd", "sampled_reverse_kl"])
def test_other_pictures_teach_something_else(family: str, objective: str, tmp_path: Path) -> None:
    """Text, tokens and seeds are the same."""
    from tests.support.pictures import BLUE, GREEN, RED, picture

    sizes = ((40, 28), (16, 16), (20, 50))
    students = []
    for name, colours in (("one", (RED, GREEN, BLUE)), ("other", (BLUE, RED, GREEN)), ("again", (RED, GREEN, BLUE))):
        folder = tmp_path / name
        pictures = [picture(colour, size) for colour, size in zip(colours, sizes, strict=True)]
        found, teacher = scene(family, folder, pictures=pictures), scene(family, folder, seed=5, pictures=pictures)
        outcome = on_policy(found, teacher, objective, folder)
        assert outcome.steps == 3 and outcome.final_loss == pytest.approx(outcome.final_loss)
        students.append({key: value.clone() for key, value in found.student.model.state_dict().items()})
    assert any(not torch.equal(value, students[1][key]) for key, value in students[0].items())
    assert all(torch.equal(value, students[2][key]) for key, value in students[0].items())


def test_a_divergence_is_that_of_both_models_own_distributions(seen: Scene, tmp_path: Path) -> None:
    """Generalised JSD at β = 0 (forward KL), against whole forward passes."""
    teacher = scene(str(seen.student.model.config.model_type), tmp_path / "teacher", seed=5)
    config = TrainingConfig(max_steps=1, per_device_train_batch_size=5, bf16=False, max_length=400, logging_steps=1)
    section = OnPolicyConfig(beta=0.0, rollout_share=0.0, max_new_tokens=6)
    rows = prompt_rows(seen)
    total, tokens = 0.0, 0
    for row in rows:
        assert row.label is not None
        ids = [*row.label[0], *row.label[1]]
        sides = []
        for side in (teacher, seen):
            ids_1T = torch.tensor([ids])
            given = side.vision.inputs(ids_1T, [(ids, row.images)])
            with torch.no_grad():
                logits_TV = side.student.model(input_ids=ids_1T, use_cache=False, **given).logits[0]
            sides.append(logits_TV[len(row.label[0]) - 1 : -1].log_softmax(-1))
        total += float((sides[0].exp() * (sides[0] - sides[1])).sum())
        tokens += len(row.label[1])
    outcome = generalized_jsd.train(
        seen.student,
        rows,
        teacher.student.model,
        config,
        section,
        tmp_path / "checkpoints",
        QUIET,
        StopSignal(),
        visions=(seen.vision, teacher.vision),
    )
    assert outcome.final_loss == pytest.approx(total / tokens, rel=1e-3)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.parametrize("lora", [False, True])
def test_only_the_language_model_has_adapters(kind: str, lora: bool, tmp_path: Path) -> None:
    found = scene("qwen2_5_vl", tmp_path)
    before = {name: value.clone() for name, value in found.student.model.state_dict().items()}
    values: dict[str, Any] = {"max_new_tokens": 6, "eval_steps": 0}
    policy: PolicyConfig = PpoConfig(**values)
    if kind == "grpo":
        policy = GrpoConfig(num_generations=2, mask_truncated=False, beta=0.1, **values)
    config = PolicyTrainingConfig(
        max_steps=3,
        per_device_train_batch_size=10,
        learning_rate=1e-2,
        bf16=False,
        max_length=400,
        lora=LoraConfig(r=2) if lora else None,
        warmup_ratio=0.0,
    )
    explorer = Explorer(policy_rows(found), [], WeightedRewards({"first": FirstToken()}, {"first": 1.0}), None)
    extra: dict[str, Any] = {"trainer_class": PpoTrainer} if kind == "ppo" else {}
    policy_trl.train(
        found.student,
        explorer,
        config,
        policy,
        tmp_path / "checkpoints",
        QUIET,
        StopSignal(),
        vision=found.vision,
        **extra,
    )
    from easydistill.models.multimodal.parts import Parts

    parts = Parts(found.student.model)
    after = found.student.model.state_dict()
    changed = {parts.of(name) for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == ({"language"} if lora else {"language", "connector"})


def test_absolute_positions_of_a_tower_are_no_obstacle(seen: Scene) -> None:
    assert policy_trl.learned_positions(seen.student.model) is None


# --- companions of batches without images ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_companion_changes_nothing_and_uses_the_tower(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scene(family, tmp_path)
    items = [Written(f"r{n}", found.prompt(text="?"), [70 + n, 80], rolled=True) for n in range(2)]
    given = padded_round(found, items)
    ids_BL = torch.cat([given["prompt_ids"], given["completion_ids"]], 1)
    mask_BL = torch.ones_like(ids_BL)
    rows = [(found.prompt(*own), found.images(*own)) for own in ASKED]
    own = [(items[0].prompt, ()), (items[1].prompt, ())]
    results = []
    for processes in (1, 2):
        monkeypatch.setattr(shown_images, "world_size", lambda processes=processes: processes)
        made = ShownImages(found.vision, rows, found.student.tokenizer.pad_token_id)
        shown = made.batch(ids_BL, mask_BL, own, found.student.model)
        assert len(shown.ids_BL) == 2 + (processes == 2)
        assert any("pixel" in name for name in shown.seen) == (processes == 2)
        with torch.no_grad():
            out = body_of(found.student.model)(
                input_ids=shown.ids_BL, attention_mask=shown.mask_BL, use_cache=False, **shown.seen
            )
        results.append(Head.of(found.student.model).logits(out.last_hidden_state[:2, -3:]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


# --- rewards --------------------------------------------------------------------------------------------------------


def test_a_teachers_log_probability_is_that_of_the_image(seen: Scene, tmp_path: Path) -> None:
    config = teacher_kl_reward.Config(model="unused", dtype="float32")
    teacher = scene(str(seen.student.model.config.model_type), tmp_path / "teacher", seed=5)
    vocabulary = len(seen.student.tokenizer)
    made = teacher_kl_reward._TeacherKl(config, teacher.student.model, vocabulary, seen.vision)
    rollouts = []
    for item, own in zip(written(seen), ASKED, strict=True):
        ids, answer = tuple(item.prompt), tuple(item.completion)
        rollouts.append(Rollout(seen.messages(*own), "", ids, answer, item.ended))
    found = made(rollouts)
    with torch.no_grad():
        teacher.vision = seen.vision
        wanted = [
            own_logprobs(teacher, [*one.prompt_ids, *one.answer_ids], len(one.prompt_ids), seen.images(*own))
            .mean()
            .item()
            for one, own in zip(rollouts, ASKED, strict=True)
        ]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_teacher_that_reads_an_image_otherwise_is_refused(tmp_path: Path) -> None:
    llava, qwen = scene("llava", tmp_path / "one"), scene("qwen2_5_vl", tmp_path / "two")
    made = teacher_kl_reward._TeacherKl(
        teacher_kl_reward.Config(model="other", dtype="float32"), qwen.student.model, 10**6, qwen.vision
    )
    with pytest.raises(ConfigError, match="reads the images of a prompt as"):
        made([Rollout(llava.messages(0), "", tuple(llava.prompt(0)), (70,), True)])


def test_ids_of_other_images_are_refused(seen: Scene) -> None:
    with pytest.raises(DataError, match="rendered for others"):
        completion_logprobs(
            seen.student.model, [(seen.prompt(0), 3)], 0, None, vision=seen.vision, images=[seen.images(0, 1)]
        )


def test_a_blind_student_is_noticed_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from easydistill.methods.shared import compat

    monkeypatch.setattr(compat, "body_of", Decoder)
    for objective in ("generalized_jsd", "sampled_reverse_kl"):
        found, teacher = scene("llava", tmp_path / objective), scene("llava", tmp_path / objective, seed=5)
        with pytest.raises(ModelError, match="cannot be trained with the fused loss"):
            on_policy(found, teacher, objective, tmp_path / objective)
