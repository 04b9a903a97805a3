"""Where the layers of a model lie."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from easydistill.config.base import NonEmptyStr, NonNegativeInt, Unfit
from easydistill.config.values import show

_PLACES_HINT = 'set it to "auto", or write for each module the number of a GPU, "cpu" or "disk", such as {"": "disk"}'


def _places(value: Any) -> Any:
    """Refuse what is no map of places, and a module on the disk that is part of another one, or has such a part."""
    if value is None or value == "auto":
        return value
    if not isinstance(value, Mapping) or not value:
        raise Unfit(f"{show(value)} gives no places for modules", _PLACES_HINT)
    for module, place in value.items():
        is_number = isinstance(place, int) and not isinstance(place, bool) and place >= 0
        if not is_number and place not in ("cpu", "disk"):
            raise Unfit(f"{show(place)} is no place for {show(module)}", _PLACES_HINT)
    for inner, outer in itertools.permutations(map(str, value), 2):
        apart = value[inner] != value[outer] and "disk" in (value[inner], value[outer])
        if apart and inner.startswith(f"{outer}." if outer else ""):
            problem = (
                f"{show(inner)} ({value[inner]}) is part of {show(outer)} ({value[outer]}), and one is on the disk"
            )
            raise Unfit(problem, "name only modules that are not parts of one another, such as each layer")
    return value


DeviceMap = Annotated[
    Literal["auto"] | Mapping[NonEmptyStr | Literal[""], NonNegativeInt | Literal["cpu", "disk"]],
    BeforeValidator(_places),
]
"""Where the layers of a model lie: module → number of a GPU, the CPU's memory, or the disk."""
