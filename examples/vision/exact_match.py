"""How many of a file's questions a model answers exactly, with their own pictures and with other rows'.

    python examples/vision/exact_match.py MODEL [ROWS]

With another row's picture a model that looks is right by chance alone; one that does not look is as right as before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from drawing import read
from PIL import Image

BATCH = 32
Row = tuple[str, Image.Image, str]


def exact_match(model: Any, processor: Any, rows: list[Row]) -> dict[str, str]:
    """Kind of question → "right/all", for digits and shapes, and the same with other rows' pictures."""
    found: dict[str, str] = {}
    for name, kind in (("digits", True), ("shapes", False)):
        asked = [row for row in rows if row[2].isdigit() is kind]
        # Half the list on, so that no row keeps its own.
        turned = asked[len(asked) // 2 :] + asked[: len(asked) // 2]
        swapped = [(row[0], other[1], row[2]) for row, other in zip(asked, turned, strict=True)]
        for told, each in ((name, asked), (f"{name}, other pictures", swapped)):
            answers = _answers(model, processor, each)
            right = sum(answer == row[2] for answer, row in zip(answers, each, strict=True))
            found[told] = f"{right}/{len(each)}"
    return found


def _answers(model: Any, processor: Any, rows: list[Row]) -> list[str]:
    processor.tokenizer.padding_side = "left"
    answers: list[str] = []
    for at in range(0, len(rows), BATCH):
        batch = rows[at : at + BATCH]
        chats = [[{"role": "user", "content": f"{processor.image_token}\n{question}"}] for question, _, _ in batch]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        inputs = processor(text=texts, images=[[row[1]] for row in batch], padding=True, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = made[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def main() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a directory with a model and its processor")
    parser.add_argument("rows", type=Path, nargs="?", default=Path("runs/vision/data/heldout.jsonl"))
    given = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).eval()
    print(json.dumps(exact_match(model, AutoProcessor.from_pretrained(given.model), read(given.rows)), indent=2))


if __name__ == "__main__":
    main()
