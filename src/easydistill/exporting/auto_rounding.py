"""Weights rounded to 4 bits by auto-round, as GPTQ's or AWQ's files hold them.

auto-round learns for each weight whether it is rounded up or down, and for each group of weights how far their range
is clipped, so that a layer's outputs on the calibration rows change least (SignRound, arXiv:2309.05516). `gptq` and
`awq` are the two layouts in which loaders expect the result: GPTQ's without offsets, AWQ's with one for each group.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source, Written
from easydistill.data.files import write_json
from easydistill.errors import MissingExtra, ModelError
from easydistill.exporting.formats.safetensors import refuse_overflow

NUMBERS = ("w4g128", "w4g64", "w4g32")
"""Four bits, in groups of so many weights of a row."""
_LAYOUTS = {"gptq": "auto_gptq", "awq": "auto_awq"}


def group_of(number: str) -> int:
    """Weights that share a scale."""
    return int(re.fullmatch(r"w4g(\d+)", number)[1])  # type: ignore[index]


def config_problem(config: Mapping[str, Any], layout: str, number: str) -> tuple[str, str] | None:
    """(problem, hint) if a layer of a model of this config.json reads rows that are not whole groups."""
    if "vision_config" in config or "text_config" in config:
        return f"a model that sees images is not written as {layout}", "export it as safetensors"
    if config.get("num_experts") or config.get("num_local_experts"):
        return f"a mixture of experts is not written as {layout}", "export it as safetensors"
    if config.get("quantization_config"):
        return f"a model with a quantization_config is not written as {layout}", "export the model it was made of"
    widths = _input_widths(config)
    uneven = [width for width in widths if width % group_of(number)]
    if not uneven:
        return None
    fitting = [each for each in NUMBERS if not any(width % group_of(each) for width in widths)]
    hint = f"use {layout}:{fitting[0]}" if fitting else "no group size fits: use gguf:q4_k_m"
    return f"{uneven[0]}, the width of what a layer reads, is not whole groups of {group_of(number)}", hint


def _input_widths(config: Mapping[str, Any]) -> list[int]:
    """What the matrices of a layer read: the model's width, that of all heads, and that between the two of an MLP."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    own = config.get("head_dim")
    all_heads = heads * own if isinstance(heads, int) and isinstance(own, int) else width
    named = (width, all_heads, config.get("intermediate_size"))
    return [each for each in dict.fromkeys(named) if isinstance(each, int)]


def write_folder(source: Source, layout: str, number: str, target: Path) -> Written:
    """Write the model's folder.

    Raises:
        MissingExtra: auto-round is not installed.
        ModelError: the model is not of matrices that are known, auto-round failed, or rounded nothing.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    from easydistill.exporting.packed_four_bits import layers_of
    from easydistill.models.loading import load_model
    from easydistill.models.saving import let_read, make_savable

    assert source.calibration is not None, "the format says that it calibrates"
    model = load_model(source.directory, torch.float32)
    refuse_overflow(model)
    notes = [*make_savable(model, source.tokenizer, source.reference)]
    if any(isinstance(module, Conv1D) for module in model.modules()):
        problem = f"{source.reference}: its layers are not of the kind that is read back from {layout}"
        raise ModelError(f"{problem}\n    → export it as safetensors")
    inside = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside -= {name for name in inside if model.get_submodule(name) is model.get_output_embeddings()}
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = _rounded(model, source, layout, number, folder)
        for path in made.iterdir():
            shutil.move(path, target / path.name)
    # What auto-round writes of a tokenizer is what it was given, without its padding token.
    source.tokenizer.save_pretrained(target)
    _halve(target)
    let_read(target)
    packed = layers_of(target)
    if not packed:
        raise ModelError(f"{source.reference}: auto-round has rounded none of its layers\n    → use gguf:q4_k_m")
    if skipped := sorted(inside - packed):
        notes.append(
            f"{len(skipped)} of {len(inside)} layers, such as {skipped[0]}, are not rounded and stay float16: rows or "
            "columns of theirs are not whole blocks of 32"
        )
    tokens, steps = sum(map(len, source.calibration.blocks)), source.calibration.iterations
    # Without steps auto-round searches symmetric scales alone.
    scales = "searched scales" if layout == "gptq" else "scales from the least and the largest weight of a group"
    how = (
        f"fitted to {tokens:,} tokens in {steps:,} steps a layer" if steps else f"to the nearest number, with {scales}"
    )
    notes.append(f"rounded by auto-round, {how}")
    facts = {
        "tensors": {"4-bit": len(packed)} | ({"F16": len(skipped)} if skipped else {}),
        "calibration": {"tokens": tokens, "iterations": steps},
    }
    return Written("", notes, facts)


def _rounded(model: Any, source: Source, layout: str, number: str, folder: str) -> Path:
    """The folder, somewhere in `folder`, that auto-round makes of a model, which is changed."""
    import torch

    fitted = source.calibration
    assert fitted is not None
    blocks = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in fitted.blocks]
    for layers in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for layer in layers:
            layer.register_forward_pre_hook(lambda *_: fitted.raise_if_stopped())
    # auto-round learns nothing from padding, and takes a turn's end for it where both are the same token.
    tokenizer = copy.deepcopy(source.tokenizer)
    tokenizer.pad_token = None
    with _quiet(fitted.log):
        try:
            from auto_round import AutoRound
        except ImportError:
            raise MissingExtra("export", f"Writing {layout}") from None
        rounding = AutoRound(
            model,
            tokenizer,
            scheme="W4A16",
            sym=layout == "gptq",
            group_size=group_of(number),
            dataset=blocks,
            nsamples=len(blocks),
            seqlen=len(fitted.blocks[0]),
            iters=fitted.iterations,
            batch_size=min(fitted.batch_size, len(blocks)),
            enable_torch_compile=False,
            device_map=_device(),
        )
        try:
            _, made = rounding.quantize_and_save(folder, format=_LAYOUTS[layout])
        except SystemExit:
            raise ModelError(f"{source.reference}: auto-round gave up; see {fitted.log}") from None
    return Path(made[0] if isinstance(made, list) else made)


def _halve(folder: Path) -> None:
    """What is not rounded as float16, which the config promises: auto-round leaves it in the numbers that it had."""
    import torch
    from safetensors.torch import load_file, save_file

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        stored = {name: each.half() if each.dtype == torch.float32 else each for name, each in load_file(path).items()}
        total += sum(each.nbytes for each in stored.values())
        save_file(stored, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        described = json.loads(index.read_text(encoding="utf-8"))
        described["metadata"]["total_size"] = total
        write_json(index, described)


def _device() -> str:
    from easydistill.models.loading import device

    found = str(device())
    return "cpu" if found == "cpu" else "0"


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """What auto-round prints goes to a file: its bars would write over ours."""
    logger = logging.getLogger("autoround")
    with log.open("a", encoding="utf-8") as file:
        before, handlers, propagate = logger.level, logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [logging.StreamHandler(file)], False
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(before)
