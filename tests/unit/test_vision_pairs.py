"""Pairs of answers about images: what a student makes of them is what its own forward makes of them, in five families."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, store_of, vision_model

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.contracts.reward import UNJUDGED, RewardContext, Rollout
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageStore
from easydistill.data.messages import Message, answer_message
from easydistill.data.preferences import Preference
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ModelError
from easydistill.kernels import logprobs
from easydistill.methods.dpo import trl_trainer
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.measure import score_pairs
from easydistill.methods.dpo.rows import PairRow, render_pairs
from easydistill.methods.dpo.trl_trainer import PairTrainer, PairWatch
from easydistill.methods.reward_model import trl_trainer as scoring
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.measure import score_rows
from easydistill.methods.reward_model.rows import RewardRow, tokenise
from easydistill.methods.reward_model.trl_trainer import ScoreTrainer
from easydistill.methods.shared.pair_images import COMPANION, PairImages, accompanied
from easydistill.methods.shared.rollouts import LocalScores
from easydistill.methods.shared.student import save_student
from easydistill.methods.shared.watch import Watch
from easydistill.models.head import decoder_of
from easydistill.models.loading import load_classifier
from easydistill.models.multimodal import Vision
from easydistill.models.multimodal.parts import Parts
from easydistill.models.scalar_head import head_name, scalar_issues, set_padding, with_scalar_head
from easydistill.models.student import Student, build_student
from easydistill.report.snippet import snippet
from easydistill.rewards import reward_model

STOP = StopSignal()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageStore, list[str]]:
    pictures = [picture(RED, (24, 24)), picture(GREEN, (20, 12)), picture(BLUE, (20, 12))]
    return store_of(tmp_path_factory.mktemp("images"), pictures)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def student_of(family: str) -> Student:
    return build_student(ModelsConfig(student=str(vision_model(family))), torch.float32)


def vision_of(student: Student, store: ImageStore) -> Vision:
    assert student.processor is not None
    return Vision(student.processor, store.path)


def preference(number: int, images: Sequence[str], text: str = "Which colour?") -> Preference:
    """A pair about images, or about none."""
    parts: list[Any] = [{"type": "image", "image": digest} for digest in images]
    content: Any = [*parts, {"type": "text", "text": text}] if images else text
    prompt: tuple[Message, ...] = ({"role": "user", "content": content},)
    return Preference(f"p{number}", prompt, (answer_message("It is red."),), (answer_message("Blue"),))


def preferences(digests: Sequence[str]) -> list[Preference]:
    """With one image, none, and two."""
    shown = (digests[:1], [], [digests[1], digests[0]])
    return [preference(number, images) for number, images in enumerate(shown)]


def rendered(student: Student, vision: Vision, pairs: Sequence[Preference], max_length: int = 512) -> list[PairRow]:
    rows, rejected = render_pairs(
        ChatRenderer(student.tokenizer, student.eos_ids, images=vision), pairs, max_length, "t"
    )
    assert not rejected
    return rows


def tokenised(student: Student, vision: Vision, pairs: Sequence[Preference]) -> list[RewardRow]:
    renderer = ChatRenderer(student.tokenizer, student.eos_ids, images=vision)
    rows, rejected = tokenise(renderer, pairs, 512, "t", use_margin=False)
    assert not rejected
    return rows


@torch.no_grad()
def logp(model: Any, vision: Vision, ids: list[int], start: int, images: Sequence[str]) -> float:
    """log p of the tokens from `start` on, from the logits of the model's own forward."""
    ids_1T = torch.tensor([ids])
    logits = model(input_ids=ids_1T, use_cache=False, **vision.inputs(ids_1T, [(ids, images)])).logits[
        0, start - 1 : -1
    ]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None]).sum())


def own(model: Any, vision: Vision, rows: Sequence[PairRow]) -> torch.Tensor:
    """[pairs, 2]."""
    return torch.tensor([[logp(model, vision, ids, start, row.images) for ids, start in row.sides] for row in rows])


def trainer_of(
    folder: Path, student: Student, vision: Vision | None, rows: Sequence[PairRow], **training: Any
) -> PairTrainer:
    config = DpoTrainingConfig(**{"bf16": False, "per_device_train_batch_size": len(rows), **training})
    watch = PairWatch(Reporter(folder / "metrics.jsonl"), STOP, config)
    checkpoints = folder / "checkpoints"
    return PairTrainer(student, rows, config, PreferenceConfig(), checkpoints, watch, STOP, vision)


def loss_of(trainer: Any) -> torch.Tensor:
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(trainer.train_dataset))])
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    return loss


# --- log-probabilities ----------------------------------------------------------------------------------------------


