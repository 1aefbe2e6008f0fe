"""A few small digits with arithmetic on them: their sum, the largest, how many are a 7.

The easiest visual task: to see the digits is the hard part, which every mode shares, and to reason
is the sum. Drawn by numpy alone, thousands of pictures in a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from rl.config.section import Section
from rl.data.media.names import MediumKind
from rl.data.tasks.pictures.drawing import NOT_EMPTY, TEXTS, Draws, Scene, VisualExample, within

Operation = Literal["sum", "max", "count"]
Shown = Literal["together", "apart", "in_turn"]
MIN_HEIGHT = 12
"""Fewest pixels of a digit's height at which it can be told from the others."""
ASPECT = 0.62
"""Width of a digit over its height."""
PAPER, INK = 0.92, 0.08
_FONTS = yaml.safe_load(Path(__file__).with_name("digits.yaml").read_text("utf-8"))


def _joined(curve: list[list[float]]) -> list[tuple[float, ...]]:
    """Return the line segments (x0, y0, x1, y1) of a curve, as digits.yaml explains it."""
    points: list[tuple[float, float]] = []
    for x, y, *arc in curve:
        if arc:
            rx, ry, start, end, parts = arc
            angles = np.radians(np.linspace(start, end, int(parts) + 1))
            points += [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]
        else:
            points.append((x, y))
    return [(*start, *end) for start, end in pairwise(points)]


_LINES = [list(chain.from_iterable(map(_joined, curves))) for curves in _FONTS["strokes"]]
# One array needs digits of as many segments each; a repeated segment changes no distance.
_MOST = max(map(len, _LINES))
STROKE_FONT = np.array([lines + [lines[-1]] * (_MOST - len(lines)) for lines in _LINES], "f4")
"""Line segments of every digit: [10, segments, (x0, y0, x1, y1)]."""
BITMAP_FONT = np.array([[[*map(float, r)] for r in g.split()] for g in _FONTS["bitmap"]], "f4")
"""Dots of every digit, 1 where there is ink: [10, 7, 5]."""


class HandSettings(Section):
    """How digits are written."""

    fonts: Annotated[tuple[Literal["strokes", "bitmap"], ...], NOT_EMPTY] = ("strokes",)
    noise: Annotated[tuple[float, float], within(0, 1)] = (0.0, 0.1)
    """Standard deviation of the noise of every pixel; black to white is 1."""
    jitter: float = Field(default=0.5, ge=0, le=1)
    """How far digits leave their place, size and slant; 0 draws them all alike."""
    thickness: Annotated[tuple[float, float], within(0.05, 0.3)] = (0.1, 0.16)
    """Width of strokes over the height of a digit; the bitmap font has its own."""


class DigitsSettings(HandSettings):
    n: Annotated[tuple[int, int], within(2, 9)] = (3, 3)
    """How many digits there are."""
    shown: Shown = "together"
    """`together` in one picture, `apart` in a picture each, or `in_turn` as a video that shows one
    after the other. Digits that are held out in one way are held out in all."""
    seconds_each: Annotated[tuple[float, float], within(0.05, 60)] = (0.5, 1.0)
    """How long a video shows each of its digits. One that lies between two of the frames that the
    model is given (`data.video.fps`) is not seen at all."""
    width: int = Field(default=56, ge=MIN_HEIGHT, le=448)
    """Pixels."""
    height: int = Field(default=28, ge=MIN_HEIGHT, le=448)
    """Pixels."""
    operations: Annotated[tuple[Operation, ...], NOT_EMPTY] = ("sum",)
    wording: Literal["plain", "terse"] = "plain"
    """`terse` asks in a few characters, `+?`, `>?` or `#7?`, and pads answers to two digits, for
    policies that know no words."""

    @model_validator(mode="after")
    def _require_room_for_digits(self) -> DigitsSettings:
        count = self.n[1] if self.shown == "together" else 1
        _, _, tall = _grid(count, self.width, self.height)
        if tall < MIN_HEIGHT:
            raise ValueError(
                f"{count} digits on {self.width}x{self.height} pixels have room for {tall:.0f} "
                f"pixels of height each, less than {MIN_HEIGHT}; lower n or raise width and height"
            )
        return self


@dataclass(frozen=True)
class DigitsScene(Scene):
    digits: tuple[int, ...]
    """In reading order."""
    shown: Shown

    @property
    def media(self) -> tuple[MediumKind, ...]:
        if self.shown == "in_turn":
            return ("video",)
        return ("image",) * (len(self.digits) if self.shown == "apart" else 1)


def draw(settings: DigitsSettings, rng: Draws) -> DigitsScene:
    digits = tuple(rng.integers(0, 10, size=rng.whole(settings.n)).tolist())
    operation = rng.pick(settings.operations)
    # Half of the time a digit that is there is counted; of a random one most counts would be 0.
    counted = rng.pick(digits) if rng.random() < 0.5 else int(rng.integers(10))
    value = {"sum": sum(digits), "max": max(digits), "count": digits.count(counted)}[operation]
    question = TEXTS["digits"][settings.wording][operation]
    question = question.format(digit=counted, place=TEXTS["digits"]["places"][settings.shown])
    # Two digits always, as the built-in policies are taught to write: they need not learn when an
    # answer is short.
    answer = f"{value:02d}" if settings.wording == "terse" else str(value)
    identity = "digits " + "".join(map(str, digits))
    return DigitsScene(identity, question, answer, "number", digits, settings.shown)


