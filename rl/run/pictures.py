"""How pictures, pages and the terminal look: one palette, and axes without what no one reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl.run.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision, on light and on dark ground (Okabe and Ito).
MODE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
BLUES = ("#9ecae1", "#3b7dbf", "#0b3c6f")
"""From light to dark, for what is stacked."""
INK, GREY, GRID = "#22272e", "#6b7280", "#e5e7eb"


def mode_colors(modes: Iterable[str]) -> dict[str, str]:
    """Return the colour of each mode; from the sixth on they repeat."""
    return dict(zip(modes, cycle(MODE_COLORS), strict=False))


def sheet(*pieces: str) -> Figure:
    """Return a picture for two rows of panels; pieces: of its title, what it is of and facts."""
    margins = {"left": 0.045, "right": 0.98, "top": 0.87, "bottom": 0.07}
    figure = _blank((16, 10), **margins, wspace=0.12, hspace=0.34)
    figure.suptitle("  ·  ".join(pieces), x=0.045, y=0.97, ha="left", fontsize=20, color=INK)
    return figure


def single() -> Figure:
    """Return a picture for one panel, which stands among others on a page."""
    return _blank((6, 3.4), left=0.13, right=0.97, top=0.79, bottom=0.18)


def _blank(inches: tuple[float, float], **margins: float) -> Figure:
    # Pages and the terminal need the colours without waiting for matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=100, facecolor="white")
    figure.subplots_adjust(**margins)
    return figure


def panel(
    axes: Axes, title: str, xlabel: str = "", ticks: Literal["major", "both"] = "major"
) -> None:
    """Leave horizontal grid lines behind the data and the lower edge; `ticks` lose their marks."""
    # The title stands clear of the legend, which is above the panel too.
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=26)
    axes.set_xlabel(xlabel, fontsize=12, color=GREY)
    axes.tick_params(colors=GREY, labelsize=12, length=0, which=ticks)
    axes.grid(axis="y", color=GRID, linewidth=1)
    # Grid lines help to read a value and must not cross the curve.
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def legend_above(axes: Axes) -> bool:
    """Put a legend above the panel, where no curve can pass under it; False if nothing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    # One entry for what is drawn several times, such as a mark for each arm.
    shown = dict(zip(labels, handles, strict=True))
    if shown:
        style: dict[str, Any] = {"frameon": False, "fontsize": 11, "labelcolor": INK}
        style |= {"handlelength": 1.2, "columnspacing": 1.1, "handletextpad": 0.5}
        corner = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.995), "ncols": len(shown)}
        axes.legend([*shown.values()], [*shown], **corner, **style)
    return bool(shown)


def save(figure: Figure, path: Path) -> Path:
    """Write the picture as PNG, complete or not at all, and return its path."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
    return path
