"""Real vLLM as a server of a model that sees: it answers questions about images, and scores tokens with images.

The model is a tiny random one, or that of VISION_TEACHER: a folder that `examples/vision` has made. torchvision, which
vLLM's classes for such models need, is in the folder of EASYDISTILL_TORCHVISION: it must not be beside the CPU build
of torch in an environment that other tests use:

    pip install --no-deps --target FOLDER torchvision
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from tests.support.jobs import ROOT, run, write_config
from tests.support.pictures import encoded
from tests.support.served import free_port, serving
from tests.support.vision_models import make_model, make_processor, save_processor

from easydistill.config.inference import ApiInferenceConfig, TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.reading import read_samples
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.teachers.openai.scores import ServerScores
from easydistill.teachers.transformers import TransformersTeacher

TORCHVISION = os.environ.get("EASYDISTILL_TORCHVISION", str(Path(sys.prefix) / "torchvision"))
TEACHER = os.environ.get("VISION_TEACHER")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(
        not (Path(TORCHVISION) / "torchvision").is_dir(),
        reason="no torchvision for vLLM (pip install --no-deps --target FOLDER torchvision, EASYDISTILL_TORCHVISION)",
    ),
]
KEY = "sk-vision-test-key"
ROWS = 24


@dataclass(frozen=True)
class Served:
    url: str
    reference: str


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    if TEACHER is not None:
        return TEACHER
    folder = tmp_path_factory.mktemp("teacher")
    processor = make_processor("qwen2_5_vl")
    # Attention of vLLM on a CPU knows no narrower heads.
    wide = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    make_model("qwen2_5_vl", processor.tokenizer, **wide).save_pretrained(folder)
    save_processor("qwen2_5_vl", processor, folder)
    return str(folder)


@pytest.fixture(scope="module")
def served(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "tests.support.vllm_vision_server", "--model", teacher]
    command += ["--served-model-name", "seeing", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8", "--api-key", KEY]
    command += ["--enable-scale-out"]
    if TEACHER is not None:
        # vLLM's own class for LLaVA knows no tower of DINOv2.
        command += ["--model-impl", "transformers"]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [TORCHVISION, os.environ.get("PYTHONPATH")])),
    }
    with serving(command, port, log, environment, 300, ROOT):
        yield Served(f"http://127.0.0.1:{port}/v1", teacher)


def drawn(number: int) -> bytes:
    """A picture of its own for each number."""
    image = Image.new("RGB", (84, 84), (number * 9 % 256, 40, 255 - number * 7 % 256))
    ImageDraw.Draw(image).text((20 + number, 30), str(number), (255, 255, 255))
    return encoded(image)


def write_rows(folder: Path) -> Path:
    made = []
    for number in range(ROWS):
        (folder / f"{number}.png").write_bytes(drawn(number))
        images = [f"{number}.png"] if number % 6 else [f"{number}.png", f"{(number + 1) % ROWS}.png"]
        made.append({"id": f"row-{number}", "instruction": "Which digit is in the picture?", "images": images})
    made += [{"id": f"text-{number}", "instruction": f"Say the number {number}."} for number in range(4)]
    (folder / "rows.json").write_text(json.dumps(made))
    return folder / "rows.json"


def own_answers(reference: str, requests: list[GenerationRequest], store: ImageStore) -> dict[str, Completion]:
    config = TransformersInferenceConfig(backend="transformers", max_new_tokens=8, temperature=0.0, dtype="float32")
    found: list[Outcome] = []
    TransformersTeacher(reference, config, images=store).generate(
        requests, lambda key: False, found.extend, StopSignal()
    )
    return {outcome.key: outcome for outcome in found if isinstance(outcome, Completion)}


def test_a_black_box_job_over_images(served: Served, tmp_path: Path) -> None:
    """The answers are those of transformers, and the student learns from them."""
    job = {
        "job_type": "black_box_kd_api",
        "output_dir": str(tmp_path / "run"),
        "dataset": {
            "instruction_path": str(write_rows(tmp_path)),
            "labeled_path": str(tmp_path / "labels.json"),
            # A random model answers with blanks, now and then.
            "max_rejected_share": 1.0,
        },
        "inference": {
            "base_url": served.url,
            "api_key": "${env:VLLM_KEY}",
            "max_new_tokens": 8,
            "temperature": 0,
        },
        "models": {"student": served.reference},
        "training": {"num_train_epochs": 1, "max_length": 512, "learning_rate": 1e-4, "per_device_train_batch_size": 4},
        "evaluation": {"heldout": 4, "max_new_tokens": 4},
    }
    started = time.monotonic()
    code, out = run(write_config(tmp_path, job), VLLM_KEY=KEY, timeout=500)
    assert code == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    label = summary["stages"]["label"]
    tokens = label["tokens"]["prompt"] + label["tokens"]["completion"]
    print(f"job {time.monotonic() - started:.0f} s; label {label['seconds']:.1f} s, {tokens} tokens")
    store = ImageStore(tmp_path / "read")
    labels, rejected = read_samples(tmp_path / "labels.json", labelled=True, images=ImageReader(store))
    assert not rejected and len(labels) >= (ROWS + 4 if TEACHER is not None else 8)
    prompts, _ = read_samples(tmp_path / "rows.json", labelled=False, images=ImageReader(store))
    own = own_answers(served.reference, [GenerationRequest(row.id, row.messages) for row in prompts], store)
    # Every image is as many tokens there as here.
    assert label["tokens"]["prompt"] == sum(each.prompt_tokens for each in own.values())
    same = sum((own[row.id].text or "").strip() == (row.answer or "").strip() for row in labels)
    print(f"{same} of {len(labels)} answers are equal to those of transformers")
    if TEACHER is not None:
        # Greedy answers part where two tokens are as probable but for rounding; a random model's are mostly bytes that
        # are no text.
        assert same >= len(labels) - 2
    for path in (tmp_path / "run").rglob("*.jsonl"):
        assert b";base64," not in path.read_bytes()


def test_its_scores_are_those_of_transformers(served: Served, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    vision = Vision(load_processor(served.reference), store.path)
    tokenizer, model = vision.processor.tokenizer, load_model(served.reference, torch.float32).eval()
    sequences: list[tuple[list[int], int]] = []
    images: list[tuple[str, ...]] = []
    for number in range(ROWS):
        own = tuple(store.add(drawn(number + turn)) for turn in range(number % 3))
        content: list[Any] = [*({"type": "image"} for _ in own), {"type": "text", "text": "Which digit is it?"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(vision.expand(text, own), add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"It is {number}, I think.", add_special_tokens=False)["input_ids"]
        sequences.append((prompt + answer, len(prompt)))
        images.append(own)
    server = ServerScores(
        ApiInferenceConfig(base_url=served.url, api_key=KEY, max_concurrency=8),
        Redactor(),
        lambda token: tokenizer.decode([token]),
        vision,
        store,
    )
    started = time.monotonic()
    found = server.score(sequences, StopSignal(), images)
    seconds = time.monotonic() - started
    gaps: list[float] = []
    swapped: list[float] = []
    for (ids, start), own, theirs in zip(sequences, images, found, strict=True):
        ids_BT = torch.tensor([ids])
        with torch.inference_mode():
            logits_TV = model(input_ids=ids_BT, **vision.inputs(ids_BT, [(ids, own)])).logits[0]
        mine_T = logits_TV.log_softmax(-1)[:-1].gather(-1, ids_BT[0, 1:, None])[start - 1 :, 0]
        gaps += (mine_T - torch.tensor(theirs)).abs().tolist()
        if own:
            other = tuple(store.add(drawn(50 + number)) for number in range(len(own)))
            (instead,) = server.score([(ids, start)], StopSignal(), [other])
            swapped += (mine_T - torch.tensor(instead)).abs().tolist()
    tokens = sum(len(ids) for ids, _ in sequences)
    print(
        f"{len(gaps)} tokens of {ROWS} rows: largest difference {max(gaps):.1e} nats, mean {sum(gaps) / len(gaps):.1e}"
    )
    print(f"{seconds:.2f} s, {tokens / seconds:.0f} tokens/s; with other images {max(swapped):.2f} nats")
    assert max(gaps) < 1e-3
    assert max(swapped) > 0.01
