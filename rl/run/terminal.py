"""What commands show on a terminal: a step as a line, durations, small curves, a progress bar."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Eight heights of a block, which every monospaced font of a terminal has.
_BARS = "▁▂▃▄▅▆▇█"

# The pieces of a step's line in their order: metric key, and its text. Those of every mode come
# first, since a run is about them.
_RUN_FIELDS = (
    ("staleness/max", "staleness {:.0f}"),
    ("rollout/mismatch_kl", "kl {:.0e}"),
    ("perf/tokens_per_second", "{:,.0f} tok/s"),
    ("time/step", "{:.1f} s"),
)
_MODE_FIELDS = (
    ("reward/{mode}/accuracy", "acc {:.2f}"),
    ("reward/{mode}/mean", "reward {:.2f}"),
    ("rollout/{mode}/tokens_mean", "{:.0f} tok"),
    ("eval/{mode}/accuracy", "held-out {:.3f}"),
)


def step_line(
    step: int,
    total_steps: int,
    modes: Sequence[str],
    metrics: Mapping[str, float],
    left_s: float | None,
) -> str:
    """Return such as `step 7/120 | long acc 0.61 reward 0.68 47 tok | ... | left 4 m 20 s`."""
    pieces = [f"step {step}/{total_steps}"]
    for mode in modes:
        fields = [(key.format(mode=mode), text) for key, text in _MODE_FIELDS]
        if figures := [text.format(metrics[key]) for key, text in fields if key in metrics]:
            pieces.append(" ".join([mode, *figures]))
    pieces += [text.format(metrics[key]) for key, text in _RUN_FIELDS if key in metrics]
    if left_s is not None:
        pieces.append(f"left {duration(left_s)}")
    return " | ".join(pieces)


def duration(seconds: float) -> str:
    """Return the two largest units, rounded down: `42 s`, `4 m 20 s`, `3 h 05 m`, `2 d 07 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def counted(count: int, noun: str) -> str:
    """Return such as `1 rank`, `2 ranks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the course of `values` in at most `width` characters, scaled to their own range.

    Longer series are averaged in equal stretches. Values that are not finite are left out.

    Example: sparkline([0, 1, 2, 3], 2) == "▁█"
    """
    # A step may log NaN, say the mean of no samples.
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    means = [chunk.mean() for chunk in np.array_split(finite, min(width, len(finite)))]
    # A flat series has no range to be scaled to, and is drawn at the bottom.
    low, spread = min(means), max(means) - min(means) or 1.0
    return "".join(_BARS[round((mean - low) / spread * (len(_BARS) - 1))] for mean in means)


def progress_bars(console: Console | None = None) -> Progress:
    """Return the progress bar of every command: what is done, how much of it, how long it takes.

    Its tasks are pieces of work; their descriptions are plain text, never markup. console: stderr
    by default, so that it never mixes with what a command prints.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        # What a command has to say at its end stands alone on the screen.
        transient=True,
        # In a log file a bar would be a line for every refresh, or one that says nothing.
        disable=not console.is_terminal,
    )
