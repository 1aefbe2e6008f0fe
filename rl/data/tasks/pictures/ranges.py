"""Settings that are drawn for every example anew: pairs of bounds, both included."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from pydantic import AfterValidator, Field

Number = TypeVar("Number", int, float)


NOT_EMPTY = Field(min_length=1)
"""For a setting that lists what may be drawn, such as `[sum, max]`."""


def within(lowest: float, highest: float) -> AfterValidator:
    """For a setting such as `[2, 4]`: its limits, both included."""

    def check(bounds: tuple[Number, Number]) -> tuple[Number, Number]:
        if not lowest <= bounds[0] <= bounds[1] <= highest:
            raise ValueError(
                f"must be a lower and an upper bound within {lowest} and {highest}, the lower "
                f"first, got {list(bounds)}"
            )
        return bounds

    return AfterValidator(check)


def draw_whole(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def draw_real(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def pick(rng: np.random.Generator, choices):
    """One of a sequence; unlike rng.choice it keeps Python's own types."""
    return choices[int(rng.integers(len(choices)))]


def pick_several(rng: np.random.Generator, choices, count: int) -> list:
    """`count` different ones, in random order."""
    return [choices[place] for place in rng.permutation(len(choices))[:count]]
