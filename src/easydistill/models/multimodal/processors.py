"""The processors that turn images into what models that see are given.

A chat template writes one placeholder (`mark`) where an image stands. A processor replaces it by a run of image tokens,
with marks around them, whose number depends on the image; the model puts the image's features in the place of the image
tokens.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.records import content_hash
from easydistill.errors import ModelError
from easydistill.models.loading import explained, full_config, import_torch, is_multimodal
from easydistill.models.reference import model_directory, resolve

if TYPE_CHECKING:
    import torch

TYPE_IDS = ("mm_token_type_ids", "token_type_ids")
"""Names under which models are told which tokens are images': 1, and 0 for text."""
OF_TEXT = frozenset({"input_ids", "attention_mask", "text_replacement_offsets", *TYPE_IDS})
"""What a processor returns of a text."""
_CONFIG = "processor_config.json"
_VIDEO_CONFIG = "video_preprocessor_config.json"
_VIDEO = "video_processor"


@dataclass(frozen=True, eq=False)
class Processor:
    """A processor of transformers, and what has to be known about it.

    Args:
        wrapped: the processor; it holds the image processor and the tokenizer.
        inputs: names of what the model's `forward` takes.
        video: settings for videos, which are not read; they are saved as they were.
    """

    wrapped: Any
    inputs: frozenset[str]
    video: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with its chat template."""
        return self.wrapped.tokenizer

    @property
    def mark(self) -> str:
        """The placeholder that stands for an image in a text that a chat template has rendered."""
        mark: str = self.wrapped.image_token
        return mark

    @cached_property
    def image_token_ids(self) -> tuple[int, ...]:
        """The tokens in whose places features of images are put. They are never learned, nor generated."""
        return tuple(sorted({int(token) for token in self.wrapped.image_token_ids if token is not None}))

    @cached_property
    def reserved_ids(self) -> tuple[int, ...]:
        """The tokens that stand for images, videos or sounds, none of which a model may write."""
        found = set(self.image_token_ids)
        for kind in ("image", "video", "audio"):
            named = getattr(self.wrapped, f"{kind}_token_id", None)
            found |= {int(token) for token in (named, *getattr(self.wrapped, f"{kind}_token_ids", ())) if token}
        unknown = self.tokenizer.unk_token_id
        return tuple(sorted(found - {unknown}))

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """The texts of these tokens: what no message may hold, since it would be taken for an image."""
        return tuple(dict.fromkeys((self.mark, *self.tokenizer.convert_ids_to_tokens(list(self.reserved_ids)))))

    @cached_property
    def type_name(self) -> str | None:
        """The name under which the model is told which tokens are images'; None if it is not told."""
        return next((name for name in TYPE_IDS if name in self.inputs), None)

    def type_ids(self, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model must be told of the tokens beside their ids, padding included; nothing for most models.

        Models that are to be told and are not take the tokens of an image for text, without a word.
        """
        if self.type_name is None:
            return {}
        import torch

        images = torch.tensor(self.image_token_ids, dtype=ids_BT.dtype, device=ids_BT.device)
        return {self.type_name: torch.isin(ids_BT, images).long()}

    def called(self, text: Sequence[str], images: Sequence[Sequence[Any]] | None, **options: Any) -> Mapping[str, Any]:
        """What the processor makes of texts with bare placeholders, and of each text's images."""
        made: Mapping[str, Any] = self.wrapped(
            text=list(text), images=None if images is None else [list(row) for row in images], **options
        )
        return made

    def identity(self) -> dict[str, Any]:
        """What changes when the same image would become other numbers or other tokens."""
        described = self.wrapped.to_dict()
        for name in (_VIDEO, "processor_class", "auto_map", "transformers_version"):
            described.pop(name, None)
        # With torchvision another class resizes, a little differently.
        names = [type(part).__name__ for part in (self.wrapped, self.wrapped.image_processor)]
        return {"processor": names, "settings": content_hash(json.loads(json.dumps(described, default=str)))}

    def save(self, directory: Path) -> None:
        """Write the processor with its tokenizer, so that transformers' `AutoProcessor` and `load_processor` read
        it."""
        self.wrapped.chat_template = self.tokenizer.chat_template
        self.wrapped.save_pretrained(directory)
        if self.video is not None:
            path = directory / _CONFIG
            saved = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**saved, _VIDEO: self.video}, indent=2) + "\n", encoding="utf-8")


