"""Boxes and points as models write them in an answer, and as rows hold them.

Read in an answer, the first of these that is there:

- tags: `<box>(1,2),(3,4)</box>`, `<box>[[1,2,3,4]]</box>`, `<point>1 2</point>`, `<|box_start|>…<|box_end|>`;
- named ones: `{"bbox_2d": [1, 2, 3, 4]}`, `"boxes": [[…], […]]`;
- those whose numbers have names: `{"x": 1, "y": 2}`, `<point x="1" y="2">`, `<points x1="1" y1="2" x2="3" y2="4">`;
- tokens for places: `<loc0001><loc0002><loc0003><loc0004>`;
- lists of two or four numbers: `[1, 2, 3, 4]`, `(1, 2)`; or an answer that is nothing but such numbers.

All of the kind that is read count, so an answer gains nothing by naming several. Text is searched with expressions that
take time linear in its length; none of it is evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["xyxy", "xywh", "cxcywh", "yxyx"]
LARGEST = 1e7
"""Numbers beyond it are no coordinates."""


@dataclass(frozen=True)
class Shape:
    """A box, or a point, which is a box without extent."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def is_point(self) -> bool:
        return self.x1 == self.x2 and self.y1 == self.y2

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def scaled(self, x: float, y: float) -> Shape:
        """In other units."""
        return Shape(self.x1 * x, self.y1 * y, self.x2 * x, self.y2 * y)


_NUMBER = r"[-+]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?+\d{1,3}+)?+"
_NUMBERS = re.compile(_NUMBER)
_BETWEEN = r"(?:\s*+[,;|]\s*+|\s++)"
_LIST = re.compile(rf"[\[(]\s*+({_NUMBER}(?:{_BETWEEN}{_NUMBER})*+)\s*+,?+\s*+[\])]")
_BARE = re.compile(rf"\s*+{_NUMBER}(?:{_BETWEEN}{_NUMBER})*+\s*+\.?+\s*+")
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.DOTALL)
_TAG = re.compile(
    r"<(?P<bar>\|?)(?P<name>box|bbox|point)(?P<start>_start\|)?>(?P<inside>[^<]*+)<(?:/(?P=name)|\|(?P=name)_end\|)>"
)
_POINTS = re.compile(r"<points?+\s([^<>]*+)>?+")
_COUNTED = re.compile(rf"\b([xy])(\d{{0,3}}+)\s*+=\s*+[\"']?+({_NUMBER})")
_PLACE = re.compile(r"<loc_?+(\d{1,5}+)>")
_BOX_NAMES = frozenset(
    ("bbox_2d", "box_2d", "bbox", "box", "boxes", "bboxes", "bounding_box", "bounding_boxes", "start_box")
)
_POINT_NAMES = frozenset(
    ("point_2d", "point", "points", "coordinate", "coordinates", "position", "click", "start_point")
)
_NAMES = _BOX_NAMES | _POINT_NAMES
_NAME_BEFORE = re.compile(r"(?<![A-Za-z_])([A-Za-z_]\w{1,30}+)[\"']?+\s*+[:=]\s*+[\"']?+[\[({\s]*+\Z")
_SAME_LIST = re.compile(r"[\s,\[\]()]*+")
_SCALAR = re.compile(rf"[\"']?+\b([A-Za-z]\w{{0,8}}+)[\"']?+\s{{0,4}}+[:=]\s{{0,4}}+[\"']?+({_NUMBER})")
_SCALARS: tuple[tuple[tuple[str, ...], Order], ...] = (
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("x_min", "y_min", "x_max", "y_max"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("x", "y", "width", "height"), "xywh"),
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y"), "xyxy"),
)
"""Names of a shape's numbers, and their order."""
_SCALAR_NAMES = frozenset(name for names, _ in _SCALARS for name in names)


# --- answers ----------------------------------------------------------------------------------------------------


def shapes_in(text: str, order: Order, *, points: bool) -> list[Shape]:
    """The boxes and points of an answer; none if there are none that can be read.

    Args:
        order: what the four numbers of a box are; with `yxyx` a point's two are y and x.
        points: whether two pairs side by side are two points; else they are the corners of a box.
    """
    answers = _ANSWER.findall(text)
    text = answers[-1] if answers else text
    for form in (_in_tags, _named, _with_named_numbers, _places, _listed, _nothing_else):
        found = list(form(text, order, points))
        if found:
            return found
    return []


def _in_tags(text: str, order: Order, points: bool) -> Iterator[Shape]:
    for tag in _TAG.finditer(text):
        lists = [_numbers(each[1]) for each in _LIST.finditer(tag["inside"])]
        yield from _of_lists(lists or [_numbers(tag["inside"])], order, tag["name"] == "point")


def _named(text: str, order: Order, points: bool) -> Iterator[Shape]:
    """Lists after a name such as `bbox_2d`, and those that follow in the same list of lists."""
    run: list[list[float]] = []
    of_points, end = False, 0
    for each in _LIST.finditer(text):
        if not run or _SAME_LIST.fullmatch(text, end, each.start()) is None:
            yield from _of_lists(run, order, of_points)
            run = []
            before = _NAME_BEFORE.search(text, max(end, each.start() - 60), each.start())
            name = before[1].lower() if before is not None else ""
            if name not in _NAMES:
                continue
            of_points = name in _POINT_NAMES
        run.append(_numbers(each[1]))
        end = each.end()
    yield from _of_lists(run, order, of_points)


