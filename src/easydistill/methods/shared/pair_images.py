"""What a student that sees images is given with a batch of pairs.

The order is TRL's: the better answers of all pairs, then the worse ones. Each of a pair's sequences has its own copies
of the images of the prompt.

Shapes: S sequences, two a pair; T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import pad as padded_right

from easydistill.errors import ModelError
from easydistill.methods.shared.compat import check_head
from easydistill.methods.shared.shown_images import sight_test

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

COMPANION = "companion"
"""Of a batch without images, where several processes train, or not the language model: a sequence with some, of which
nothing is learned."""
_FILLS = {"labels": -100}
"""What a tensor of tokens is filled up with, if not with zeros."""


class ShownPair(Protocol):
    """A tokenised pair."""

    @property
    def images(self) -> tuple[str, ...]:
        """The digests of the prompt's images, in order."""

    @property
    def sequences(self) -> tuple[list[int], list[int]]:
        """Prompt and answer, the better one first."""


@dataclass(frozen=True)
class PairImages:
    """Makes what the student is given beside the tokens of a batch."""

    vision: Vision
    pairs: Sequence[ShownPair]
    """All pairs of the training."""
    ranks: int = 1
    """Processes that train together."""
    learns_of_text: bool = True
    """As `TrainerConfig.learns_of_text`."""

    def inputs(self, ids_ST: torch.Tensor, numbers: Sequence[int]) -> dict[str, Any]:
        """The types of all tokens, the tensors of the images, and perhaps a `COMPANION`.

        Args:
            ids_ST: padded.
            numbers: of the pairs of the batch.
        """
        shown = [self.pairs[number] for number in numbers]
        rows = [(pair.sequences[side], pair.images) for side in (0, 1) for pair in shown]
        found: dict[str, Any] = self.vision.inputs(ids_ST, rows)
        if self._companion is not None and not any(pair.images for pair in shown):
            found[COMPANION] = self._companion
        return found

    @cached_property
    def _companion(self) -> dict[str, torch.Tensor] | None:
        """A process that does not use its vision tower would not take part in what the others wait for; and where the
        language model is not trained, a loss of text alone has no gradient."""
        shown = self.probe() if self.ranks > 1 or not self.learns_of_text else None
        return None if shown is None else {**shown, "attention_mask": torch.ones_like(shown["input_ids"])}

    def probe(self) -> dict[str, Any] | None:
        """A pair with images as a model's `forward` takes it, without padding; None if no pair has any."""
        return sight_test(self.vision, [(pair.sequences[0], pair.images) for pair in self.pairs])


def accompanied(model: Callable[..., Any], pad: int) -> Callable[..., Any]:
    """`model`, which computes the `COMPANION` of its inputs along, if there is one; the outputs are those without it.

    Args:
        pad: the padding token.
    """

    def call(**values: Any) -> Any:
        companion = values.pop(COMPANION, None)
        if companion is None:
            return model(**values)
        sequences, width = values["input_ids"].shape
        return _first(model(**_joined(values, companion, pad)), sequences, width)

    return call


def _joined(values: Mapping[str, Any], companion: Mapping[str, torch.Tensor], pad: int) -> dict[str, Any]:
    """The inputs with one more sequence."""
    shape = values["input_ids"].shape
    own_1T = companion["input_ids"]
    widest = max(shape[1], own_1T.shape[1])
    found: dict[str, Any] = {**companion, **values}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            fill = pad if name == "input_ids" else _FILLS.get(name, 0)
            more = companion.get(name, torch.full_like(own_1T, fill))
            found[name] = torch.cat(
                [padded_right(part, (0, widest - part.shape[1]), value=fill) for part in (value, more)]
            )
    return found


def _first(outputs: Any, sequences: int, width: int) -> Any:
    """The outputs for the first sequences, and of what there is for each next token those within their width."""
    for name, value in list(outputs.items()):
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == sequences + 1:
            outputs[name] = value[:sequences] if value.ndim == 1 else value[:sequences, : width - 1]
    return outputs


def check_sight(model: Any, probe: Mapping[str, Any]) -> None:
    """Check that held-out pairs are scored, and pairs trained on, with what the model sees of them.

    Args:
        model: with TRL's forward; perhaps with adapters around it.
        probe: as `PairImages.probe`.

    Raises:
        ModelError: one is not.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_head(bare, probe)
    _check_fused_sight(bare, probe)


def _check_fused_sight(model: Any, probe: Mapping[str, Any]) -> None:
    """Check that TRL's fused log-probabilities (`fused_lm_head`) are those of a model that is shown images.

    Raises:
        ModelError: they are others: it would be trained blind, or on something else than it says.
    """
    on = next(model.parameters()).device
    values = {name: value.to(on) for name, value in probe.items()}
    ids_ST = values["input_ids"]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        own_STV = model(**values, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        own_ST = own_STV.gather(2, ids_ST[:, 1:, None]).squeeze(2)
        fused_ST = model(**values, labels=ids_ST, fused_lm_head=True).log_probs
    model.train(was_training)
    if not torch.allclose(own_ST, fused_ST.float(), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__}: TRL's log-probabilities of a row with images are not the model's own, so it "
            "cannot be trained on pairs with images\n    → please report this architecture"
        )
