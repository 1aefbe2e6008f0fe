"""What is left to look at when a run is over: curves.png and summary.json."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rl.run.directory import RunDirectory
from rl.run.pictures import BLUES, GREY, legend_above, mode_colors, panel, save, sheet
from rl.run.sinks import read_metrics

_TIME_PARTS = {
    "time/wait_for_groups": "waiting for groups",
    "time/update": "learner update",
    "time/publish": "publish",
}
_HELDOUT_STYLE: dict[str, Any] = {"linestyle": (0, (2, 2)), "linewidth": 1.4, "marker": "o"}
_HELDOUT_STYLE |= {"markersize": 8, "markeredgecolor": "white", "zorder": 4, "clip_on": False}
_MAX_BARS = 160
_SMOOTH_FROM_STEPS = 10


def draw_curves(directory: RunDirectory) -> Path:
    """Draw curves.png from metrics.jsonl, with the held-out start from summary.json if it exists.

    Whatever a run did not log is left out of its panel.
    """
    logged, heldout = _read(directory)
    steps = sum(step > 0 for step in logged.index)
    pieces = [directory.name, "1 step" if steps == 1 else f"{steps} steps"]
    if len(throughput := _known(logged, "perf/tokens_per_second")):
        pieces.append(f"median {throughput.median():,.0f} tokens/s")
    figure = sheet(*pieces)
    (reward, accuracy), (length, seconds) = figure.subplots(2, 2)
    last = max(logged.index, default=1)
    for axes, key, title in (
        (reward, "reward/{mode}/mean", "Reward"),
        (accuracy, "reward/{mode}/accuracy", "Accuracy"),
        (length, "rollout/{mode}/tokens_mean", "Response tokens"),
    ):
        _prepare(axes, last, title)
        for mode, color in mode_colors(heldout).items():
            _draw_smoothed(axes, _known(logged, key.format(mode=mode)), mode, color)
    # From 0, or a small change of length would look like a large one.
    length.set_ylim(bottom=0)
    for mode, color in mode_colors(heldout).items():
        accuracy.plot(heldout[mode].index, heldout[mode], color=color, **_HELDOUT_STYLE)
    if any(map(len, heldout.values())):
        accuracy.plot([], [], color=GREY, label="held-out", **_HELDOUT_STYLE)
    # Always the whole range, so that pictures of two runs can be compared.
    accuracy.set_ylim(0, 1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _prepare(seconds, last, "Seconds per step")
    _draw_step_time(seconds, logged)
    for axes in (reward, accuracy, length, seconds):
        if not legend_above(axes):
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=GREY)
            axes.set_yticks([])
    return save(figure, directory.root / "curves.png")


def _read(directory: RunDirectory) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Return what a run has logged by step, and each mode's held-out accuracy with its start.

    Modes are in the order in which they are logged, which is the config's.
    """
    by_step = read_metrics(directory.metrics_path)
    logged = pd.DataFrame(list(by_step.values()), index=pd.Index(list(by_step), dtype=int))
    # A run that goes on has no summary yet, and its picture no held-out start.
    path = directory.summary_path
    before = json.loads(path.read_text("utf-8"))["before"] if path.exists() else {}
    heldout: dict[str, pd.Series] = {}
    for area, _, rest in (key.partition("/") for key in logged.columns):
        mode, _, figure = rest.partition("/")
        # Other keys of three parts, such as rollout/dropped/crash, name no mode.
        is_mode = area in ("rollout", "reward", "eval")
        if is_mode and figure in ("groups", "tokens_mean", "accuracy") and mode not in heldout:
            course = _known(logged, f"eval/{mode}/accuracy")
            # Where the start was logged as step 0, too, it is there already.
            if "accuracy" in before.get(mode, {}) and 0 not in course.index:
                course = pd.concat([pd.Series({0: before[mode]["accuracy"]}), course])
            heldout[mode] = course
    return logged, heldout


def _known(logged: pd.DataFrame, key: str) -> pd.Series:
    """Return the values of a metric by step, of the steps that have it."""
    return pd.Series(logged[key]).dropna() if key in logged else pd.Series(dtype=float)


def _draw_smoothed(axes: Axes, series: pd.Series, label: str, color: str) -> None:
    """Draw the values, faint behind their moving average where there are enough of them."""
    if len(series) == 0:
        return
    if len(series) < _SMOOTH_FROM_STEPS:
        axes.plot(series.index, series, "-s", color=color, markersize=5, label=label)
        return
    axes.plot(series.index, series, color=color, alpha=0.22, linewidth=1.1)
    # Over a twentieth of the run: long runs are noisy at the scale of steps.
    mean = series.rolling(max(5, len(series) // 20), min_periods=1).mean()
    axes.plot(series.index, mean, color=color, linewidth=2.4, label=label)


def _draw_step_time(axes: Axes, logged: pd.DataFrame) -> None:
    """Draw where the seconds of a step go, in stacked bars."""
    first, last = min(logged.index, default=1), max(logged.index, default=1)
    # In a long run a bar is the mean of several steps: thousands would be thinner than a pixel.
    width = max(1, -(-(last - first + 1) // _MAX_BARS))
    bins = logged.reindex(columns=list(_TIME_PARTS)).groupby((logged.index - first) // width)
    heights = pd.DataFrame(bins.mean()).dropna(axis="columns", how="all").fillna(0.0)
    centers = first + heights.index * width + (width - 1) / 2
    # Thin bars with gaps would show a pattern that is the screen's, not the run's.
    shown_width = width if last - first > 30 else width * 0.8
    bottoms = heights.cumsum(axis="columns") - heights
    for (key, label), color in zip(_TIME_PARTS.items(), BLUES, strict=True):
        if key in heights:
            style = {"color": color, "label": label, "antialiased": False}
            axes.bar(centers, heights[key], shown_width, bottoms[key], **style)


def _prepare(axes: Axes, last_step: int, title: str) -> None:
    panel(axes, title, "step")
    axes.set_xlim(0, max(last_step * 1.02, last_step + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
