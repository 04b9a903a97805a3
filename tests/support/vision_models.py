"""Tiny random models of five families that see images, each with a real processor, tokenizer and chat template.

They are made once per process and saved as users have them. Their weights are large enough for what they see to change
what they say.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

FAMILIES = ("idefics3", "llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
END, PAD, IMAGE = "<|im_end|>", "<|pad|>", "<image>"
"""`IMAGE` is the placeholder of the families that have none of their own below."""
MARKS = {"qwen2_5_vl": "<|image_pad|>", "qwen3_vl": "<|image_pad|>", "gemma3": "<start_of_image>"}
_CONTROL = {
    "idefics3": (
        IMAGE,
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
    ),
    "llava": (IMAGE,),
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def mark(family: str) -> str:
    """What the family's chat template writes for an image."""
    return MARKS.get(family, IMAGE)


def template(family: str) -> str:
    """ChatML; the family's placeholder, with what belongs around it, where an image stands."""
    shown = mark(family)
    if family.startswith("qwen"):
        shown = f"<|vision_start|>{shown}<|vision_end|>"
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}" + shown + "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def make_tokenizer(family: str) -> Any:
    """A byte-level tokenizer without merges, with the family's control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    control = (PAD, "<|im_start|>", END, *_CONTROL[family])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {}
    if family == "gemma3":
        named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, extra_special_tokens=named, model_max_length=4096
    )
    made.chat_template = template(family)
    return made


def make_processor(family: str) -> Any:
    """A processor of transformers, with small images."""
    import transformers

    tokenizer = make_tokenizer(family)
    own = {"chat_template": template(family)}
    if family == "llava":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        return transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            **own,
        )
    if family == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
        return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, **own)
    if family == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, **own)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from easydistill.models.multimodal.processors import without_videos

    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=8 * 8, max_pixels=24 * 24
    )
    kind = transformers.Qwen2_5_VLProcessor if family == "qwen2_5_vl" else transformers.Qwen3VLProcessor
    return without_videos(kind)(images, tokenizer, None, **own)


def make_config(family: str, tokenizer: Any, **text: Any) -> Any:
    """The config of a tiny model; `text` are further values of its text part."""
    from transformers import AutoConfig

    def number(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    ends = {"bos_token_id": None, "eos_token_id": number(END), "pad_token_id": number(PAD)}
    values = {**_TEXT, "vocab_size": len(tokenizer), **ends}
    if family == "llava":
        return AutoConfig.for_model(
            "llava",
            text_config={"model_type": "llama", **values, **text},
            vision_config={"model_type": "clip_vision_model", **_TOWER, "image_size": 16, "patch_size": 4},
            image_token_id=number(IMAGE),
            **ends,
        )
    if family == "idefics3":
        return AutoConfig.for_model(
            "idefics3",
            text_config={"model_type": "llama", **values, **text},
            vision_config={**_TOWER, "image_size": 16, "patch_size": 4},
            image_token_id=number(IMAGE),
            scale_factor=2,
            tie_word_embeddings=False,
            **ends,
        )
    if family == "gemma3":
        return AutoConfig.for_model(
            "gemma3",
            text_config={**values, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8, **text},
            vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 16, "patch_size": 4},
            mm_tokens_per_image=4,
            image_token_id=number("<image_soft_token>"),
            boi_token_id=number("<start_of_image>"),
            eoi_token_id=number("<end_of_image>"),
            **ends,
        )
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    width = {**values, **text}["hidden_size"]
    half = width // {**values, **text}["num_attention_heads"] // 2
    sections = [half - 2 * (half // 4), half // 4, half // 4]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    tower |= {"out_hidden_size": width}
    if family == "qwen2_5_vl":
        tower |= {"hidden_size": 16, "intermediate_size": 32, "window_size": 16}
        tower |= {"fullatt_block_indexes": [1]}
    else:
        tower |= {"hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16}
        tower |= {"deepstack_visual_indexes": [0]}
        values |= {"head_dim": 2 * half}
        rope |= {"mrope_interleaved": True}
    return AutoConfig.for_model(
        family,
        text_config={**values, "rope_parameters": rope, "tie_word_embeddings": False, **text},
        vision_config=tower,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
        **ends,
    )


def make_model(family: str, tokenizer: Any, seed: int = 0, **text: Any) -> Any:
    """A tiny random model in eval mode, in which images matter."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(make_config(family, tokenizer, **text)).eval()
        for name, value in model.named_parameters():
            if value.dim() > 1:
                # Gemma3's projection starts at zero.
                value.normal_(std=0.1) if name.endswith("mm_input_projection_weight") else value.mul_(4.0)
    return model


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="easydistill-vision-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def save_processor(family: str, processor: Any, directory: Path) -> None:
    """Write a processor as models of the family have it: with settings for videos, if it takes some."""
    from easydistill.models.multimodal import Processor

    video = processor.image_processor.to_dict() if family.startswith("qwen") else None
    Processor(processor, frozenset(), video).save(directory)


@cache
def vision_model(family: str, seed: int = 0, layers: int = 2) -> Path:
    """The directory of a tiny model of a family, with weights, processor, tokenizer and chat template."""
    directory = _root() / f"{family}-{seed}-{layers}"
    processor = make_processor(family)
    save_processor(family, processor, directory)
    make_model(family, processor.tokenizer, seed, num_hidden_layers=layers).save_pretrained(directory)
    return directory


def store_of(folder: Path, pictures: Sequence[bytes]) -> tuple[Any, list[str]]:
    """A store with pictures (`tests/support/pictures.py`), and their digests."""
    from easydistill.data.images import ImageStore

    store = ImageStore(folder)
    return store, [store.add(data) for data in pictures]
