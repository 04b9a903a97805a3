"""How well the boxes or points of an answer fit the row's, from 0 to 1.

Predicted shapes P and known shapes G are paired one to one so that the sum of what the pairs are worth is largest
(as DETR pairs them, arXiv 2005.12872). A pair that is worth less than `threshold` is none. The value is

    Σ worth of the pairs / (pairs + ½ · shapes of P without a pair + ½ · shapes of G without a pair),

which is panoptic quality (arXiv 1801.00868, equation 1); with one box against one it is that pair's worth. A missing
shape costs, and so does one too many. What a pair is worth is the `score`:

- `iou`: intersection over union of two boxes (the reward of VLM-R1, arXiv 2504.07615, and Visual-RFT, 2503.01785);
- `hit`: 1 if that is at least `threshold`, 0.5 by default, as detectors are measured; the value is then an F1 score;
- `point`: 1 if the point, or the centre of the predicted box, is in the known box (UI-R1, arXiv 2503.21620), or not
  farther than `radius` from the known point;
- `distance`: exp(−½ · ((x − x̂)² / σx² + (y − ŷ)² / σy²)) of that point and the known box's centre, with σ = `spread`
  times the box's width and height (GUI-G², arXiv 2507.15846), or `radius` for a known point.

The answer is what follows the thoughts, in `<answer>…</answer>` if it has that; `_boxes.py` says what is read in it. An
answer without any shape is worth 0, or 1 if the row knows that there is none (`[]`). An answer that was cut off is
worth 0. Labels are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, Unfit
from easydistill.contracts.reward import Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import DataError
from easydistill.rewards._assignment import assign
from easydistill.rewards._boxes import LARGEST, Order, Shape, known_shapes, shapes_in
from easydistill.rewards._text import after_thoughts, with_opening

MOST = 500
"""An answer with more shapes is worth 0: no picture asks for them, and pairing takes time."""
_PIXELS = "pixels"
Scale = Literal["pixels"] | PositiveFloat


class Config(RewardConfig):
    """How well the answer's boxes or points fit the row's."""

    field: NonEmptyStr = "boxes"
    """The row's field with the known boxes or points: one, or a list; `[]` if there is nothing to be found."""
    score: Literal["iou", "hit", "point", "distance"] = "iou"
    """What a pair of shapes is worth; see docs/rewards.md."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """For `iou` and `hit`: pairs below this intersection over union do not count; by default 0 and 0.5."""
    radius: PositiveFloat | None = None
    """For `point` and `distance`, where rows have points: how near is near, in their units."""
    spread: PositiveFloat = 0.5
    """For `distance`, where rows have boxes: the standard deviation, in widths and heights of the box."""
    scale: Scale = "pixels"
    """Units of the answer's coordinates: `pixels`, or the number that stands for the picture's whole width and height,
    such as 1, 100, or 1000."""
    known_scale: Scale | None = None
    """Units of the row's coordinates; by default those of the answer."""
    size_field: NonEmptyStr = "image_size"
    """The row's field with the picture's [width, height], read where one of the two scales is in pixels."""
    order: Order = "xyxy"
    """What the four numbers of the answer's boxes are; with `yxyx`, points are y and x too."""
    known_order: Order = "xyxy"
    """The same for the row's."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        pointing = self.score in ("point", "distance")
        if pointing and self.threshold is not None:
            raise Unfit(f"threshold has no meaning for score {self.score!r}", "remove it")
        if not pointing and self.radius is not None:
            raise Unfit(f"radius has no meaning for score {self.score!r}", "remove it")
        if self.score != "distance" and "spread" in self.model_fields_set:
            raise Unfit(f"spread has no meaning for score {self.score!r}", "remove it")
        if self.score == "hit" and self.threshold == 0:
            raise Unfit("with threshold 0 every box is a hit", "leave it out for 0.5")
        return self

    @property
    def needs_size(self) -> bool:
        """Whether coordinates of one scale can be brought to the other by the picture's size alone."""
        return self.known_scale is not None and (self.scale == _PIXELS) != (self.known_scale == _PIXELS)


def make(config: Config, context: RewardContext) -> Reward:
    return _Grounding(config, context.tokenizer)


