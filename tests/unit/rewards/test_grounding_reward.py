"""`grounding`: boxes and points, read in the forms that models write, and paired one to one with those of the row."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.rollouts import rollout

from easydistill.errors import DataError
from easydistill.rewards import RewardContext
from easydistill.rewards._assignment import assign
from easydistill.rewards._boxes import Shape, known_shapes, shapes_in
from easydistill.rewards.grounding import MOST, Config, check, iou, knows, make, quality

BOX = [10, 20, 30, 60]
HALF = [10, 20, 30, 40]
"""Half of it: an intersection over union of ½."""


def value(text: str, known: Any = BOX, *, ended: bool = True, row: dict[str, Any] | None = None, **config: Any) -> Any:
    reward = make(Config(**config), RewardContext())
    (found,) = reward([rollout(text, ended=ended, boxes=known, **(row or {}))])
    reward.close()
    return found


# What models of several families write for one box, and what else stands around it.
WRITTEN = {
    "list": "[10, 20, 30, 60]",
    "qwen2.5": '```json\n[\n    {"bbox_2d": [10, 20, 30, 60], "label": "a cat"}\n]\n```',
    "qwen2": "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(10,20),(30,60)<|box_end|>",
    "qwen": "<ref>a cat</ref><box>(10,20),(30,60)</box>",
    "internvl": "<ref>a cat</ref><box>[[10, 20, 30, 60]]</box>",
    "minicpm": "<box>10 20 30 60</box>",
    "cogagent": "The cat is at [[010,020,030,060]].",
    "named numbers": '{"x1": 10, "y1": 20, "x2": 30, "y2": 60}',
    "width and height": '{"x": 10, "y": 20, "width": 20, "height": 40}',
    "tensorflow": '{"xmin": 10.0, "ymin": 20.0, "xmax": 30.0, "ymax": 60.0}',
    "numbers alone": "10, 20, 30, 60",
    "answer tags": "Around (320, 240)? No.\n<answer>[10, 20, 30, 60]</answer>",
    "thoughts": "<think>Maybe [0, 0, 5, 5]?</think>\n[10, 20, 30, 60]",
    "python's": "{'bbox_2d': (10, 20, 30, 60)}",
    "size beside it": '{"image_size": [640, 480], "bbox_2d": [10, 20, 30, 60], "rgb": [1, 2, 3]}',
    "list of lists": '{"boxes": [\n        [\n            10, 20, 30, 60\n        ]\n    ]}',
    "two pairs": "[[10, 20], [30, 60]]",
    "cut json": '[{"bbox_2d": [10, 20, 30, 60], "label": "a ca',
    "exponents": "[1e1, 2.0e+1, 30., 60.000]",
    "other brackets": "bbox = (10; 20; 30; 60)",
    "a sentence before": "I count 2 cats of 3. The largest: [10, 20, 30, 60]",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_of_a_box_is_read(name: str) -> None:
    assert value(WRITTEN[name]) == 1.0


# Odd ones, each with what it is worth against [10, 20, 30, 60].
ODD: dict[str, tuple[str, float]] = {
    "nothing": ("", 0.0),
    "words": ("There is a cat on the left.", 0.0),
    "half": (f"{HALF}", 0.5),
    "twice the same": ("[10, 20, 30, 60] [10, 20, 30, 60]", 2 / 3),
    "a guess beside it": ("[10, 20, 30, 60], [0, 0, 500, 500]", 2 / 3),
    "corners turned": ("[30, 60, 10, 20]", 0.0),
    "three numbers": ("[10, 20, 30]", 0.0),
    "five numbers": ("[10, 20, 30, 60, 0.9]", 0.0),
    "not a number": ("[NaN, NaN, NaN, NaN]", 0.0),
    "infinite": ("[10, 20, 1e999, 60]", 0.0),
    "beyond floats": (f"[0, 0, {'9' * 400}, {'9' * 400}]", 0.0),
    "a million wide": ("[0, 0, 1e6, 1e6]", 800 / 1e12),
    "hex": ("[0xA, 20, 30, 60]", 0.0),
    "code": ("__import__('os').system('true')", 0.0),
    "negative": ("[-10, -20, 30, 60]", 800 / 3200),
    "no area": ("[10, 20, 10, 60]", 0.0),
    "words as numbers": ("[ten, twenty, thirty, sixty]", 0.0),
    "thoughts alone": ("<think>[10, 20, 30, 60]", 0.0),
    "empty list": ("[]", 0.0),
    "a point": ("(20, 40)", 0.0),
    "answer without end": ("<answer>[10, 20, 30, 60]", 1.0),
    "two answers": ("<answer>[0, 0, 1, 1]</answer><answer>[10, 20, 30, 60]</answer>", 1.0),
    "full-width comma": ("[10，20，30，60]", 0.0),
    "arabic digits": ("[١٠, ٢٠, ٣٠, ٦٠]", 1.0),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers(name: str) -> None:
    text, expected = ODD[name]
    assert value(text) == pytest.approx(expected, abs=1e-12)


POINTS = {
    "list": "[20, 40]",
    "pair": "(20, 40)",
    "qwen2.5": '```json\n[{"point_2d": [20, 40], "label": "button"}]\n```',
    "tag": "<point>20 40</point>",
    "tag with a list": "<point>[[20, 40]]</point>",
    "molmo": '<point x="20" y="40" alt="button">button</point>',
    "several of molmo's": '<points x1="20" y1="40" alt="buttons">buttons</points>',
    "ui-tars": "Thought: …\nAction: click(start_box='(20,40)')",
    "ui-tars with tags": "Action: click(start_box='<|box_start|>(20,40)<|box_end|>')",
    "pyautogui": "pyautogui.click(x=20, y=40)",
    "numbers alone": "20 40",
    "a box": "[15, 35, 25, 45]",
    "object": '{"action": "click", "coordinate": [20, 40]}',
}


@pytest.mark.parametrize("name", POINTS)
def test_every_form_of_a_point_is_read(name: str) -> None:
    assert value(POINTS[name], score="point") == 1.0
    assert value(POINTS[name], score="distance") == 1.0
    assert value(POINTS[name], [21, 40], score="point", radius=2) == 1.0
    assert value(POINTS[name], [29, 40], score="point", radius=2) == 0.0


def test_points_outside_and_near() -> None:
    assert value("(31, 40)", score="point") == 0.0
    # σx is half of the width of 20.
    assert value("(30, 40)", score="distance") == pytest.approx(math.exp(-0.5))
    assert value("(30, 40)", score="distance", spread=1.0) == pytest.approx(math.exp(-0.125))
    assert value("(23, 44)", [20, 40], score="distance", radius=5) == pytest.approx(math.exp(-0.5))
    assert value("(99999, 40)", score="distance") == pytest.approx(0.0)
    assert value("[[20, 40], [120, 40]]", [BOX, [110, 20, 130, 60]], score="point") == 1.0
    assert value("(20, 40), (21, 41)", [BOX, [110, 20, 130, 60]], score="point") == 0.5


def test_several_boxes_are_paired_one_to_one() -> None:
    other = [100, 100, 120, 120]
    assert value(f"{other} and {BOX}", [BOX, other]) == 1.0
    assert value(f"{BOX}", [BOX, other]) == pytest.approx(2 / 3)
    assert value(f"{HALF}, {other}", [BOX, other]) == pytest.approx(0.75)
    # The nearest first would leave the second known box with nothing.
    known = [[0, 0, 10, 10], [0, 0, 10, 16]]
    assert value("[0, 0, 10, 12] [0, 0, 10, 9]", known) == pytest.approx((0.75 + 0.9) / 2)


def test_the_threshold_of_a_pair() -> None:
    assert value(f"{HALF}", threshold=0.5) == 0.5
    assert value(f"{HALF}", threshold=0.51) == 0.0
    assert value(f"{HALF}", score="hit") == 1.0
    assert value("[10, 20, 30, 39]", score="hit") == 0.0
    assert value("[10, 20, 30, 39]", score="hit", threshold=0.4) == 1.0


def test_scales() -> None:
    size = {"image_size": [200, 100]}
    assert value("[50, 200, 150, 600]", scale=1000, known_scale="pixels", row=size) == 1.0
    assert value("[0.05, 0.2, 0.15, 0.6]", scale=1, known_scale="pixels", row=size) == 1.0
    assert value("[10, 20, 30, 60]", [0.05, 0.2, 0.15, 0.6], known_scale=1, row=size) == pytest.approx(1.0)
    assert value("[50, 200, 150, 600]", [0.05, 0.2, 0.15, 0.6], scale=1000, known_scale=1) == pytest.approx(1.0)
    assert value("[50, 200, 150, 600]", [50, 200, 150, 600], scale=1000) == 1.0
    # Molmo's per cent.
    assert value('<point x="10" y="40">', score="point", scale=100, known_scale="pixels", row=size) == 1.0
    config = Config(scale=1000, known_scale="pixels")
    assert "image_size" in str(check(config, {"boxes": BOX}))
    assert "image_size" in str(check(config, {"boxes": BOX, "image_size": [0, 100]}))
    assert "image_size" in str(check(config, {"boxes": BOX, "image_size": [200, 10**400]}))
    assert check(config, {"boxes": BOX, "image_size": [200, 100]}) is None


def test_orders() -> None:
    assert value("[20, 10, 60, 30]", order="yxyx") == 1.0
    assert value("[10, 20, 20, 40]", order="xywh") == 1.0
    assert value("[20, 40, 20, 40]", order="cxcywh") == 1.0
    assert value(f"{BOX}", [10, 20, 20, 40], known_order="xywh") == 1.0
    assert value("[40, 20]", score="point", order="yxyx") == 1.0
    tokens = "<loc0020><loc0010><loc0060><loc0030> cat"
    assert value(tokens, order="yxyx", scale=1024) == 1.0
    # Numbers with names say themselves which they are.
    assert value(WRITTEN["named numbers"], order="xywh") == 1.0


def test_a_row_without_boxes_and_one_with_none() -> None:
    assert value("[10, 20, 30, 60]", None) is None
    assert value("There is none.", []) == 1.0
    assert value("[10, 20, 30, 60]", []) == 0.0
    assert value(f"{BOX}", ended=False) == 0.0
    assert knows(Config(), {"boxes": []}) and not knows(Config(), {})


@pytest.mark.parametrize(
    ("known", "config", "told"),
    [
        ([10, 20, 30], {}, "four numbers"),
        ([30, 60, 10, 20], {}, "four numbers"),
        ([BOX, [1, 2, 3]], {}, "four numbers"),
        ("a cat", {}, "not JSON"),
        ([True, 2, 3, 4], {}, "four numbers"),
        ({"label": "cat"}, {}, "four numbers"),
        (7, {}, "neither a box"),
        ([20, 40], {}, "compares areas"),
        ([20, 40], {"score": "point"}, "radius"),
        ([10, 20, math.nan, 60], {}, "[10, 20, nan, 60]' is neither a box (four numbers"),
        ([10, 20, 10**400, 60], {}, "four numbers"),
        ({"x": 1, "y": 10**400}, {}, "four numbers"),
    ],
)
def test_rows_that_cannot_be_used(known: Any, config: dict[str, Any], told: str) -> None:
    assert told in str(check(Config(**config), {"boxes": known}))
    with pytest.raises(DataError, match=r"rewards\.grounding\.field"):
        value(f"{BOX}", known, **config)


@pytest.mark.parametrize(
    "known",
    [
        BOX,
        [BOX],
        {"bbox_2d": BOX},
        [{"bbox_2d": BOX, "label": "cat"}],
        {"boxes": [BOX]},
        {"x1": 10, "y1": 20, "x2": 30, "y2": 60},
        "[10, 20, 30, 60]",
        '[{"bbox_2d": [10, 20, 30, 60]}]',
    ],
)
def test_every_form_of_a_row(known: Any) -> None:
    assert check(Config(), {"boxes": known}) is None
    assert value(f"{BOX}", known) == 1.0


@pytest.mark.parametrize(
    "config",
    [
        {"threshold": 0.5, "score": "point"},
        {"radius": 3.0},
        {"spread": 1.0, "score": "point"},
        {"score": "hit", "threshold": 0.0},
        {"scale": 0},
        {"scale": "inches"},
        {"order": "xxyy"},
    ],
)
def test_options_that_mean_nothing_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**config)


boxes = st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.5, 60)] * 2).map(
    lambda each: Shape(each[0], each[1], each[0] + each[2], each[1] + each[3])
)


@settings(deadline=None, max_examples=150)
@given(boxes, boxes, st.floats(0.1, 20), st.floats(0.1, 20))
def test_intersection_over_union(one: Shape, other: Shape, x: float, y: float) -> None:
    found = iou(one, other)
    assert 0 <= found <= 1 and found == pytest.approx(iou(other, one))
    assert iou(one, one) == pytest.approx(1)
    assert iou(one.scaled(x, y), other.scaled(x, y)) == pytest.approx(found, abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 4), st.integers(0, 5), st.data())
def test_no_other_assignment_is_better(rows: int, columns: int, data: st.DataObject) -> None:
    worth = [[data.draw(st.floats(-1, 1)) for _ in range(columns)] for _ in range(rows)]
    found = assign(worth) if rows else []
    assert len(found) == min(rows, columns)
    assert len({row for row, _ in found}) == len({column for _, column in found}) == len(found)
    best = max(
        (
            math.fsum(worth[row][column] for row, column in zip(chosen, order, strict=True))
            for chosen in itertools.combinations(range(rows), len(found))
            for order in itertools.permutations(range(columns), len(found))
        ),
        default=0.0,
    )
    assert math.fsum(worth[row][column] for row, column in found) == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(st.lists(boxes, max_size=4), st.lists(boxes, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_quality(found: list[Shape], known: list[Shape], random: Any) -> None:
    worth = quality(found, known, iou)
    assert 0 <= worth <= 1
    assert quality(known, known, iou) == pytest.approx(1)
    mixed = random.sample(found, len(found))
    assert quality(mixed, known, iou) == pytest.approx(worth)
    # A second guess at one box never pays.
    if found:
        assert quality(found, known[:1], iou) <= max(quality([each], known[:1], iou) for each in found) + 1e-9


@settings(deadline=None, max_examples=150)
@given(st.lists(boxes, min_size=1, max_size=5))
def test_what_is_written_as_json_is_read(known: list[Shape]) -> None:
    numbers = [[each.x1, each.y1, each.x2, each.y2] for each in known]
    named = ", ".join(f'{{"bbox_2d": {each}, "label": "x"}}' for each in numbers)
    for text in (f"{numbers}", f"[{named}]", f'{{"boxes": {numbers}}}'):
        assert shapes_in(text, "xyxy", points=False) == known
    assert known_shapes(numbers, "xyxy") == known


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([*"[](){}<>|/,.:;='0129exy-+ \n", "<box>", "</box>", '"bbox_2d": ', "<answer>"])).map(
        "".join
    ),
    st.sampled_from(["iou", "hit", "point", "distance"]),
)
def test_any_text_has_a_value(text: str, score: Any) -> None:
    assert 0 <= value(text, score=score) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "[1," * 50_000,
        "<answer>" * 20_000,
        "<box>" * 20_000,
        "<point x=1 " * 10_000,
        '{"bbox_2d":' * 20_000,
        "1 " * 100_000,
        "[" + " " * 100_000,
        '"a":1,' * 50_000,
        "[1, 2, 3, 4]" * (MOST + 1),
        "x" * 300_000,
        '"bbox_2d"' + " " * 200_000 + "[1, 2, 3, 4]",
    ],
    ids=range(12),
)
def test_long_answers_take_no_time(text: str) -> None:
    started = time.process_time()
    assert 0 <= value(text) <= 1
    assert time.process_time() - started < 3
