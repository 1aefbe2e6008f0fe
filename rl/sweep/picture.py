"""The picture of a sweep: both modes against trained tokens, and what each share ends at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from rl.run.files import atomic_write
from rl.run.pictures import BLUES, GREY, INK, mode_colors, plain
from rl.sweep.results import PointResult, SweepResults

_DIAMOND: dict[str, Any] = {"marker": "D", "markersize": 7, "markeredgecolor": "white"}
_STAR: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": "white"}
_DOTTED: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (1, 2))}


def draw_sweep(path: Path, name: str, results: SweepResults) -> None:
    """Draw two rows: a panel per mode against tokens, then accuracy and tokens by arm."""
    figure = Figure(figsize=(16, 10), dpi=100, facecolor="white")
    seeds = len(results.points[0].courses)
    title = f"{name}  ·  {len(results.points)} arms  ·  {seeds} seed{'s' if seeds > 1 else ''}"
    figure.suptitle(title, x=0.045, y=0.97, ha="left", fontsize=20, color=INK)
    width = len(results.modes)
    grid = figure.add_gridspec(2, 2 * width, wspace=0.55, hspace=0.34)
    grid.update(left=0.05, right=0.98, top=0.88, bottom=0.08)
    # From light to dark, as the share of long grows from arm to arm.
    colors = list(mpl.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(results.points))))
    panels = [figure.add_subplot(grid[0, 2 * n : 2 * n + 2]) for n in range(width)]
    for axes, mode in zip(panels, results.modes, strict=True):
        _draw_against_tokens(axes, results, mode, colors)
    # The arms have the same colours in every panel of the row, so one legend is enough.
    _legend(panels[-1])
    _draw_finals(figure.add_subplot(grid[1, :width]), results)
    _draw_tokens(figure.add_subplot(grid[1, width:]), results)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def _draw_against_tokens(axes: Axes, results: SweepResults, mode: str, colors: list[Any]) -> None:
    _prepare(axes, f"{mode}: held-out accuracy", "trained tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    for point, color in zip(results.points, colors, strict=True):
        tokens = [e.trained_tokens for e in point.mean_course]
        # Dashed: an arm that never trains this mode.
        line = "-" if point.shares[mode] > 0 else (0, (3, 2))
        style = {"color": color, "linewidth": 2.2, "marker": "o", "markersize": 3.5}
        means = [e.accuracy[mode] for e in point.mean_course]
        axes.plot(tokens, means, linestyle=line, label=_label(point), **style)
        # Shaded from the worst to the best seed.
        if len(point.courses) > 1:
            steps = [e.step for e in point.mean_course]
            by_step = [{e.step: e.accuracy[mode] for e in c} for c in point.courses.values()]
            low = [min(accuracies[step] for accuracies in by_step) for step in steps]
            high = [max(accuracies[step] for accuracies in by_step) for step in steps]
            axes.fill_between(tokens, low, high, color=color, alpha=0.13, linewidth=0)
    # The peak is one of the long mode, so only its panel has the line.
    peak = results.peak(results.points[0].point) if mode == results.long_mode else None
    if peak is not None:
        axes.axhline(peak.accuracy, color=GREY, **_DOTTED)
        axes.text(0, peak.accuracy, "long-only peak ", color=GREY, fontsize=11, va="bottom")
    axes.set_xlim(left=0)


def _draw_finals(axes: Axes, results: SweepResults) -> None:
    """Draw the final accuracy of every mode by arm."""
    positions = _prepare_arms(axes, "Held-out accuracy after training", results)
    for mode, color in mode_colors(results.modes).items():
        axes.axhline(results.points[0].mean_course[0].accuracy[mode], color=color, **_DOTTED)
        finals = [point.last.accuracy[mode] for point in results.points]
        axes.plot(positions, finals, color=color, linewidth=2.2, label=mode)
        for position, point in zip(positions, results.points, strict=True):
            seeds = [course[-1].accuracy[mode] for course in point.courses.values()]
            # A ring marks an arm that does not train the mode.
            face = color if point.shares[mode] > 0 else "white"
            axes.plot([position] * len(seeds), seeds, "o", color=color, markerfacecolor=face)
    # An empty curve, for the legend alone.
    axes.plot([], [], color=GREY, label="before", **_DOTTED)
    _legend(axes)


def _draw_tokens(axes: Axes, results: SweepResults) -> None:
    """Draw the trained tokens by arm, and where each arm first reached the long-only peak."""
    positions = _prepare_arms(axes, "Trained tokens", results)
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    # Bars from back to front: the whole first, then the part of it that had a signal.
    total = [point.last.trained_tokens for point in results.points]
    signal = [point.last.signal_tokens for point in results.points]
    axes.bar(positions, total, 0.6, color=BLUES[0], label="without variance")
    axes.bar(positions, signal, 0.6, color=BLUES[1], label="with variance")
    for position, point in zip(positions, results.points, strict=True):
        if (peak := results.peak(point.point)) is None:
            continue
        for accuracy, label, style in (
            (peak.accuracy - peak.half_width, "peak within its interval", _DIAMOND),
            (peak.accuracy, "long-only peak reached", _STAR),
        ):
            tokens = results.tokens_to(point.mean_course, accuracy)
            if tokens is not None:
                axes.plot(position, tokens, color=INK, linestyle="none", label=label, **style)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _prepare(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=26)
    axes.set_xlabel(xlabel, fontsize=12, color=GREY)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    plain(axes)


def _prepare_arms(axes: Axes, title: str, results: SweepResults) -> NDArray[np.int64]:
    """Prepare a panel with a place for each arm, whose positions it returns."""
    is_ratio = results.points[0].point.long_share is not None
    _prepare(axes, title, "share of long prompts" if is_ratio else "")
    positions = np.arange(len(results.points))
    axes.set_xticks(positions, list(map(_label, results.points)))
    return positions


def _legend(axes: Axes) -> None:
    """One row above the panel, where no curve passes; closer set than legend_above, for arms."""
    handles, labels = axes.get_legend_handles_labels()
    # One entry for what several arms have, such as the marks of the peak.
    shown = dict(zip(labels, handles, strict=True))
    style: dict[str, Any] = {"frameon": False, "fontsize": 11, "labelcolor": INK}
    style |= {"loc": "lower right", "bbox_to_anchor": (1.01, 0.995), "ncols": len(shown)}
    style |= {"handlelength": 1.2, "columnspacing": 1.1, "handletextpad": 0.5}
    axes.legend([*shown.values()], [*shown], **style)


def _label(point: PointResult) -> str:
    parts = [] if point.point.long_share is None else [f"{100 * point.point.long_share:g} %"]
    parts += [str(value) for _, value in point.point.others]
    return " ".join(parts) or "all"
