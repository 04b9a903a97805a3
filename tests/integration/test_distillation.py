"""Distillation from stored signals: what must not change a step, and that signals and rows belong together."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import train_ranks
from tests.support.aligned import sharpen
from tests.support.tiny import SMALL_VOCABULARY as VOCABULARY

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError
from easydistill.losses import LOSSES
from easydistill.methods.distil.row_loss import Distillation
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import IGNORE, TokenRow, collate, pack
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.compat import fuse_loss
from easydistill.models.head import Head, body_of
from easydistill.models.student import Student, build_student
from easydistill.signals.config import SignalsConfig, ThresholdSignals, TopKSampledSignals, TopKSignals, TopPSignals
from easydistill.signals.extract import SignalShape
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.shards import score_rows
from easydistill.signals.store import SignalStore, StoreManifest, shard_path

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
EXACT = TopKSignals(kind="top_k", k=24, dtype="float32", max_batch_tokens=160, shard_tokens=300)


def rows(count: int, seed: int = 0, longest: int = 40) -> list[TokenRow]:
    generator = random.Random(seed)
    made = []
    for index in range(count):
        length = generator.randint(6, longest)
        prompt = generator.randint(1, length - 2)
        ids = [generator.randrange(5, 300) for _ in range(length)]
        made.append(TokenRow(f"row-{index}", ids, [False] * prompt + [True] * (length - prompt)))
    return made


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with other weights than the student, and sharper distributions than random weights give."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("tiny-teacher")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    sharpen(model, 5)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def to_score(made: list[TokenRow]) -> list[RowToScore]:
    return [RowToScore(row.id, row.ids, [label != IGNORE for label in row.labels()]) for row in made]


def scored(teacher: Path, made: list[TokenRow], directory: Path, config: SignalsConfig = EXACT) -> SignalStore:
    shape = SignalShape.of(config, VOCABULARY)
    codec = shape.codec(VOCABULARY)
    directory.mkdir(parents=True, exist_ok=True)
    shards = score_rows(
        to_score(made),
        config,
        codec,
        directory,
        lambda: ModelScorer([str(teacher)], [1.0], config, VOCABULARY, 1.0),
        lambda rows, tokens: None,
        StopSignal(),
    )
    StoreManifest.of(directory, codec, {}, shards).write(directory)
    return SignalStore(directory)


def distillation(store: SignalStore, name: str = "forward_kld", **parameters: Any) -> Distillation:
    config = LOSSES.module(name).Config(distillation_type=name, **({"kd_ratio": 0.6} | parameters))
    return Distillation(store, config, 1 << 22)


def fused(tiny_model: Path, using: Distillation) -> Any:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    fuse_loss(model, using.row_loss)
    return model.train()


def batch_of(using: Distillation, items: list[list[TokenRow]]) -> dict[str, torch.Tensor]:
    return {**collate(items, 0), **using.collate([row for item in items for row in item])}


def step(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    count = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=count)["loss"]
        loss.backward()
        total += float(loss.detach())
    return total, [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(first: tuple[float, list[torch.Tensor]], second: tuple[float, list[torch.Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_teacher_that_overflows_at_a_token_leaves_the_tokens_after_it_out(
    tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    """Its rows are learned from their labels there; the loss stays finite, and the others are taught as before."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = rows(5, longest=20)
    bad = made[2].ids[3]
    assert bad not in {token for row in (*made[:2], *made[3:]) for token in row.ids}
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
        model.model.embed_tokens.weight[bad] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "broken")
    store = scored(tmp_path / "broken", made, tmp_path / "signals")
    sound = scored(teacher, made, tmp_path / "sound")
    for row in made:
        learned = [label != IGNORE for label in row.labels()]
        kept, present = store.read(row.id, row.ids, learned)
        places = [at for at, on in enumerate(learned) if on]
        assert present.tolist() == [bad not in row.ids[:at] for at in places]
        wanted, _ = sound.read(row.id, row.ids, learned)
        np.testing.assert_allclose(kept.target_logprob_N, wanted.target_logprob_N[present], atol=0.01)
    using = distillation(store)
    loss, gradients = step(fused(tiny_model, using), [batch_of(using, [[row] for row in made])])
    assert np.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# --- the step ----------------------------------------------------------------------------------------------------


