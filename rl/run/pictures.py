"""How pictures, pages and the terminal look: one palette, and axes without what no one reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Pages and the terminal need the colours without waiting for matplotlib.
    from matplotlib.axes import Axes

# Told apart by people with any colour vision, on light and on dark ground (Okabe and Ito).
MODE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
BLUES = ("#9ecae1", "#3b7dbf", "#0b3c6f")
"""From light to dark, for what is stacked."""
INK, GREY, GRID = "#22272e", "#6b7280", "#e5e7eb"


def mode_colors(modes: Iterable[str]) -> dict[str, str]:
    """Return the colour of each mode; from the sixth on they repeat."""
    return dict(zip(modes, cycle(MODE_COLORS), strict=False))


def plain(axes: Axes, ticks: Literal["major", "both"] = "major") -> None:
    """Leave horizontal grid lines behind the data and the lower edge; `ticks` lose their marks."""
    axes.tick_params(colors=GREY, labelsize=12, length=0, which=ticks)
    axes.grid(axis="y", color=GRID, linewidth=1)
    # Grid lines help to read a value and must not cross the curve.
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def legend_above(axes: Axes) -> bool:
    """Put a legend above the panel, where no curve can pass under it; False if nothing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        corner, spacing = (1.01, 0.99), {"handlelength": 1.4, "columnspacing": 1.4}
        style = {"ncols": len(handles), "frameon": False, "fontsize": 12, "labelcolor": INK}
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=corner, **style, **spacing)
    return bool(handles)
