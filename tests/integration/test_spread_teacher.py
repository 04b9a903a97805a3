"""A teacher whose layers lie on several devices: its signals and answers are those of the whole one, bit for bit.

Without a GPU, layers on the disk are what accelerate moves: their weights are read for each of their passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.test_scoring_in_processes import job_of, score, store
from tests.support.aligned import aligner_of, chats, make_teacher, rows_of
from tests.support.jobs import TRAINING, run_here, write_config
from tests.support.tiny import SMALL_VOCABULARY, save_untied

from easydistill.config.device_map import DeviceMap
from easydistill.config.inference import TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome
from easydistill.data.files import hash_file
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError, ModelError
from easydistill.models.compatibility import real_vocabulary
from easydistill.models.spread import Spread, head_of, input_device, is_spread, load_placed
from easydistill.signals.aligned import AlignedScorer
from easydistill.signals.config import ThresholdSignals, TopKSignals
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.teachers.transformers import TransformersTeacher

MIXED: dict[str, Any] = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "disk",
    "lm_head": "disk",
}
MIXED_TIED = {**MIXED, "lm_head": "cpu"}
MAPS: dict[str, DeviceMap] = {"mixed": MIXED, "disk": {"": "disk"}, "auto": "auto"}


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose output layer is not its embedding."""
    return save_untied(tiny_model, tmp_path_factory.mktemp("untied") / "model", seed=1)


@pytest.fixture(params=["tied", "untied"])
def teacher(request: pytest.FixtureRequest, tiny_model: Path, untied: Path) -> Path:
    return tiny_model if request.param == "tied" else untied


def map_of(where: str, teacher: Path) -> DeviceMap:
    tied = json.loads((teacher / "config.json").read_text())["tie_word_embeddings"]
    return MIXED_TIED if where == "mixed" and tied else MAPS[where]


def rows() -> list[RowToScore]:
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(9):
        ids = torch.randint(3, SMALL_VOCABULARY, (5 + number,), generator=draw).tolist()
        made.append(RowToScore(f"row-{number}", ids, [False, False, *[True] * (len(ids) - 2)]))
    return made


def signals_of(references: Sequence[Path], device_map: DeviceMap | None) -> list[Any]:
    spread = None if device_map is None else Spread(device_map)
    config = ThresholdSignals(dtype="float32")
    scorer = ModelScorer(
        [*map(str, references)], [1.0, 2.0][: len(references)], config, SMALL_VOCABULARY, 1.0, spread=spread
    )
    return [vars(sample.signal) for sample in scorer.score(rows())]


def assert_equal(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    for ours, whole in zip(found, expected, strict=True):
        assert ours.keys() == whole.keys()
        for name, value in whole.items():
            same = value.tobytes() == ours[name].tobytes() if hasattr(value, "tobytes") else value == ours[name]
            assert same, name


@pytest.mark.parametrize("where", MAPS)
def test_signals_are_those_of_the_whole_teacher(where: str, teacher: Path) -> None:
    assert_equal(signals_of([teacher], map_of(where, teacher)), signals_of([teacher], None))


def test_several_teachers_may_be_spread(tiny_model: Path, untied: Path) -> None:
    assert_equal(signals_of([tiny_model, untied], {"": "disk"}), signals_of([tiny_model, untied], None))


def test_layers_wait_where_the_map_says(untied: Path) -> None:
    model = load_placed(str(untied), torch.float32, Spread(MIXED))
    waiting = {name for name, value in model.named_parameters() if value.device.type == "meta"}
    on_disk = ("model.layers.0.", "model.norm.", "lm_head.")
    assert waiting == {name for name, _ in model.named_parameters() if name.startswith(on_disk)}
    assert is_spread(model) and input_device(model).type == "cpu"
    with head_of(model) as head:
        assert head.weight_VD.device.type == "cpu"
    assert model.lm_head.weight.device.type == "meta"


def answers_of(reference: Path, device_map: DeviceMap | None, **options: Any) -> dict[str, str | None]:
    inference = TransformersInferenceConfig(
        backend="transformers", max_new_tokens=12, temperature=0.9, dtype="float32", device_map=device_map, **options
    )
    teacher = TransformersTeacher(str(reference), inference)
    asked = [
        GenerationRequest(f"key-{number}", ({"role": "user", "content": "why " * number},)) for number in range(1, 8)
    ]
    found: dict[str, str | None] = {}

    def record(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            assert isinstance(outcome, Completion)
            found[outcome.key] = outcome.text

    teacher.generate(asked, lambda key: False, record, StopSignal())
    teacher.close()
    return found


@pytest.mark.parametrize("where", ["mixed", "disk"])
def test_answers_are_those_of_the_whole_teacher(where: str, teacher: Path) -> None:
    whole = answers_of(teacher, None)
    assert len(whole) == 7
    assert answers_of(teacher, map_of(where, teacher)) == whole


@pytest.fixture
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As for models that only transformers' `generate` knows."""
    monkeypatch.setattr("easydistill.models.decoding.check.decodes", lambda *arguments: False)
    yield


@pytest.mark.usefixtures("never_decoded")
def test_answers_of_generate_are_those_of_the_whole_teacher(untied: Path) -> None:
    assert answers_of(untied, {"": "disk"}) == answers_of(untied, None)


def job(folder: Path, teacher: Path, student: Path) -> dict[str, Any]:
    folder.mkdir()
    questions = [f"question {number}: " + "word " * (number % 7) for number in range(12)]
    (folder / "prompts.json").write_text(json.dumps([{"instruction": text} for text in questions]))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "prompts.json")},
        "models": {"teacher": str(teacher), "student": str(student)},
        "inference": {"backend": "transformers", "max_new_tokens": 8, "dtype": "float32"},
        "signals": {"dtype": "float32"},
        "training": {**TRAINING, "max_steps": 2, "bf16": False},
        "evaluation": {"heldout": 4, "max_new_tokens": 4},
    }


