"""The pictures of a sweep: both modes against trained tokens, and what each arm ends at; metrics
over steps; accuracy by source."""

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FuncFormatter

from rl.run.pictures import BLUES, GREY, INK, legend_above, mode_colors, panel, save, sheet
from rl.sweep.results import PointResult, SweepResults

_DIAMOND: dict[str, Any] = {"marker": "D", "markersize": 7, "markeredgecolor": "white"}
_STAR: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": "white"}
_MARKERS = ("o", "s", "^", "D", "v")
_DOTTED: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (1, 2))}


def draw_sweep(path: Path, name: str, results: SweepResults) -> None:
    """Draw two rows: a panel per mode against tokens, then accuracy and tokens by arm."""
    figure = _sheet(name, results)
    width = len(results.modes)
    grid = figure.add_gridspec(2, 2 * width, wspace=0.55)
    styles = _styles(results)
    panels = [figure.add_subplot(grid[0, 2 * n : 2 * n + 2]) for n in range(width)]
    for axes, mode in zip(panels, results.modes, strict=True):
        _draw_against_tokens(axes, results, mode, styles)
    _legend(figure, results)
    finals, tokens = figure.add_subplot(grid[1, :width]), figure.add_subplot(grid[1, width:])
    _draw_finals(finals, results)
    _draw_tokens(tokens, results)
    is_ratio = results.points[0].point.long_share is not None
    for axes in (finals, tokens):
        axes.set_xlabel("share of long prompts" if is_ratio else "")
        labels = [_label(point, "\n") for point in results.points]
        # Of many arms the names stand close.
        axes.set_xticks(range(len(labels)), labels, fontsize=12 if len(labels) <= 6 else 10)
        legend_above(axes)
    save(figure, path)


