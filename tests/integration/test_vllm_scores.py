"""vLLM's offline engine as a teacher: it answers, and the signals that it scores are those of a forward pass.

`make test` starts vLLM once, here: one engine labels and scores.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.jobs import ROOT, TRAINING, local_job, run, write_config

from easydistill.methods.distil.rescore import scorer_of_store
from easydistill.signals.config import TopKSignals
from easydistill.signals.from_vllm import real_entries
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.store import SignalStore
from easydistill.signals.verify import verify

QUESTIONS = {
    "Name three things that are red.": "Apples, roses and fire engines are red.",
    "What is 12 times 12?": "12 times 12 is 144.",
    "Write a line of Python that prints the numbers from 1 to 5.": "for number in range(1, 6):\n    print(number)",
    "Where is Paris?": "Paris is the capital of France. It lies on the river Seine, in the north of the country.",
    "Say something odd.": "Zyx qua 👩‍👩‍👧, 知识蒸馏!",
    "Why is the sky blue?": "Because air scatters short waves of light more than long ones. " * 6,
}
PROMPTS = [f"Name {n + 2} things that are {kind}." for n in range(4) for kind in ("red", "round", "warm")]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def entries(**logprobs: float) -> dict[int, Any]:
    return {int(name[1:]): SimpleNamespace(logprob=math.log(p)) for name, p in logprobs.items()}


def test_listed_padding_has_no_mass() -> None:
    ids, logprobs = real_entries(entries(t3=0.5, t12=0.2, t7=0.1, t10=0.05), vocabulary=10)
    assert ids.tolist() == [3, 7]
    np.testing.assert_allclose(np.exp(logprobs), [0.5 / 0.75, 0.1 / 0.75])
    ids, logprobs = real_entries(entries(t3=0.5, t9=0.2), vocabulary=10)
    np.testing.assert_allclose(np.exp(logprobs), [0.5, 0.2])


def job_of(folder: Path, teacher: Path, student: Path, **signals: Any) -> dict[str, Any]:
    rows = [{"instruction": question, "output": answer} for question, answer in QUESTIONS.items()]
    (folder / "labeled.json").write_text(json.dumps(rows))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "labeled.json")},
        "models": {"teacher": str(teacher), "student": str(student)},
        "signals": {"kind": "top_k", "backend": "vllm", "shard_tokens": 100, "max_batch_tokens": 200, **signals},
        "distillation": {"max_seq_length": 96, "distillation_type": "forward_kld"},
        "training": {name: value for name, value in TRAINING.items() if name != "max_length"},
        "evaluation": {"enabled": False},
    }


def scored(folder: Path, teacher: Path, student: Path, **signals: Any) -> SignalStore:
    """In a process of its own, because vLLM binds its process's threads."""
    code, out = run(write_config(folder, job_of(folder, teacher, student, **signals)), timeout=500)
    assert code == 0, out
    return SignalStore(folder / "run/stages/1-score/signals")


