"""What every drawn task needs: scenes and examples, random choices, ranges, texts and fonts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import yaml
from PIL import Image, ImageFont
from pydantic import AfterValidator, Field

from rl.data.media.names import MediumKind

Number = TypeVar("Number", int, float)

FONT_FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
NOT_EMPTY = Field(min_length=1)
"""For a setting that lists what may be drawn, such as `[sum, max]`."""
TEXTS: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text("utf-8"))
"""The words, themes and questions of the tasks, as texts.yaml explains them."""
WORDS: Mapping[str, Any] = TEXTS["words"]


@dataclass(frozen=True)
class Scene:
    """All that a picture states, without the pixels; each task adds what it paints."""

    identity: str
    """What is shown, whatever is asked about it; it decides the split."""
    question: str
    answer: str
    task: str
    """The accuracy route. All three are empty where painting decides them (reconstruction.py)."""

    @property
    def media(self) -> tuple[MediumKind, ...]:
        """What it is painted as, in the order in which the question speaks of it."""
        return ("image",)


@dataclass(frozen=True)
class VisualExample:
    """Example: VisualExample((picture,), "What is the sum of the digits?", "12", "number")"""

    images: tuple[Image.Image, ...]
    """RGB, in the order in which the question speaks of them."""
    question: str
    answer: str
    task: str
    """The accuracy route that compares a response with `answer`."""
    seconds: tuple[float, ...] = ()
    """Of a video, how long it shows each image, one after the other; empty for pictures."""


class Draws(np.random.Generator):
    """A generator of random choices: the same for the same seeds in every process."""

    def __init__(self, *seeds: int) -> None:
        super().__init__(np.random.PCG64(seeds))

    def whole(self, bounds: tuple[int, int]) -> int:
        """Return a whole number within `bounds`, both included."""
        return int(self.integers(bounds[0], bounds[1] + 1))

    def pick(self, choices):
        """Return one of a sequence."""
        # `choice` would return numpy's own types, which are neither JSON nor equal in repr.
        return choices[int(self.integers(len(choices)))]

    def several(self, choices, count: int) -> list:
        """Return `count` different ones of a sequence, in random order."""
        return [choices[index] for index in self.permutation(len(choices))[:count]]


def within(lowest: float, highest: float) -> AfterValidator:
    """Return the check of a setting such as `[2, 4]`: both bounds stay within these limits."""

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


def font_file(family: str, is_bold: bool = False) -> str:
    """Return the path of one of FONT_FAMILIES."""
    # The fonts that matplotlib ships: those of the machine differ from machine to machine, and with
    # them the pictures of a seed would.
    name = f"{family}-Bold.ttf" if is_bold else f"{family}.ttf"
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))


@cache
def font(family: str, size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels."""
    # Left to itself Pillow takes Raqm where that is installed, which spaces letters differently.
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(font_file(family, is_bold), size, layout_engine=layout)
