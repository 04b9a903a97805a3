"""4-bit weights in the layout of AWQ, for vLLM, SGLang and transformers: a scale and an offset for each group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source, Written
from easydistill.exporting import auto_rounding

NUMBERS = auto_rounding.NUMBERS
LOSSLESS: tuple[str, ...] = ()
CALIBRATES = True
EXTRA = "export"
IMPORTS = ("auto_round",)


def problem(config: dict[str, Any], number: str) -> tuple[str, str] | None:
    """Whether rows of all matrices are whole groups."""
    return auto_rounding.config_problem(config, "awq", number)


def write(source: Source, number: str, target: Path) -> Written:
    """Round the model, and write its folder."""
    return auto_rounding.write_folder(source, "awq", number, target)


def load(source: Source, target: Path, file: str) -> Any:
    """The model, its packed weights as the layout defines them."""
    from easydistill.exporting.packed_four_bits import load_folder

    return load_folder(source.config, target, "awq")


def load_tokenizer(target: Path, file: str) -> Any:
    """The tokenizer, from the folder alone."""
    from easydistill.exporting.tokenizers_read import of_folder

    return of_folder(target)
