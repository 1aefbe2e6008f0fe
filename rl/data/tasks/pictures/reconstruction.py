"""Unified learning of reading and of knowledge from pages with a damaged region.

The objective of MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154): the question is always what the
region said, and the damage decides what it takes. `light` noise can still be read; `heavy` noise
takes reading and inference; `masked` leaves nothing to read, so that the text must be inferred from
the rest of the page, which states every masked fact once more.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rl.data.tasks.pictures.drawing import NOT_EMPTY, Draws, Scene, VisualExample
from rl.data.tasks.pictures.pages import Line, Page, PageSettings, draw_page, paint_page

Level = Literal["light", "heavy", "masked"]
Box = tuple[int, int, int, int]
FRAME = "#d0201c"
QUESTION = (
    "The region in the red frame is damaged. What did it say? Answer with the original text of the "
    "region alone."
)


class ReconstructionSettings(PageSettings):
    levels: Annotated[tuple[Level, ...], NOT_EMPTY] = get_args(Level)
    masked_route: Literal["transcription", "probability"] = "transcription"
    """How masked text is rewarded: by its likeness, or by how probable the policy finds it."""


@dataclass(frozen=True)
class ReconstructionScene(Scene):
    page: Page
    level: str


def draw(settings: ReconstructionSettings, rng: Draws) -> ReconstructionScene:
    page = draw_page(rng)
    # Where words stand decides what can be asked, and it is painting that puts them there.
    return ReconstructionScene(page.identity, "", "", "", page, rng.pick(settings.levels))


def paint(
    scene: ReconstructionScene, settings: ReconstructionSettings, rng: Draws
) -> VisualExample:
    image, lines = paint_page(scene.page, settings, rng)
    box, text = region(scene.page, lines, scene.level, rng)
    # Letters may reach a pixel over their box; what is left of one would give it away.
    box = _grown(box, 1)
    piece = image.crop(box)
    if scene.level == "light":
        # A slight blur, grain, and one pixel in thirty black or white.
        piece = _noisy(piece.filter(ImageFilter.GaussianBlur(0.5)), 40.0, 0.03, rng)
    elif scene.level == "heavy":
        # Stronger grain, one pixel in twelve, and blots over a third of the width or so.
        piece = _noisy(piece.filter(ImageFilter.GaussianBlur(0.6)), 45.0, 0.08, rng)
        canvas, (wide, high) = ImageDraw.Draw(piece), piece.size
        # A blot for every two letter heights of width, or none of a long line would be hit.
        for start in range(0, wide, 2 * high):
            left = start + rng.uniform(0, 1.2) * high
            size = rng.uniform(0.5, 0.9) * high
            shade = (int(rng.integers(90, 190)),) * 3
            canvas.ellipse((left, 0, left + size, high), shade)
    else:
        piece = Image.new("RGB", piece.size, "#9a9a9a")
    image.paste(piece, box)
    # Outside the damage, so that the frame hides nothing itself.
    ImageDraw.Draw(image).rectangle(_grown(box, 2), outline=FRAME, width=2)
    task = settings.masked_route if scene.level == "masked" else "transcription"
    return VisualExample((image,), QUESTION, text, task)


def region(page: Page, lines: list[Line], level: str, rng: Draws) -> tuple[Box, str]:
    """Return the box and the text of what is damaged: a line, or a repeated fact if masked."""
    # Noise leaves something to be read, so any line will do.
    if level != "masked":
        line = rng.pick(lines)
        return line.box, line.text
    # What is masked cannot be read, so the rest of the page must state it once more.
    candidates = [
        (box, page.mentions[mention])
        for line in lines
        for mention, box in line.mentions.items()
        if page.mentions.count(page.mentions[mention]) > 1
    ]
    box, fact = rng.pick(candidates)
    return box, page.facts[fact]


def _grown(box: Box, by: int) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _noisy(piece: Image.Image, sigma: float, flipped: float, rng: Draws) -> Image.Image:
    """Add Gaussian noise of `sigma`, of 255; make a share `flipped` of pixels black or white."""
    pixels = np.asarray(piece.convert("L"), np.float32)
    noisy = pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    flips = rng.random(pixels.shape, dtype=np.float32)
    noisy[flips < flipped / 2] = 0
    noisy[flips > 1 - flipped / 2] = 255
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB")