def made_by(folder: Path) -> dict[str, str]:
    """Hashes of what a job makes."""
    found = {
        path.name: hash_file(path) for path in sorted((folder / "run").glob("stages/*score/signals/*.safetensors"))
    }
    assert found
    found["labels"] = hash_file(next((folder / "run").glob("stages/*label/labeled.json")))
    found["weights"] = hash_file(folder / "run/student/model.safetensors")
    metrics = json.loads((folder / "run/summary.json").read_text())["metrics"]
    assert "kl" in json.dumps(metrics)
    return {**found, "metrics": json.dumps(metrics, sort_keys=True)}


def test_a_job_makes_the_same_and_is_known_by_the_same(untied: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole, spread = tmp_path / "whole", tmp_path / "spread"
    plain = job(whole, untied, tiny_model)
    given = job(spread, untied, tiny_model)
    given["inference"]["device_map"] = MIXED
    for folder, config in ((whole, plain), (spread, given)):
        code, out = run_here(write_config(folder, config))
        assert code == 0, out
    assert made_by(spread) == made_by(whole)
    # Where the layers lay is no part of what was made: nothing runs again.
    before = {path: path.stat().st_mtime_ns for path in spread.glob("run/stages/*/manifest.json")}
    del given["inference"]["device_map"]
    code, out = run_here(write_config(spread, given))
    assert code == 0, out
    assert len(before) == 4 and all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_of_two_processes_as_many_score_as_there_are_copies(tiny_model: Path, tmp_path: Path) -> None:
    stores, reports = [], []
    for name, processes, inference in (
        ("alone", 1, {}),
        ("one", 2, {"device_map": {"": "disk"}}),
        ("two", 2, {"device_map": {"": "disk"}, "workers": 2}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        score(folder, job_of(folder, tiny_model, processes, inference=inference))
        stores.append(store(folder))
        found = sorted((folder / "run/stages/1-score/processes/score").glob("rank-*.json"))
        reports.append([json.loads(path.read_text())["shards"] for path in found])
    assert stores[0] == stores[1] == stores[2]
    shards = sum(name.endswith(".safetensors") for name in stores[0])
    assert reports[:2] == [[], [shards, 0]]
    assert sum(reports[2]) == shards and all(reports[2])


def test_an_aligned_teacher_may_be_spread(tiny_whole: Path, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", "gpt2")
    aligner = aligner_of(tiny_whole, teacher)
    asked = rows_of(aligner, chats(5))
    config = TopKSignals(kind="top_k", k=8, dtype="float32")
    vocabulary = real_vocabulary(aligner.student.tokenizer)
    found = []
    for spread in (None, Spread({"": "disk"})):
        scorer = AlignedScorer(str(teacher), aligner.to_student, config, vocabulary, 1.0, by_rank=False, spread=spread)
        found.append([vars(sample.signal) for sample in scorer.score(asked)])
    assert sum(len(signal["target_logprob_N"]) for signal in found[0]) > 20
    assert_equal(found[1], found[0])


def test_a_map_that_leaves_layers_out_is_told(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        load_placed(str(tiny_model), torch.float32, Spread({"model.embed_tokens": "disk"}))


def test_shared_weights_in_two_places_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_placed(str(tiny_model), torch.float32, Spread(MIXED))
    (issue,) = raised.value.issues
    assert issue.problem == "lm_head (disk) shares the weights of model.embed_tokens (cpu)"
    assert "same place" in issue.hint


def test_a_module_that_the_teacher_does_not_have_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_placed(str(tiny_model), torch.float32, Spread({"": "cpu", "model.layer.1": "cpu"}))
    (issue,) = raised.value.issues
    assert issue.problem == "LlamaForCausalLM has no module 'model.layer.1'"
    assert issue.hint == "did you mean 'model.layers.1'?"
