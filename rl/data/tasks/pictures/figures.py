"""Geometry figures whose lengths and angles stand in the picture alone: the question has none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import NOT_EMPTY, Draws, Scene, VisualExample, font, within

Point = tuple[float, float]
Kind = Literal["angle", "right_triangle", "area", "perimeter", "segment", "l_shape"]
SMOOTHING = 3
"""Drawn so many times larger, then reduced, for soft edges."""
MARGIN, OUTER_MARGIN = 0.1, 0.22
"""Shares of the picture on every side, without and with labels of sides that stand there."""
MIN_ANGLE = 35
"""Degrees; in a sharper corner its label has no room."""
# Right triangles with whole sides. Flatter ones, such as (7, 24, 25), have no room for a label.
TRIPLES = ((3, 4, 5), (5, 12, 13), (6, 8, 10), (8, 15, 17), (9, 12, 15), (12, 16, 20))
INK, FILL, MARK = "#1a1a1a", "#e8eef8", "#b02a2a"


class FiguresSettings(Section):
    kinds: Annotated[tuple[Kind, ...], NOT_EMPTY] = get_args(Kind)
    size: int = Field(default=280, ge=200, le=1024)
    """Pixels, either way."""
    lengths: Annotated[tuple[int, int], within(2, 99)] = (3, 15)
    """Of sides, in centimetres; right triangles have their own."""
    turn: float = Field(default=12.0, ge=0, le=180)
    """Degrees that a figure may be turned, to either side."""


class Label(NamedTuple):
    text: str
    point: Point
    """What is labelled, in the figure's own units."""
    towards: Point
    """Unit vector from the point to the label."""
    away: float = 1.5
    """Distance from the point to the label's edge, in hundredths of the picture's side."""


@dataclass(frozen=True)
class FiguresScene(Scene):
    """Lines and labels in units of their own, y pointing down; painting turns and scales them."""

    kind: str
    values: tuple[int, ...]
    """The labelled numbers."""
    outline: tuple[Point, ...]
    """Closed but for a segment."""
    labels: tuple[Label, ...]
    marks: tuple[tuple[Point, ...], ...] = ()
    """Thin lines: arcs of angles, square corners, ticks, dimension lines."""


def draw(settings: FiguresSettings, rng: Draws) -> FiguresScene:
    # Each kind draws its numbers first and its geometry from them, so that figures are to scale.
    match rng.pick(settings.kinds):
        case "angle":
            return _angle(rng)
        case "right_triangle":
            return _right_triangle(rng)
        case "segment":
            return _segment(settings, rng)
        case "l_shape":
            return _l_shape(settings, rng)
        case kind:
            return _rectangle(kind, settings, rng)


def _scene(
    kind: str, values: tuple[int, ...], unknown: int, question: str, answer: int, *geometry: Any
) -> FiguresScene:
    """unknown: which of the figure's numbers is asked for, where that can be any of them."""
    identity = f"figures {kind} {values} {unknown}"
    return FiguresScene(identity, question, str(answer), "number", kind, values, *geometry)


def _without_one(
    numbers: Sequence[int], unit: str, rng: Draws
) -> tuple[int, tuple[int, ...], list[str]]:
    """Choose the number that is asked for; return its index, the others, and labels with an x."""
    unknown = int(rng.integers(len(numbers)))
    labels = [f"{number}{unit}" for number in numbers]
    labels[unknown] = "x"
    return unknown, (*numbers[:unknown], *numbers[unknown + 1 :]), labels


