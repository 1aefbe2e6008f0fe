"""What is left to look at when a run is over: curves.png and summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rl.run.directory import RunDirectory
from rl.run.files import atomic_write, write_text
from rl.run.pictures import BLUES, GREY, INK, legend_above, mode_colors, plain
from rl.run.sinks import read_metrics

_SIZE_INCHES = (16, 10)
_DPI = 100
_TIME_PARTS = (
    ("time/wait_for_groups", "waiting for groups"),
    ("time/update", "learner update"),
    ("time/publish", "publish"),
)
_HELDOUT_STYLE: dict[str, Any] = {
    "linestyle": (0, (2, 2)),
    "linewidth": 1.4,
    "marker": "o",
    "markersize": 8,
    "markeredgecolor": "white",
    "zorder": 4,
    "clip_on": False,
}
_MAX_BARS = 160
_SMOOTH_FROM_STEPS = 10


@dataclass(frozen=True)
class _Series:
    steps: NDArray[np.float64]  # [N]
    values: NDArray[np.float64]  # [N]


@dataclass(frozen=True)
class _Record:
    """What a run has logged; values that are no number are left out by read_metrics."""

    by_step: Mapping[int, Mapping[str, float]]
    before: Mapping[str, Mapping[str, float]]
    """Held-out figures of every mode at step 0."""

    @property
    def last_step(self) -> int:
        return max(self.by_step, default=1)

    @property
    def modes(self) -> list[str]:
        """Modes in the order they are logged, which is the config's."""
        keys = (key.split("/") for metrics in self.by_step.values() for key in metrics)
        # Other keys of three parts, such as rollout/dropped/crash, name no mode.
        kinds = {"groups", "tokens_mean", "accuracy"}
        areas = {"rollout", "reward", "eval"}
        named = [key[1] for key in keys if len(key) == 3 and key[0] in areas and key[2] in kinds]
        return list(dict.fromkeys(named))

    def series(self, key: str) -> _Series:
        # The reshape keeps two columns where no step has the metric.
        points = [(step, metrics[key]) for step, metrics in self.by_step.items() if key in metrics]
        table = np.array(points, dtype=np.float64).reshape(-1, 2)
        return _Series(table[:, 0], table[:, 1])

    def heldout(self, mode: str, figure: str) -> _Series:
        logged = self.series(f"eval/{mode}/{figure}")
        # Where the start was logged as step 0, too, it is there already.
        if figure not in self.before.get(mode, {}) or 0 in logged.steps:
            return logged
        return _Series(
            np.append(0.0, logged.steps), np.append(self.before[mode][figure], logged.values)
        )


def draw_curves(directory: RunDirectory) -> Path:
    """Draw curves.png from metrics.jsonl, with the held-out start from summary.json if it exists.

    Whatever a run did not log is left out of its panel.
    """
    record = _read(directory)
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor="white")
    figure.suptitle(_title(directory, record), x=0.045, y=0.97, ha="left", fontsize=20, color=INK)
    axes = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.045, right=0.98, top=0.87, bottom=0.07, wspace=0.12, hspace=0.34)
    _draw_by_mode(axes[0, 0], record, "reward/{mode}/mean", "Reward")
    _draw_accuracy(axes[0, 1], record)
    _draw_by_mode(axes[1, 0], record, "rollout/{mode}/tokens_mean", "Response tokens")
    # From 0, or a small change of length would look like a large one.
    axes[1, 0].set_ylim(bottom=0)
    _draw_step_time(axes[1, 1], record)
    path = directory.root / "curves.png"
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
    return path


def write_summary(directory: RunDirectory, summary: Mapping[str, Any]) -> Path:
    """Write summary.json: `before`, `after`, `steps`, `trained_tokens`, `seconds`, `versions`."""
    path = directory.root / "summary.json"
    write_text(path, json.dumps(dict(summary), indent=2) + "\n")
    return path


def _read(directory: RunDirectory) -> _Record:
    # A run that goes on has no summary yet, and its picture no held-out start.
    summary = directory.root / "summary.json"
    before = json.loads(summary.read_text("utf-8"))["before"] if summary.exists() else {}
    return _Record(read_metrics(directory.metrics_path), before)