def load_processor(reference: str, *, trust_remote_code: bool = False) -> Processor:
    """The processor of a model that sees images.

    Raises:
        ModelError: it cannot be loaded; the model sees no images; or images become something else for this family than
            tokens in the text.
    """
    import_torch()
    config = full_config(reference, trust_remote_code=trust_remote_code)
    if not is_multimodal(config):
        raise ModelError(f"{reference}: this model reads text alone\n    → name one that sees images")
    directory = model_directory(resolve(reference))
    with explained(reference):
        wrapped, video = _loaded(directory, trust_remote_code)
    if wrapped.chat_template is not None:
        # Old files hold it beside the tokenizer's.
        wrapped.tokenizer.chat_template = wrapped.chat_template
    processor = Processor(wrapped, _inputs(config), video)
    _check(processor, reference)
    return processor


def _inputs(config: Any) -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return frozenset(inspect.signature(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].forward).parameters)


def _loaded(directory: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any] | None]:
    """The processor, and the settings of its part for videos, which is left out."""
    from transformers import AutoProcessor

    found = _class_of(directory, trust_remote_code)
    if found is None or _VIDEO not in found.get_attributes():
        return AutoProcessor.from_pretrained(directory, trust_remote_code=trust_remote_code), None
    wrapped = without_videos(found).from_pretrained(directory)
    # Where there are none, transformers takes those for images.
    return wrapped, _video_settings(directory) or wrapped.image_processor.to_dict()


def _class_of(directory: str, trust_remote_code: bool) -> Any | None:
    """The class of the processor that a model's files name, or that belongs to its config."""
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.image_processing_auto import get_image_processor_config
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    try:
        named = ProcessorMixin.get_processor_dict(directory)[0].get("processor_class")
    except OSError:
        named = None
    named = named or get_image_processor_config(directory).get("processor_class")
    if named:
        return processor_class_from_name(named)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    return PROCESSOR_MAPPING.get(type(config), None)


def without_videos(kind: Any) -> Any:
    """A class of processors without its part for videos, which cannot even be imported where torchvision is not
    installed, and has no settings in some models. It is named and saved as the class itself."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in super(made, cls).get_attributes() if name != _VIDEO]

    made: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})
    return made


def _video_settings(directory: str) -> dict[str, Any] | None:
    from transformers.utils import cached_file

    for name in (_CONFIG, _VIDEO_CONFIG):
        path = cached_file(directory, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if name == _VIDEO_CONFIG:
            return dict(values)
        if isinstance(values.get(_VIDEO), dict):
            return dict(values[_VIDEO])
    return None


def _check(processor: Processor, reference: str) -> None:
    """Show the processor an image, and check that everything it returns is understood.

    Raises:
        ModelError: it is not.
    """
    problem = _problem(processor)
    if problem:
        kind = type(processor.wrapped).__name__
        raise ModelError(
            f"{reference}: images cannot be given to this model: its processor ({kind}) {problem}\n"
            "    → take another model, or please report this one"
        )


def _problem(processor: Processor) -> str:
    from PIL import Image

    wrapped = processor.wrapped
    if not isinstance(getattr(wrapped, "image_token", None), str) or not processor.image_token_ids:
        return "names no token that stands for an image"
    probe = Image.new("RGB", (64, 48), (200, 100, 50))
    try:
        made = processor.called([f"a{processor.mark}b"], [[probe]], return_tensors="pt")
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        return f"fails at a small image: {' '.join(str(error).split())[:200]}"
    if unknown := sorted(made.keys() - OF_TEXT - processor.inputs):
        return f"returns {', '.join(unknown)}, which the model does not take"
    ids_BT = made["input_ids"]
    if not any((ids_BT == token).any() for token in processor.image_token_ids):
        return "puts no tokens in the place of an image"
    name = processor.type_name
    if name is not None and name in made and bool((made[name] != processor.type_ids(ids_BT)[name]).any()):
        return f"returns {name} that do not say which tokens are images'"
    return ""
