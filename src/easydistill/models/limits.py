"""Where a model ends: the last position that it has learned, and the last token that its embedding knows.

Beyond them a model with learned positions raises an IndexError, and a rotary one goes on with positions it has never
seen. So rows are cut or rejected at these ends, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
from easydistill.models.loading import import_torch, model_config

if TYPE_CHECKING:
    from easydistill.data.tokens import TokenIds

_STRETCHED = frozenset({"yarn", "linear", "dynamic"})
"""Rotary scalings whose `max_position_embeddings` is often left at the length before scaling."""


@dataclass(frozen=True)
class Limits:
    """What a model can read."""

    positions: int | None = None
    """Longest sequence, in tokens; None if it has no end (recurrent models, ALiBi) or its config does not say."""
    tokens: int | None = None
    """Token ids below this have a row in the embedding; None if unknown."""

    @classmethod
    def of(cls, model: Any) -> Limits:
        """The limits of a loaded model."""
        config = getattr(model, "config", None)
        tokens = model.get_input_embeddings().num_embeddings
        return cls(None if config is None else position_limit(config), int(tokens))

    @classmethod
    def of_student(cls, models: ModelsConfig) -> Limits:
        """The limits of the student that a config describes, without its weights. Equal to those once it is loaded."""
        config = student_config(models)
        if isinstance(models.student, FreshStudent):
            # The size of its embedding may be that of its tokenizer.
            return cls(position_limit(config))
        return cls(position_limit(config), getattr(config, "vocab_size", None))

    @classmethod
    def of_reference(cls, reference: str, *, trust_remote_code: bool = False) -> Limits:
        """The limits of a model according to its config."""
        config, _ = model_config(reference, trust_remote_code=trust_remote_code)
        return cls(position_limit(config), getattr(config, "vocab_size", None))

    def joined(self, other: Limits) -> Limits:
        """The limits of rows that both models read; token ids are this model's."""
        ends = [end for end in (self.positions, other.positions) if end is not None]
        return Limits(min(ends, default=None), self.tokens)

    def within(self, max_length: int) -> int:
        """The longest row: `max_length`, or less if the model ends before."""
        return max_length if self.positions is None else min(max_length, self.positions)

    def stranger(self, ids: TokenIds) -> int | None:
        """The first token without a row in the embedding; None if there is none."""
        if self.tokens is None:
            return None
        import numpy as np

        ids_T = np.asarray(ids)
        return next(map(int, ids_T[ids_T >= self.tokens]), None)


def position_limit(config: Any) -> int | None:
    """The longest sequence that a model's config allows, in tokens; None if there is no such end.

    `max_position_embeddings` under whatever name the architecture gives it; with a stretched rotary embedding the
    stretched length.
    """
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0 or getattr(config, "alibi", False):
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in _STRETCHED:
        return longest
    original = rope.get("original_max_position_embeddings") or longest
    return max(longest, int(original * float(rope.get("factor") or 1.0)))


def student_config(models: ModelsConfig) -> Any:
    """The text config of the student that a config describes, or of the model whose layers it takes."""
    student = models.student
    if not isinstance(student, FreshStudent):
        reference = student.from_model if isinstance(student, PrunedStudent) else student
        return model_config(reference, trust_remote_code=models.trust_remote_code)[0]
    import_torch()
    from transformers import AutoConfig

    values = dict(student.config)
    return AutoConfig.for_model(values.pop("model_type"), **values)
