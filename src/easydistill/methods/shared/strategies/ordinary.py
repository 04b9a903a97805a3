"""What sharding makes of a model's modules, undone: they are ordinary ones again."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_KEPT = frozenset({"_parameters", "_buffers", "_modules", "training"})
"""Attributes of a module that stay as they are when sharding is undone."""


class OrdinaryModules:
    """The modules of a model as they are before it is sharded: their classes, hooks and other attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._before = [(module, type(module), _attributes(module)) for module in model.modules()]

    def restore(self) -> None:
        """Make the modules what they were; their parameters and buffers stay as they are now."""
        for module, kind, attributes in self._before:
            for name in module.__dict__.keys() - attributes.keys() - _KEPT:
                del module.__dict__[name]
            for name, (value, content) in attributes.items():
                if isinstance(value, dict):
                    # The same one, which the handles of hooks refer to.
                    value.clear()
                    value.update(content)
                module.__dict__[name] = value
            module.__class__ = kind


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute and, of a dictionary, what it contains now."""
    return {
        name: (value, copy.copy(value) if isinstance(value, dict) else None)
        for name, value in module.__dict__.items()
        if name not in _KEPT
    }
