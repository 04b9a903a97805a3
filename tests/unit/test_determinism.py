"""`deterministic`: set before CUDA starts, in every stage; undone afterwards; and no operation of ours is in its way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.jobs import command, local_job, run_here, write_config
from torch import Tensor

from easydistill.config.job import JobConfig
from easydistill.data.manifest import Manifest
from easydistill.engine import runner as runners
from easydistill.engine.determinism import BATCH_INVARIANT, CUBLAS, VARIABLES, deterministic, explained_refusals
from easydistill.errors import ConfigError, NotDeterministic
from easydistill.jobs.pipeline import Job as Pipeline
from easydistill.methods.shared import estimates
from easydistill.models.prefix_sum import BLOCK, by_doubling, prefix_sum
from easydistill.models.vllm import prepare_environment

SOURCE = Path(__file__).resolve().parents[2] / "src" / "easydistill"
PROMPTS = [f"Name {count} things that are blue." for count in range(2, 18)]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, BATCH_INVARIANT):
        monkeypatch.delenv(name, raising=False)


def state() -> dict[str, Any]:
    """Everything that the switch sets."""
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        **{name: os.environ.get(name) for name in (*VARIABLES, BATCH_INVARIANT)},
    }


# --- the switch ---------------------------------------------------------------------------------------------------


def test_it_is_set_inside_and_undone_afterwards() -> None:
    before = state()
    with deterministic(True):
        assert state() == {
            "algorithms": True,
            "warn_only": False,
            "cudnn": (True, False),
            "fill": False,
            **VARIABLES,
            BATCH_INVARIANT: None,
        }
        prepare_environment(on_cpu=False)
        assert os.environ[BATCH_INVARIANT] == "1"
    assert state() == before
    with deterministic(False):
        assert state() == before
        prepare_environment(on_cpu=False)
        assert BATCH_INVARIANT not in os.environ


def test_it_is_undone_after_an_error_too() -> None:
    before = state()
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert state() == before


def test_a_workspace_that_the_user_chose_is_kept_if_it_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.setenv(CUBLAS, ":4096:2:16:8")
    with pytest.raises(ConfigError, match="depend on timing"), deterministic(True):
        pass


def test_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS reads its variable when it starts."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="used the GPU already"), deterministic(True):
        pass
    monkeypatch.setenv(CUBLAS, VARIABLES[CUBLAS])
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_cannot_is_named() -> None:
    with pytest.raises(NotDeterministic, match=r"no deterministic implementation of put_ "), deterministic(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(NotDeterministic, match="put_") as told, deterministic(True), explained_refusals():
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    assert isinstance(told.value.__cause__, RuntimeError)
    assert not isinstance(told.value.__cause__, NotDeterministic)
    with pytest.raises(RuntimeError, match="another") as raised, deterministic(True):
        raise RuntimeError("another error")
    assert not isinstance(raised.value, NotDeterministic)


def test_it_is_no_part_of_a_jobs_identity() -> None:
    assert "deterministic" in JobConfig.runtime_only
    assert JobConfig(job_type="x", deterministic=True).identity() == JobConfig(job_type="x").identity()


def test_one_job_sets_it_for_its_pipeline() -> None:
    def pipeline(**values: Any) -> Pipeline:
        jobs = {"one": JobConfig(job_type="x"), "two": JobConfig(job_type="x", **values)}
        return Pipeline.model_validate({"job_type": "pipeline", "jobs": jobs})

    assert not pipeline().computes_deterministically
    assert pipeline(deterministic=True).computes_deterministically
    assert Pipeline(job_type="pipeline", jobs={"one": {}}, deterministic=True).computes_deterministically


# --- whole jobs ---------------------------------------------------------------------------------------------------


def _white_box(folder: Path, model: Path, signals: dict[str, Any], loss: str) -> dict[str, Any]:
    job = local_job(folder, model, model, PROMPTS, max_new_tokens=8, top_p=0.9)
    job |= {"job_type": "white_box_kd_local", "deterministic": True, "signals": signals}
    job["distillation"] = {"distillation_type": loss}
    job["training"] |= {"num_train_epochs": 1}
    job["evaluation"] |= {"heldout": 4}
    return job


@pytest.mark.parametrize(
    ("signals", "loss"),
    [
        ({"kind": "top_p"}, "adaptive_kld"),
        ({"kind": "top_k_sampled"}, "forward_kld"),
    ],
)
def test_every_stage_computes_so_and_twice_the_same(
    signals: dict[str, Any], loss: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[dict[str, Any]]] = {}
    run_stage: Callable[..., Manifest] = runners.Runner._run_stage
    device_memory = estimates.device_memory

    def asked() -> tuple[int, str] | None:
        """What asks a GPU for its memory, and so starts CUDA, before the first stage runs."""
        seen.setdefault("foretell", []).append({**state(), "cuda": torch.cuda.is_initialized()})
        return device_memory()

    monkeypatch.setattr(estimates, "device_memory", asked)

    def watched(self: Any, stage: Any, *arguments: Any) -> Manifest:
        seen.setdefault(stage.name, []).append({**state(), "cuda": torch.cuda.is_initialized()})
        return run_stage(self, stage, *arguments)

    monkeypatch.setattr(runners.Runner, "_run_stage", watched)
    preflight = runners.Runner.preflight

    def looking(self: Any, stages: Any) -> None:
        # What looks at the machine before the first stage may start CUDA.
        assert (state()["algorithms"], state()[CUBLAS]) == (True, VARIABLES[CUBLAS])
        preflight(self, stages)

    monkeypatch.setattr(runners.Runner, "preflight", looking)
    hashes = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        code, printed = run_here(write_config(folder, _white_box(folder, tiny_model, signals, loss)))
        assert code == 0, printed
        manifests = sorted((folder / "run" / "stages").glob("*/manifest.json"))
        hashes.append({path.parent.name: json.loads(path.read_text())["outputs"] for path in manifests})
    assert list(seen) == ["foretell", "label", "score", "train", "evaluate"]
    for found in (each for entries in seen.values() for each in entries):
        assert found["algorithms"]
        assert not found["warn_only"]
        assert not found["cuda"]
        assert found[CUBLAS] == VARIABLES[CUBLAS]
    assert not torch.are_deterministic_algorithms_enabled()
    assert set(hashes[0]) == {"1-label", "2-score", "3-train", "4-evaluate"}
    for stage in ("2-score", "3-train", "4-evaluate"):
        assert hashes[0][stage] == hashes[1][stage]
    # The journal has times in it.
    assert hashes[0]["1-label"]["labeled.json"] == hashes[1]["1-label"]["labeled.json"]


def test_children_inherit_the_variables(tmp_path: Path) -> None:
    """Of a process in which nothing of torch is loaded yet."""
    code = (
        "import sys, subprocess\n"
        "from easydistill.engine.determinism import deterministic\n"
        "assert 'torch' not in sys.modules\n"
        "with deterministic(True):\n"
        "    told = subprocess.run([sys.executable, '-c', 'import os; print(dict(os.environ))'], "
        "capture_output=True, text=True).stdout\n"
        f"assert all(repr(name) in told for name in {list(VARIABLES)!r}), told\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_job_that_is_refused_says_so_in_words(tiny_model: Path, tmp_path: Path) -> None:
    job = _white_box(tmp_path, tiny_model, {"kind": "top_p"}, "forward_kld")
    done = subprocess.run(
        command("run", str(write_config(tmp_path, job))),
        capture_output=True,
        text=True,
        env={**os.environ, CUBLAS: ":0:0", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 2
    assert "CUBLAS_WORKSPACE_CONFIG=:0:0" in done.stderr
    assert "unset it" in done.stderr


# --- running sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 100, BLOCK, BLOCK + 1, 7 * BLOCK - 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_sums_by_doubling(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    weights = torch.rand((3, 2, count), generator=generator, dtype=dtype) ** 8
    weights[torch.rand(weights.shape, generator=generator) < 0.4] = 0.0
    found = by_doubling(weights)
    torch.testing.assert_close(found, weights.cumsum(-1))
    steps = found.diff(dim=-1)
    assert (steps >= 0).all()
    assert (steps[weights[..., 1:] == 0] == 0).all()


class _OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_they_are_used_on_a_gpu_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from easydistill.models import prefix_sum as module

    asked: list[int] = []
    monkeypatch.setattr(module, "by_doubling", lambda weights: asked.append(weights.shape[-1]) or weights)
    on_gpu = torch.rand(2, 5).as_subclass(_OnGpu)
    prefix_sum(on_gpu)
    assert asked == []
    with deterministic(True):
        prefix_sum(torch.rand(2, 7))
        prefix_sum(on_gpu)
    assert asked == [5]


# --- the sources --------------------------------------------------------------------------------------------------

SUSPECTS = re.compile(
    r"\.(cumsum|cumprod|logcumsumexp|histc|bincount|put_|kthvalue|grid_sample|scatter_reduce_?|index_reduce_?)\("
    r"|F\.interpolate|EmbeddingBag|CTCLoss|NLLLoss2d|median\(.*dim"
    r"|atomic_(add|max|min|cas|xchg)|triton\.autotune|mem_get_info|cudnn\.benchmark\s*=\s*True"
)
"""Operations that torch refuses on a GPU, or whose results depend on timing or on the memory that is free."""
ALLOWED = {
    ("engine/machine/memory.py", "torch.cuda.mem_get_info()"): "told in an error",
    ("evaluation/measure.py", "mask_BT.long().cumsum(1)"): "of integers",
    ("models/decoding/batch.py", "seen_BT.cumsum(-1)"): "of integers",
    ("models/decoding/graphs.py", "self._ids_BT.shape[1]].cumsum(-1)"): "of integers",
    ("models/rows_attention.py", "lengths_B.cumsum(0)"): "of integers",
    ("models/spread.py", "torch.cuda.mem_get_info(gpu)"): "where weights lie, not what is computed",
    ("signals/blocks.py", "new_ND.cumsum(-1)"): "of integers",
    ("signals/columns.py", "np.bincount("): "NumPy",
    ("signals/columns.py", 'part_NM, "amax")'): "a maximum is exact",
    ("signals/store.py", "np.cumsum("): "NumPy",
    ("signals/transfer.py", "np.cumsum("): "NumPy",
    ("synthesis/postings.py", "numpy.cumsum("): "NumPy",
    ("models/prefix_sum.py", "weights.cumsum(-1)"): "where determinism is not asked for",
}


def test_no_operation_depends_on_timing() -> None:
    """What has to be looked at before it is used; a line that is gone leaves the list."""
    left = dict(ALLOWED)
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not SUSPECTS.search(line.partition("# ")[0]) or name == "engine/determinism.py":
                continue
            known = [key for key in ALLOWED if key[0] == name and key[1] in line]
            assert known, f"{name}:{number}: {line.strip()}: may it depend on timing? See docs/determinism.md"
            left.pop(known[0], None)
    assert not left
