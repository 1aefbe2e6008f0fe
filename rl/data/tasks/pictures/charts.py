"""Bar, line and pie charts by matplotlib: read values off, add them, compare them.

The figures have no pyplot and no global state; matplotlib's own defaults are in force while one is
drawn, whatever a matplotlibrc says.
"""

from collections.abc import Mapping
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
    TEXTS,
    WORDS,
    Draws,
    Scene,
    VisualExample,
    font_file,
    within,
)

Kind = Literal["bar", "horizontal_bar", "line", "pie"]
Question = Literal["read", "sum", "difference", "largest", "smallest"]
DPI = 100
STEPS = (1, 2, 5, 10, 20, 50)
"""Values of one gridline; every value lies on one, so that it can be read off exactly."""
GRIDLINES = 10
PIXELS_PER_CHARACTER = 10
"""Of the names below an axis, with the gaps between them; longer ones are slanted."""
COLOURS = ("#3b6fb6", "#d1603d", "#4a9a5b", "#8d5fa8", "#c9a227", "#5aa6b8", "#b0567f", "#7a7a7a")


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
class ChartsScene(Scene):
    kind: str
    theme: Mapping[str, str]
    names: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    """Value of one gridline."""


def draw(settings: ChartsSettings, rng: Draws) -> ChartsScene:
    kind, theme = rng.pick(settings.kinds), rng.pick(TEXTS["charts"]["themes"])
    unit, all_names = theme["unit"], WORDS[theme["names"]]
    names = rng.several(all_names, rng.whole(settings.categories))
    if theme["is_ordered"]:
        names = sorted(names, key=all_names.index)
    # A month has few days: larger steps would give it more rainy ones than it has days.
    step = 1 if unit == "days" else rng.pick(STEPS)
    if kind == "pie":
        # Shares of 100 in steps of 5, none below 10: the names beside thin pieces would touch.
        unit, step, count = "percent", 5, len(names)
        values = step * (2 + rng.multinomial(20 - 2 * count, np.full(count, 1 / count)))
    else:
        values = step * rng.integers(1, GRIDLINES + 1, len(names))
    asked = rng.pick(settings.questions)
    # Both are drawn whatever is asked: the difference is asked for in place of an extreme value
    # that several names share, so that none of them is the answer.
    first, second = rng.permutation(len(names))[:2]
    extremes = {"largest": values.max(), "smallest": values.min()}
    if asked in extremes and (values == extremes[asked]).sum() > 1:
        asked = "difference"
    answer = {
        "read": values[first],
        "sum": values[first] + values[second],
        "difference": abs(values[first] - values[second]),
        "largest": names[values.argmax()],
        "smallest": names[values.argmin()],
    }[asked]
    question = TEXTS["charts"]["questions"][asked]
    question = question.format(unit=unit, first=names[first], second=names[second])
    task = "text" if asked in extremes else "number"
    shown = tuple(names), tuple(values.tolist())
    identity = f"charts {kind} {theme['title']} {shown[0]} {shown[1]}"
    return ChartsScene(identity, question, str(answer), task, kind, theme, *shown, step)


def paint(scene: ChartsScene, settings: ChartsSettings, rng: Draws) -> VisualExample:
    # Not the monospaced family: its letters are the widest, and long names would touch.
    letters = FontProperties(fname=font_file(rng.pick(FONT_FAMILIES[:2])), size=10)
    # A matplotlibrc of the user's would change the pictures that a seed stands for.
    with matplotlib.style.context("default"):
        # Not through pyplot, which keeps every figure in a global list.
        figure = Figure((settings.width / DPI, settings.height / DPI), dpi=DPI, layout="tight")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(scene.theme["title"], fontproperties=letters, fontsize=12)
        if scene.kind == "pie":
            axes.pie(
                scene.values,
                labels=scene.names,
                colors=rng.several(COLOURS, len(scene.names)),
                autopct="%d%%",
                pctdistance=0.75,
                labeldistance=1.12,
                # Any piece may be at the top, so its place says nothing about its size.
                startangle=rng.uniform(0, 360),
                textprops={"fontproperties": letters},
                wedgeprops={"edgecolor": "white"},
            )
        else:
            is_labelled = rng.random() < settings.labelled
            _on_axes(axes, scene, letters, rng.pick(COLOURS), is_labelled)
        canvas.draw()
    image = Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return VisualExample((image,), scene.question, scene.answer, scene.task)


def _on_axes(
    axes: Axes, scene: ChartsScene, letters: FontProperties, colour: str, is_labelled: bool
) -> None:
    positions, is_flat = np.arange(len(scene.names)), scene.kind == "horizontal_bar"
    if scene.kind == "line":
        axes.plot(positions, scene.values, "o-", color=colour, linewidth=2)
    else:
        bars = axes.barh if is_flat else axes.bar
        bars(positions, scene.values, 0.6, color=colour)
    # Names on one axis, and a gridline for every possible value on the other.
    along, across = (axes.yaxis, axes.xaxis) if is_flat else (axes.xaxis, axes.yaxis)
    along.set_ticks(positions, scene.names, fontproperties=letters)
    room = axes.figure.bbox.width / len(scene.names) / PIXELS_PER_CHARACTER
    if not is_flat and max(map(len, scene.names)) > room:
        for name in along.get_ticklabels():
            name.set(rotation=30, ha="right", rotation_mode="anchor")
    most = max(scene.values) // scene.step
    ticks = [scene.step * count for count in range(most + 1)]
    across.set_ticks(ticks, list(map(str, ticks)), fontproperties=letters, fontsize=9)
    across.set_label_text(scene.theme["unit"], fontproperties=letters)
    across.grid(True, color="#cfcfcf", linewidth=0.8)
    axes.set_axisbelow(True)
    # Some air above the highest value, where its label may stand.
    bounds = (0, scene.step * (most + 0.9))
    if is_flat:
        axes.set_xlim(*bounds)
        # The first name on top, as people list them.
        axes.invert_yaxis()
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