@pytest.fixture(scope="module")
def offline(smollm: Path, tiny_model: Path, tiny_whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `label/run` and `score/run`, of two jobs that one process ran on one engine."""
    folder = tmp_path_factory.mktemp("vllm")
    for name in ("label", "score"):
        (folder / name).mkdir()
    settings: dict[str, Any] = {"temperature": 0, "max_model_len": 512, "chunk_size": 5, "dtype": "bfloat16"}
    job = local_job(folder / "label", smollm, tiny_model, [*PROMPTS, "word " * 600], backend="vllm", **settings)
    del job["inference"]["batch_size"]
    job["evaluation"] = {"enabled": False}
    job["dataset"]["max_rejected_share"] = 0.2
    configs = [
        write_config(folder / "label", job),
        write_config(folder / "score", job_of(folder / "score", smollm, tiny_whole, dtype="bfloat16")),
    ]
    # In a process of its own, because vLLM binds its process's threads.
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.shared_vllm", *map(str, configs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.vllm
@needs_vllm
def test_the_offline_teacher(offline: Path) -> None:
    """It answers all prompts but the one that is too long, which is a rejected row."""
    summary = json.loads((offline / "label/run/summary.json").read_text())
    assert summary["rows"]["rejected_by_reason"] == {"prompt_too_long": 1}
    rows = json.loads((offline / "label/run/stages/1-label/labeled.json").read_text())
    assert [row["instruction"] for row in rows] == PROMPTS
    assert all(row["output"].strip() for row in rows)
    assert "<|im_end|>" not in rows[0]["output"]


def differences(store: SignalStore, teacher: Path, config: TopKSignals, vocabulary: int) -> tuple[Any, Any, float]:
    """Differences from transformers: (targets, in nats; listed probabilities; share of listed tokens in common)."""
    plain = ModelScorer([str(teacher)], [1.0], config, vocabulary, 1.0)
    targets, listed, overlaps = [], [], []
    for sample_id in store.ids:
        ids, learned = store.tokens(sample_id)
        kept, present = store.read(sample_id, ids, learned)
        assert present.all()
        wanted = plain.score([RowToScore(sample_id, ids, learned)])[0].signal
        assert len(wanted) == len(kept) == sum(learned)
        total = np.exp(kept.head_logprobs_NK).sum(-1) + np.exp(kept.log_rest_N)
        np.testing.assert_allclose(total, 1.0, atol=1e-4)
        targets.append(kept.target_logprob_N - wanted.target_logprob_N)
        for n in range(len(kept)):
            ours = dict(zip(kept.head_ids_NK[n].tolist(), np.exp(kept.head_logprobs_NK[n]).tolist(), strict=True))
            theirs = dict(zip(wanted.head_ids_NK[n].tolist(), np.exp(wanted.head_logprobs_NK[n]).tolist(), strict=True))
            both = set(ours) & set(theirs)
            assert max(ours) < vocabulary
            overlaps.append(len(both) / config.k)
            listed += [ours[token] - theirs[token] for token in both]
    return np.concatenate(targets), np.array(listed), float(np.mean(overlaps))


@pytest.mark.vllm
@needs_vllm
def test_vllm_scores_as_transformers_does(offline: Path, smollm: Path) -> None:
    """The real SmolLM2 in bfloat16, rows of several batches and shards, the longest cut at the job's length."""
    store = SignalStore(offline / "score/run/stages/1-score/signals")
    assert store.manifest.samples == len(QUESTIONS)
    assert store.manifest.shards >= 3
    assert store.manifest.about["signals"]["backend"] == "vllm"
    assert max(len(store.tokens(sample_id)[0]) for sample_id in store.ids) == 96
    # Either implementation is about 0.04 nats from float32, and no nearer to the other.
    targets, listed, overlap = differences(store, smollm, TopKSignals(kind="top_k", dtype="float32"), 49_152)
    assert np.abs(targets).mean() < 0.06
    assert np.abs(targets).max() < 0.5
    assert np.abs(listed).mean() < 0.004
    assert np.abs(listed).max() < 0.1
    assert overlap > 0.95
    # `signals verify` holds the store against transformers, in the store's own number type.
    scorer, tolerance = scorer_of_store(store)
    found = verify(store, scorer, 1000, tolerance, 0, lambda count: None)
    assert found.good
    assert found.tokens == store.manifest.tokens
    assert found.head_overlap > 0.95
    assert found.mean < 0.06


@pytest.fixture
def padded_teacher(smollm: Path, tmp_path: Path) -> Path:
    """A small model in float32 whose padding, 64 rows of the output layer, is as probable as anything."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    directory = tmp_path / "padded"
    config = LlamaConfig(
        vocab_size=49_152 + 64,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight *= 12
            # The last row repeats a real token's, so that in many places it is among the most probable.
            model.lm_head.weight[-8:] = 1.5 * model.lm_head.weight[300:308]
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(smollm).save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.vllm
@needs_vllm
def test_padding_is_never_listed(padded_teacher: Path, tiny_whole: Path, tmp_path: Path) -> None:
    store = scored(tmp_path, padded_teacher, tiny_whole, dtype="float32", k=30)
    signals = [store.read(sample_id, *store.tokens(sample_id))[0] for sample_id in store.ids]
    entries_of = np.concatenate([np.isfinite(signal.head_logprobs_NK).sum(-1) for signal in signals])
    assert entries_of.min() < 30 == entries_of.max()
    # Where padding was listed, its mass is gone from the others too, but for what is not listed of it.
    targets, listed, _ = differences(store, padded_teacher, TopKSignals(kind="top_k", k=30, dtype="float32"), 49_152)
    assert np.abs(listed).max() < 2e-3
    assert np.abs(targets).max() < 0.05