def check(config: Config, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's known shapes or its picture's size."""
    try:
        _known(config, meta)
    except ValueError as problem:
        return str(problem)
    return None


def knows(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether a row says what is to be found."""
    return meta.get(config.field) is not None


class _Grounding:
    def __init__(self, config: Config, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [self._value(rollout) for rollout in rollouts]

    def _value(self, rollout: Rollout) -> float | None:
        try:
            known = _known(self._config, rollout.meta)
        except ValueError as problem:
            hint = "set rewards.grounding.field to the field with the known boxes"
            raise DataError(f"{problem}\n    → {hint}") from None
        if known is None:
            return None
        if not rollout.ended:
            return 0.0
        shapes, factors = known
        answer = after_thoughts(with_opening(rollout, self._tokenizer))
        pointing = self._config.score in ("point", "distance")
        found = [each.scaled(*factors) for each in shapes_in(answer, self._config.order, points=pointing)]
        return quality(found, shapes, worth_of(self._config), least(self._config))

    def close(self) -> None:
        """Nothing to release."""


def _known(config: Config, meta: Mapping[str, Any]) -> tuple[list[Shape], tuple[float, float]] | None:
    """The row's shapes, and by what the answer's coordinates are multiplied to be in their units; None without shapes.

    Raises:
        ValueError: they cannot be used.
    """
    value = meta.get(config.field)
    if value is None:
        return None
    try:
        shapes = known_shapes(value, config.known_order)
    except ValueError as problem:
        raise ValueError(f"the row's field {config.field!r}: {problem}") from None
    pointing = config.score in ("point", "distance")
    if pointing and config.radius is None and any(shape.is_point for shape in shapes):
        raise ValueError(f"the row's field {config.field!r} has a point, and rewards.grounding.radius is not set")
    if not pointing and any(not _area(shape) for shape in shapes):
        raise ValueError(
            f"the row's field {config.field!r} has a point or an empty box, and score {config.score!r} compares areas"
        )
    return shapes, _factors(config, meta)


def _factors(config: Config, meta: Mapping[str, Any]) -> tuple[float, float]:
    if config.known_scale is None or config.known_scale == config.scale:
        return 1.0, 1.0
    size = (1.0, 1.0)
    if config.needs_size:
        given = meta.get(config.size_field)
        if not isinstance(given, list | tuple) or len(given) != 2 or not all(map(_is_length, given)):
            raise ValueError(
                f"the row's field {config.size_field!r} is not the picture's [width, height], and one of "
                "rewards.grounding.scale and known_scale is in pixels"
            )
        size = float(given[0]), float(given[1])
    ours, theirs = ([each, each] if each != _PIXELS else list(size) for each in (config.scale, config.known_scale))
    return float(theirs[0]) / float(ours[0]), float(theirs[1]) / float(ours[1])


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST


# --- formulas ---------------------------------------------------------------------------------------------------

Worth = Callable[[Shape, Shape], float]
"""What a predicted shape is worth for a known one, 0 … 1."""


def quality(found: Sequence[Shape], known: Sequence[Shape], worth: Worth, least: float = 0.0) -> float:
    """The formula at the top of this module."""
    if not found or not known:
        return float(not found and not known)
    if len(found) > MOST:
        return 0.0
    # What does not count must not keep a shape from one with which it does.
    worths = [[value if (value := worth(mine, theirs)) >= least else 0.0 for theirs in known] for mine in found]
    # With or without a pair, each shape adds one half to the divisor.
    return math.fsum(worths[row][column] for row, column in assign(worths)) * 2 / (len(found) + len(known))


def least(config: Config) -> float:
    """The smallest worth of a pair that counts."""
    return config.threshold or 0.0 if config.score == "iou" else 0.0


def worth_of(config: Config) -> Worth:
    """What a pair is worth, by the config's `score`."""
    if config.score == "iou":
        return iou
    if config.score == "hit":
        enough = 0.5 if config.threshold is None else config.threshold
        return lambda found, known: float(iou(found, known) >= enough)
    if config.score == "point":
        return lambda found, known: float(_inside(found.centre, known, config.radius))
    return lambda found, known: _nearness(found.centre, known, config.spread, config.radius)


def iou(one: Shape, other: Shape) -> float:
    """Intersection over union of two boxes; 0 if one has no area."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    both = _area(one) + _area(other)
    if width <= 0 or height <= 0 or not _area(one) or not _area(other):
        return 0.0
    return min(1.0, width * height / (both - width * height))


def _area(shape: Shape) -> float:
    """0 as well for corners in the wrong order."""
    return max(0.0, shape.x2 - shape.x1) * max(0.0, shape.y2 - shape.y1)


def _inside(point: tuple[float, float], known: Shape, radius: float | None) -> bool:
    if known.is_point:
        assert radius is not None, "_known refuses this"
        return math.dist(point, known.centre) <= radius
    return known.x1 <= point[0] <= known.x2 and known.y1 <= point[1] <= known.y2


def _nearness(point: tuple[float, float], known: Shape, spread: float, radius: float | None) -> float:
    sigmas = (spread * (known.x2 - known.x1), spread * (known.y2 - known.y1))
    if known.is_point:
        assert radius is not None, "_known refuses this"
        sigmas = radius, radius
    off = [(a - b) / max(sigma, 1e-9) for a, b, sigma in zip(point, known.centre, sigmas, strict=True)]
    return math.exp(-min(700.0, (off[0] ** 2 + off[1] ** 2) / 2))
