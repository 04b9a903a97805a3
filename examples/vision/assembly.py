"""LLaVA out of parts: a vision tower, a language model, and a connector between them that knows nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from easydistill.models.loading import load_model, load_tokenizer
from easydistill.models.student import prune_layers

IMAGE_TOKEN = "<image>"
PATCH = 14


def assemble(tower: Any, language: str, layers: int, side: int) -> tuple[Any, Any]:
    """A LLaVA model in float32 and its processor.

    Args:
        tower: a `Dinov2Model`.
        language: a reference to the language model, of which `layers` layers are kept, evenly spread.
        side: pixels of an image's side; it becomes one token for each 14 × 14 of them.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = load_tokenizer(language)
    text = load_model(language, torch.float32)
    prune_layers(text, layers, language)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float().eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.generation_config = text.generation_config
    return model, _processor(tokenizer, side)


def _processor(tokenizer: Any, side: int) -> Any:
    """Chats and pictures to tensors, without torchvision: the smaller side to `side` pixels, the middle cut out."""
    from transformers import BitImageProcessorPil, LlavaProcessor
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

    images = BitImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.chat_template = template
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token=IMAGE_TOKEN,
        # The class token, which the strategy then leaves out.
        num_additional_image_tokens=1,
    )
