"""Bar, line and pie charts by matplotlib: read values off, add them, compare them.

The figures have no pyplot and no global state; matplotlib's own defaults are in force while one is
drawn, whatever a matplotlibrc says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image
from pydantic import Field

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import (
    FONT_FAMILIES,
    NOT_EMPTY,
    VisualExample,
    draw_whole,
    font_file,
    pick,
    pick_several,
    within,
)
from rl.data.tasks.pictures.pages import WORDS

Kind = Literal["bar", "horizontal_bar", "line", "pie"]
Question = Literal["read", "sum", "difference", "largest", "smallest"]
DPI = 100
STEPS = (1, 2, 5, 10, 20, 50)
"""Values of one gridline; every value lies on one, so that it can be read off exactly."""
GRIDLINES = 10
PIXELS_PER_CHARACTER = 10
"""Of the names below an axis, with the gaps between them; longer ones are slanted."""
COLOURS = ("#3b6fb6", "#d1603d", "#4a9a5b", "#8d5fa8", "#c9a227", "#5aa6b8", "#b0567f", "#7a7a7a")


@dataclass(frozen=True)
class Theme:
    title: str
    unit: str
    names: Sequence[str]
    is_ordered: bool
    """Whether the names have an order of their own, as months do."""


THEMES = (
    Theme("Fruit sold", "kilograms", WORDS["fruits"], False),
    Theme("Rainy days", "days", WORDS["months"], True),
    Theme("Books read", "books", WORDS["first_names"], False),
    Theme("Visitors of the museum", "visitors", WORDS["weekdays"], True),
    Theme("Trains a day", "trains", WORDS["towns"], False),
)


class ChartsSettings(Section):
    kinds: Annotated[tuple[Kind, ...], NOT_EMPTY] = get_args(Kind)
    categories: Annotated[tuple[int, int], within(2, 7)] = (3, 6)
    """Bars, points or pieces."""
    width: int = Field(default=448, ge=448, le=1600)
    """Pixels; on fewer the names and numbers of a full chart would touch."""
    height: int = Field(default=336, ge=280, le=1200)
    """Pixels."""
    labelled: float = Field(default=0.3, ge=0, le=1)
    """Share of the bar and line charts that have their values written beside them; the values of
    the others must be read off the grid. The pieces of a pie always state their share."""
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = get_args(Question)


@dataclass(frozen=True)
class ChartsScene:
    kind: str
    theme: Theme
    names: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    """Value of one gridline."""
    question: str
    answer: str
    task: str

    @property
    def identity(self) -> str:
        return f"charts {self.kind} {self.theme.title} {self.names} {self.values}"


def draw(settings: ChartsSettings, rng: np.random.Generator) -> ChartsScene:
    kind, theme = pick(rng, settings.kinds), pick(rng, THEMES)
    # Months and weekdays keep their order, since a chart of them in another would look like an
    # error.
    names = pick_several(rng, theme.names, draw_whole(rng, settings.categories))
    if theme.is_ordered:
        names = sorted(names, key=theme.names.index)
    # A month has few days: larger steps would give it more rainy ones than it has days.
    step = 1 if theme.unit == "days" else pick(rng, STEPS)
    if kind == "pie":
        # Shares of 100 in steps of 5, none below 10: the names beside thin pieces would touch.
        step, count = 5, len(names)
        values = step * (2 + rng.multinomial(20 - 2 * count, np.full(count, 1 / count)))
    else:
        values = step * rng.integers(1, GRIDLINES + 1, len(names))
    unit = "percent" if kind == "pie" else theme.unit
    question = _ask(pick(rng, settings.questions), unit, names, values, rng)
    return ChartsScene(kind, theme, tuple(names), tuple(values.tolist()), step, *question)


def _ask(
    kind: str, unit: str, names: list[str], values: np.ndarray, rng: np.random.Generator
) -> tuple[str, str, str]:
    """Return question, answer and accuracy route."""
    # Drawn whatever is asked: the last question is the fallback of two others.
    first, second = rng.permutation(len(names))[:2]
    extreme = {"largest": values.max(), "smallest": values.min()}.get(kind)
    if extreme is not None and (values == extreme).sum() == 1:
        name = names[int(np.flatnonzero(values == extreme)[0])]
        return f"For which name does the chart show the {kind} value?", name, "text"
    if kind == "sum":
        both = f"{names[first]} and {names[second]}"
        question = f"How many {unit} does the chart show for {both} together?"
        return question, str(values[first] + values[second]), "number"
    if kind == "read":
        question = f"How many {unit} does the chart show for {names[first]}?"
        return question, str(values[first]), "number"
    # Also where the extreme value is asked for but several share it, so that no name is the answer.
    question = f"By how many {unit} do {names[first]} and {names[second]} differ in the chart?"
    return question, str(abs(values[first] - values[second])), "number"


def paint(scene: ChartsScene, settings: ChartsSettings, rng: np.random.Generator) -> VisualExample:
    # Not the monospaced family: its letters are the widest, and long names would touch.
    letters = FontProperties(fname=str(font_file(pick(rng, FONT_FAMILIES[:2]))), size=10)
    # A matplotlibrc of the user's would change the pictures that a seed stands for.
    with matplotlib.style.context("default"):
        # Not through pyplot, which keeps every figure in a global list.
        figure = Figure((settings.width / DPI, settings.height / DPI), dpi=DPI, layout="tight")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(scene.theme.title, fontproperties=letters, fontsize=12)
        if scene.kind == "pie":
            axes.pie(
                scene.values,
                labels=scene.names,
                colors=pick_several(rng, COLOURS, len(scene.names)),
                autopct="%d%%",
                pctdistance=0.75,
                labeldistance=1.12,
                # Any piece may be at the top, so its place says nothing about its size.
                startangle=rng.uniform(0, 360),
                textprops={"fontproperties": letters},
                wedgeprops={"edgecolor": "white"},
            )
        else:
            _on_axes(axes, scene, letters, rng.random() < settings.labelled, rng)
        canvas.draw()
    image = Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return VisualExample((image,), scene.question, scene.answer, scene.task)


def _on_axes(
    axes: Axes,
    scene: ChartsScene,
    letters: FontProperties,
    is_labelled: bool,
    rng: np.random.Generator,
) -> None:
    positions = np.arange(len(scene.names))
    is_flat = scene.kind == "horizontal_bar"
    colour = pick(rng, COLOURS)
    if scene.kind == "line":
        axes.plot(positions, scene.values, "o-", color=colour, linewidth=2)
    elif is_flat:
        axes.barh(positions, scene.values, color=colour, height=0.6)
        # The first name on top, as people list them.
        axes.invert_yaxis()
    else:
        axes.bar(positions, scene.values, color=colour, width=0.6)
    # Names on one axis, and a gridline for every possible value on the other.
    along, across = (axes.yaxis, axes.xaxis) if is_flat else (axes.xaxis, axes.yaxis)
    along.set_ticks(positions, scene.names, fontproperties=letters)
    room = axes.figure.bbox.width / len(scene.names) / PIXELS_PER_CHARACTER
    if not is_flat and max(map(len, scene.names)) > room:
        for name in along.get_ticklabels():
            name.set(rotation=30, ha="right", rotation_mode="anchor")
    most = max(scene.values) // scene.step
    ticks = [scene.step * count for count in range(most + 1)]
    across.set_ticks(ticks, [str(tick) for tick in ticks], fontproperties=letters, fontsize=9)
    across.set_label_text(scene.theme.unit, fontproperties=letters)
    across.grid(True, color="#cfcfcf", linewidth=0.8)
    axes.set_axisbelow(True)
    # Some air above the highest value, where its label may stand.
    bounds = (0, scene.step * (most + 0.9))
    if is_flat:
        axes.set_xlim(*bounds)
    else:
        axes.set(xlim=(-0.6, len(scene.names) - 0.4), ylim=bounds)
    if is_labelled:
        for position, value in zip(positions, scene.values, strict=True):
            axes.annotate(
                str(value),
                (value, position) if is_flat else (position, value),
                (5, 0) if is_flat else (0, 6),
                textcoords="offset points",
                fontproperties=letters,
                ha="left" if is_flat else "center",
                va="center" if is_flat else "bottom",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )
