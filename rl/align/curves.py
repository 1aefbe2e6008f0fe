"""curves.png of an RLAIF-V pass: how DPO went, and what each iteration did to both modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rl.align.directory import AlignmentDirectory
from rl.run.files import atomic_write
from rl.run.pictures import GREY, INK, MODE_COLORS, legend_above, mode_colors, plain
from rl.run.sinks import read_metrics

_CURVES = (
    ("Loss and accuracy of preferences", {"dpo/loss": "loss", "dpo/accuracy": "accuracy"}),
    (
        "Implicit rewards",
        {"dpo/chosen_reward": "chosen", "dpo/rejected_reward": "rejected", "dpo/margin": "margin"},
    ),
)
# Title, then kind, field and interval of a figure of a Measurement (gate.py).
_FIGURES = (
    ("Held-out accuracy", "modes", "accuracy", "half_width"),
    (
        "Held-out responses with a wrong claim",
        *("hallucination", "wrong_responses", "wrong_responses_half_width"),
    ),
)


def draw_alignment(directory: AlignmentDirectory, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Draw the picture from metrics.jsonl and the verdicts of the iterations; return its path."""
    logged = read_metrics(directory.metrics)
    picture = Figure(figsize=(16, 10), dpi=100, facecolor="white")
    name = directory.root.resolve().parent.name
    accepted = sum(verdict["is_accepted"] for verdict in verdicts)
    iterations = "1 iteration" if len(verdicts) == 1 else f"{len(verdicts)} iterations"
    title = f"{name}, RLAIF-V  ·  {iterations}, {accepted} accepted"
    picture.suptitle(title, x=0.045, y=0.97, ha="left", fontsize=20, color=INK)
    panels = picture.subplots(2, 2)
    picture.subplots_adjust(left=0.045, right=0.98, top=0.87, bottom=0.07, wspace=0.12, hspace=0.34)
    for axes, (title, curves) in zip(panels[0], _CURVES, strict=True):
        axes.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
        axes.set_xlabel("DPO step", fontsize=12, color=GREY)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        for (key, label), color in zip(curves.items(), MODE_COLORS, strict=False):
            points = [(step, metrics[key]) for step, metrics in logged.items() if key in metrics]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    for axes, (title, *figure) in zip(panels[1], _FIGURES, strict=True):
        axes.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _draw_modes(axes, verdicts, *figure)
    for axes in panels.flat:
        plain(axes)
        legend_above(axes)
    path = directory.root / "curves.png"
    with atomic_write(path) as partial:
        picture.savefig(partial, format="png")
    return path


def _draw_modes(
    axes: Axes, verdicts: Sequence[Mapping[str, Any]], kind: str, field: str, half_width: str
) -> None:
    """A point with its 95 % interval before and after each iteration; hollow if not accepted."""
    for index, (mode, color) in enumerate(mode_colors(verdicts[0]["before"]["modes"]).items()):
        for number, verdict in enumerate(verdicts):
            # Beside each other, so that the intervals of two modes do not hide one another.
            x = np.array([2 * number, 2 * number + 1]) + 0.06 * index
            # A mode in which no response could be judged has no point.
            figures = [verdict[when][kind].get(mode, {}) for when in ("before", "after")]
            y, width = ([of.get(name, np.nan) for of in figures] for name in (field, half_width))
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
    numbers = [f" {number}" for number in range(1, len(verdicts) + 1)] if verdicts[1:] else [""]
    labels = [f"{when}{number}" for number in numbers for when in ("before", "after")]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(bottom=0)