def _with_named_numbers(text: str, order: Order, points: bool) -> Iterator[Shape]:
    """Shapes whose numbers each have a name: `{"x1": 1, …}`, `<point x="1" y="2">`, `click(x=1, y=2)`."""
    counted = [each for tag in _POINTS.finditer(text) for each in _counted(tag[1])]
    if counted:
        yield from counted
        return
    given: dict[str, float] = {}
    for found in _SCALAR.finditer(text):
        name, value = found[1].lower(), float(found[2])
        if name not in _SCALAR_NAMES:
            continue
        if name in given:
            yield from _of_names(given)
            given = {}
        given[name] = value
    yield from _of_names(given)


def _of_names(given: Mapping[str, float]) -> Iterator[Shape]:
    for names, order in _SCALARS:
        if all(name in given for name in names):
            shape = shape_of([given[name] for name in names], order)
            if shape is not None:
                yield shape
            return


def _counted(attributes: str) -> Iterator[Shape]:
    """The points of Molmo's tags, in per cent of the picture."""
    found = {(axis, number): float(value) for axis, number, value in _COUNTED.findall(attributes)}
    for axis, number in found:
        if axis == "x" and ("y", number) in found:
            yield from _shapes([found["x", number], found["y", number]], "xyxy")


def _places(text: str, order: Order, points: bool) -> Iterator[Shape]:
    numbers = [float(each) for each in _PLACE.findall(text)]
    size = 4 if not points or len(numbers) % 4 == 0 else 2
    yield from _of_lists([numbers[at : at + size] for at in range(0, len(numbers), size)], order, points)


def _listed(text: str, order: Order, points: bool) -> Iterator[Shape]:
    run: list[list[float]] = []
    end = 0
    for each in _LIST.finditer(text):
        if run and _SAME_LIST.fullmatch(text, end, each.start()) is None:
            yield from _of_lists(run, order, points)
            run = []
        run.append(_numbers(each[1]))
        end = each.end()
    yield from _of_lists(run, order, points)


def _nothing_else(text: str, order: Order, points: bool) -> Iterator[Shape]:
    if _BARE.fullmatch(text):
        yield from _of_lists([_numbers(text)], order, points)


def _numbers(text: str) -> list[float]:
    return [float(each) for each in _NUMBERS.findall(text)]


def _of_lists(lists: Sequence[list[float]], order: Order, points: bool) -> Iterator[Shape]:
    """Lists that stand side by side: of four numbers a box, of two a point, or two such a box's corners."""
    pairs: list[list[float]] = []
    for numbers in lists:
        if len(numbers) == 2 and not points:
            pairs.append(numbers)
            if len(pairs) == 2:
                yield from _shapes([*pairs[0], *pairs[1]], "yxyx" if order == "yxyx" else "xyxy")
                pairs = []
            continue
        yield from _shapes(numbers, order)
    if pairs:
        yield from _shapes(pairs[0], order)


def _shapes(numbers: list[float], order: Order) -> Iterator[Shape]:
    shape = shape_of(numbers, order)
    if shape is not None:
        yield shape


def shape_of(numbers: Sequence[float], order: Order) -> Shape | None:
    """A box of four numbers, a point of two; None of other numbers, and of those that are no coordinates."""
    if len(numbers) not in (2, 4) or not all(math.isfinite(each) and abs(each) <= LARGEST for each in numbers):
        return None
    if len(numbers) == 2:
        x, y = reversed(numbers) if order == "yxyx" else numbers
        return Shape(x, y, x, y)
    a, b, c, d = numbers
    if order == "xywh":
        return Shape(a, b, a + c, b + d)
    if order == "cxcywh":
        return Shape(a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    return Shape(b, a, d, c) if order == "yxyx" else Shape(a, b, c, d)


# --- rows -------------------------------------------------------------------------------------------------------


def known_shapes(value: Any, order: Order) -> list[Shape]:
    """The boxes and points that a row holds: one, or a list of them, as lists of numbers, objects, or JSON text.

    Raises:
        ValueError: it holds something else as well.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{value[:60]!r} is not JSON") from None
    if isinstance(value, Mapping) and (several := _several(value)) is not None:
        value = several
    if isinstance(value, Mapping) or _is_numbers(value):
        return [_known(value, order)]
    if isinstance(value, list | tuple):
        return [_known(each, order) for each in value]
    raise ValueError(f"{str(value)[:60]!r} is neither a box nor a list of boxes")


def _several(value: Mapping[Any, Any]) -> Any:
    """The list of lists or objects under an object's only name of shapes; None if there is none."""
    named = [each for name, each in value.items() if str(name).lower() in _NAMES]
    return named[0] if len(named) == 1 and isinstance(named[0], list | tuple) and not _is_numbers(named[0]) else None


def _known(value: Any, order: Order) -> Shape:
    shape: Shape | None = None
    if _is_numbers(value):
        shape = shape_of([_float(each) for each in value], order)
    elif isinstance(value, Mapping):
        named = [name for name in value if str(name).lower() in _NAMES]
        if len(named) == 1:
            return _known(value[named[0]], order)
        scalars = {str(name).lower(): each for name, each in value.items() if _is_number(each)}
        shape = next(_of_names({name: _float(each) for name, each in scalars.items()}), None) if not named else None
    if shape is None or shape.x2 < shape.x1 or shape.y2 < shape.y1:
        raise ValueError(f"{str(value)[:60]!r} is neither a box (four numbers, {order}) nor a point (two)")
    return shape


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    """Python's whole numbers may be too large for a float."""
    return float(value) if abs(value) <= LARGEST else math.inf
