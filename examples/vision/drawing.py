"""Pictures of digits and coloured shapes, drawn with Pillow, and questions about them.

A row is what LLaMA-Factory and ms-swift read: `messages` with `<image>` in the user's text, and `images`, paths beside
the file. The seed and a row's number alone decide what it is, so a file drawn again is the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIDE = 84
"""Pixels of a picture's side: six of DINOv2's patches."""
_FINE = 4
"""Pictures are drawn so many times larger, then made small: Pillow's lines have no smooth edges."""
Point = tuple[float, float]

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 140, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 40),
    "purple": (130, 50, 160),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ABOUT_DIGITS = ("Which digit is in the picture?", "What digit do you see?", "Read the digit.")
ABOUT_SHAPES = ("Which shape is it, and which colour?", "What do you see?", "Name the colour and the shape.")


def rows(count: int, seed: int, folder: Path, *, answered: bool = True) -> Iterator[dict[str, Any]]:
    """Draw `count` pictures into `folder`, and yield the row of each; three of five show a digit.

    Args:
        answered: whether rows have an answer, or are prompts for a teacher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        drawn = random.Random(f"{seed}/{number}")
        draw, ask = (_digit, ABOUT_DIGITS) if number % 5 < 3 else (_shape, ABOUT_SHAPES)
        picture, answer = draw(drawn)
        path = folder / f"{number:05}.png"
        picture.save(path)
        messages = [{"role": "user", "content": f"<image>\n{drawn.choice(ask)}"}]
        if answered:
            messages.append({"role": "assistant", "content": answer})
        yield {"messages": messages, "images": [f"{folder.name}/{path.name}"]}


def write(path: Path, count: int, seed: int, *, answered: bool = True) -> None:
    """Write rows to `path`, and their pictures into a folder beside it."""
    made = rows(count, seed, path.with_suffix(""), answered=answered)
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def read(path: Path) -> list[tuple[str, Image.Image, str]]:
    """(question, picture, answer) of every row of a file that `write` has written with answers."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question, answer = (message["content"] for message in row["messages"])
        with Image.open(path.parent / row["images"][0]) as picture:
            found.append((question.removeprefix("<image>\n"), picture.convert("RGB"), answer))
    return found


# --- pictures ---------------------------------------------------------------------------------------------------


def _canvas(drawn: random.Random, colour: tuple[int, int, int] | None = None) -> Image.Image:
    """A background that runs from one tint to another, pale or dark; away from `colour` if one is given."""
    while True:
        low, high = drawn.choice(((0, 80), (175, 255)))
        ends = [tuple(drawn.randint(low, high) for _ in range(3)) for _ in range(2)]
        if colour is None or all(math.dist(end, colour) > 150 for end in ends):
            break
    ramp = Image.linear_gradient("L").resize((SIDE * _FINE, SIDE * _FINE)).rotate(drawn.choice((0, 90, 180, 270)))
    solid = [Image.new("RGB", ramp.size, end) for end in ends]
    return Image.composite(solid[0], solid[1], ramp)


def _placed(drawn: random.Random, slant: float) -> Callable[[Point], Point]:
    """A map from the square −1 … 1 to pixels: turned, sheared, of some size, somewhere in the picture."""
    half = drawn.uniform(0.2, 0.36)
    centre = [drawn.uniform(half * 1.15, 1 - half * 1.15) for _ in range(2)]
    turn, shear, squeeze = math.radians(drawn.uniform(-15, 15)), drawn.uniform(-slant, slant), drawn.uniform(0.85, 1.0)

    def place(point: Point) -> Point:
        x, y = (point[0] + shear * point[1]) * squeeze, point[1]
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        return (centre[0] + half * x) * SIDE * _FINE, (centre[1] + half * y) * SIDE * _FINE

    return place


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _arc(centre: Point, radii: Point, start: float, end: float) -> list[Point]:
    """Points of an arc from `start` to `end`, in degrees; 0 is right, 90 is down."""
    steps = max(2, round(abs(end - start) / 12))
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle)) for angle in angles]


DIGITS: tuple[tuple[list[Point], ...], ...] = (
    (_arc((0, 0), (0.62, 1), 0, 360),),
    ([(-0.35, -0.6), (0.1, -1), (0.1, 1)],),
    ([*_arc((0, -0.45), (0.6, 0.55), 190, 390), (-0.6, 1), (0.65, 1)],),
    ([*_arc((-0.05, -0.5), (0.55, 0.5), 200, 440), *_arc((-0.05, 0.48), (0.62, 0.52), 280, 515)],),
    ([(0.3, 1), (0.3, -1), (-0.65, 0.4), (0.65, 0.4)],),
    ([(0.55, -1), (-0.45, -1), (-0.5, -0.15), *_arc((-0.02, 0.38), (0.6, 0.62), 235, 510)],),
    ([(0.4, -1), *_arc((0, 0.4), (0.6, 0.6), 195, 555)],),
    ([(-0.6, -1), (0.6, -1), (-0.15, 1)],),
    (_arc((0, -0.5), (0.5, 0.5), 90, 450), _arc((0, 0.5), (0.6, 0.5), 270, 630)),
    ([*_arc((0, -0.4), (0.58, 0.6), 360, 0), (0.45, 1)],),
)
"""The strokes of each digit, in the square −1 … 1."""


def _digit(drawn: random.Random) -> tuple[Image.Image, str]:
    digit = drawn.randrange(10)
    ink = tuple(drawn.randint(0, 255) for _ in range(3))
    picture = _canvas(drawn, (ink[0], ink[1], ink[2]))
    pen, place = ImageDraw.Draw(picture), _placed(drawn, slant=0.25)
    width = drawn.randint(4, 8) * _FINE
    for stroke in DIGITS[digit]:
        points = [place((x + drawn.gauss(0, 0.02), y + drawn.gauss(0, 0.02))) for x, y in stroke]
        pen.line(points, fill=ink, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)
    return _small(picture), str(digit)


def _shape(drawn: random.Random) -> tuple[Image.Image, str]:
    name, shape = drawn.choice(list(COLOURS)), drawn.choice(SHAPES)
    colour = COLOURS[name]
    picture = _canvas(drawn, colour)
    pen, place = ImageDraw.Draw(picture), _placed(drawn, slant=0.0)
    outline = [place(point) for point in _outline(shape)]
    if shape == "ring":
        pen.line([*outline, outline[1]], fill=colour, width=drawn.randint(5, 8) * _FINE, joint="curve")
    else:
        pen.polygon(outline, fill=colour)
    return _small(picture), f"{name} {shape}"


def _outline(shape: str) -> list[Point]:
    if shape in ("circle", "ring"):
        return _arc((0, 0), (0.9, 0.9), 0, 360)
    if shape == "cross":
        arm = 0.3
        corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
        return [turned for turn in range(4) for turned in (_quarters(point, turn) for point in corner)]
    if shape == "star":
        radii = (1.0, 0.42) * 5
        angles = [math.radians(36 * number - 90) for number in range(10)]
        return [(r * math.cos(angle), r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True)]
    return {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    }[shape]


def _quarters(point: Point, turns: int) -> Point:
    """A point turned by so many quarters of a circle."""
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y