def test_pairs_have_the_models_own_log_probabilities(family: str, stored: Any, tmp_path: Path) -> None:
    """Held-out figures, the reference and the loss, for pairs with 0, 1 and 2 images in one batch."""
    store, digests = stored
    student = student_of(family)
    vision = vision_of(student, store)
    rows = rendered(student, vision, preferences(digests))
    assert [len(row.images) for row in rows] == [1, 0, 2]
    wanted = own(student.model, vision, rows)

    found = score_pairs(LocalScores(student.model, 0, 1 << 20, vision), rows, STOP)
    torch.testing.assert_close(torch.tensor([[score.chosen, score.rejected] for score in found]), wanted)

    trainer = trainer_of(tmp_path, student, vision, rows)
    reference = [[trainer._reference[at][side] for side in ("chosen", "rejected")] for at in range(3)]
    torch.testing.assert_close(torch.tensor(reference), wanted, rtol=1e-5, atol=1e-4)

    with torch.no_grad():
        for number, weight in enumerate(trainer.model.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    moved = own(trainer.model, vision, rows)
    margins = (moved - wanted) @ torch.tensor([1.0, -1.0])
    loss = loss_of(trainer)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(0.1 * margins).mean(), rtol=1e-4, atol=1e-5)
    loss.backward()
    parts = Parts(trainer.model)
    moving = {parts.of(name) for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert moving == {"language", "connector"}, "the tower is not trained unless it is asked for"


def test_other_images_are_other_pairs(family: str, stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the language model alone as the body, nothing would be seen, and nothing would be said of it."""
    store, digests = stored
    student = student_of(family)
    vision = vision_of(student, store)
    green, blue = (rendered(student, vision, [preference(0, [digest])]) for digest in digests[1:])
    assert green[0].sides == blue[0].sides, "the same tokens"
    scores = LocalScores(student.model, 0, 1 << 20, vision)
    one, other = (score_pairs(scores, rows, STOP)[0] for rows in (green, blue))
    assert abs(one.chosen - other.chosen) > 1e-3 and one.chosen - one.rejected != other.chosen - other.rejected

    def blind(model: Any) -> Any:
        return lambda input_ids, use_cache, **swallowed: decoder_of(model)(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(logprobs, "body_of", blind)
    one, other = (score_pairs(scores, rows, STOP)[0] for rows in (green, blue))
    assert one == other


def test_a_blind_trainer_is_noticed_before_the_first_step(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digests = stored
    student = student_of("llava")
    vision = vision_of(student, store)
    rows = rendered(student, vision, preferences(digests))
    fused = trl_trainer.dpo_trainer.add_fused_lm_head

    def blinded(model: Any, **options: Any) -> None:
        """As if TRL took the text stack for the backbone."""
        fused(model, **options)
        sees = model.forward

        def forward(fused_lm_head: bool = False, **values: Any) -> Any:
            if fused_lm_head:
                values["pixel_values"] = torch.zeros_like(values["pixel_values"])
            return sees(fused_lm_head=fused_lm_head, **values)

        model.forward = forward

    monkeypatch.setattr(trl_trainer.dpo_trainer, "add_fused_lm_head", blinded)
    with pytest.raises(ModelError, match="log-probabilities of a row with images are not the model's own"):
        trainer_of(tmp_path, student, vision, rows)


def test_the_reference_belongs_to_the_images(stored: Any, tmp_path: Path) -> None:
    """What a journal holds of a pair is of no use once it shows another image."""
    store, digests = stored
    found = []
    for digest in (digests[1], digests[2], digests[2]):
        student = student_of("llava")
        vision = vision_of(student, store)
        rows = rendered(student, vision, [preference(0, [digest]), preference(1, [])])
        found.append(trainer_of(tmp_path, student, vision, rows)._reference)
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1] and found[1] == found[2]
    journal = [json.loads(line) for line in (tmp_path / "checkpoints/reference.jsonl").read_text().splitlines()]
    keys = [entry["key"] for line in journal for entry in (line if isinstance(line, list) else [line])]
    assert keys.count("1") == 1 and len(keys) == 3


def test_rows_that_cannot_be_shown_whole_are_rejected(stored: Any) -> None:
    store, digests = stored
    student = student_of("llava")
    vision = vision_of(student, store)
    renderer = ChatRenderer(student.tokenizer, student.eos_ids, images=vision)
    spelled = preference(2, digests[:1], "What is <image> here?")
    pairs = [preference(0, digests[:1]), preference(1, [], "?"), spelled]
    rows, rejected = render_pairs(renderer, pairs, 21, "t")
    assert [row.id for row in rows] == ["p1"]
    assert [(one.id, one.reason) for one in rejected] == [("p0", "image_truncated"), ("p2", "image_placeholder")]
    assert "an image ends at token 22, and only 21 are read" in rejected[0].detail
    chats, refused = tokenise(renderer, pairs, 50, "t", use_margin=False)
    assert [row.id for row in chats] == ["p1"]
    assert [(one.id, one.reason) for one in refused] == [("p0", "too_long"), ("p2", "image_placeholder")]


# --- several processes ----------------------------------------------------------------------------------------------


def test_a_companion_changes_no_output(family: str, stored: Any) -> None:
    """A batch of text alone, beside which a row with an image is computed: the same outputs, and the tower takes part."""
    store, digests = stored
    student = student_of(family)
    vision = vision_of(student, store)
    rows = rendered(student, vision, [preference(0, []), preference(1, digests[:2], "A longer question about two?")])
    images = PairImages(vision, rows, ranks=2)
    width = rows[0].longest
    scoring_one = with_scalar_head(student, 0)
    pad = set_padding(scoring_one, {ids[-1] for row in rows for ids in row.sequences})
    ids_ST = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in rows[0].sequences])
    mask_ST = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows[0].sequences])
    batch = {"input_ids": ids_ST, "attention_mask": mask_ST, **images.inputs(ids_ST, [0])}
    assert batch[COMPANION]["input_ids"].shape[1] > width
    assert COMPANION not in images.inputs(torch.tensor(list(rows[1].sequences[:1]) * 2), [1])
    assert COMPANION not in PairImages(vision, rows).inputs(ids_ST, [0])

    classifier = scoring_one.model
    called = accompanied(classifier, pad)
    with_one = called(**batch, use_cache=False).logits
    without = classifier(**{name: value for name, value in batch.items() if name != COMPANION}, use_cache=False).logits
    torch.testing.assert_close(with_one, without, rtol=1e-4, atol=1e-5)
    with_one.sum().backward()
    parts = Parts(classifier)
    touched = {parts.of(name) for name, value in classifier.named_parameters() if value.grad is not None}
    assert touched == {"language", "connector", "vision"}


# --- reward models --------------------------------------------------------------------------------------------------


def test_a_reward_model_sees_is_saved_and_judges(family: str, stored: Any, tmp_path: Path) -> None:
    store, digests = stored
    models = ModelsConfig(student=str(vision_model(family)))
    assert scalar_issues(models) == []
    student = with_scalar_head(build_student(models, torch.float32), 0)
    vision = vision_of(student, store)
    pairs = [*preferences(digests), *(preference(number, [digests[number]]) for number in (1, 2))]
    rows = tokenised(student, vision, pairs)
    pad = set_padding(student, {ids[-1] for row in rows for ids in row.sequences})
    found = score_rows(student.model, rows, pad, STOP, vision)
    for row, score in zip(rows, found, strict=True):
        for ids, value in zip(row.sequences, (score.chosen, score.rejected), strict=True):
            ids_1T = torch.tensor([ids])
            with torch.no_grad():
                seen = vision.inputs(ids_1T, [(ids, row.images)])
                body = student.model.model(input_ids=ids_1T, **seen).last_hidden_state[0, -1]
                wanted = float(getattr(student.model, head_name(student.model))(body))
            assert value == pytest.approx(wanted, abs=1e-4)
    # Green and blue, the same tokens.
    assert abs(found[3].chosen - found[4].chosen) > 1e-4

    student.save_dtype = "float32"
    renderer = ChatRenderer(student.tokenizer, student.eos_ids, images=vision)
    save_student(student, renderer, Chats(), tmp_path / "model")
    assert score_rows(load_classifier(str(tmp_path / "model"), torch.float32), rows, pad, STOP, vision) == found
    assert "ForSequenceClassification" in json.loads((tmp_path / "model/config.json").read_text())["architectures"][0]

    # The report's code runs as it stands.
    (tmp_path / "picture.png").write_bytes(picture(RED, (16, 16)))
    code = snippet(str(tmp_path / "model"), scores=True, sees=True).replace(
        "picture.png", str(tmp_path / "picture.png")
    )
    if not family.startswith("qwen"):
        # AutoProcessor loads theirs with torchvision alone.
        exec(compile(code, "snippet", "exec"), {})

    config = reward_model.Config(model=str(tmp_path / "model"), dtype="float32")
    assert reward_model.blindness(config) is None and not reward_model.issues(config)
    judge = reward_model.make(config, RewardContext(device="cpu", images=store.path))
    answers = [Rollout(pair.prompt, "It is red.", (), (), True) for pair in pairs]
    spelled = Rollout(pairs[0].prompt, f"It is {vision.processor.mark}.", (), (), True)
    values = judge([*answers, spelled])
    assert values[-1] == UNJUDGED
    assert values[:-1] == pytest.approx([score.chosen for score in found], abs=1e-4)


def test_a_model_of_text_is_blind_as_a_judge(tiny_model: Path) -> None:
    blind = reward_model.blindness(reward_model.Config(model=str(tiny_model)))
    assert blind is not None and str(tiny_model) in blind


class Chats:
    """The settings of a `dataset` section that are saved with a student."""

    template = None
    template_kwargs = None
    thoughts = None


def score_trainer(folder: Path, student: Student, vision: Vision, rows: Any, **training: Any) -> ScoreTrainer:
    config = RewardTrainingConfig(**{"bf16": False, "per_device_train_batch_size": len(rows), **training})
    watch = Watch(Reporter(folder / "metrics.jsonl"), STOP, config)
    return ScoreTrainer(student, rows, config, RewardModelConfig(), folder / "checkpoints", watch, vision)


def scalar(family: str, store: ImageStore, digests: Sequence[str]) -> tuple[Student, Vision, list[RewardRow]]:
    student = with_scalar_head(student_of(family), 0)
    vision = vision_of(student, store)
    rows = tokenised(student, vision, preferences(digests))
    set_padding(student, {ids[-1] for row in rows for ids in row.sequences})
    return student, vision, rows


def test_the_loss_of_a_reward_model_is_of_what_it_sees(family: str, stored: Any, tmp_path: Path) -> None:
    store, digests = stored
    student, vision, rows = scalar(family, store, digests)
    scores = score_rows(student.model, rows, student.tokenizer.pad_token_id, STOP, vision)
    trainer = score_trainer(tmp_path, student, vision, rows)
    both = torch.tensor([[score.chosen, score.rejected] for score in scores])
    wanted = -torch.nn.functional.logsigmoid(both[:, 0] - both[:, 1]).mean() + 0.01 * (both.sum(1) ** 2).mean()
    loss = loss_of(trainer)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    loss.backward()
    parts, head = Parts(trainer.model), head_name(trainer.model)
    moving = {name for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert {parts.of(name) for name in moving if not name.startswith(head)} == {"language", "connector"}
    assert any(name.startswith(head) for name in moving)


@pytest.mark.parametrize("wanted", [None, ["vision"]])
def test_adapters_of_a_reward_model(wanted: Any, family: str, stored: Any) -> None:
    """Those of the decoder alone by default; the head is trained whatever else is."""
    store, digests = stored
    student, _, _ = scalar(family, store, digests)
    model, head = student.model, head_name(student.model)
    parts = Parts(model)
    config = RewardTrainingConfig(train_parts=wanted, lora=LoraConfig(r=2))
    import peft

    adapted = peft.get_peft_model(model, scoring.adapters(model, config))
    names = [name for name, value in adapted.named_parameters() if value.requires_grad]
    lora = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names if ".lora_" in name}
    assert {parts.of(name) for name in lora} == set(wanted or ["language"])
    assert [name for name in names if f".{head}." in name] and not any(head in name for name in lora)


def test_parts_of_a_reward_model_are_trained_with_its_head(stored: Any) -> None:
    store, digests = stored
    student, _, _ = scalar("gemma3", store, digests)
    with pytest.raises(ConfigError, match="no linear layer"):
        scoring.adapters(student.model, RewardTrainingConfig(train_parts=["connector"], lora=LoraConfig(r=2)))
    assert scoring.adapters(student.model, RewardTrainingConfig(train_parts=["vision"])) is None
    parts, head = Parts(student.model), head_name(student.model)
    trained = [name for name, value in student.model.named_parameters() if value.requires_grad]
    assert {parts.of(name) for name in trained if not name.startswith(head)} == {"vision"}
    assert f"{head}.weight" in trained


def test_merged_adapters_leave_the_tower_alone(stored: Any, tmp_path: Path) -> None:
    store, digests = stored
    training = {"lora": LoraConfig(r=2), "max_steps": 2, "learning_rate": 0.1}
    for method in ("dpo", "reward"):
        folder = tmp_path / method
        if method == "dpo":
            student = student_of("qwen3_vl")
            vision = vision_of(student, store)
            parts = Parts(student.model)
            before = {name: value.clone() for name, value in student.model.state_dict().items()}
            config = DpoTrainingConfig(bf16=False, **training)
            rows = rendered(student, vision, preferences(digests))
            arguments = (config, PreferenceConfig(), folder, Reporter(None, quiet=True), STOP, "train", vision)
            trl_trainer.train(student, rows, *arguments)
        else:
            student, vision, chats = scalar("qwen3_vl", store, digests)
            parts = Parts(student.model)
            before = {name: value.clone() for name, value in student.model.state_dict().items()}
            reward = RewardTrainingConfig(bf16=False, **training)
            scoring.train(student, chats, reward, RewardModelConfig(), folder, Reporter(None, quiet=True), STOP, vision)
        after = student.model.state_dict()
        assert after.keys() == before.keys()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {parts.of(name) for name in changed if name != "score.weight"} == {"language"}
        assert ("score.weight" in changed) == (method == "reward")