def _title(directory: RunDirectory, record: _Record) -> str:
    throughput = record.series("perf/tokens_per_second").values
    steps = len([step for step in record.by_step if step > 0])
    pieces = [directory.name, "1 step" if steps == 1 else f"{steps} steps"]
    if len(throughput):
        pieces.append(f"median {np.median(throughput):,.0f} tokens/s")
    return "  ·  ".join(pieces)


def _draw_by_mode(axes: Axes, record: _Record, key: str, title: str) -> None:
    _prepare(axes, record, title)
    for mode, color in mode_colors(record.modes).items():
        _draw_smoothed(axes, record.series(key.format(mode=mode)), mode, color)
    _finish(axes)


def _draw_accuracy(axes: Axes, record: _Record) -> None:
    """Draw training as a line and held-out evaluations as points, in the colour of their mode."""
    _prepare(axes, record, "Accuracy")
    for mode, color in mode_colors(record.modes).items():
        _draw_smoothed(axes, record.series(f"reward/{mode}/accuracy"), mode, color)
        heldout = record.heldout(mode, "accuracy")
        if len(heldout.steps):
            axes.plot(heldout.steps, heldout.values, color=color, **_HELDOUT_STYLE)
    if any(len(record.heldout(mode, "accuracy").steps) for mode in record.modes):
        axes.plot([], [], color=GREY, label="held-out", **_HELDOUT_STYLE)
    # Always the whole range, so that pictures of two runs can be compared.
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(axes)


def _draw_smoothed(axes: Axes, series: _Series, label: str, color: str) -> None:
    """Draw the values, faint behind their moving average where there are enough of them."""
    count = len(series.steps)
    if count == 0:
        return
    if count < _SMOOTH_FROM_STEPS:
        axes.plot(series.steps, series.values, "-s", color=color, markersize=5, label=label)
        return
    axes.plot(series.steps, series.values, color=color, alpha=0.22, linewidth=1.1)
    # Over a twentieth of the run: long runs are noisy at the scale of steps.
    mean = _moving_average(series.values, max(5, count // 20))
    axes.plot(series.steps, mean, color=color, linewidth=2.4, label=label)


def _draw_step_time(axes: Axes, record: _Record) -> None:
    """Draw where the seconds of a step go, in stacked bars."""
    _prepare(axes, record, "Seconds per step")
    first, last = min(record.by_step, default=1), record.last_step
    # In a long run a bar is the mean of several steps: thousands would be thinner than a pixel.
    width = max(1, -(-(last - first + 1) // _MAX_BARS))
    bottoms: dict[int, float] = {}
    for (key, label), color in zip(_TIME_PARTS, BLUES, strict=True):
        series = record.series(key)
        if not len(series.steps):
            continue
        bins = ((series.steps - first) // width).astype(int)
        drawn_bins = np.unique(bins)
        heights = np.array([series.values[bins == number].mean() for number in drawn_bins])
        bottom = np.array([bottoms.get(number, 0.0) for number in drawn_bins])
        centers = first + drawn_bins * width + (width - 1) / 2
        # Thin bars with gaps would show a pattern that is the screen's, not the run's.
        shown_width = width if last - first > 30 else width * 0.8
        axes.bar(centers, heights, shown_width, bottom, color=color, label=label, antialiased=False)
        bottoms |= dict(zip(drawn_bins.tolist(), (bottom + heights).tolist(), strict=True))
    _finish(axes)


def _prepare(axes: Axes, record: _Record, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
    axes.set_xlabel("step", fontsize=12, color=GREY)
    axes.set_xlim(0, max(record.last_step * 1.02, record.last_step + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    plain(axes)


def _finish(axes: Axes) -> None:
    if not legend_above(axes):
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])


def _moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the last `window` values (fewer at the start): [N].

    Example: _moving_average([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    """
    # Each mean is a difference of two running sums, so the window's length costs nothing.
    sums = np.cumsum(np.append(0.0, values))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
