"""Making the student: an existing model, one with layers removed, or one with random weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
from easydistill.errors import ConfigError, ConfigIssue, MissingExtra, ModelError
from easydistill.models.limits import Limits, student_config
from easydistill.models.loading import (
    eos_ids,
    full_config,
    import_torch,
    is_multimodal,
    load_model,
    load_tokenizer,
    making,
    stored_dtype,
)
from easydistill.models.reference import resolve
from easydistill.models.saving import make_savable

if TYPE_CHECKING:
    from easydistill.models.multimodal import Processor


@dataclass
class Student:
    """A student, ready for training or evaluation."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    save_dtype: str
    """Dtype in which its weights are saved."""
    description: str
    notes: tuple[str, ...] = ()
    """What was mended while it was loaded, and what it cannot do, for the user."""
    processor: Processor | None = None
    """What images are given to it with; its tokenizer is `tokenizer`. None for a model of text."""

    @property
    def limits(self) -> Limits:
        """Its longest sequence and its last token."""
        return Limits.of(self.model)


def kept_layers(total: int, keep: int) -> list[int]:
    """Indices of `keep` layers of `total`, evenly spread, the first and the last among them."""
    return [round(index * (total - 1) / (keep - 1)) for index in range(keep)]


def student_references(models: ModelsConfig) -> list[str]:
    """The model references that this student is made from."""
    student = models.student
    if isinstance(student, PrunedStudent):
        return [student.from_model]
    if isinstance(student, FreshStudent):
        return [reference for reference in (student.tokenizer or models.teacher,) if reference]
    return [student]


def student_identity(models: ModelsConfig) -> dict[str, Any]:
    """Distinguishes this student's initial weights from all others, without loading them."""
    student = models.student
    identities = [resolve(reference).identity() for reference in student_references(models)]
    made = student.identity() if not isinstance(student, str) else {}
    return {"made": {name: value for name, value in made.items() if name != "from_model"}, "from": identities}


def check_student(models: ModelsConfig) -> list[ConfigIssue]:
    """What is wrong with the `models` section, as far as it can be found without loading weights."""
    issues: list[ConfigIssue] = []
    student = models.student
    if isinstance(student, FreshStudent) and student.tokenizer is None and models.teacher is None:
        problem = "there is no teacher on this machine to take a tokenizer from"
        issues.append(
            ConfigIssue("config", "models.student.tokenizer", problem, "name a model whose tokenizer it uses")
        )
    return issues


def making_issues(models: ModelsConfig) -> list[ConfigIssue]:
    """Why this student could not be made, as far as configs and tokenizers tell; weights are neither read nor made.

    Raises:
        ModelError: a config or tokenizer cannot be loaded.
    """
    student = models.student
    if isinstance(student, PrunedStudent):
        total = getattr(student_config(models), "num_hidden_layers", None)
        if isinstance(total, int) and student.keep_layers > total:
            return [_too_few_layers(student.from_model, student.keep_layers, total)]
        return []
    if not isinstance(student, FreshStudent):
        return []
    reference = student.tokenizer or models.teacher
    if reference is None:
        # `check_student` refuses this.
        return []
    try:
        with import_torch().device("meta"):
            _fresh_model(student, load_tokenizer(reference))
    except ConfigError as error:
        return list(error.issues)
    return []


def _too_few_layers(reference: str, keep: int, total: int) -> ConfigIssue:
    problem = f"{keep} layers cannot be kept, {reference} has {total}"
    return ConfigIssue("config", "models.student.keep_layers", problem, f"use 2 to {total}")


def build_student(models: ModelsConfig, dtype: Any) -> Student:
    """Make the student that a config describes, in eval mode, on the CPU.

    Raises:
        ModelError, ConfigError: it cannot be made.
    """
    student = models.student
    if isinstance(student, FreshStudent):
        return _fresh(student, models, dtype)
    reference = student.from_model if isinstance(student, PrunedStudent) else student
    processor, notes = _processor(reference, trust_remote_code=models.trust_remote_code)
    if processor is None:
        tokenizer = load_tokenizer(reference, trust_remote_code=models.trust_remote_code)
    else:
        tokenizer = processor.tokenizer
    model = load_model(reference, dtype, trust_remote_code=models.trust_remote_code)
    description = reference
    if isinstance(student, PrunedStudent):
        total = prune_layers(model, student.keep_layers, reference)
        description = f"{reference}, {student.keep_layers} of {total} layers"
    notes += make_savable(model, tokenizer if processor is None else processor.wrapped, reference)
    made = _student(model, tokenizer, stored_dtype(resolve(reference)), description, notes)
    made.processor = processor
    return made


