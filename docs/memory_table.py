"""Writes the memory table of docs/guide/gpu.md from the code that `plan` uses: `python docs/memory_table.py`.

With `--check` it only compares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.memory import GB, training_memory
from easydistill.models.size import student_shape

PAGE = Path(__file__).with_name("guide") / "gpu.md"
BEGIN, END = "<!-- memory -->\n", "<!-- /memory -->\n"
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "0.5B": ((896, 4864, 24, 14, 2), 151_936, True),
    "1.5B": ((1536, 8960, 28, 12, 2), 151_936, True),
    "3B": ((2048, 11_008, 36, 16, 2), 151_936, True),
    "7B": ((3584, 18_944, 28, 28, 4), 152_064, False),
    "14B": ((5120, 13_824, 48, 40, 8), 152_064, False),
    "32B": ((5120, 27_648, 64, 40, 8), 152_064, False),
}
"""Qwen2.5's: widths and numbers in the order of `NAMES`, vocabulary, whether embedding and output layer are one."""
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
SMALL: dict[str, Any] = CHECKPOINTED | {"weights": "bfloat16"}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "`gradient_checkpointing`": CHECKPOINTED,
    '… and `weights: "bfloat16"`, `optim: "adamw_8bit"`': SMALL | {"optim": "adamw_8bit"},
    '`gradient_checkpointing`, `weights: "bfloat16"`, `lora: {}`': SMALL | {"lora": {}},
}
TOKENS = 2048


def text() -> str:
    head = f"| settings of `training` | {' | '.join(SHAPES)} |"
    lines = [head, f"|---|{'--:|' * len(SHAPES)}"]
    for name, training in SETTINGS.items():
        cells = " | ".join(f"{_gigabytes(shape, training):.0f}" for shape in SHAPES)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def _gigabytes(size: str, training: dict[str, Any]) -> float:
    numbers, vocabulary, tied = SHAPES[size]
    config = {"model_type": "qwen2", "vocab_size": vocabulary, "tie_word_embeddings": tied}
    shape = student_shape(ModelsConfig(student=FreshStudent(config=config | dict(zip(NAMES, numbers, strict=True)))))
    assert shape is not None
    section = TrainingConfig.model_validate({"max_length": TOKENS, **training})
    return training_memory(shape, section, bf16=True).total / GB


def current(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text()}\n{END}{after}"


if __name__ == "__main__":
    found = PAGE.read_text(encoding="utf-8")
    wanted = current(found)
    if "--check" in sys.argv:
        sys.exit(0 if found == wanted else f"{PAGE}: run python docs/memory_table.py")
    PAGE.write_text(wanted, encoding="utf-8")