def test_listing_the_whole_vocabulary_is_plain_distillation(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """Against a loss written with the two models' full logits, on a vocabulary that is listed whole."""
    made = rows(4, longest=12)
    config = TopKSignals(kind="top_k", k=VOCABULARY, dtype="float32")
    using = distillation(scored(teacher, made, tmp_path, config))
    model = fused(tiny_model, using)
    loss, gradients = step(model, [batch_of(using, [[row] for row in made])])

    plain = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    other = build_student(ModelsConfig(student=str(teacher)), torch.float32).model
    total, count = torch.zeros(()), 0
    for row in made:
        ids = torch.tensor([row.ids])
        keep = torch.tensor([label != IGNORE for label in row.labels()])[1:]
        student = plain(input_ids=ids).logits[0, :-1][keep].log_softmax(-1)
        target = other(input_ids=ids).logits[0, :-1][keep].log_softmax(-1).detach()
        divergence = (target.exp() * (target - student)).sum()
        total = total + 0.4 * -student.gather(1, ids[0, 1:][keep][:, None]).sum() + 0.6 * divergence
        count += int(keep.sum())
    wanted = torch.autograd.grad(total / count, list(plain.parameters()))
    # Stored probabilities are rounded to ten bits.
    assert loss == pytest.approx(float(total.detach()) / count, rel=1e-3)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert float((ours - theirs).norm()) <= 0.02 * float(theirs.norm()) + 1e-7


@pytest.mark.parametrize(
    "config",
    [
        EXACT,
        TopKSampledSignals(kind="top_k_sampled", k=6, draws=8, dtype="float32"),
        TopPSignals(kind="top_p", k_max=20, dtype="float32"),
        ThresholdSignals(n=30, dtype="float32"),
    ],
    ids=lambda config: config.kind,
)
def test_padding_packing_and_accumulation_do_not_change_the_step(
    tiny_model: Path, teacher: Path, tmp_path: Path, config: SignalsConfig
) -> None:
    made = rows(8)
    using = distillation(scored(teacher, made, tmp_path, config))
    model = fused(tiny_model, using)
    together = step(model, [batch_of(using, [[row] for row in made])])
    assert_same(together, step(model, [batch_of(using, [[row]]) for row in made]))
    packs = pack(made, 64)
    assert len(packs) < len(made)
    assert_same(together, step(model, [batch_of(using, packs)]))


def test_shuffled_rows_keep_their_signals(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    made = rows(8)
    using = distillation(scored(teacher, made, tmp_path))
    model = fused(tiny_model, using)
    shuffled = random.Random(1).sample(made, len(made))
    assert shuffled != made
    in_order = step(model, [batch_of(using, [[row] for row in made])])
    assert_same(in_order, step(model, [batch_of(using, [[row] for row in shuffled])]))
    # The test can fail: signals of the same rows in another order give another step.
    wrong = {**collate([[row] for row in made], 0), **using.collate(shuffled)}
    assert step(model, [wrong])[0] != pytest.approx(in_order[0], rel=1e-4)


def test_a_teacher_equal_to_the_student_teaches_nothing(tiny_model: Path, tmp_path: Path) -> None:
    made = rows(5)
    using = distillation(scored(tiny_model, made, tmp_path), kd_ratio=1.0)
    model = fused(tiny_model, using)
    loss, gradients = step(model, [batch_of(using, [[row] for row in made])])
    assert abs(loss) < 1e-4
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_takes_a_step(tiny_model: Path, teacher: Path, tmp_path: Path, name: str) -> None:
    made = rows(4)
    using = distillation(scored(teacher, made, tmp_path), name, kd_ratio=1.0)
    loss, gradients = step(fused(tiny_model, using), [batch_of(using, [[row] for row in made])])
    assert loss > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    means = using.means()
    assert means["divergence"] == pytest.approx(loss, rel=1e-4)
    assert means["cross_entropy"] > 0


def test_tied_and_frozen_heads(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """A tied embedding gets the gradient of both its uses; a frozen one none, and LoRA still trains."""
    made = rows(4)
    using = distillation(scored(teacher, made, tmp_path))
    model = fused(tiny_model, using)
    batch = batch_of(using, [[row] for row in made])
    step(model, [batch])
    tied = model.get_input_embeddings().weight.grad.clone()
    hidden = body_of(model)(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    keep = batch["labels"][:, 1:] != IGNORE
    alone = Head(model.lm_head.weight.detach().clone().requires_grad_())
    loss = using.row_loss(hidden[:, :-1][keep].detach(), alone, batch["labels"][:, 1:][keep], batch)
    (loss / keep.sum()).backward()
    assert not torch.allclose(tied, alone.weight_VD.grad)
    used = torch.unique(batch["input_ids"])
    unused = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, used, False)
    torch.testing.assert_close(tied[unused], alone.weight_VD.grad[unused], rtol=1e-4, atol=1e-7)


def test_two_ranks_train_as_one(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """Two processes with a micro-batch each make the step of one process that accumulates two."""
    made = rows(12)
    scored(teacher, made, tmp_path / "signals")
    lines = [json.dumps({"id": row.id, "ids": row.ids, "mask": row.mask}) for row in made]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    inputs = [str(tiny_model), str(tmp_path / "rows.jsonl"), str(tmp_path / "signals")]
    train_ranks.main(*inputs, str(tmp_path / "one.pt"), "2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "tests.support.train_ranks", *inputs, str(tmp_path / "two.pt"), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **SMALL})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    start = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model.state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name.removeprefix("module.")], value, rtol=1e-4, atol=1e-6)


# --- the store and the rows -----------------------------------------------------------------------------------


def test_rows_of_other_tokens_are_refused_before_training(teacher: Path, tmp_path: Path) -> None:
    made = rows(4)
    using = distillation(scored(teacher, made, tmp_path))
    using.check(made)
    one = made[2]
    with pytest.raises(DataError, match="row-2 was made for other tokens"):
        using.check([*made[:2], TokenRow(one.id, [*one.ids[:-1], 9], one.mask)])
    with pytest.raises(DataError, match="no signal for row row-77"):
        using.check([TokenRow("row-77", one.ids, one.mask)])


def test_scoring_resumes_after_any_shard(teacher: Path, tmp_path: Path) -> None:
    made = rows(20)
    config = TopKSampledSignals(
        kind="top_k_sampled", k=6, draws=8, dtype="float32", max_batch_tokens=120, shard_tokens=120
    )
    whole = scored(teacher, made, tmp_path / "whole", config)
    assert whole.manifest.shards >= 4
    for kept in range(whole.manifest.shards):
        torn = tmp_path / f"torn-{kept}"
        torn.mkdir()
        for number in range(kept):
            shutil.copy(shard_path(tmp_path / "whole", number), shard_path(torn, number))
        (torn / ".shard-00009.safetensors.123.tmp").write_bytes(b"half a shard")
        scored(teacher, made, torn, config)
        for number in range(whole.manifest.shards):
            assert shard_path(torn, number).read_bytes() == shard_path(tmp_path / "whole", number).read_bytes()


# --- training ------------------------------------------------------------------------------------------------------


def train(tiny_model: Path, using: Distillation, made: list[TokenRow], where: Path, **values: Any) -> Student:
    stop = values.pop("stop", StopSignal())
    base: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "bf16": False,
        "max_length": 64,
        "logging_steps": 1,
        "save_steps": 2,
        "optim": "adamw_torch",
    }
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    config = TrainingConfig(**(base | values))
    supervised.train(student, made, config, where, Reporter(None, quiet=True), stop, using)
    return student


def kl_to(teacher: Path, student: Any, made: list[TokenRow]) -> float:
    other = build_student(ModelsConfig(student=str(teacher)), torch.float32).model
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in made:
            ids = torch.tensor([row.ids])
            target = other(input_ids=ids).logits[0, :-1].log_softmax(-1)
            found = student(input_ids=ids).logits[0, :-1].log_softmax(-1)
            total += float((target.exp() * (target - found)).sum())
            count += len(target)
    return total / count


@pytest.mark.parametrize("values", [{}, {"packing": True}])
def test_a_student_moves_closer_to_its_teacher(
    tiny_model: Path, teacher: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    made = rows(24)
    using = distillation(scored(teacher, made, tmp_path / "signals"), kd_ratio=1.0)
    start = kl_to(teacher, build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model, made)
    student = train(tiny_model, using, made, tmp_path / "train", num_train_epochs=15, **values)
    assert kl_to(teacher, student.model, made) < 0.85 * start


def test_adapters_learn_and_leave_the_head_alone(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    made = rows(16)
    using = distillation(scored(teacher, made, tmp_path / "signals"), kd_ratio=1.0)
    before = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model.state_dict()
    after = train(tiny_model, using, made, tmp_path / "train", lora=LoraConfig(r=8)).model.state_dict()
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])


class _StopAfter(StopSignal):
    """Asks to stop at the n-th question."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0


def test_a_stopped_training_ends_in_the_same_weights(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    made = rows(24)
    store = scored(
        teacher, made, tmp_path / "signals", TopKSampledSignals(kind="top_k_sampled", k=6, draws=8, dtype="float32")
    )
    whole = train(tiny_model, distillation(store), made, tmp_path / "whole").model.state_dict()
    train(tiny_model, distillation(store), made, tmp_path / "torn", stop=_StopAfter(2))
    resumed = train(tiny_model, distillation(store), made, tmp_path / "torn").model.state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
