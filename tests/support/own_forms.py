"""Teachers with the student's vocabulary that read chats, and images, in a form of their own."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.pictures import picture
from tests.support.vision_models import END, make_config, make_processor, save_processor, template

COLOURS = {"red": (230, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 230), "grey": (120, 120, 120)}
OTHER_TEMPLATE = (
    template("llava")
    .replace("<|im_start|>{{ m.role }}\n", "[{{ m.role }}] ")
    .replace("<|im_start|>assistant\n", "[assistant] ")
)
"""The same chat in other words, its answers and their ends alike."""


@cache
def coarse_llava(seed: int = 1) -> Path:
    """The directory of a tiny LLaVA that reads an image as 4 tokens; `vision_model("llava")` reads 16."""
    import torch
    from transformers import AutoModelForImageTextToText

    directory = Path(tempfile.mkdtemp(prefix="easydistill-coarse-"))
    processor = make_processor("llava")
    processor.image_processor.size = {"shortest_edge": 8}
    processor.image_processor.crop_size = {"height": 8, "width": 8}
    save_processor("llava", processor, directory)
    config = make_config("llava", processor.tokenizer)
    config.vision_config.image_size = 8
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval()
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(4.0)
    model.save_pretrained(directory)
    return directory


def rows_with_images(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """Rows with one image, with two, and with none."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        names = [draw.choice(list(COLOURS)) for _ in range((1, 1, 2, 0)[number % 4])]
        paths = []
        for at, name in enumerate(names):
            shade = tuple(min(255, max(0, value + draw.randint(-15, 15))) for value in COLOURS[name])
            paths.append(f"{number}-{at}.png")
            size = (24, 24 + 4 * at)
            (folder / paths[-1]).write_bytes(picture(shade, size))  # type: ignore[arg-type]
        asked = "<image>" * len(names) + f"\nColours in {number}?"
        answer = " and ".join(names) or f"none in {number}"
        rows.append(
            {"id": f"r{number}", "instruction": asked, "output": answer, **({"images": paths} if paths else {})}
        )
    return rows


def white_box(folder: Path, teacher: Path, student: Path, align: str = "answers", **values: Any) -> dict[str, Any]:
    """A white-box job on such rows, of which a quarter is held out."""
    (folder / "rows.json").write_text(json.dumps(rows_with_images(folder)))
    made = {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"teacher": str(teacher), "student": str(student)},
        "training": {
            "num_train_epochs": 6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 3e-3,
            "max_length": 256,
        },
        "distillation": {"kd_ratio": 1.0, "align": align},
        "signals": {"kind": "top_k", "k": 64, "dtype": "float32"},
        "evaluation": {"heldout": 6, "generate": False},
    }
    for name, value in values.items():
        made[name] = {**made[name], **value} if isinstance(value, dict) and name in made else value  # type: ignore[dict-item]
    return made


__all__ = ["END", "OTHER_TEMPLATE", "coarse_llava", "rows_with_images", "white_box"]
