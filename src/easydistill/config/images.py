"""How images are shown to a model that answers: at a server, or on this machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from easydistill.config.base import PositiveInt, Section, Unfit


class LocalImageConfig(Section):
    """How images are shown to a model on this machine."""

    max_pixels: PositiveInt | None = None
    """Scale images with more pixels down to this number, keeping their shape, before the model's own processor sees
    them; by default it is given them as they are. Fewer pixels are fewer tokens in models that read an image in pieces
    of one size."""

    @model_validator(mode="before")
    @classmethod
    def _tells_no_server(cls, value: Any) -> Any:
        if isinstance(value, dict) and "detail" in value and "detail" not in cls.model_fields:
            problem = "`detail` is a word for servers, and a model on this machine looks as its own processor does"
            raise Unfit(problem, "remove it; max_pixels makes images smaller")
        return value


class ImageConfig(LocalImageConfig):
    """How images are sent to a teacher."""

    max_pixels: PositiveInt | None = None
    """Scale images with more pixels down to this number, keeping their shape; by default they are sent as they are."""
    detail: Literal["auto", "low", "high"] | None = None
    """How closely the server is asked to look; defaults to the server's own choice. OpenAI's models know it."""
