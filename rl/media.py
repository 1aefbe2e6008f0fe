"""Images and videos of prompts: named where a prompt travels, read where pixels are needed.

A prompt holds `Medium` values, a few bytes each. Every process that needs the pixels, an engine's
or a learner rank's, reads them itself through its own `MediaStore`, so no picture ever crosses the
driver; the digest of what was read goes into the ledger.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rl.config import SourceConfig

MediumKind = Literal["image", "video"]

MAX_ASPECT_RATIO = 200
MAX_PIXELS = 2**26
CACHE_BYTES = 256 * 2**20


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
    """A picture of a procedural task (rl/visual), drawn with `data.settings` where it is needed."""

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
    """Temporal ids of the frames by group (rl/video_frames.py), for policies that pack frames."""
    fps: float
    """Frames shown per second of video."""
    digest: str
    """Of frames and times (16 hexadecimal digits)."""


# Pixels.


def as_rgb(image: Image.Image) -> Image.Image:
    """Upright by its EXIF tag, transparency over white, 8 bits a colour."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Conversion would cut all but the darkest greys off at white.
        shades = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(shades.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def refuse_size(width: int, height: int) -> None:
    """Raise MediaError for an image or frame that would cost more than any real one (pixels)."""
    shortest, longest = min(width, height), max(width, height)
    if shortest < 1 or longest > MAX_ASPECT_RATIO * shortest or width * height > MAX_PIXELS:
        raise MediaError(
            f"too_large: an image may have {MAX_PIXELS} pixels and an aspect ratio of "
            f"{MAX_ASPECT_RATIO} at most, got {width} x {height}; scale or crop it"
        )


# Names.


def describe(medium: Medium) -> str:
    """A medium in words, for errors and captions."""
    match medium:
        case MediaFile():
            return medium.path
        case MediaCell():
            place = f"{medium.kind} {medium.place} of column {medium.column}"
            return f"{place}, {medium.split} row {medium.row}"
        case RenderedImage():
            split = "held-out" if medium.is_heldout else "training"
            return f"{medium.task}, {split} picture {medium.index} of seed {medium.seed}"


_FORMS: dict[str, type[Medium]] = {
    "file": MediaFile,
    "cell": MediaCell,
    "rendered": RenderedImage,
}


def to_json(media: Sequence[Medium]) -> str:
    """References as JSON text, without a pixel; `from_json` reads it back.

    Example: to_json([MediaFile("image", "/a.png")]) ==
    '[{"form": "file", "kind": "image", "path": "/a.png"}]'
    """
    names = {form: name for name, form in _FORMS.items()}
    return json.dumps([{"form": names[type(medium)], **asdict(medium)} for medium in media])


def from_json(text: str) -> tuple[Medium, ...]:
    """The references that `to_json` wrote; raises ValueError for any other text."""
    try:
        return tuple(_FORMS[stored.pop("form")](**stored) for stored in json.loads(text))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no list of media, {error!r}: {text:.200}") from error


# Reading.


class MediaStore:
    """Reads the media of one `data` section; what was read lately is kept.

    Any thread may read: a cache behind a lock, and libraries that are asked by one thread at a time
    where they need it. Two threads that want the same medium at once may both decode it.
    """

    def __init__(self, data: SourceConfig, cache_bytes: int = CACHE_BYTES) -> None:
        self._data = data
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[Medium, tuple[StillImage | Video, int]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock, self._open_lock, self._paint_lock = Lock(), Lock(), Lock()

    def read(self, medium: Medium) -> StillImage | Video:
        """Return the pixels, complete and checked; raises MediaError if there are none to show.

        What is returned is shared with other readers and must not be changed.
        """
        with self._cache_lock:
            if medium in self._cache:
                self._cache.move_to_end(medium)
                return self._cache[medium][0]
        seen = self._read(medium)
        self._keep(medium, seen)
        return seen

    def check(self, medium: Medium) -> None:
        """Raise MediaError for a medium whose header already tells that it cannot be used."""
        from rl.media_files import check

        if isinstance(medium, RenderedImage):
            return
        check(medium.kind, self._source(medium), describe(medium))

    def _read(self, medium: Medium) -> StillImage | Video:
        from rl.media_files import read_image, read_video, still_image

        if isinstance(medium, RenderedImage):
            return still_image(self._painted(medium))
        if medium.kind == "image":
            return read_image(self._source(medium), describe(medium))
        return read_video(self._source(medium), describe(medium), self._data.video)

    def _source(self, medium: MediaFile | MediaCell) -> str | BytesIO:
        return medium.path if isinstance(medium, MediaFile) else BytesIO(self._cell(medium))

    def _cell(self, medium: MediaCell) -> bytes:
        from rl.tables import media_in

        with self._open_lock:
            table = self._heldout_table if medium.split == "heldout" else self._train_table
        # Another data set may lie there by now.
        try:
            stored = media_in(table[medium.row : medium.row + 1][medium.column][0].as_py())
            content = stored[medium.place]
        except (KeyError, IndexError, ValueError) as error:
            raise MediaError(f"missing: the data set has no {describe(medium)}") from error
        if not isinstance(content, bytes):
            raise MediaError(f"missing: {describe(medium)} holds no bytes but {content!r:.200}")
        return content

    @cached_property
    def _train_table(self) -> Any:
        from rl.tables import train_location

        return self._opened(train_location(self._data))

    @cached_property
    def _heldout_table(self) -> Any:
        from rl.tables import heldout_location

        return self._opened(heldout_location(self._data))

    def _opened(self, location: Any) -> Any:
        """The rows as stored: an image column of `datasets` stays bytes, and nothing decodes it."""
        from rl.tables import read_table

        if location is None:
            raise MediaError("missing: `data` names no data set that its media could be in")
        try:
            return read_table(location).with_format("arrow")
        except ValueError as error:
            raise MediaError(f"missing: the data set cannot be opened: {error}") from error

    def _painted(self, medium: RenderedImage) -> Image.Image:
        from rl.visual import read_settings, render

        # Some tasks draw with matplotlib, which shares fonts between threads.
        with self._paint_lock:
            settings = read_settings(medium.task, self._data.settings)
            example = render(medium.task, settings, medium.seed, medium.index, medium.is_heldout)
        return example.images[medium.place]

    def _keep(self, medium: Medium, seen: StillImage | Video) -> None:
        size = num_bytes(seen)
        with self._cache_lock:
            if size > self._cache_bytes or medium in self._cache:
                return
            self._cache[medium] = seen, size
            self._cached_bytes += size
            while self._cached_bytes > self._cache_bytes:
                _, (_, freed) = self._cache.popitem(last=False)
                self._cached_bytes -= freed


def num_bytes(seen: StillImage | Video) -> int:
    """Memory that the pixels take."""
    if isinstance(seen, Video):
        return seen.frames.nbytes
    return 3 * seen.pixels.width * seen.pixels.height
