"""Loading weights and tokenizers, and facts about them."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.errors import MissingExtra, ModelError
from easydistill.models.reference import ModelSource, classifier_problem, model_directory, resolve

if TYPE_CHECKING:
    import torch


def import_torch() -> Any:
    """torch, or a clear error if it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtra("train", "Loading a model") from None
    # Its bars for reading and writing weights would disturb our own progress display.
    transformers.utils.logging.disable_progress_bar()
    return torch


def device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    torch = import_torch()
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def computes_well_in_bf16(on: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on a device: recent GPUs, and CPUs with AMX or AVX512-BF16."""
    torch = import_torch()
    if on.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if on.type != "cpu":
        return False
    cpu = torch.cpu
    return any(
        getattr(cpu, name)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported") if hasattr(cpu, name)
    )


def choose_dtype(name: str, on: torch.device) -> torch.dtype:
    """The dtype that `auto`, `bfloat16`, `float16` or `float32` stands for on a device."""
    torch = import_torch()
    if name == "auto":
        return torch.bfloat16 if computes_well_in_bf16(on) else torch.float32
    return getattr(torch, name)


@contextlib.contextmanager
def explained(reference: str) -> Iterator[None]:
    """Turns what loading a model raises into a `ModelError`."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, StrictDataclassError) as error:
        text = str(error).strip().split("\n")[0]
        raise ModelError(f"{reference}: cannot be loaded: {text}") from error


_structure_only = False


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Make models on the meta device in this context: their structure, for processes that get their part of the weights
    from another one."""
    global _structure_only
    before, _structure_only = _structure_only, True
    try:
        yield
    finally:
        _structure_only = before


def making() -> contextlib.AbstractContextManager[Any]:
    """A context in which modules are made where `without_weights` wants them."""
    return import_torch().device("meta") if _structure_only else contextlib.nullcontext()


def load_tokenizer(reference: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model."""
    import_torch()
    from transformers import AutoTokenizer

    directory = model_directory(resolve(reference))
    with explained(reference):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if (template := _template_of_processor(Path(directory))) is not None:
            tokenizer.chat_template = template
        return tokenizer


def _template_of_processor(directory: Path) -> Any:
    """The chat template that the processor of an older model holds, which its tokenizer does not know."""
    path = directory / "chat_template.json"
    if not path.is_file() or (directory / "chat_template.jinja").is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("chat_template")


def is_multimodal(config: Any) -> bool:
    """Whether a model of this config sees images: transformers has a class for it that takes images and text, and goes
    on with them as a decoder does.

    Args:
        config: the whole config of a model, not its text part.
    """
    if getattr(config, "vision_config", None) is None or getattr(config, "is_encoder_decoder", False):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_model(
    reference: str,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    placement: Mapping[str, Any] | None = None,
) -> Any:
    """A causal language model, in eval mode, on the CPU; with its eyes, if it has some.

    Args:
        placement: what `from_pretrained` takes to put it elsewhere (see `spread.py`).

    Raises:
        ModelError: it cannot be loaded, or some of its weights would be random: it is a classifier without a language
            head, or its files lack them (a head that was shared with the embeddings and is not said to be).
    """
    config = full_config(reference, trust_remote_code=trust_remote_code)
    if found := classifier_problem(reference, config.architectures or []):
        raise ModelError("\n    → ".join(found))
    kind = "AutoModelForImageTextToText" if is_multimodal(config) else "AutoModelForCausalLM"
    options = {**(placement or {}), "output_loading_info": True}
    model, info = _load(kind, reference, dtype, trust_remote_code, **options)
    if missing := sorted(info["missing_keys"]):
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        problem = f"{reference}: its files lack {listed}, which would be random"
        raise ModelError(
            f"{problem}\n    → take complete files; a shared head needs tie_word_embeddings=true in config.json"
        )
    return model


def load_encoder(reference: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """A model without its output layer, in eval mode, on the CPU; it returns the last hidden states."""
    return _load("AutoModel", reference, dtype, trust_remote_code)


def load_classifier(reference: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """A sequence classifier, such as a reward model, in eval mode, on the CPU; with its eyes, if it has some."""
    kind = classifier_class(full_config(reference, trust_remote_code=trust_remote_code))
    return _load(kind, reference, dtype, trust_remote_code)


def classifier_class(config: Any) -> Any:
    """What makes sequence classifiers of a config, with transformers' `from_config` and `from_pretrained`.

    transformers has a class for each architecture of text that has one, and of the models that see images for Gemma 3
    alone. For the others it is made here, of the same parts: the whole body under one linear layer. Their files are
    those of any model, and name a class such as `LlavaForSequenceClassification`.
    """
    import_torch()
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if not is_multimodal(config) or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    own: Any = type(config)
    return _seeing_classifier(own)


@functools.cache
def _seeing_classifier(config: Any) -> Any:
    """The class of sequence classifiers of models that see images."""
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    writing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]
    family = next(base for base in writing.__mro__ if PreTrainedModel in base.__bases__)
    name = writing.__name__.replace("ForConditionalGeneration", "") + "ForSequenceClassification"
    # As transformers' own Auto classes have it.
    own = {"from_config": classmethod(lambda cls, config, **options: cls._from_config(config, **options))}
    return type(name, (GenericForSequenceClassification, family), own)


def _load(kind: Any, reference: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any) -> Any:
    """
    Args:
        kind: one of transformers' Auto classes, by its name, or what has their methods.
    """
    import_torch()
    import transformers

    directory = model_directory(resolve(reference))
    with explained(reference):
        auto = getattr(transformers, kind) if isinstance(kind, str) else kind
        if _structure_only:
            return _structure(auto, directory, dtype, trust_remote_code, **options)
        # In eval mode already.
        return auto.from_pretrained(directory, dtype=dtype, trust_remote_code=trust_remote_code, **options)


def _structure(
    auto: Any, directory: Any, dtype: torch.dtype, trust_remote_code: bool, output_loading_info: bool = False
) -> Any:
    """What `from_pretrained` makes, on the meta device."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    with making():
        model = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()
    if model.can_generate():
        with contextlib.suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return (model, {"missing_keys": []}) if output_loading_info else model


def model_config(reference: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model's text config, and its generation config (None if it has none); no weights are read."""
    config = full_config(reference, trust_remote_code=trust_remote_code).get_text_config()
    from transformers import GenerationConfig

    try:
        return config, GenerationConfig.from_pretrained(model_directory(resolve(reference)))
    except OSError:
        return config, None


def full_config(reference: str, *, trust_remote_code: bool = False) -> Any:
    """A model's config with all its parts; no weights are read."""
    import_torch()
    from transformers import AutoConfig

    directory = model_directory(resolve(reference))
    with explained(reference):
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)


def stored_dtype(source: ModelSource) -> str:
    """The dtype in which a model's weights are stored, according to its config; bfloat16 if that does not say."""
    import_torch()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_directory(source))
    name = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    return name if name in {"bfloat16", "float16", "float32"} else "bfloat16"


def eos_ids(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """Every token that ends a turn: the tokenizer's and the generation config's, which often differ."""
    found: set[int] = set()
    for source in (tokenizer, generation_config):
        value = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(found)


def load_generation_config(directory: str) -> Any:
    """The generation config in a model's folder; None if there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return None


def with_padding(tokenizer: Any, tokens: int | None = None) -> Any:
    """A copy of a tokenizer with a padding token. Which token it is does not matter, since padding is masked.

    Args:
        tokens: rows of the model's embedding; the padding token is one of them.
    """
    padded = copy.deepcopy(tokenizer)
    found = (padded.pad_token_id, padded.eos_token_id, 0)
    padded.pad_token = padded.convert_ids_to_tokens(
        next(token for token in found if token is not None and (tokens is None or token < tokens))
    )
    return padded


def same_vocabulary(first: Any, second: Any) -> bool:
    """Whether two tokenizers give every token the same id."""
    return bool(first.get_vocab() == second.get_vocab())
