"""Exports of 4 bits in the layouts of GPTQ and AWQ: refused where they do not fit, rounded by auto-round, read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.test_export import ROWS, job_of, model_of, records

import easydistill
from easydistill.errors import ConfigError, DataError
from easydistill.exporting.auto_rounding import config_problem
from easydistill.exporting.calibrating import blocks_of

OTHERS = [
    {"instruction": f"Count from {n} to {n + 9}.", "output": " ".join(map(str, range(n, n + 10)))} for n in range(12)
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def others(tmp_path: Path) -> str:
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *OTHERS]))
    return str(path)


SMOLLM = {"hidden_size": 576, "num_attention_heads": 9, "head_dim": 64, "intermediate_size": 1536}


@pytest.mark.parametrize(
    ("config", "number", "problem", "hint"),
    [
        (SMOLLM, "w4g128", "576, the width", "use gptq:w4g64"),
        (SMOLLM | {"intermediate_size": 1504}, "w4g64", "1504, the width", "use gptq:w4g32"),
        (SMOLLM | {"hidden_size": 580}, "w4g32", "580, the width", "gguf:q4_k_m"),
        ({"hidden_size": 128, "head_dim": 40, "num_attention_heads": 4}, "w4g64", "160, the width", "use gptq:w4g32"),
        ({"vision_config": {}}, "w4g32", "sees images", "safetensors"),
        (SMOLLM | {"num_experts": 8}, "w4g64", "mixture of experts", "safetensors"),
    ],
)
def test_groups_that_do_not_fit_are_refused_with_one_that_does(
    config: dict[str, Any], number: str, problem: str, hint: str
) -> None:
    found = config_problem(config, "gptq", number)
    assert found is not None and problem in found[0] and hint in found[1]
    assert config_problem(SMOLLM, "gptq", "w4g64") is None


def test_blocks_are_whole_and_of_one_length() -> None:
    rows = [list(range(40)), list(range(40, 100))]
    assert blocks_of(rows, 48, 9) == [list(range(48)), list(range(48, 96))]
    assert blocks_of(rows, 48, 1) == [list(range(48))]
    assert blocks_of(rows, 512, 9) == [list(range(100))]
    assert blocks_of([[1] * 31], 512, 9) == []


def packed(numbers_RC: np.ndarray, order: tuple[int, ...]) -> Any:
    """4-bit numbers, eight of a row in an int32, number j at 4j of those at order[j]."""
    import torch

    eights = numbers_RC.reshape(len(numbers_RC), -1, 8)[..., list(order)].astype(np.uint32)
    words = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(-1).astype(np.uint32)
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_packed_numbers_are_read_as_the_layout_defines_them(layout: str) -> None:
    import torch

    from easydistill.exporting.packed_four_bits import unpacked

    drawn = np.random.default_rng(0)
    q_IO, zero_GO = drawn.integers(0, 16, (64, 16)), drawn.integers(1, 16, (2, 16))
    scale_GO = drawn.random((2, 16)).astype(np.float16)
    wanted_IO = np.repeat(scale_GO.astype(np.float32), 32, 0) * (q_IO - np.repeat(zero_GO, 32, 0))
    straight, mixed = tuple(range(8)), (0, 2, 4, 6, 1, 3, 5, 7)
    if layout == "gptq":
        parts = {"qweight": packed(q_IO.T, straight).T, "qzeros": packed(zero_GO - 1, straight)}
    else:
        parts = {"qweight": packed(q_IO, mixed), "qzeros": packed(zero_GO, mixed)}
    found_OI = unpacked(layout, **parts, scales=torch.from_numpy(scale_GO))
    assert np.allclose(found_OI.numpy(), wanted_IO.T)


def test_rows_to_fit_to_are_needed_and_only_where_something_is_fitted(
    tiny_model: Path, tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easydistill.exporting.formats import gptq

    monkeypatch.setattr(gptq, "IMPORTS", ())
    with pytest.raises(ConfigError, match=r"calibration\.labeled_path"):
        easydistill.run(job_of(str(tiny_model), rows, tmp_path, "gptq:w4g32"))
    with pytest.raises(ConfigError, match="none of the formats needs"):
        easydistill.validate(job_of(str(tiny_model), rows, tmp_path, "gguf", calibration={"labeled_path": rows}))
    with pytest.raises(DataError, match="0 of 4 rows are not among those that are compared"):
        easydistill.run(job_of(str(tiny_model), rows, tmp_path, "gptq:w4g32", calibration={"labeled_path": rows}))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_a_tiny_model_is_rounded_and_what_is_left_out_is_told(
    layout: str, tiny_model: Path, tmp_path: Path, rows: str, others: str
) -> None:
    """Its keys and values have 2 heads of 24: 48 rows, which are not whole blocks of 32."""
    pytest.importorskip("auto_round")
    sizes = {"hidden_size": 96, "intermediate_size": 128, "tie_word_embeddings": True}
    student = model_of("llama", tiny_model, tmp_path / "student", 0.02, **sizes)
    fitted = {"labeled_path": others, "max_length": 64, "iterations": 4}
    easydistill.run(job_of(student, rows, tmp_path, f"{layout}:w4g32", "gguf:f16", calibration=fitted))
    found = records(tmp_path)
    four, exact = found[f"{layout}:w4g32"], found["gguf:f16"]
    assert 0 < four["kl"] < 0.2 and four["bytes"] < exact["bytes"] and four["other_ids"] is None
    assert four["tensors"] == {"4-bit": 15, "F16": 6}
    assert any("6 of 21 layers" in note and "k_proj" in note for note in four["notes"])
    folder = tmp_path / f"run/exports/{layout}-w4g32"
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == layout
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert "vllm serve" in (folder / "README.md").read_text()
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    assert "| " + layout in (tmp_path / "run/report.md").read_text()
    # auto-round's loader for transformers computes with GPTQ's layout on a CPU, and not with AWQ's.
    assert layout == "awq" or agrees_with_auto_round(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_in_groups_that_fit(smollm: Path, tmp_path: Path, rows: str, others: str) -> None:
    pytest.importorskip("auto_round")
    fitted = {"labeled_path": others, "max_length": 64, "iterations": 0}
    with pytest.raises(ConfigError, match="use gptq:w4g64"):
        easydistill.run(job_of(str(smollm), rows, tmp_path, "gptq:w4g128", calibration=fitted))
    easydistill.run(job_of(str(smollm), rows, tmp_path, "gptq:w4g64", calibration=fitted))
    found = records(tmp_path)["gptq:w4g64"]
    assert found["tensors"] == {"4-bit": 210} and 0 < found["kl"] < 0.5
    assert found["notes"] == ["rounded by auto-round, to the nearest number, with searched scales"]
    # The embedding, a fifth of its weights, stays float16.
    assert 0.4 < found["bytes"] / found["source_bytes"] < 0.45
    assert found["lacks_ends"] == [] and found["other_ids"] is None


def agrees_with_auto_round(folder: Path) -> bool:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoRoundConfig

    from easydistill.exporting.packed_four_bits import load_folder

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    own = load_folder(config, folder, "gptq")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=AutoRoundConfig(), dtype=torch.float16
        )
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        a, b = own(ids).logits.log_softmax(-1), theirs(ids).logits.float().log_softmax(-1)
    return bool((a - b).abs().max() < 0.05)