def _processor(reference: str, *, trust_remote_code: bool) -> tuple[Processor | None, list[str]]:
    """The processor of a model that sees images; without one that can be used, why."""
    if not is_multimodal(full_config(reference, trust_remote_code=trust_remote_code)):
        return None, []
    from easydistill.models.multimodal import load_processor

    try:
        return load_processor(reference, trust_remote_code=trust_remote_code), []
    except (ModelError, MissingExtra) as error:
        # Of its text alone nothing is lost; rows with images are refused.
        return None, [f"rows with images cannot be shown to it: {str(error).splitlines()[0]}"]


def _student(model: Any, tokenizer: Any, save_dtype: str, description: str, notes: Sequence[str] = ()) -> Student:
    """A student whose end tokens are those that it can generate."""
    limits = Limits.of(model)
    known = max(tokenizer.get_vocab().values(), default=-1) + 1
    assert limits.tokens is not None
    if known > limits.tokens:
        problem = f"its tokenizer knows {known} tokens, its embedding has {limits.tokens} rows"
        notes = [*notes, f"{description}: {problem}; rows with the other tokens are rejected"]
    ends = frozenset(end for end in eos_ids(tokenizer, model.generation_config) if end < limits.tokens)
    return Student(model, tokenizer, ends, save_dtype, description, tuple(notes))


def prune_layers(model: Any, keep: int, reference: str) -> int:
    """Remove layers of a decoder in place; returns how many there were."""
    torch = import_torch()
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    layers = getattr(body, "layers", None)
    if layers is None:
        raise ModelError(f"{reference}: keep_layers does not support this architecture (it has no `layers`)")
    total = len(layers)
    if keep > total:
        raise ConfigError(_too_few_layers(reference, keep, total))
    kept = kept_layers(total, keep)
    body.layers = torch.nn.ModuleList(layers[index] for index in kept)
    _number(body.layers)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    config.num_hidden_layers = keep
    for name in ("layer_types", "no_rope_layers"):
        per_layer = getattr(config, name, None)
        if isinstance(per_layer, list) and len(per_layer) == total:
            setattr(config, name, [per_layer[index] for index in kept])
    return total


def _number(layers: Any) -> None:
    """Let each layer know its number, which is its index in the key-value cache."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


def _fresh(student: FreshStudent, models: ModelsConfig, dtype: Any) -> Student:
    reference = student.tokenizer or models.teacher
    assert reference is not None, "check_student refuses this"
    tokenizer = load_tokenizer(reference)
    model = _fresh_model(student, tokenizer)
    return _student(model.to(dtype).eval(), tokenizer, "bfloat16", f"random weights, {model.config.model_type}")


def _fresh_model(student: FreshStudent, tokenizer: Any) -> Any:
    """A student with random weights, in float32.

    Raises:
        ConfigError: transformers cannot make it, or it does not know all tokens.
    """
    torch = import_torch()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    values = copy.deepcopy(student.config)
    values.setdefault("vocab_size", student.vocab_size or len(tokenizer))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.setdefault(name, getattr(tokenizer, name))
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.random.fork_rng():
            torch.manual_seed(student.seed)
            with making():
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        problem = f"transformers cannot build a model from it: {' '.join(str(error).split())}"
        raise ConfigError(ConfigIssue("config", "models.student.config", problem)) from error
    if config.vocab_size < len(tokenizer):
        problem = f"vocab_size {config.vocab_size} is smaller than the tokenizer's {len(tokenizer)}"
        raise ConfigError(ConfigIssue("config", "models.student.config.vocab_size", problem, "leave it out"))
    return model
