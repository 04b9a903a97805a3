"""What all config sections share: strictness, number types that refuse booleans, secrets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


class Section(BaseModel):
    """A part of a config. Unknown keys are errors; values do not change after loading."""

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

    def identity(self) -> dict[str, Any]:
        """The values that can change a stage's output, as JSON types, for its fingerprint."""
        return self.model_dump(mode="json", exclude=set(self.runtime_only) | {"api_key"})


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    return value


_NoBool = BeforeValidator(_not_bool)

PositiveInt = Annotated[int, _NoBool, Field(ge=1)]
NonNegativeInt = Annotated[int, _NoBool, Field(ge=0)]
AnyInt = Annotated[int, _NoBool]
AnyFloat = Annotated[float, _NoBool]
PositiveFloat = Annotated[float, _NoBool, Field(gt=0)]
NonNegativeFloat = Annotated[float, _NoBool, Field(ge=0)]
Share = Annotated[float, _NoBool, Field(ge=0, le=1)]
"""A fraction between 0 and 1."""
NonEmptyStr = Annotated[str, Field(min_length=1, pattern=r"\S")]

Secret = SecretStr