def paint(scene: DigitsScene, settings: DigitsSettings, rng: Draws) -> VisualExample:
    is_together = scene.shown == "together"
    pictures = [list(scene.digits)] if is_together else [[digit] for digit in scene.digits]
    size = settings.width, settings.height
    images = tuple(
        noisy(written(digits, size, settings, rng), settings, rng) for digits in pictures
    )
    # One pace for a whole video.
    pace = rng.uniform(*settings.seconds_each)
    seconds = (pace,) * len(images) if scene.shown == "in_turn" else ()
    return VisualExample(images, scene.question, scene.answer, scene.task, seconds)


def written(
    digits: Sequence[int], size: tuple[int, int], hand: HandSettings, rng: Draws
) -> NDArray[np.float32]:
    """Return the shades of paper with digits on it, in reading order: [height, width], white is 1.

    size: width and height in pixels.
    """
    columns, rows, _ = _grid(len(digits), *size)
    width, height = size[0] // columns, size[1] // rows
    # One font for the whole picture, as on a display or a form.
    is_bitmap = rng.pick(hand.fonts) == "bitmap"
    # Smaller than the cell allows, never larger, so that no digit touches its neighbour.
    largest = 0.8 * min(height, width / ASPECT)
    tall = np.maximum(largest * (1 - 0.25 * hand.jitter * rng.random(len(digits))), 7)
    shift = 0.5 + 0.4 * hand.jitter * rng.uniform(-1, 1, (2, len(digits)))
    boxes = np.stack([tall, (width - tall * ASPECT) * shift[0], (height - tall) * shift[1]])
    if is_bitmap:
        inks = _bitmap_ink(digits, boxes, width, height)
    else:
        slant = hand.jitter * rng.uniform(-0.2, 0.2, len(digits))
        thickness = rng.uniform(*hand.thickness)
        inks = _stroke_ink(digits, boxes, slant, thickness, width, height)
    # Single precision throughout: a training run paints thousands of these a second.
    shade = np.full((size[1], size[0]), PAPER, np.float32)
    for index, ink in enumerate(inks):
        top, left = index // columns * height, index % columns * width
        shade[top : top + height, left : left + width] += np.float32(INK - PAPER) * ink
    return shade


def noisy(shade: NDArray[np.float32], hand: HandSettings, rng: Draws) -> Image.Image:
    """Return the picture of these shades, which are changed in place, with noise over them."""
    if sigma := rng.uniform(*hand.noise):
        shade += np.float32(sigma) * rng.standard_normal(shade.shape, dtype=np.float32)
    pixels = (shade.clip(0, 1) * np.float32(255)).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _grid(count: int, width: int, height: int) -> tuple[int, int, float]:
    """The columns and rows with the largest cells, and the pixels of height a digit has there."""
    # Every number of columns is tried; nine digits at most make that cheaper than a formula.
    rows = {columns: math.ceil(count / columns) for columns in range(1, count + 1)}
    tall = {n: min(height // rows[n], width // n / ASPECT) for n in rows}
    columns = max(tall, key=lambda n: tall[n])
    return columns, rows[columns], tall[columns]


def _stroke_ink(
    digits: Sequence[int], boxes: NDArray, slant: NDArray, thickness: float, width: int, height: int
) -> NDArray[np.float32]:
    """Strokes of one width around line segments, with soft edges: [n, height, width].

    boxes: height, left and top of each digit within its cell, in pixels: [3, n].
    """
    # Digits are drawn as distances rather than by a library's lines: one array operation paints all
    # digits of a picture, and edges are soft at any size.
    tall, left, top = boxes[..., None, None]
    lines = STROKE_FONT[list(digits)]  # [n, segments, (x0, y0, x1, y1)]
    xs, ys = lines[..., 0::2], lines[..., 1::2]
    # A digit leans about the middle of its height, and so stays near the middle of its cell.
    xs = ((xs * ASPECT + slant[:, None, None] * (0.5 - ys)) * tall + left).astype(np.float32)
    ys = (ys * tall + top).astype(np.float32)
    x0, y0 = xs[..., 0, None, None], ys[..., 0, None, None]
    dx, dy = xs[..., 1, None, None] - x0, ys[..., 1, None, None] - y0
    px = np.arange(width, dtype=np.float32) + np.float32(0.5) - x0  # [n, segments, 1, width]
    py = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5) - y0
    # The floor keeps a segment of no length, such as a dot, from dividing by zero.
    length = np.maximum(dx * dx + dy * dy, np.float32(1e-6))
    # The point of the segment that is nearest: the projection, cut off at both ends.
    along = (px * (dx / length) + py * (dy / length)).clip(0, 1)  # [n, segments, height, width]
    off_x, off_y = px - along * dx, py - along * dy
    # In place: these arrays are the largest of a picture, and new ones would take most of the time.
    off_x *= off_x
    off_y *= off_y
    off_x += off_y
    # Half a pixel to either side of the edge goes from ink to paper.
    edge = (0.5 * thickness * tall).astype(np.float32) + np.float32(0.5)
    return (edge - np.sqrt(off_x.min(axis=1))).clip(0, 1)


def _bitmap_ink(
    digits: Sequence[int], boxes: NDArray, width: int, height: int
) -> NDArray[np.float32]:
    """A font of 5x7 dots, enlarged without smoothing: [n, height, width]."""
    ink = np.zeros((len(digits), height, width), np.float32)
    for index, (tall, left, top) in enumerate(boxes.T):
        # Fewer pixels than dots would leave out whole rows of the font.
        high, wide = max(7, round(tall)), max(5, round(tall * ASPECT))
        from_row = np.arange(high) * 7 // high
        from_column = np.arange(wide) * 5 // wide
        x, y = min(max(0, int(left)), width - wide), min(max(0, int(top)), height - high)
        glyph = BITMAP_FONT[digits[index]]
        ink[index, y : y + high, x : x + wide] = glyph[from_row[:, None], from_column]
    return ink
