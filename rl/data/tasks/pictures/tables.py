"""A rendered table, and a question that takes a look-up and some arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import (
    FONT_FAMILIES,
    NOT_EMPTY,
    TEXTS,
    WORDS,
    Draws,
    Scene,
    VisualExample,
    font,
    within,
)

Question = Literal["look_up", "row_sum", "column_sum", "difference", "largest"]
INK, LINE = "#1a1a1a", "#8c8c8c"
HEADS = ("#ffffff", "#dfe7f3", "#e7e7e7", "#e3f0e1")
BAND = "#f4f4f4"


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
class TablesScene(Scene):
    theme: Mapping[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    """By row, then by column."""


def draw(settings: TablesSettings, rng: Draws) -> TablesScene:
    theme = rng.pick(TEXTS["tables"]["themes"])
    rows = rng.several(WORDS[theme["rows"]], rng.whole(settings.rows))
    all_columns = WORDS[theme["columns"]]
    columns = rng.several(all_columns, rng.whole(settings.columns))
    # Months, weekdays and subjects stand in their usual order, rows in any.
    columns = sorted(columns, key=all_columns.index)
    low, high = settings.values
    cells = rng.integers(low, high + 1, (len(rows), len(columns)))
    asked = rng.pick(settings.questions)
    # All are drawn whatever is asked: the difference is asked for in place of a largest number that
    # several rows share.
    row, other = rng.permutation(len(rows))[:2]
    column = int(rng.integers(len(columns)))
    values = cells[:, column]
    if asked == "largest" and (values == values.max()).sum() > 1:
        asked = "difference"
    answer = {
        "look_up": values[row],
        "row_sum": cells[row].sum(),
        "column_sum": values.sum(),
        "difference": abs(values[row] - values[other]),
        "largest": rows[values.argmax()],
    }[asked]
    question = TEXTS["tables"]["questions"][asked].format(
        unit=theme["unit"],
        what=theme["corner"].lower(),
        row=rows[row],
        other=rows[other],
        column=columns[column],
    )
    task = "text" if asked == "largest" else "number"
    shown = tuple(rows), tuple(columns), tuple(map(tuple, cells.tolist()))
    identity = f"tables {theme['title']} {shown[0]} {shown[1]} {shown[2]}"
    return TablesScene(identity, question, str(answer), task, theme, *shown)


def paint(scene: TablesScene, settings: TablesSettings, rng: Draws) -> VisualExample:
    size, family = rng.whole(settings.letters), rng.pick(FONT_FAMILIES)
    plain, bold = font(family, size), font(family, size, True)
    lines = [(scene.theme["corner"], *scene.columns)]
    lines += [(row, *map(str, cells)) for row, cells in zip(scene.rows, scene.cells, strict=True)]
    # Everything follows from the size of the letters, so tables of any size look alike.
    margin, pad = size, size * 2 // 3
    widths = [int(max(map(bold.getlength, texts))) + 2 * pad for texts in zip(*lines, strict=True)]
    high = size + 2 * (pad * 2 // 3)
    top, right = margin + high, margin + sum(widths)
    bottom = top + high * len(lines)
    width = max(sum(widths), int(bold.getlength(scene.theme["title"])))
    image = Image.new("RGB", (width + 2 * margin, bottom + margin), "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((margin, margin + high / 3), scene.theme["title"], INK, bold, anchor="lm")
    # Background and rules: a full grid, rules between rows, or bands.
    style = rng.pick(("grid", "rules", "bands"))
    canvas.rectangle((margin, top, right, top + high), rng.pick(HEADS))
    for line in range(len(lines) + 1):
        y = top + high * line
        if style == "bands" and line and line % 2 == 0 and line < len(lines):
            canvas.rectangle((margin, y, right, y + high), BAND)
        if style != "bands" or line in (0, 1, len(lines)):
            # Bands need no rules but around the header and at the end.
            canvas.line((margin, y, right, y), LINE, 2 if line == 1 else 1)
    if style == "grid":
        for x in np.cumsum([margin, *widths]).tolist():
            canvas.line((x, top, x, bottom), LINE)
    for line, texts in enumerate(lines):
        left, middle = margin, top + high * (line + 0.5)
        for column, (text, wide) in enumerate(zip(texts, widths, strict=True)):
            # Names stand on the left of their cells and numbers on the right.
            x, anchor = (left + pad, "lm") if column == 0 else (left + wide - pad, "rm")
            canvas.text((x, middle), text, INK, bold if line == 0 else plain, anchor=anchor)
            left += wide
    return VisualExample((image,), scene.question, scene.answer, scene.task)
