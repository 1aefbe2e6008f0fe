"""A rendered table, and a question that takes a look-up and some arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import (
    FONT_FAMILIES,
    NOT_EMPTY,
    VisualExample,
    draw_whole,
    font,
    pick,
    pick_several,
    within,
)
from rl.data.tasks.pictures.pages import WORDS

Question = Literal["look_up", "row_sum", "column_sum", "difference", "largest"]
INK, LINE = "#1a1a1a", "#8c8c8c"
HEADS = ("#ffffff", "#dfe7f3", "#e7e7e7", "#e3f0e1")
BAND = "#f4f4f4"


@dataclass(frozen=True)
class Theme:
    title: str
    corner: str
    """What a row is."""
    unit: str
    """What the cells count."""
    rows: Sequence[str]
    columns: Sequence[str]


THEMES = (
    Theme("Fruit sold", "Fruit", "kilograms", WORDS["fruits"], WORDS["months"]),
    Theme("Points in the tests", "Pupil", "points", WORDS["first_names"], WORDS["subjects"]),
    Theme("Visitors of the museums", "Town", "visitors", WORDS["towns"], WORDS["weekdays"]),
    Theme("Books lent by the libraries", "Town", "books", WORDS["towns"], WORDS["months"]),
)


class TablesSettings(Section):
    rows: Annotated[tuple[int, int], within(2, 8)] = (3, 6)
    """Beside the header."""
    columns: Annotated[tuple[int, int], within(2, 5)] = (2, 4)
    """Beside the one with the names."""
    values: Annotated[tuple[int, int], within(0, 9999)] = (2, 99)
    letters: Annotated[tuple[int, int], within(12, 32)] = (15, 19)
    """Size of the font in pixels."""
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = get_args(Question)


@dataclass(frozen=True)
class TablesScene:
    theme: Theme
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    """By row, then by column."""
    question: str
    answer: str
    task: str

    @property
    def identity(self) -> str:
        return f"tables {self.theme.title} {self.rows} {self.columns} {self.cells}"

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The texts of all cells, the header first."""
        body = [(name, *map(str, row)) for name, row in zip(self.rows, self.cells, strict=True)]
        return [(self.theme.corner, *self.columns), *body]


def draw(settings: TablesSettings, rng: np.random.Generator) -> TablesScene:
    theme = pick(rng, THEMES)
    rows = tuple(pick_several(rng, theme.rows, draw_whole(rng, settings.rows)))
    columns = pick_several(rng, theme.columns, draw_whole(rng, settings.columns))
    # Months, weekdays and subjects stand in their usual order, rows in any.
    columns = tuple(sorted(columns, key=theme.columns.index))
    low, high = settings.values
    cells = rng.integers(low, high + 1, (len(rows), len(columns)))
    question = _ask(pick(rng, settings.questions), theme, rows, columns, cells, rng)
    return TablesScene(theme, rows, columns, tuple(map(tuple, cells.tolist())), *question)


def _ask(
    kind: str,
    theme: Theme,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    cells: np.ndarray,
    rng: np.random.Generator,
) -> tuple[str, str, str]:
    """Return question, answer and accuracy route."""
    # Drawn whatever is asked: the last question is the fallback of another.
    row, other = rng.permutation(len(rows))[:2]
    column = int(rng.integers(len(columns)))
    unit = theme.unit
    if kind == "largest" and (cells[:, column] == cells[:, column].max()).sum() == 1:
        which = theme.corner.lower()
        question = f"Which {which} has the most {unit} in the column {columns[column]}?"
        return question, rows[int(cells[:, column].argmax())], "text"
    if kind == "row_sum":
        question = f"How many {unit} does the row {rows[row]} make together?"
        return question, str(cells[row].sum()), "number"
    if kind == "column_sum":
        question = f"How many {unit} does the column {columns[column]} make together?"
        return question, str(cells[:, column].sum()), "number"
    if kind == "look_up":
        question = f"How many {unit} does the table give for {rows[row]} and {columns[column]}?"
        return question, str(cells[row, column]), "number"
    # Also where the largest number is asked for but several rows share it.
    question = (
        f"By how many {unit} do {rows[row]} and {rows[other]} differ in the column "
        f"{columns[column]}?"
    )
    return question, str(abs(cells[row, column] - cells[other, column])), "number"


def paint(scene: TablesScene, settings: TablesSettings, rng: np.random.Generator) -> VisualExample:
    size, family = draw_whole(rng, settings.letters), pick(rng, FONT_FAMILIES)
    plain, bold = font(family, size), font(family, size, True)
    pad = size * 2 // 3
    widths = [
        int(max(bold.getlength(text) for text in texts)) + 2 * pad
        for texts in zip(*scene.lines, strict=True)
    ]
    high = size + 2 * (pad * 2 // 3)
    # Everything follows from the size of the letters, so tables of any size look alike.
    margin = size
    top = margin + high
    width = max(sum(widths), int(bold.getlength(scene.theme.title)))
    image = Image.new("RGB", (width + 2 * margin, top + high * len(scene.lines) + margin), "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((margin, margin + high / 3), scene.theme.title, INK, bold, anchor="lm")
    # Background and rules: a full grid, rules between rows, or bands.
    num_lines, right = len(scene.lines), margin + sum(widths)
    bottom = top + high * num_lines
    style = pick(rng, ("grid", "rules", "bands"))
    canvas.rectangle((margin, top, right, top + high), pick(rng, HEADS))
    for line in range(num_lines + 1):
        y = top + high * line
        if style == "bands" and line and line % 2 == 0 and line < num_lines:
            canvas.rectangle((margin, y, right, y + high), BAND)
        if style != "bands" or line in (0, 1, num_lines):
            # Bands need no rules but around the header and at the end.
            canvas.line((margin, y, right, y), LINE, 2 if line == 1 else 1)
    if style == "grid":
        for x in np.cumsum([margin, *widths]).tolist():
            canvas.line((x, top, x, bottom), LINE)
    for line, texts in enumerate(scene.lines):
        left, middle = margin, top + high * (line + 0.5)
        for column, (text, wide) in enumerate(zip(texts, widths, strict=True)):
            # Names stand on the left of their cells and numbers on the right.
            x, anchor = (left + pad, "lm") if column == 0 else (left + wide - pad, "rm")
            canvas.text((x, middle), text, INK, bold if line == 0 else plain, anchor=anchor)
            left += wide
    return VisualExample((image,), scene.question, scene.answer, scene.task)
