"""Coloured shapes on a grid: count them, name a colour, say which stands left of which."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import NOT_EMPTY, Draws, Scene, VisualExample, within

Question = Literal["count", "colour", "left_of"]
COLOURS = {
    "red": "#d62728",
    "blue": "#1f5fd0",
    "green": "#1f9e3c",
    "yellow": "#f2c40f",
    "purple": "#8a3fb5",
    "black": "#222222",
}
FORMS = ("circle", "square", "triangle", "cross", "star")
PLURALS = {form: "crosses" if form == "cross" else f"{form}s" for form in FORMS}
SMOOTHING = 4
"""Drawn so many times larger, then reduced, for soft edges."""
LINE = "#c8c8c8"


class ShapesSettings(Section):
    rows: Annotated[tuple[int, int], within(1, 6)] = (2, 4)
    columns: Annotated[tuple[int, int], within(2, 6)] = (2, 4)
    cell: int = Field(default=56, ge=14, le=160)
    """Pixels of a cell, either way."""
    filled: float = Field(default=0.7, gt=0, le=1)
    """Share of the cells that hold a shape; two at least always do."""
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = get_args(Question)

    @model_validator(mode="after")
    def _require_two_shapes(self) -> ShapesSettings:
        if self.rows[0] * self.columns[0] * self.filled < 2:
            raise ValueError(
                f"the smallest grid, {self.rows[0]}x{self.columns[0]} filled to {self.filled}, "
                "holds fewer than two shapes; raise rows, columns or filled"
            )
        return self


class Shape(NamedTuple):
    colour: str
    form: str
    row: int
    """From the top, 0 first."""
    column: int
    """From the left, 0 first."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}"


@dataclass(frozen=True)
class ShapesScene(Scene):
    rows: int
    columns: int
    shapes: tuple[Shape, ...]
    """In reading order."""


def draw(settings: ShapesSettings, rng: Draws) -> ShapesScene:
    rows, columns = rng.whole(settings.rows), rng.whole(settings.columns)
    count = max(2, round(rows * columns * settings.filled))
    # Sorted, so that shapes are listed in reading order, which their identity states.
    cells = sorted(rng.permutation(rows * columns)[:count])
    shapes = tuple(
        Shape(rng.pick(tuple(COLOURS)), rng.pick(FORMS), *divmod(int(cell), columns))
        for cell in cells
    )
    listed = ", ".join(f"{shape.name} {shape.row} {shape.column}" for shape in shapes)
    asked = _ask(rng.pick(settings.questions), shapes, rng)
    return ShapesScene(f"shapes {rows}x{columns}: {listed}", *asked, rows, columns, shapes)


def _ask(asked: str, shapes: tuple[Shape, ...], rng: Draws) -> tuple[str, str, str]:
    """Return question, answer and accuracy route."""
    if asked == "count":
        seen = rng.pick(shapes)
        # One in four asks for any colour or form, so that 0 is an answer too.
        is_any = rng.random() < 0.25
        colour = rng.pick(tuple(COLOURS)) if is_any else seen.colour
        form = rng.pick(FORMS) if is_any else seen.form
        # By one property or by both, so that a policy can ignore neither colour nor form.
        match rng.pick(("colour", "form", "both")):
            case "colour":
                named, count = f"{colour} shapes", sum(s.colour == colour for s in shapes)
            case "form":
                named, count = PLURALS[form], sum(s.form == form for s in shapes)
            case _:
                named = f"{colour} {PLURALS[form]}"
                count = sum(s[:2] == (colour, form) for s in shapes)
        return f"How many {named} are in the picture?", str(count), "number"
    if asked == "left_of":
        # A shape that is there twice has no one place to be compared.
        names = [shape.name for shape in shapes]
        single = [shape for shape in shapes if names.count(shape.name) == 1]
        for first, second in pairwise(rng.several(single, len(single))):
            if first.column != second.column:
                question = f"Is the {first.name} further left than the {second.name}?"
                return question, "yes" if first.column < second.column else "no", "yes_no"
    # Also where no two shapes can be compared.
    shape = rng.pick(shapes)
    question = f"Which colour is the {shape.form}"
    if sum(other.form == shape.form for other in shapes) > 1:
        question += f" in row {shape.row + 1} from the top, column {shape.column + 1} from the left"
    return f"{question}?", shape.colour, "text"


def paint(scene: ShapesScene, settings: ShapesSettings, rng: Draws) -> VisualExample:
    cell = settings.cell * SMOOTHING
    size = (scene.columns * cell, scene.rows * cell)
    # Lines of the grid are visible: questions name rows and columns, which must be countable.
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    for column in range(1, scene.columns):
        canvas.line((column * cell, 0, column * cell, size[1]), LINE, SMOOTHING)
    for row in range(1, scene.rows):
        canvas.line((0, row * cell, size[0], row * cell), LINE, SMOOTHING)
    for shape in scene.shapes:
        radius = cell * rng.uniform(0.26, 0.4)
        # Sizes and places vary, so that a count cannot be read off the total ink.
        room = 0.7 * (cell / 2 - radius)
        middle = (np.array([shape.column, shape.row]) + 0.5) * cell + rng.uniform(-room, room, 2)
        draw_shape(canvas, shape.colour, shape.form, middle, radius)
    small = image.resize((size[0] // SMOOTHING, size[1] // SMOOTHING), Image.Resampling.BOX)
    return VisualExample((small,), scene.question, scene.answer, scene.task)


def draw_shape(
    canvas: ImageDraw.ImageDraw, colour: str, form: str, middle: np.ndarray, radius: float
) -> None:
    """middle: x and y, and radius, in pixels of the canvas."""
    if form == "circle":
        canvas.ellipse((*(middle - radius), *(middle + radius)), COLOURS[colour])
    else:
        outline = [tuple(middle + radius * point) for point in _OUTLINES[form]]
        canvas.polygon(outline, COLOURS[colour])


def _around(corners: int, radii: tuple[float, ...]) -> np.ndarray:
    """Points on circles around the middle, the first one at the top: [corners, 2]."""
    angles = 2 * np.pi * np.arange(corners) / corners
    lengths = np.resize(radii, corners)
    return np.stack([np.sin(angles) * lengths, -np.cos(angles) * lengths], axis=1)


# Outlines around the origin with a radius of about 1; y points down, as in pictures.
_ARM = 0.3
_CROSS = [(_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1)]
_OUTLINES = {
    "square": 0.88 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _around(3, (1.0,)),
    "star": _around(10, (1.0, 0.42)),
    "cross": np.array(_CROSS + [(-x, -y) for x, y in _CROSS]),
}
