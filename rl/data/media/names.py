"""Images and videos of prompts: named where a prompt travels, read where pixels are needed.

A prompt holds `Medium` values of a few bytes each. Every process that needs the pixels, such as an
engine or a learner rank, reads them itself through its own store (store.py), so no picture ever
crosses the driver. The digest of what was read goes into the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MediumKind = Literal["image", "video"]

# Far beyond real pictures. A file of a few kilobytes can claim a size that fills the memory.
MAX_ASPECT_RATIO = 200
MAX_PIXELS = 2**26


@dataclass(frozen=True)
class MediaFile:
    """A file that every node can read."""

    kind: MediumKind
    path: str


@dataclass(frozen=True)
class MediaCell:
    """Bytes inside a data set."""

    kind: MediumKind
    split: Literal["train", "heldout"]
    """Whether the row is one of `data.path` or of `data.heldout_path`."""
    column: str
    row: int
    place: int
    """Which of the cell's media, counted from 0."""


@dataclass(frozen=True)
class RenderedImage:
    """A picture of a procedural task (rl/data/tasks/pictures), drawn where it is needed."""

    task: str
    seed: int
    index: int
    is_heldout: bool
    place: int
    """Which of the example's images, counted from 0."""
    kind: MediumKind = "image"


Medium = MediaFile | MediaCell | RenderedImage


class MediaError(ValueError):
    """A medium that cannot be used. Its message is `reason: what is wrong with which medium`.

    Example: MediaError("missing: /data/a.png does not exist")
    """

    @property
    def reason(self) -> str:
        """What media are counted by, such as `missing` or `too_large`."""
        return str(self).partition(":")[0]


@dataclass(frozen=True)
class StillImage:
    """An image as it is shown to a policy."""

    pixels: Image.Image
    """RGB, upright."""
    digest: str
    """Of the pixels (16 hexadecimal digits)."""


@dataclass(frozen=True)
class Video:
    """The frames of a video that a policy is shown."""

    frames: NDArray
    """uint8 [N, H, W, 3]"""
    times_s: tuple[float, ...]
    """[N], seconds from the video's start."""
    groups: tuple[tuple[int, ...], ...]
    """Temporal ids of the frames by group (video_frames.py), for policies that pack frames."""
    fps: float
    """Frames shown per second of video."""
    digest: str
    """Of frames and times (16 hexadecimal digits)."""


# Pixels.


def as_rgb(image: Image.Image) -> Image.Image:
    """Upright by its EXIF tag, transparency over white, 8 bits a colour."""
    # Cameras store pixels as the sensor has them, and in EXIF how to turn them.
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # 16 bits a pixel: Pillow's conversion would show all but the darkest greys as white.
        shades = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(shades.astype(np.uint8))
    # White, as on a page; what lies under transparency in the file is often black or noise.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def refuse_size(width: int, height: int, name: str | None = None) -> None:
    """Raise MediaError for an image or frame that would cost more than any real one (pixels).

    name: what the error calls it.
    """
    shortest, longest = min(width, height), max(width, height)
    if shortest < 1 or longest > MAX_ASPECT_RATIO * shortest or width * height > MAX_PIXELS:
        whose = f" ({name})" if name else ""
        raise MediaError(
            f"too_large: an image may have {MAX_PIXELS} pixels and an aspect ratio of "
            f"{MAX_ASPECT_RATIO} at most, got {width} x {height}; scale or crop it{whose}"
        )


# Names.


def describe(medium: Medium) -> str:
    """A medium in words, for errors and captions."""
    match medium:
        case MediaFile():
            return medium.path
        case MediaCell():
            cell = f"{medium.kind} {medium.place} of column {medium.column}"
            return f"{cell}, {medium.split} row {medium.row}"
        case RenderedImage():
            split = "held-out" if medium.is_heldout else "training"
            return f"{medium.task}, {split} picture {medium.index} of seed {medium.seed}"


_FORMS: dict[str, type[Medium]] = {"file": MediaFile, "cell": MediaCell, "rendered": RenderedImage}


def to_json(media: Sequence[Medium]) -> str:
    """References as JSON text, without a pixel; `from_json` reads it back.

    Example: to_json([MediaFile("image", "/a.png")]) ==
    '[{"form": "file", "kind": "image", "path": "/a.png"}]'
    """
    # By name, because these texts lie in ledgers, which outlive the names of classes.
    names = {form: name for name, form in _FORMS.items()}
    return json.dumps([{"form": names[type(medium)], **asdict(medium)} for medium in media])


def from_json(text: str) -> tuple[Medium, ...]:
    """The references that `to_json` wrote; raises ValueError for any other text."""
    try:
        return tuple(_FORMS[stored.pop("form")](**stored) for stored in json.loads(text))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no list of media, {error!r}: {text:.200}") from error
