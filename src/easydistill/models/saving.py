"""Makes sure, before training, that a student can be saved after it, and read by those who run it.

`save_pretrained` refuses generation configs that `from_pretrained` loads: those with options of sampling but without
`do_sample`, from `generation_config.json` or an old `config.json`. What is meant is clear, so it is mended.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from easydistill.errors import ModelError

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def make_savable(model: Any, tokenizer: Any, reference: str) -> list[str]:
    """Mend what keeps `model` from being saved, in place; returns what was changed, in words.

    Raises:
        ModelError: its config or its tokenizer cannot be saved, whatever is done.
    """
    notes = _mended(model, reference)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{reference}: it can be loaded, but not saved: {' '.join(str(error).split())[:500]}\n"
            "    → mend the file that this names (config.json, generation_config.json or the tokenizer's)"
        ) from error
    return notes


def let_read(folder: Path) -> None:
    """Let weights be read by whoever may read the model's config: safetensors saves them for their owner alone."""
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


def _mended(model: Any, reference: str) -> list[str]:
    """Mend the generation config: sampling is switched on where its options are set, else they are dropped."""
    if not model.can_generate() or (problem := _refused(model.generation_config)) is None:
        return []
    config = model.generation_config
    before, config.do_sample = config.do_sample, True
    if _refused(config) is None:
        return [f"{reference}: its generation config has options of sampling without do_sample; it is saved with it"]
    config.do_sample = before
    kept = {name: value for name in _TOKENS if (value := getattr(config, name, None)) is not None}
    model.generation_config = type(config)(**kept)
    problem = " ".join(problem.split())[:300]
    return [f"{reference}: its generation config is invalid and only the tokens in it are saved: {problem}"]


def _refused(config: Any) -> str | None:
    """Why a generation config cannot be saved; None if it can."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None