def draw_curves(path: Path, name: str, results: SweepResults) -> None:
    """Draw a panel per metric over steps, in two rows: the mean over seeds, from least to most."""
    metrics, figure = list(results.points[0].curves), _sheet(name, results)
    rows = min(2, len(metrics))
    grid = figure.add_gridspec(rows, -(-len(metrics) // rows), wspace=0.2)
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(grid[place])
        panel(axes, metric, "step")
        for point, style in zip(results.points, _styles(results), strict=True):
            logged = pd.DataFrame(point.curves[metric].dropna())
            if logged.empty:
                continue
            # A single step is too noisy to tell arms apart.
            mean = pd.DataFrame(logged.rolling(max(1, len(logged) // 15), min_periods=1).mean())
            style["markevery"] = max(1, len(mean) // 6)
            axes.plot(mean.index, mean.mean(axis="columns"), **style)
            low, high = mean.min(axis="columns"), mean.max(axis="columns")
            axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.set_xlim(left=0)
        # From 0, or a small change would look like a large one; but there is what can be negative.
        axes.set_ylim(bottom=0 if axes.dataLim.y0 >= 0 else None)
    _legend(figure, results)
    save(figure, path)


def draw_sources(path: Path, name: str, results: SweepResults) -> None:
    """Draw a panel per mode: the accuracy of every source after training, a bar per arm."""
    figure, count = _sheet(name, results), len(results.points)
    grid = figure.add_gridspec(len(results.modes), 1)
    for row, mode in enumerate(results.modes):
        axes = figure.add_subplot(grid[row])
        panel(axes, f"{mode}: held-out accuracy by source")
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        for place, (point, style) in enumerate(zip(results.points, _styles(results), strict=True)):
            # The bars of a source side by side, about its tick.
            offset, width = 0.8 * ((place + 0.5) / count - 0.5), 0.8 / count
            first, last = (e.of_source[mode] for e in (point.mean_course[0], point.last))
            for tick, source in enumerate(results.sources):
                accuracy, half = last.get(source, (0.0, 0.0))
                look: dict[str, Any] = {"color": style["color"], "ecolor": GREY, "yerr": half}
                axes.bar(tick + offset, accuracy, width, **look)
                # Each arm's own, because arms may start from policies of their own.
                ends = tick + offset - width / 2, tick + offset + width / 2
                before = first.get(source, (0.0, 0.0))[0]
                line = axes.hlines(before, *ends, color=INK, label="before", **_DOTTED)
                # Seen on dark bars too.
                line.set_path_effects([withStroke(linewidth=3, foreground="white")])
        axes.set_xticks(range(len(results.sources)), results.sources)
        axes.set_ylim(0, 1)
        legend_above(axes)
    _legend(figure, results)
    save(figure, path)


def _sheet(name: str, results: SweepResults) -> Figure:
    seeds = len(results.points[0].courses)
    num_seeds = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return sheet(name, f"{len(results.points)} arms", num_seeds)


def _styles(results: SweepResults) -> list[dict[str, Any]]:
    """How the curves of each arm are drawn: from light to dark, as the share of long grows.

    Where both shares and variants vary, a colour is a share and a marker a variant.
    """
    points = [point.point for point in results.points]
    variants = list(dict.fromkeys(point.variant for point in points))
    of_share = list(dict.fromkeys(point.long_share for point in points))
    both = len(variants) > 1 and len(of_share) > 1
    shades = mpl.colormaps["viridis_r"](
        np.linspace(0.12, 0.95, len(of_share) if both else len(points))
    )
    return [
        {
            "color": shades[of_share.index(point.long_share) if both else place],
            "marker": _MARKERS[variants.index(point.variant) % len(_MARKERS) if both else 0],
            "markersize": 7 if both else 3.5,
            "linewidth": 2.2,
        }
        for place, point in enumerate(points)
    ]


def _legend(figure: Figure, results: SweepResults) -> None:
    """Say beside the title which arm is which: the same in every panel."""
    lines = [Line2D([], [], **style) for style in _styles(results)]
    labels = list(map(_label, results.points))
    # Rows beneath each other where one would reach into the title.
    is_short = len(lines) <= 6 and sum(map(len, labels)) <= 80
    columns = len(lines) if is_short else -(-len(lines) // 3)
    style: dict[str, Any] = {"frameon": False, "fontsize": 11, "ncols": columns, "labelcolor": INK}
    style |= {"loc": "upper right", "bbox_to_anchor": (0.985, 1.0), "labelspacing": 0.25}
    figure.legend(lines, labels, **style)


def _draw_against_tokens(
    axes: Axes, results: SweepResults, mode: str, styles: list[dict[str, Any]]
) -> None:
    panel(axes, f"{mode}: held-out accuracy", "trained tokens")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    for point, style in zip(results.points, styles, strict=True):
        tokens = [e.trained_tokens for e in point.mean_course]
        # Dashed: an arm that never trains this mode.
        line = "-" if point.shares[mode] > 0 else (0, (3, 2))
        means = [e.accuracy[mode] for e in point.mean_course]
        axes.plot(tokens, means, linestyle=line, **style)
        # Shaded from the worst to the best seed.
        if len(point.courses) > 1:
            steps = [e.step for e in point.mean_course]
            by_step = [{e.step: e.accuracy[mode] for e in c} for c in point.courses.values()]
            low = [min(accuracies[step] for accuracies in by_step) for step in steps]
            high = [max(accuracies[step] for accuracies in by_step) for step in steps]
            axes.fill_between(tokens, low, high, color=style["color"], alpha=0.13, linewidth=0)
    # The peak is one of the long mode, so only its panel has the line; several would be confused.
    is_one = len({tuple(p.point.besides) for p in results.points}) == 1
    peak = results.peak(results.points[0].point) if mode == results.long_mode and is_one else None
    if peak is not None:
        axes.axhline(peak.accuracy, color=GREY, **_DOTTED)
        axes.text(0, peak.accuracy, "long-only peak ", color=GREY, fontsize=11, va="bottom")
    axes.set_xlim(left=0)


def _draw_finals(axes: Axes, results: SweepResults) -> None:
    """Draw the final accuracy of every mode by arm."""
    panel(axes, "Held-out accuracy after training")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    for mode, color in mode_colors(results.modes).items():
        axes.axhline(results.points[0].mean_course[0].accuracy[mode], color=color, **_DOTTED)
        # Within a variant from share to share; between variants there is nothing on the way.
        for _, group in groupby(enumerate(results.points), lambda each: each[1].point.variant):
            finals = {place: point.last.accuracy[mode] for place, point in group}
            axes.plot([*finals], [*finals.values()], color=color, linewidth=2.2, label=mode)
        for position, point in enumerate(results.points):
            seeds = [course[-1].accuracy[mode] for course in point.courses.values()]
            # A ring marks an arm that does not train the mode.
            face = color if point.shares[mode] > 0 else "white"
            axes.plot([position] * len(seeds), seeds, "o", color=color, markerfacecolor=face)
    # An empty curve, for the legend alone.
    axes.plot([], [], color=GREY, label="before", **_DOTTED)


def _draw_tokens(axes: Axes, results: SweepResults) -> None:
    """Draw the trained tokens by arm, and where each arm first reached the long-only peak."""
    panel(axes, "Trained tokens")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    for position, point in enumerate(results.points):
        # Bars from back to front: the whole first, then the part of it that had a signal.
        axes.bar(position, point.last.trained_tokens, 0.6, color=BLUES[0], label="without variance")
        axes.bar(position, point.last.signal_tokens, 0.6, color=BLUES[1], label="with variance")
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


def _percent(share: float, _: int) -> str:
    """With as many decimals as it has: 27.5% but 30%."""
    return f"{100 * share:.4g}%"


def _label(point: PointResult, between: str = " ") -> str:
    parts = [] if point.point.long_share is None else [f"{100 * point.point.long_share:g} %"]
    parts += [] if point.point.variant is None else [point.point.variant]
    parts += [str(value) for _, value in point.point.others]
    return between.join(parts) or "all"
