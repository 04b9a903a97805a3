"""A language model → a reward model: the same body under a head that outputs one number.

The number is head · (final hidden state of the last token that is not padding), as in transformers' sequence
classifiers, so anything that loads those also loads the result.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.loading import classifier_class, full_config, import_torch, is_multimodal
from easydistill.models.student import Student


def scalar_issues(models: ModelsConfig) -> list[ConfigIssue]:
    """Why the student cannot get such a head, as far as its config shows; no weights are read."""
    student = models.student
    if isinstance(student, FreshStudent):
        return _unknown(str(student.config["model_type"]), "models.student.config.model_type")
    reference = student.from_model if isinstance(student, PrunedStudent) else student
    config = full_config(reference, trust_remote_code=models.trust_remote_code)
    if is_multimodal(config):
        return []
    return _unknown(str(config.get_text_config().model_type), "models.student")


def _unknown(model_type: str, path: str) -> list[ConfigIssue]:
    import_torch()
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return []
    problem = f"transformers has no sequence classifier of the architecture {model_type}"
    return [ConfigIssue("config", path, problem, "use another one, such as llama or qwen3")]


def with_scalar_head(student: Student, seed: int) -> Student:
    """The student under a new scalar head; the body is the same object, the language head is dropped.

    The head is drawn from N(0, 1/(D+1)²), D being the width of the hidden states: the first scores are close to 0, so
    that no random preference has to be unlearned, and yet the body has a gradient from the first step.

    Args:
        seed: of the head.

    Raises:
        ConfigError: transformers' classifier of this architecture has another structure.
    """
    torch = import_torch()
    language = student.model
    config = copy.deepcopy(language.config)
    config.num_labels = 1
    # Only the classifier's structure is needed: no second body is allocated.
    with torch.device("meta"):
        model = classifier_class(config).from_config(config)
    prefix = model.base_model_prefix
    heads = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    body = getattr(language, language.base_model_prefix)
    if len(heads) != 1 or type(getattr(model, prefix)) is not type(body):
        problem = f"{type(model).__name__} is not the body of {type(language).__name__} under one linear layer"
        raise ConfigError(ConfigIssue("config", "models.student", problem, "use another one, such as llama or qwen3"))
    setattr(model, prefix, body)
    head = getattr(model, head_name(model))
    width = head.weight.shape[1]
    drawn_1D = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / (width + 1)
    first = next(body.parameters())
    head.weight = torch.nn.Parameter(drawn_1D.to(first.device, first.dtype))
    return replace(student, model=model.eval())


def head_name(model: Any) -> str:
    """Name of the attribute that holds the scalar head."""
    prefix = f"{model.base_model_prefix}."
    name = next(name for name, _ in model.named_parameters() if not name.startswith(prefix))
    return name.removesuffix(".weight")


def set_padding(student: Student, ends: Collection[int]) -> int:
    """Choose the padding token, for tokenizer and model alike, and return its id.

    transformers reads a row's score at the last token that is not the padding token, so no row may end with that. If
    the template ends with the tokenizer's padding token (often the end of a turn), another special token is used.

    Args:
        ends: tokens that rows end with.

    Raises:
        ConfigError: rows end with every special token there is.
    """
    tokenizer, model = student.tokenizer, student.model
    rows = model.get_input_embeddings().num_embeddings
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids, reverse=True)]
    special += sorted(tokenizer.added_tokens_decoder, reverse=True)
    pad = next((token for token in special if token is not None and token < rows and token not in ends), None)
    if pad is None:
        problem = "its tokenizer has no special token that could pad: the template ends with the only ones there are"
        raise ConfigError(ConfigIssue("config", "models.student", problem, "add a padding token to the tokenizer"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    return int(pad)