def _angle(rng: Draws) -> FiguresScene:
    # All three angles are whole degrees, which makes the one that is asked for exact.
    left = rng.whole((MIN_ANGLE, 180 - 2 * MIN_ANGLE))
    right = rng.whole((MIN_ANGLE, 180 - MIN_ANGLE - left))
    angles = (left, right, 180 - left - right)
    # Base of length 1; the apex by the law of sines.
    side = math.sin(math.radians(right)) / math.sin(math.radians(angles[2]))
    apex = (side * math.cos(math.radians(left)), -side * math.sin(math.radians(left)))
    corners = ((0.0, 0.0), (1.0, 0.0), apex)
    unknown, known, texts = _without_one(angles, "°", rng)
    radius = 0.11 * min(math.dist(a, b) for a, b in combinations(corners, 2))
    labels, marks = [], []
    for index, (x, y) in enumerate(corners):
        ways = [_unit((x, y), corners[(index + step) % 3]) for step in (1, 2)]
        inwards = _unit((0, 0), (ways[0][0] + ways[1][0], ways[0][1] + ways[1][1]))
        # The sharper the angle, the further from the corner its label fits between the sides.
        reach = 4.2 / math.sin(math.radians(angles[index] / 2))
        labels.append(Label(texts[index], (x, y), inwards, max(10.0, reach)))
        # An arc from side to side; the angle within the triangle is always the shorter way.
        start, end = (math.atan2(dy, dx) for dx, dy in ways)
        sweep = (end - start + math.pi) % (2 * math.pi) - math.pi
        turns = [start + sweep * step / 12 for step in range(13)]
        marks.append(tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns))
    question, answer = "How many degrees has the angle marked x?", angles[unknown]
    return _scene("angle", known, unknown, question, answer, corners, tuple(labels), tuple(marks))


def _right_triangle(rng: Draws) -> FiguresScene:
    short, long, slope = rng.pick(TRIPLES)
    # Standing or lying: either of the short sides may be the base.
    base, height = (long, short) if rng.random() < 0.5 else (short, long)
    scale = rng.whole((1, 4))
    across, slope, up = sides = scale * base, scale * slope, scale * height
    corners = ((0.0, 0.0), (float(across), 0.0), (0.0, -float(up)))
    unknown, known, texts = _without_one(sides, " cm", rng)
    # The small square that marks the right angle.
    corner = 0.09 * math.hypot(across, up)
    marks = (((corner, 0.0), (corner, -corner), (0.0, -corner)),)
    question = (
        "The angle with the small square is a right angle. How many centimetres long is the side "
        "marked x?"
    )
    geometry = corners, _side_labels(corners, texts), marks
    return _scene("right_triangle", known, unknown, question, sides[unknown], *geometry)


def _rectangle(kind: str, settings: FiguresSettings, rng: Draws) -> FiguresScene:
    """Ask for the area or the perimeter of a rectangle; two of its sides are labelled."""
    low, high = settings.lengths
    width = rng.whole(settings.lengths)
    # Neither side is over three times the other, which would leave the labels no room.
    height = rng.whole((max(low, math.ceil(width / 3)), min(high, 3 * width)))
    right, top = float(width), -float(height)
    corners = ((0.0, 0.0), (right, 0.0), (right, top), (0.0, top))
    labels = [f"{width} cm", f"{height} cm"]
    if kind == "area":
        question = "How many square centimetres is the area of the rectangle?"
        answer, texts = width * height, [*labels, "", ""]
    else:
        question = "How many centimetres is the perimeter of the rectangle?"
        answer, texts = 2 * (width + height), ["", "", *labels]
    geometry = corners, _side_labels(corners, texts)
    return _scene(kind, (width, height), 0, question, answer, *geometry)


def _segment(settings: FiguresSettings, rng: Draws) -> FiguresScene:
    """A line in three parts: its whole length and two parts are labelled."""
    parts = [rng.whole(settings.lengths) for _ in range(3)]
    total = sum(parts)
    lengths = (*parts, total)
    unknown, known, texts = _without_one(lengths, " cm", rng)
    # Drawn to scale unless a part would then be too short for its label.
    ends = np.cumsum([0.0, *(max(part, 0.32 * total) for part in parts)]).tolist()
    long = ends[-1]
    # The dimension line of the whole length runs below the line itself.
    below, tick = 0.3 * long, 0.025 * long
    ticks = [(end, 0.0) for end in ends] + [(0.0, below), (long, below)]
    upright = [((x, y - tick), (x, y + tick)) for x, y in ticks]
    labels = [
        *(Label(name, (end, 0.0), (0.0, 1.0), 3) for name, end in zip("ABCD", ends, strict=True)),
        *(
            Label(text, ((start + end) / 2, 0.0), (0.0, -1.0), 2.5)
            for text, (start, end) in zip(texts[:3], pairwise(ends), strict=True)
        ),
        Label(texts[3], (long / 2, below), (0.0, 1.0), 2.5),
    ]
    asked = "whole line," if unknown == 3 else "part of the line"
    question = f"How many centimetres long is the {asked} marked x?"
    marks = (*upright, ((0.0, below), (long, below)))
    geometry = ((0.0, 0.0), (long, 0.0)), tuple(labels), marks
    return _scene("segment", known, unknown, question, lengths[unknown], *geometry)


