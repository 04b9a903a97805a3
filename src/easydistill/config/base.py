"""What all config sections share: strict parsing, number types that refuse booleans, secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from easydistill.config.identity import identity_of
from easydistill.registry import FileOfSection

MAX_SEED = 2**32 - 1
"""The largest seed that every library accepts."""


class Section(BaseModel):
    """A part of a config: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        regex_engine="python-re",
    )

    runtime_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how a stage runs but not what it produces; they stay out of fingerprints."""

    recorded_for_none: ClassVar[Mapping[str, Any]] = {}
    """What None stands for in the identity of a recorded field, where it came to mean that the device decides."""

    identity_name: ClassVar[str]
    """Names the section in `recorded_identities.json`; defaults to the class name. See `config/identity.py`."""
    plain_file: ClassVar[FileOfSection | None] = None
    """The user's file that the section's class comes from, if it does; its state is part of the identity."""
    identity_version: ClassVar[int] = 1
    """Raise it when a default changes, or the same values come to mean something else: finished stages run again."""

    def identity(self) -> dict[str, Any]:
        """The values that can change a stage's output, as JSON types, for fingerprints and request keys.

        A field added later is left out while it is at its default, so finished stages and paid answers stay valid.
        """
        return identity_of(self)


class Unfit(ValueError):
    """Raised by a validator: what is wrong with a value, and a hint how to fix it."""

    def __init__(self, problem: str, hint: str) -> None:
        self.problem, self.hint = problem, hint
        super().__init__(f"{problem}; {hint}")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise Unfit(f"a number is needed here, not {str(value).lower()}", "write a number")
    return value


def share_or_count(value: float) -> float:
    """Refuse a value that is neither a share (below 1) nor a whole number."""
    if value >= 1 and value != int(value):
        raise Unfit(f"{value} is neither a share nor a count", "use a share below 1, or a whole number")
    return value


_NoBool = BeforeValidator(_not_bool)

PositiveInt = Annotated[int, _NoBool, Field(ge=1)]
NonNegativeInt = Annotated[int, _NoBool, Field(ge=0)]
Seed = Annotated[int, _NoBool, Field(ge=0, le=MAX_SEED)]
AnyInt = Annotated[int, _NoBool, Field(ge=-(2**63), lt=2**63)]
PositiveFloat = Annotated[float, _NoBool, Field(gt=0)]
NonNegativeFloat = Annotated[float, _NoBool, Field(ge=0)]
Share = Annotated[float, _NoBool, Field(ge=0, le=1)]
"""A fraction between 0 and 1."""
PositiveShare = Annotated[float, _NoBool, Field(gt=0, le=1)]
"""A fraction above 0, up to 1."""
ProperShare = Annotated[float, _NoBool, Field(ge=0, lt=1)]
"""A fraction from 0 to just below 1."""
NonEmptyStr = Annotated[str, Field(min_length=1, pattern=r"\S")]

Secret = SecretStr


BETAS = (1e-6, 1e4)
"""Smallest and largest β: outside this range float32 cannot hold the loss or its gradient."""


Beta = Annotated[PositiveFloat, Field(ge=BETAS[0], le=BETAS[1])]
