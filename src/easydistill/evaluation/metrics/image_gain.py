"""How much a row's own image helps: cross-entropy with another row's image minus that with its own, in nats per token.

Near zero, the student does not look; it is below zero if what it sees misleads it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

MEASURED = "images"


class Metric:
    kind: ClassVar[Literal["images"]] = "images"
    needs_teacher: ClassVar[bool] = False

    def value(self, own: float, other: float) -> float:
        return other - own
