"""Which of a model's modules are its language model, its connector and its vision tower.

The connector turns what the tower sees into what the language model reads. Some towers hold it themselves (Qwen's
`visual.merger`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from easydistill.config.training import PARTS, Part
from easydistill.errors import ModelError
from easydistill.models.loading import is_multimodal

_IN_TOWER = "merger"
"""In the names of connectors inside of towers."""


class Parts:
    """Tells the parts of a model apart.

    Args:
        model: one that sees images, bare: without adapters around it.

    Raises:
        ModelError: its vision tower is not to be found.
    """

    def __init__(self, model: Any) -> None:
        tower, decoder = model.get_encoder(modality="image"), model.get_decoder()
        if tower in (model, model.base_model) or decoder in (model, model.base_model):
            raise ModelError(
                f"{type(model).__name__}: its vision tower cannot be told from its language model\n"
                "    → please report this architecture"
            )
        head = model.get_output_embeddings()
        named = {id(module): name for name, module in model.named_modules()}
        self._language = tuple(named[id(module)] + "." for module in (decoder, head) if id(module) in named)
        self._vision = named[id(tower)] + "."

    def of(self, name: str) -> Part:
        """The part of a module or a parameter, by its full name."""
        name += "."
        if name.startswith(self._language):
            return "language"
        return "vision" if name.startswith(self._vision) and _IN_TOWER not in name else "connector"


def freeze_others(model: Any, trained: Collection[Part]) -> None:
    """Take the weights of all other parts out of training.

    A weight that parts share stays if one of them is trained.
    """
    parts = Parts(model)
    model.requires_grad_(False)
    for name, value in model.named_parameters(remove_duplicate=False):
        if parts.of(name) in trained:
            value.requires_grad_(True)


def modules_outside(model: Any, trained: Collection[Part]) -> list[str]:
    """The full names of the modules of all other parts."""
    parts = Parts(model)
    return [name for name, _ in model.named_modules() if name and parts.of(name) not in trained]


def trained_parts(model: Any, wanted: Collection[Part] | None, *, adapters: bool) -> tuple[Part, ...] | None:
    """The parts of a model that are trained; None for a model of text, which has no others.

    Args:
        wanted: `training.train_parts`.
        adapters: whether low-rank adapters are trained.
    """
    if not is_multimodal(model.config):
        return None
    if wanted is None:
        return ("language",) if adapters else ("language", "connector")
    return tuple(part for part in PARTS if part in wanted)