def _l_shape(settings: FiguresSettings, rng: Draws) -> FiguresScene:
    """A rectangle without its upper right corner."""
    low, high = settings.lengths
    # The L has six sides; two of them follow from the others and are not labelled, so that the area
    # takes a subtraction.
    foot, arm = rng.whole((low, high)), rng.whole((low, high))
    # Sides that differ by more than half would leave the labels no room.
    cut_x = rng.whole((max(low, math.ceil(arm / 2)), max(low, min(high, 2 * arm))))
    cut_y = rng.whole((max(low, math.ceil(foot / 2)), max(low, min(high, 2 * foot))))
    width, height = arm + cut_x, foot + cut_y
    corners = tuple(
        (float(x), -float(y))
        for x, y in ((0, 0), (width, 0), (width, foot), (arm, foot), (arm, height), (0, height))
    )
    texts = [f"{width} cm", f"{foot} cm", "", "", f"{arm} cm", f"{height} cm"]
    question = (
        "All corners of the figure are right angles. How many square centimetres is its area?"
    )
    values, answer = (width, foot, arm, height), width * foot + arm * cut_y
    return _scene("l_shape", values, 0, question, answer, corners, _side_labels(corners, texts))


def _unit(start: Point, end: Point) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    return dx / length, dy / length


def _side_labels(corners: Sequence[Point], texts: Sequence[str]) -> tuple[Label, ...]:
    """Labels outside the middle of each side of a polygon that runs anticlockwise on the page."""
    labels = []
    for (start, end), text in zip(pairwise([*corners, corners[0]]), texts, strict=True):
        if text:
            dx, dy = _unit(start, end)
            middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            labels.append(Label(text, middle, (-dy, dx)))
    return tuple(labels)


def paint(scene: FiguresScene, settings: FiguresSettings, rng: Draws) -> VisualExample:
    size = settings.size * SMOOTHING
    # Turned, so that sides are not always level or upright.
    turn = math.radians(rng.uniform(-settings.turn, settings.turn))
    turned = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    # The figure fills the picture up to its margins. The marks count too: a dimension line may
    # reach further than the figure.
    points = np.array([*scene.outline, *chain.from_iterable(scene.marks)]) @ turned
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN if scene.kind in ("angle", "segment") else OUTER_MARGIN
    scale = size * (1 - 2 * margin) / (high - low).max()
    shift = size / 2 - scale * (low + high) / 2

    def to_pixels(shape: Sequence[Point]) -> list[Point]:
        return [(x, y) for x, y in (np.array(shape) @ turned * scale + shift).tolist()]

    image = Image.new("RGB", (size, size), "white")
    canvas = ImageDraw.Draw(image)
    # Widths and letters follow from the size, so that a small picture looks like a large one.
    line = max(2, size // 160)
    outline = to_pixels(scene.outline)
    if scene.kind != "segment":
        canvas.polygon(outline, FILL)
        # On to the second corner, so that the first is joined as smoothly as the others.
        outline = [*outline, outline[0], outline[1]]
    canvas.line(outline, INK, line, joint="curve")
    for mark in scene.marks:
        canvas.line(to_pixels(mark), MARK if scene.kind == "angle" else INK, max(1, line // 2))
    letters = font("DejaVuSans", size // 18)
    for label in scene.labels:
        ((x, y),) = to_pixels([label.point])
        # A label keeps upright and moves outwards until its box clears the line, whatever the turn.
        dx, dy = np.array(label.towards) @ turned
        left, top, right, bottom = letters.getbbox(label.text, anchor="mm")
        far = label.away * size / 100 + abs(dx) * (right - left) / 2 + abs(dy) * (bottom - top) / 2
        canvas.text((x + far * dx, y + far * dy), label.text, INK, letters, anchor="mm")
    # Reduced by averaging: Pillow draws hard edges only.
    small = image.resize((settings.size, settings.size), Image.Resampling.BOX)
    return VisualExample((small,), scene.question, scene.answer, scene.task)
