"""`easydistill doctor`: it measures, it warns of what does not fit together, and it needs nothing to say what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from easydistill import api
from easydistill.cli import main
from easydistill.doctor import exactness, expectations, machine, measured, model_steps
from easydistill.doctor.expectations import Rates, Size, about, decoding_seconds
from easydistill.doctor.model_steps import Decoding, Shape, Training

CPU = torch.device("cpu")
TINY = Shape(width=128, layers=2, vocabulary=500, rows=2, length=16, answers=2)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured, on small shapes and once."""
    monkeypatch.setattr(measured, "BUDGET", dict.fromkeys(measured.BUDGET, 0.0))
    monkeypatch.setattr(Shape, "suiting", classmethod(lambda cls, kind: TINY))
    monkeypatch.setattr("easydistill.doctor.hardware.SIDE", {"cpu": 64})
    monkeypatch.setattr("easydistill.doctor.hardware.COPIED", {"cpu": 2**16})


def states(section: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *arguments])
    shown = json.loads(capsys.readouterr().out)
    return code, {entry["name"]: entry for entry in shown.get(section, [])}


# --- the command ----------------------------------------------------------------------------------------------------


def test_it_measures_and_says_what_to_expect(quickly: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = states("measured", capsys)
    assert code == 0
    names = list(shown)
    assert names[:2] == ["matrix products", "memory bandwidth"]
    assert names[-2:] == ["training step", "decoding step"]
    assert shown["kernels float32"]["values"]["errors"].keys() == {"cross-entropy", "divergence"}
    assert shown["matrix products"]["values"]["float32_flops"] > 0
    assert shown["training step"]["values"]["tokens"] == TINY.rows * TINY.length
    _, expected = states("expect", capsys)
    assert list(expected) == [f"{what} {size}" for what in ("train", "answers") for size in ("0.5B", "1.5B", "7B")]


def test_as_text_each_section_has_a_heading(quickly: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.endswith(":")] == ["installed:", "machine:", "measured:", "expect:"]
    assert all(line[:3] in {"ok ", "-- ", "   "} for line in shown if not line.endswith(":"))


def test_quickly_it_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measured, "measured", lambda: pytest.fail("measured"))
    code, shown = states("machine", capsys, "--quick")
    assert code == 0
    assert {"cores", "memory", "disk", "hub cache", "device"} <= shown.keys()
    assert [finding.section for finding in api.doctor(measure=False)].count("measured") == 0


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "gone = {'torch', 'transformers', 'vllm', 'trl'}\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in gone else found(name, *rest)\n"
        "sys.modules.update(dict.fromkeys(gone))\n"
        "from easydistill.cli import main\n"
        "raise SystemExit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing, without torch and transformers" in done.stdout
    assert "easydistill-toolkit[train]" in done.stdout


def test_a_machine_that_computes_wrongly_is_an_error(
    quickly: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = exactness.linear_cross_entropy
    monkeypatch.setattr(exactness, "linear_cross_entropy", lambda *inputs: 1.01 * right(*inputs))
    code, shown = states("measured", capsys)
    assert code == 1
    assert not shown["kernels float32"]["good"]
    assert "cross-entropy 1e-02" in shown["kernels float32"]["state"]
    assert "do not train" in shown["kernels float32"]["state"]


def test_what_cannot_be_measured_is_told(
    quickly: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*arguments: Any, **options: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(model_steps, "small_model", failing)
    code, shown = states("measured", capsys)
    assert code == 1
    assert shown["training step"]["state"] == "failed: CUDA out of memory."
    assert "decoding step" not in shown


# --- exactness ------------------------------------------------------------------------------------------------------


def test_the_kernels_are_as_exact_as_their_numbers() -> None:
    assert max(exactness.errors(CPU, torch.float64).values()) < 1e-12
    for dtype, tolerance in exactness.TOLERANCE.items():
        found = exactness.errors(CPU, dtype)
        assert 0 < max(found.values()) < tolerance


# --- misfits --------------------------------------------------------------------------------------------------------


def problems(monkeypatch: pytest.MonkeyPatch, kind: str, numbers: str, *missing: str) -> dict[str, str]:
    monkeypatch.setattr(machine, "is_installed", lambda name: name not in missing)
    return dict(machine.misfits(kind, numbers))


def test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, "cuda", "bfloat16") == {}
    found = problems(monkeypatch, "cuda", "float32", "triton", "vllm")
    assert "emulates" in found["bfloat16"]
    assert "GPU kernels" in found["triton"]
    assert found.keys() == {"bfloat16", "triton", "vllm"}


def test_a_build_for_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" not in problems(monkeypatch, "cpu", "float32", "triton", "vllm")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "built for CUDA 12.8, but no GPU" in problems(monkeypatch, "cpu", "float32")["torch"]


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert "16 threads on 2 cores" in problems(monkeypatch, "cpu", "float32")["threads"]


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none" / "yet"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert machine.hub_cache() == tmp_path / "none" / "yet" / "hub"
    assert machine._cache().good
    monkeypatch.setattr(machine.os, "access", lambda *arguments: False)
    assert not machine._cache().good
    assert "set HF_HOME" in machine._cache().state


def test_the_place_of_the_cache_is_the_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    assert constants.HF_HUB_CACHE
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert str(machine.hub_cache()) == shown


def test_little_disk_and_few_or_busy_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert not machine._disk().good
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    assert machine._cores().good
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (15.0, 0.0, 0.0))
    assert "busy" in machine._cores().state
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert not machine._cores().good


# --- expectations ---------------------------------------------------------------------------------------------------

RATES = Rates(
    matrix_flops=1e14,
    bandwidth=1e12,
    memory=80 * 2**30,
    weight_bytes=2,
    training=Training(seconds=1.0, tokens=1000, parameters=10**9),
    decoding=Decoding(seconds=0.011, rows=64, layers=10, weight_bytes=10**9),
)


def test_training_speed_follows_from_the_rate() -> None:
    assert RATES.training.flops == 6e12
    found = {finding.name: finding for finding in expectations.expectations(RATES)}
    assert found["train 0.5B"].values == {"fits": True, "tokens_per_second": 2000.0}
    assert found["train 7B"].values == {"fits": False}
    assert "113 GiB" in found["train 7B"].state
    assert found["answers 7B"].values["fits"]


def test_a_decoding_step_reads_the_weights_and_pays_for_each_layer() -> None:
    # Of 11 ms, 1 is for reading 1 GB: the other 10 are 1 for each layer.
    assert decoding_seconds(RATES, Size("x", 5e9, 20)) == pytest.approx(0.020 + 0.010)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.034, "0.03"), (7.4, "7"), (1.4, "1.5"), (149, "150"), (184, "200"), (2_345, "2,000"), (4_600_000, "5 million")],
)
def test_figures_are_rounded_as_far_as_they_are_known(value: float, shown: str) -> None:
    assert about(value) == shown
