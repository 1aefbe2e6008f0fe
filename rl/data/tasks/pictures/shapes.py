"""Coloured shapes on a grid: count them, name a colour, say which stands left of which."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import (
    NOT_EMPTY,
    VisualExample,
    draw_whole,
    pick,
    pick_several,
    within,
)

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
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = ("count", "colour", "left_of")

    @model_validator(mode="after")
    def _require_two_shapes(self) -> ShapesSettings:
        if self.rows[0] * self.columns[0] * self.filled < 2:
            raise ValueError(
                f"the smallest grid, {self.rows[0]}x{self.columns[0]} filled to {self.filled}, "
                "holds fewer than two shapes; raise rows, columns or filled"
            )
        return self


@dataclass(frozen=True)
class Shape:
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
class ShapesScene:
    rows: int
    columns: int
    shapes: tuple[Shape, ...]
    """In reading order."""
    question: str
    answer: str
    task: str

    @property
    def identity(self) -> str:
        placed = (f"{shape.name} {shape.row} {shape.column}" for shape in self.shapes)
        return f"shapes {self.rows}x{self.columns}: {', '.join(placed)}"


def draw(settings: ShapesSettings, rng: np.random.Generator) -> ShapesScene:
    rows, columns = draw_whole(rng, settings.rows), draw_whole(rng, settings.columns)
    count = max(2, round(rows * columns * settings.filled))
    # Sorted, so that shapes are listed in reading order, which their identity states.
    places = sorted(rng.permutation(rows * columns)[:count])
    shapes = tuple(
        Shape(pick(rng, tuple(COLOURS)), pick(rng, FORMS), *divmod(int(place), columns))
        for place in places
    )
    ask = {"count": _count, "colour": _colour, "left_of": _left_of}[pick(rng, settings.questions)]
    return ShapesScene(rows, columns, shapes, *ask(shapes, rng))


def _count(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, str, str]:
    seen = pick(rng, shapes)
    # One in four asks for any colour or form, so that 0 is an answer too.
    is_any = rng.random() < 0.25
    colour = pick(rng, tuple(COLOURS)) if is_any else seen.colour
    form = pick(rng, FORMS) if is_any else seen.form
    by = pick(rng, ("colour", "form", "both"))
    # By one property or by both, so that a policy can ignore neither colour nor form.
    if by == "colour":
        named, matching = f"{colour} shapes", [s for s in shapes if s.colour == colour]
    elif by == "form":
        named, matching = PLURALS[form], [s for s in shapes if s.form == form]
    else:
        named = f"{colour} {PLURALS[form]}"
        matching = [s for s in shapes if (s.colour, s.form) == (colour, form)]
    return f"How many {named} are in the picture?", str(len(matching)), "number"


def _colour(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, str, str]:
    shape = pick(rng, shapes)
    if sum(other.form == shape.form for other in shapes) == 1:
        return f"Which colour is the {shape.form}?", shape.colour, "text"
    position = f"row {shape.row + 1} from the top, column {shape.column + 1} from the left"
    return f"Which colour is the {shape.form} in {position}?", shape.colour, "text"


def _left_of(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, str, str]:
    """Compare two shapes that are in the picture once each; without such, ask for a colour."""
    # A shape that is there twice has no one place to be compared.
    names = [shape.name for shape in shapes]
    single = [shape for shape in shapes if names.count(shape.name) == 1]
    for first, second in pairwise(pick_several(rng, single, len(single))):
        if first.column != second.column:
            question = f"Is the {first.name} further left than the {second.name}?"
            return question, "yes" if first.column < second.column else "no", "yes_no"
    return _colour(shapes, rng)


def paint(scene: ShapesScene, settings: ShapesSettings, rng: np.random.Generator) -> VisualExample:
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
        if shape.form == "circle":
            box = (*(middle - radius), *(middle + radius))
            canvas.ellipse(box, COLOURS[shape.colour])
        else:
            outline = [tuple(middle + radius * point) for point in _OUTLINES[shape.form]]
            canvas.polygon(outline, COLOURS[shape.colour])
    small = image.resize((size[0] // SMOOTHING, size[1] // SMOOTHING), Image.Resampling.BOX)
    return VisualExample((small,), scene.question, scene.answer, scene.task)


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
