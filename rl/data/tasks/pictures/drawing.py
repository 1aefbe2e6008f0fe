"""What every drawn task needs: its result, settings that are ranges, random choices, and fonts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from PIL import Image, ImageFont
from pydantic import AfterValidator, Field

Number = TypeVar("Number", int, float)

FONT_FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
NOT_EMPTY = Field(min_length=1)
"""For a setting that lists what may be drawn, such as `[sum, max]`."""


@dataclass(frozen=True)
class VisualExample:
    """Example: VisualExample((picture,), "What is the sum of the digits?", "12", "number")"""

    images: tuple[Image.Image, ...]
    """RGB, in the order in which the question speaks of them."""
    question: str
    answer: str
    task: str
    """The accuracy route that compares a response with `answer`."""


def within(lowest: float, highest: float) -> AfterValidator:
    """Return the check of a setting such as `[2, 4]`, from which each example draws a value.

    lowest, highest: the limits of both bounds, themselves allowed.
    """

    # The order of the bounds is checked with their limits, since numpy would fail far from the
    # setting.
    def check(bounds: tuple[Number, Number]) -> tuple[Number, Number]:
        if not lowest <= bounds[0] <= bounds[1] <= highest:
            raise ValueError(
                f"must be a lower and an upper bound within {lowest} and {highest}, the lower "
                f"first, got {list(bounds)}"
            )
        return bounds

    return AfterValidator(check)


def draw_whole(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    """Return a whole number within `bounds`, both included."""
    return int(rng.integers(bounds[0], bounds[1] + 1))


def pick(rng: np.random.Generator, choices):
    """Return one of a sequence."""
    # rng.choice would return numpy's own types, which are neither JSON nor equal in repr.
    return choices[int(rng.integers(len(choices)))]


def pick_several(rng: np.random.Generator, choices, count: int) -> list:
    """Return `count` different ones of a sequence, in random order."""
    return [choices[index] for index in rng.permutation(len(choices))[:count]]


def font_file(family: str, is_bold: bool = False) -> Path:
    """Return the file of one of FONT_FAMILIES."""
    # The fonts that matplotlib ships: those of the machine differ from machine to machine, and with
    # them the pictures of a seed would.
    name = f"{family}-Bold.ttf" if is_bold else f"{family}.ttf"
    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


@cache
def font(family: str, size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels."""
    # Left to itself Pillow takes Raqm where that is installed, which spaces letters differently.
    path = font_file(family, is_bold)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
