"""Coloured shapes to be described in a few sentences, each of which is right or wrong by itself.

    There are two shapes. Part 1 shows a red star. Part 4 shows a blue circle.

A picture has four parts side by side, and a video has four that follow one another; some are empty.
An answer holds three to five claims, of which any may fail while the others hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from rl.config.section import Section
from rl.data.media.names import MediumKind
from rl.data.tasks.pictures.drawing import TEXTS, Draws, Scene, VisualExample, within
from rl.data.tasks.pictures.shapes import COLOURS, FORMS, LINE, SMOOTHING, draw_shape

_TEXTS = TEXTS["descriptions"]
NUM_PARTS = 4
NUMBERS: dict[int, str] = _TEXTS["numbers"]
Shown = Literal["together", "in_turn"]


class DescriptionsSettings(Section):
    n: Annotated[tuple[int, int], within(min(NUMBERS), max(NUMBERS))] = (2, 4)
    """How many shapes there are."""
    shown: Shown = "together"
    """`together` in one picture, or `in_turn` as a video that shows one part after the other. What
    is held out in one way is held out in both."""
    seconds_each: Annotated[tuple[float, float], within(0.05, 60)] = (0.5, 1.0)
    """How long a video shows each of its parts. One that lies between two of the frames that the
    model is given (`data.video.fps`) is not seen at all."""
    cell: int = Field(default=112, ge=14, le=448)
    """Pixels of a part, either way."""
    wording: Literal["plain", "terse"] = "plain"
    """`terse` asks by a question mark alone, for policies that know no other words than those of
    their answers."""
    noise: Annotated[tuple[float, float], within(0, 1)] = (0.0, 0.1)
    """Standard deviation of the noise of every pixel; black to white is 1."""
    jitter: float = Field(default=0.5, ge=0, le=1)
    """How far shapes leave their middle and their size; 0 draws them all alike."""


class Shape(NamedTuple):
    colour: str
    form: str


Parts = tuple[Shape | None, ...]
"""What each part of a picture or a video shows, in order; None where it is empty."""


@dataclass(frozen=True)
class DescriptionsScene(Scene):
    parts: Parts
    shown: Shown

    @property
    def media(self) -> tuple[MediumKind, ...]:
        return ("video",) if self.shown == "in_turn" else ("image",)


def count_claim(number: int) -> str:
    """The sentence that there are so many shapes. Example: There are two shapes."""
    return _TEXTS["count"].format(number=NUMBERS[number])


def part_claim(place: int, shape: Shape) -> str:
    """What is said of a part; place: 1 first. Example: Part 1 shows a red star."""
    return _TEXTS["part"].format(place=place, **shape._asdict())


def describe(parts: Parts) -> str:
    """The description of what is shown: how many shapes, then each in its part."""
    shown = [(place, shape) for place, shape in enumerate(parts, 1) if shape is not None]
    return " ".join([count_claim(len(shown)), *(part_claim(*each) for each in shown)])


def any_shape(rng: np.random.Generator) -> Shape:
    return Shape(tuple(COLOURS)[rng.integers(len(COLOURS))], FORMS[rng.integers(len(FORMS))])


def draw(settings: DescriptionsSettings, rng: Draws) -> DescriptionsScene:
    filled = set(rng.several(range(NUM_PARTS), rng.whole(settings.n)))
    parts = tuple(any_shape(rng) if place in filled else None for place in range(NUM_PARTS))
    question = _TEXTS[settings.wording].format(
        medium=_TEXTS["media"][settings.shown], order=_TEXTS["orders"][settings.shown]
    )
    listed = ", ".join(" ".join(shape) if shape else "nothing" for shape in parts)
    identity = f"descriptions {listed}"
    return DescriptionsScene(identity, question, describe(parts), "text", parts, settings.shown)


def paint(scene: DescriptionsScene, settings: DescriptionsSettings, rng: Draws) -> VisualExample:
    is_together = scene.shown == "together"
    pictures = [scene.parts] if is_together else [(shape,) for shape in scene.parts]
    images = tuple(_picture(parts, settings, rng) for parts in pictures)
    # One pace for a whole video.
    pace = rng.uniform(*settings.seconds_each)
    seconds = () if is_together else (pace,) * len(images)
    return VisualExample(images, scene.question, scene.answer, scene.task, seconds)


def _picture(parts: Parts, settings: DescriptionsSettings, rng: Draws) -> Image.Image:
    cell = settings.cell * SMOOTHING
    image = Image.new("RGB", (len(parts) * cell, cell), "white")
    canvas = ImageDraw.Draw(image)
    for place, shape in enumerate(parts):
        # A line between parts, so that empty ones can be counted.
        if place:
            canvas.line((place * cell, 0, place * cell, cell), LINE, SMOOTHING)
        if shape is None:
            continue
        # Smaller than the part allows, never larger, so that no shape touches its neighbour.
        radius = cell * (0.42 - 0.14 * settings.jitter * rng.random())
        room = settings.jitter * (0.48 * cell - radius)
        middle = (np.array([place, 0]) + 0.5) * cell + rng.uniform(-room, room, 2)
        draw_shape(canvas, *shape, middle, radius)
    size = (len(parts) * settings.cell, settings.cell)
    small = image.resize(size, Image.Resampling.BOX)
    shade = np.asarray(small, np.float32)
    noise = rng.standard_normal(shade.shape, dtype=np.float32)
    shade = shade + np.float32(255 * rng.uniform(*settings.noise)) * noise
    return Image.fromarray(shade.clip(0, 255).astype(np.uint8))
