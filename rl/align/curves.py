"""curves.png of an RLAIF-V pass: how DPO went, and what each iteration did to both modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rl.align.directory import AlignmentDirectory
from rl.align.gate import Measurement, as_measurement
from rl.run.files import atomic_write
from rl.run.pictures import GREY, INK, MODE_COLORS, legend_above, plain
from rl.run.sinks import read_metrics

_SIZE_INCHES = (16, 10)
_DPI = 100
_CURVES = (
    ("Loss and accuracy of preferences", {"dpo/loss": "loss", "dpo/accuracy": "accuracy"}),
    (
        "Implicit rewards",
        {"dpo/chosen_reward": "chosen", "dpo/rejected_reward": "rejected", "dpo/margin": "margin"},
    ),
)


def draw_alignment(directory: AlignmentDirectory, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Draw the picture from metrics.jsonl and the verdicts of the iterations; return its path."""
    logged = read_metrics(directory.metrics)
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor="white")
    name = directory.root.resolve().parent.name
    accepted = sum(verdict["is_accepted"] for verdict in verdicts)
    iterations = "1 iteration" if len(verdicts) == 1 else f"{len(verdicts)} iterations"
    title = f"{name}, RLAIF-V  ·  {iterations}, {accepted} accepted"
    figure.suptitle(title, x=0.045, y=0.97, ha="left", fontsize=20, color=INK)
    axes = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.045, right=0.98, top=0.87, bottom=0.07, wspace=0.12, hspace=0.34)
    for panel, (title, curves) in zip(axes[0], _CURVES, strict=True):
        _draw_curves(panel, logged, title, curves)
    _draw_modes(
        axes[1, 0],
        verdicts,
        "Held-out accuracy",
        lambda measured, mode: (measured.modes[mode].accuracy, measured.modes[mode].half_width),
    )
    _draw_modes(
        axes[1, 1],
        verdicts,
        "Held-out responses with a wrong claim",
        # A mode in which no response could be judged has no point.
        lambda measured, mode: (
            (rate.wrong_responses, rate.wrong_responses_half_width)
            if (rate := measured.hallucination.get(mode))
            else (np.nan, np.nan)
        ),
    )
    path = directory.root / "curves.png"
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
    return path


def _draw_curves(
    axes: Axes,
    logged: Mapping[int, Mapping[str, float]],
    title: str,
    curves: Mapping[str, str],
) -> None:
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
    axes.set_xlabel("DPO step", fontsize=12, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    plain(axes)
    for (key, label), color in zip(curves.items(), MODE_COLORS, strict=False):
        points = [(step, metrics[key]) for step, metrics in logged.items() if key in metrics]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    legend_above(axes)


def _draw_modes(
    axes: Axes,
    verdicts: Sequence[Mapping[str, Any]],
    title: str,
    figure: Callable[[Measurement, str], tuple[float, float]],
) -> None:
    """A point with its 95 % interval before and after each iteration; hollow if not accepted."""
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
    plain(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    pairs = [
        (as_measurement(verdict["before"]), as_measurement(verdict["after"]))
        for verdict in verdicts
    ]
    for index, mode in enumerate(pairs[0][0].modes):
        color = MODE_COLORS[index % len(MODE_COLORS)]
        for number, (verdict, measured) in enumerate(zip(verdicts, pairs, strict=True)):
            # Beside each other, so that the intervals of two modes do not hide one another.
            x = np.array([2 * number, 2 * number + 1]) + 0.06 * index
            y, width = np.array([figure(measurement, mode) for measurement in measured]).T
            is_accepted = verdict["is_accepted"]
            axes.errorbar(
                x,
                y,
                width,
                color=color,
                marker="o",
                markersize=9,
                markerfacecolor=color if is_accepted else "white",
                linestyle="-" if is_accepted else ":",
                linewidth=2,
                capsize=4,
                label=mode if number == 0 else None,
            )
    suffixes = (
        [f" {number}" for number in range(1, len(verdicts) + 1)] if len(verdicts) > 1 else [""]
    )
    labels = [f"{when}{suffix}" for suffix in suffixes for when in ("before", "after")]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(bottom=0)
    legend_above(axes)
