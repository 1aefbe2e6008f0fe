"""A step's metrics as text that a person reads at a glance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_BARS = "▁▂▃▄▅▆▇█"

# What stands where in a step's line: metric key, and its text.
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
    """`step 7/120 | long acc 0.61 reward 0.68 47 tok | ... | left 4 m 20 s`.

    Metrics that the step does not have are left out.
    """
    pieces = [f"step {step}/{total_steps}"]
    for mode in modes:
        fields = [(key.format(mode=mode), text) for key, text in _MODE_FIELDS]
        if known := _filled(fields, metrics):
            pieces.append(" ".join([mode, *known]))
    pieces += _filled(_RUN_FIELDS, metrics)
    if left_s is not None:
        pieces.append(f"left {duration(left_s)}")
    return " | ".join(pieces)


def duration(seconds: float) -> str:
    """The two largest units, rounded down: `42 s`, `4 m 20 s`, `3 h 05 m`, `2 d 07 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, from their lowest to their highest.

    Longer series are averaged in equal stretches. Values that are not finite are left out; a flat
    series is drawn at the bottom.

    Example: sparkline([0, 1, 2, 3], 2) == "▁█"
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    stretches = [
        finite[place * len(finite) // count : (place + 1) * len(finite) // count]
        for place in range(count)
    ]
    means = [math.fsum(stretch) / len(stretch) for stretch in stretches]
    if not means:
        return ""
    low, spread = min(means), max(means) - min(means)
    if spread == 0:
        return _BARS[0] * count
    return "".join(_BARS[round((mean - low) / spread * (len(_BARS) - 1))] for mean in means)


def _filled(fields: Sequence[tuple[str, str]], metrics: Mapping[str, float]) -> list[str]:
    return [text.format(metrics[key]) for key, text in fields if key in metrics]
