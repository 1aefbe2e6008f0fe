"""Settings that are drawn for every example anew: pairs of bounds, both included."""

from __future__ import annotations

from typing import Annotated, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

Number = TypeVar("Number", int, float)


def whole_range(lowest: int, highest: int) -> type[tuple[int, int]]:
    """The type of a setting such as `[2, 4]`, with `lowest` and `highest` as its limits."""
    bound = Annotated[int, Field(ge=lowest, le=highest)]
    return Annotated[tuple[bound, bound], AfterValidator(_ordered)]  # type: ignore[return-value]


def real_range(lowest: float, highest: float) -> type[tuple[float, float]]:
    """As `whole_range`, for numbers with a fraction."""
    bound = Annotated[float, Field(ge=lowest, le=highest)]
    return Annotated[tuple[bound, bound], AfterValidator(_ordered)]  # type: ignore[return-value]


def at_least_one(choices: type) -> type:
    """The type of a setting that lists what may be drawn, such as `[sum, max]`."""
    return Annotated[tuple[choices, ...], Field(min_length=1)]  # type: ignore[return-value]


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


def _ordered(bounds: tuple[Number, Number]) -> tuple[Number, Number]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound comes first, got {list(bounds)}; swap them")
    return bounds
