"""Small forms of digits, some of whose cells are masked: what stood in the cell with the red frame?

Reading and inferring as in reconstruction.py, in a form that is small enough for policies that know
no words, and of which it is known what can be known. Each row follows a rule: the first is a sum
(3 4 7), the second goes up or down in equal steps (8 6 4), the third says one digit three times. So
a cell that can be seen is read, a masked one is inferred where the rest of its row leaves a single
digit, and where it leaves several nothing tells which it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from PIL import ImageDraw
from pydantic import Field, model_validator

from rl.data.tasks.pictures.digits import HandSettings, noisy, written
from rl.data.tasks.pictures.drawing import NOT_EMPTY, TEXTS, Draws, Scene, VisualExample, within
from rl.data.tasks.pictures.reconstruction import FRAME

Kind = Literal["read", "infer", "unknown"]
Row = tuple[int, ...]

WIDE = 3
"""Cells of a row, and rows of a form."""
CELLS = WIDE * WIDE
RULES: tuple[tuple[Row, ...], ...] = (
    tuple((a, b, a + b) for a in range(10) for b in range(10 - a)),
    tuple((a, (a + c) // 2, c) for a in range(10) for c in range(a % 2, 10, 2) if a != c),
    tuple((a, a, a) for a in range(10)),
)
"""All rows that the rule of each row allows."""
MASK = 0.6
"""Shade of a masked cell; white is 1."""
UNKNOWN = "?"
"""The honest answer where nothing tells."""


class FormsSettings(HandSettings):
    masked: Annotated[tuple[float, float], within(0, 1)] = (0.3, 0.7)
    """Share of the cells that are masked, drawn for each form; the number of them is rounded up or
    down at random, so that the share holds on average."""
    asked: Annotated[tuple[Kind, ...], NOT_EMPTY] = get_args(Kind)
    """Cells that may be asked for: those that can be seen, those that are masked and follow from
    the rest of their row, and those that are masked and do not."""
    unknown_answer: Literal["original", "honest"] = "original"
    """What is right where nothing tells: the digit that stood there, as the paper rewards it, or
    honestly `?`, which shows how often a policy makes up a digit."""
    cell: int = Field(default=28, ge=20, le=160)
    """Pixels of each side of a cell."""
    wording: Literal["plain", "terse"] = "plain"
    """`terse` asks in one character, for policies that know no words."""

    @model_validator(mode="after")
    def _require_cells_to_ask_for(self) -> FormsSettings:
        least, most = math.floor(CELLS * self.masked[0]), math.ceil(CELLS * self.masked[1])
        # With one cell seen the row that says one digit three times may still be known, and two
        # masked cells of a sum or of equal steps leave several digits.
        possible = {
            "read": least < CELLS,
            "infer": most >= 1 and least < CELLS,
            "unknown": most >= 2,
        }
        if impossible := [kind for kind in self.asked if not possible[kind]]:
            raise ValueError(
                f"masked={list(self.masked)} leaves no form a cell of asked={impossible}; widen "
                "masked, or ask for others"
            )
        return self


@dataclass(frozen=True)
class FormsScene(Scene):
    digits: Row
    """Of all cells, in reading order, whether they can be seen or not."""
    masked: frozenset[int]
    """Places of the cells that cannot be seen."""
    place: int
    """Of the cell that is asked for."""
    kind: Kind
    """What it takes to answer."""


def draw(settings: FormsSettings, rng: Draws) -> FormsScene:
    digits = tuple(digit for rule in RULES for digit in rng.pick(rule))
    while True:
        share = CELLS * rng.uniform(*settings.masked)
        count = math.floor(share + rng.random())
        masked = frozenset(rng.several(range(CELLS), count))
        kinds: dict[int, Kind] = {place: kind_of(digits, masked, place) for place in range(CELLS)}
        if places := [place for place, kind in kinds.items() if kind in settings.asked]:
            break
    place = rng.pick(places)
    is_honest = kinds[place] == "unknown" and settings.unknown_answer == "honest"
    answer, route = (UNKNOWN, "text") if is_honest else (str(digits[place]), "number")
    question = TEXTS["forms"][settings.wording]
    # Without masks and frame: a form is on one side of the split, whatever is asked about it.
    identity = "forms " + "".join(map(str, digits))
    return FormsScene(identity, question, answer, route, digits, masked, place, kinds[place])


def paint(scene: FormsScene, settings: FormsSettings, rng: Draws) -> VisualExample:
    side = settings.cell
    shade = written(scene.digits, (WIDE * side, WIDE * side), settings, rng)
    for place in scene.masked:
        top, left = place // WIDE * side, place % WIDE * side
        shade[top : top + side, left : left + side] = MASK
    image = noisy(shade, settings, rng)
    top, left = scene.place // WIDE * side, scene.place % WIDE * side
    # Within the cell, over noise and mask alike, so that it says nothing but which cell is meant.
    box = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(image).rectangle(box, outline=FRAME, width=max(2, side // 14))
    return VisualExample((image,), scene.question, scene.answer, scene.task)


def kind_of(digits: Row, masked: frozenset[int], place: int) -> Kind:
    """Return what it takes to say what stands at a place."""
    if place not in masked:
        return "read"
    possible = {row[place % WIDE] for row in rows_like(digits, masked, place // WIDE)}
    return "infer" if len(possible) == 1 else "unknown"


def rows_like(digits: Row, masked: frozenset[int], number: int) -> list[Row]:
    """Return all rows that row `number` may be, by its rule and by its cells that are seen."""
    first = WIDE * number
    seen = [column for column in range(WIDE) if first + column not in masked]
    return [
        row
        for row in RULES[number]
        if all(row[column] == digits[first + column] for column in seen)
    ]
