"""The model in this process, with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.images import ImageStore
from easydistill.errors import DataError, ModelError
from easydistill.models.limits import position_limit
from easydistill.models.loading import choose_dtype, device, eos_ids, load_tokenizer
from easydistill.models.reference import sees_images
from easydistill.models.spread import load_placed
from easydistill.serving.chats import Chats
from easydistill.serving.engine import Engine
from easydistill.serving.settings import ROWS, ServeSettings


@dataclass(frozen=True)
class Loaded:
    """What answers requests."""

    engine: Engine
    chats: Chats
    described: str
    """Where the model is, and in what numbers."""


def load(settings: ServeSettings, reference: str, images: Path) -> Loaded:
    """Load a model.

    Args:
        images: an empty folder, for those of requests under way.

    Raises:
        ModelError: it cannot be loaded, or cannot be asked.
    """
    on, trust = device(), settings.trust_remote_code
    dtype = choose_dtype(settings.dtype, on)
    tokenizer = load_tokenizer(reference, trust_remote_code=trust)
    vision, store = None, None
    if sees_images(reference):
        from easydistill.models.multimodal import Vision, load_processor

        store = ImageStore(images)
        vision = Vision(load_processor(reference, trust_remote_code=trust), store.path)
    model = load_placed(reference, dtype, None, trust_remote_code=trust).to(on)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ends = eos_ids(tokenizer, model.generation_config)
    context = _context(settings, model, reference)
    try:
        chats = Chats(tokenizer, ends, settings.template, context, vocabulary, vision, store)
        prompt = chats.check()
    except DataError as error:
        problem = str(error).partition("\n")[0]
        raise ModelError(f"{reference}: {problem}\n    → give a chat template: --template FILE") from None
    engine = Engine(model, settings.max_concurrency or ROWS, vision)
    engine.prepare(prompt)
    return Loaded(engine, chats, f"{on}, {str(dtype).removeprefix('torch.')}")


def _context(settings: ServeSettings, model: Any, reference: str) -> int | None:
    limit = position_limit(model.config)
    wanted = settings.max_model_len
    if wanted is None or limit is None:
        return wanted or limit
    if wanted > limit:
        raise ModelError(
            f"{reference}: --max-model-len {wanted} is more than the {limit} tokens that it takes\n    → lower it"
        )
    return wanted
