"""Images and videos of prompts: named where a prompt travels, read where pixels are needed.

A prompt holds `Medium` values of a few bytes each. Every process that needs the pixels, such as an
engine or a learner rank, reads them itself through its own store (store.py), so no picture ever
crosses the driver. The digest of what was read goes into the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MediumKind = Literal["image", "video"]

# Far beyond real pictures. A file of a few kilobytes can claim a size that fills the memory.
MAX_ASPECT_RATIO = 200
MAX_PIXELS = 2**26
MAX_MESSAGE = 480
"""Characters of an error about data, however long what it quotes is."""
MAX_REASON = 380
"""Of an error about a medium, which is shown with what tells its row."""


@dataclass(frozen=True)
class MediaFile:
    """A file that every node can read."""

    kind: MediumKind
    path: str


@dataclass(frozen=True)
class MediaCell:
    """What a cell of a data set holds besides a path: bytes, frames, or settings of its own."""

    kind: MediumKind
    split: Literal["train", "heldout"]
    """Whether the row is one of `data.path` or of `data.heldout_path`."""
    column: str
    row: int
    place: int
    """Which of the cell's media, counted from 0."""
    source: str = ""
    """The name of its source in `data.mix`; empty where there is no mixture."""


@dataclass(frozen=True)
class RenderedMedium:
    """A picture or video of a procedural task (rl/data/tasks/pictures), drawn where it is used."""

    task: str
    seed: int
    index: int
    is_heldout: bool
    place: int
    """Which of the example's images, counted from 0; a video is the first and only one."""
    kind: MediumKind = "image"
    source: str = ""
    """As of a cell: two sources may draw the same task with other settings."""


Medium = MediaFile | MediaCell | RenderedMedium


def rendered(
    task: str, kinds: Sequence[MediumKind], seed: int, index: int, is_heldout: bool, source: str
) -> tuple[RenderedMedium, ...]:
    """The media of one example, in order, of these kinds."""
    return tuple(
        RenderedMedium(task, seed, index, is_heldout, place, kind, source)
        for place, kind in enumerate(kinds)
    )


def shortened(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a text without its middle, where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 105]} ... {text[-100:]}"


class MediaError(ValueError):
    """A medium that cannot be used. Its message is `reason: what is wrong with which medium`.

    Example: MediaError("missing: /data/a.png does not exist")
    """

    def __init__(self, message: str) -> None:
        # Cells hold anything, and a message with a picture in it would fill every log.
        super().__init__(shortened(message, MAX_REASON))

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

    @property
    def in_pairs(self) -> Video:
        """The same for models that see two frames at a time: one that is alone is there twice."""
        if len(self.frames) > 1:
            return self
        frames, time_s = np.repeat(self.frames, 2, axis=0), self.times_s[0]
        return replace(self, frames=frames, times_s=(time_s, time_s + 1 / self.fps))


# Pixels.


def as_rgb(image: Image.Image) -> Image.Image:
    """Upright by its EXIF tag, transparency over white, 8 bits a colour."""
    # Cameras store pixels as the sensor has them, and in EXIF how to turn them.
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    # White, as on a page; what lies under transparency in the file is often black or noise.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(shades: NDArray, mode: str) -> NDArray[np.uint8]:
    """Greys of 16 or 32 bits, or in floating point, in the range that is theirs by their values.

    Pillow's own conversion clips them, and all but the darkest would be white.
    """
    if mode.startswith("I;16"):
        return (shades.astype(np.uint16) >> 8).astype(np.uint8)
    shades = np.nan_to_num(shades.astype(np.float64), posinf=0, neginf=0)
    low, high = shades.min(), shades.max()
    if mode == "F" and low >= 0 and high <= 1:
        shades = shades * 255
    elif low >= 0 and high < 2**16:
        # Eight bits are shown as they are, sixteen by their upper half.
        shades = shades if high < 2**8 else shades / 2**8
    else:
        shades = (shades - low) * (255 / (high - low or 1))
    return shades.astype(np.uint8)


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
            mixed = f" of {medium.source}" if medium.source else ""
            return f"{cell}, {medium.split} row {medium.row}{mixed}"
        case RenderedMedium():
            what = "video" if medium.kind == "video" else "picture"
            which = f"{'held-out' if medium.is_heldout else 'training'} {what} {medium.index}"
            mixed = f" of {medium.source}" if medium.source else ""
            return f"{medium.task}, {which} of seed {medium.seed}{mixed}"


_FORMS: dict[str, type[Medium]] = {"file": MediaFile, "cell": MediaCell, "rendered": RenderedMedium}


def to_json(media: Sequence[Medium]) -> str:
    """References as JSON text, without a pixel; `from_json` reads it back.

    Example: to_json([MediaFile("image", "/a.png")]) ==
    '[{"form": "file", "kind": "image", "path": "/a.png"}]'
    """
    # By name, because these texts lie in ledgers, which outlive the names of classes.
    names = {form: name for name, form in _FORMS.items()}
    stored = [{"form": names[type(medium)], **asdict(medium)} for medium in media]
    # A cell outside any mixture is written as before there were mixtures.
    return json.dumps(
        [{k: v for k, v in one.items() if (k, v) != ("source", "")} for one in stored]
    )


def from_json(text: str) -> tuple[Medium, ...]:
    """The references that `to_json` wrote; raises ValueError for any other text."""
    try:
        return tuple(_FORMS[stored.pop("form")](**stored) for stored in json.loads(text))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no list of media, {error!r}: {text:.200}") from error
