"""How MiniCPM-V 4.5 sees an image or a video: cut into views, laid out as patches and tokens.

Learner and engines both start from this module, so that they cannot disagree on a resize, on the
order of slices or on a placeholder. It loads without torch.

An image becomes a small view of the whole and, if it is large, a grid of slices near the tower's
own resolution (LLaVA-UHD, https://arxiv.org/abs/2403.11703, section 3.1). A video becomes groups of
frames; all frames of a group share one block of visual tokens
(3D-resampler, https://arxiv.org/abs/2509.18154).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rl.data.media.names import as_rgb, refuse_size

IMAGE_MARKER = "(<image>./</image>)"
"""Stands in a prompt's text where an image goes."""
VIDEO_MARKER = "(<video>./</video>)"
"""Stands in a prompt's text where a video goes."""
PLACEHOLDER = "<unk>"
"""The token whose embedding a visual feature replaces; otherwise an ordinary word."""

_BRACKETS = ("image", "slice", "image_id")
BRACKET_TOKENS = tuple(f"<{end}{name}>" for name in _BRACKETS for end in ("", "/"))
"""Stand around the visual tokens of a view, and around an image's number."""

STILL = -1
"""The temporal id of a view that is no video frame."""
NUM_TEMPORAL_IDS = 36_000
"""Temporal ids end before this: an hour in steps of 0.1 s, the length of vLLM's table."""

Groups = Sequence[Sequence[int]]
"""The temporal ids of a video's frames, in order, by group."""


@dataclass(frozen=True)
class ImageSettings:
    """Settings of a checkpoint's preprocessor_config.json; the defaults are the published ones."""

    scale_resolution: int = 448
    """Side of a square with the area that a view should have, in pixels."""
    patch_size: int = 14
    max_slices: int = 9
    tokens_per_view: int = 64
    mean: float = 0.5
    std: float = 0.5

    @classmethod
    def from_mapping(cls, stored: Mapping[str, Any]) -> ImageSettings:
        """Take the known fields of a preprocessor_config.json.

        Raises ValueError for normalisation that differs by channel.
        """
        return cls(
            scale_resolution=stored.get("scale_resolution", cls.scale_resolution),
            patch_size=stored.get("patch_size", cls.patch_size),
            max_slices=stored.get("max_slice_nums", cls.max_slices),
            tokens_per_view=stored.get("image_feature_size", cls.tokens_per_view),
            mean=_same_for_all("norm_mean", stored.get("norm_mean", cls.mean)),
            std=_same_for_all("norm_std", stored.get("norm_std", cls.std)),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> ImageSettings:
        """Read a model directory; one without the file has the published settings."""
        file = directory / "preprocessor_config.json"
        return cls.from_mapping(json.loads(file.read_text()) if file.is_file() else {})

    def require_tokens(self, query_num: int) -> None:
        """Raise ValueError unless placeholders and resampler agree on the tokens of a view."""
        if self.tokens_per_view != query_num:
            raise ValueError(
                f"image_feature_size {self.tokens_per_view} of preprocessor_config.json must equal "
                f"query_num {query_num} of config.json; set both to the resampler's queries"
            )


def _same_for_all(name: str, value: Any) -> float:
    channels = set(value) if isinstance(value, list | tuple) else {value}
    if len(channels) != 1:
        raise ValueError(f"{name} must be the same for all three channels, got {value}")
    return float(channels.pop())


# Geometry. Sizes are (width, height) in pixels, as PIL has them.


def slice_grid(width: int, height: int, settings: ImageSettings) -> tuple[int, int] | None:
    """Return (columns, rows) of the slices; None for an image that is seen in one view.

    Of the grids with about as many slices as views of the resolution fill the image's area, it is
    the one whose shape is nearest to the image's, by the logarithm of the aspect ratio (LLaVA-UHD,
    section 3.1). Raises ValueError for an image too large or too narrow.
    """
    refuse_size(width, height)
    area = settings.scale_resolution**2
    wanted = min(math.ceil(width * height / area), settings.max_slices)
    if wanted <= 1:
        return None
    # A slice more or less is allowed, because a prime number of slices has no grid near a square.
    counts = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= settings.max_slices]
    grids = [(c, n // c) for n in counts for c in range(1, n + 1) if n % c == 0]
    # In logarithms, so that twice as wide is as far from a square as twice as high.
    shape = math.log(width / height)
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def view_size(width: float, height: float, settings: ImageSettings) -> tuple[int, int]:
    """Return the size at which a view is shown: the resolution's area, in whole patches."""
    # Cut to whole numbers between the steps, as in the published code; another rounding gives some
    # images another size, and so other tokens.
    ratio = width / height
    rows = int(settings.scale_resolution / math.sqrt(ratio))
    columns = int(rows * ratio)
    return _fit(columns, settings.patch_size), _fit(rows, settings.patch_size)


def sliced_size(
    width: int, height: int, grid: tuple[int, int], settings: ImageSettings
) -> tuple[int, int]:
    """Return the size from which the grid is cut, so that each slice is a view of whole patches."""
    columns, rows = grid
    cell = view_size(_fit(width, columns) / columns, _fit(height, rows) / rows, settings)
    return cell[0] * columns, cell[1] * rows


def _fit(length: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `length`, and at least one; halves go to even."""
    return max(round(length / divisor) * divisor, divisor)


# Pixels.


@dataclass(frozen=True)
class View:
    """One thing the tower looks at: a still, a slice of one, or a video frame. N patches."""

    patches: NDArray[np.float32]
    """[3, P, P * N]: the patches side by side, row by row, normalised."""
    size: tuple[int, int]
    """(rows, columns) of patches."""


def image_views(image: Image.Image, settings: ImageSettings) -> list[View]:
    """The whole image, then its slices row by row."""
    # The whole comes first and shows how the slices belong together.
    image = as_rgb(image)
    grid = slice_grid(*image.size, settings)
    small = image.resize(view_size(*image.size, settings), Image.Resampling.BICUBIC)
    views = [_patches(small, settings)]
    if grid is None:
        return views
    # Resized once and then cut, so that neighbouring slices meet without a seam.
    whole = image.resize(sliced_size(*image.size, grid, settings), Image.Resampling.BICUBIC)
    columns, rows = grid
    width, height = whole.width // columns, whole.height // rows
    for row in range(rows):
        for column in range(columns):
            left, top = column * width, row * height
            cell = whole.crop((left, top, left + width, top + height))
            views.append(_patches(cell, settings))
    return views


def frame_views(frames: NDArray[np.uint8], settings: ImageSettings) -> list[View]:
    """One view per frame, never sliced. frames: [N, H, W, 3]."""
    # A video has many frames, and slices of each would fill the context.
    _, height, width, _ = frames.shape
    refuse_size(width, height)
    size = view_size(width, height, settings)
    images = (Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames)
    return [_patches(image, settings) for image in images]


def _patches(image: Image.Image, settings: ImageSettings) -> View:
    patch = settings.patch_size
    rows, columns = image.height // patch, image.width // patch
    # All in float32, in the order of the published code: engine and learner see the same bits.
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)  # [H, W, 3]
    pixels = (pixels - np.float32(settings.mean)) / np.float32(settings.std)
    grid = pixels.reshape(rows, patch, columns, patch, 3).transpose(4, 1, 0, 2, 3)
    # [3, P, rows, columns, P]
    return View(np.ascontiguousarray(grid.reshape(3, patch, -1)), (rows, columns))


# Video.


@dataclass(frozen=True)
class PackedVideo:
    """Frames and the groups they are packed in."""

    frames: NDArray[np.uint8]
    """[N, H, W, 3], N frames of one size."""
    groups: tuple[tuple[int, ...], ...]
    """Temporal ids of the frames, in order, by group (rl/data/media/video_frames.py makes them)."""

    def __post_init__(self) -> None:
        # Engines get videos from requests too, so they may be anything, even lists.
        shape, dtype = np.shape(self.frames), getattr(self.frames, "dtype", None)
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or dtype != np.uint8:
            raise ValueError(
                "a video must be a uint8 array [frames, height, width, 3] with at least one frame, "
                f"got {dtype} {list(shape)}; decode it to RGB frames of one size"
            )
        refuse_groups(self.groups, len(self.frames))


def refuse_groups(groups: Groups, num_frames: int) -> None:
    """Raise ValueError unless every frame is in one group under an id the resampler knows."""
    if not all(groups) or sum(map(len, groups)) != num_frames:
        raise ValueError(
            f"the groups must hold each of the {num_frames} frames once and none may be empty, got "
            f"group sizes {[len(group) for group in groups]}"
        )
    ids = [number for group in groups for number in group]
    if outside := [number for number in ids if not STILL <= number < NUM_TEMPORAL_IDS]:
        raise ValueError(
            f"temporal ids must be below {NUM_TEMPORAL_IDS} (an hour in steps of 0.1 s), or "
            f"{STILL} for a still, got {outside[0]}; cut the video or take coarser steps"
        )
    if any(STILL in group and len(group) > 1 for group in groups):
        raise ValueError(f"a still (temporal id {STILL}) must be alone in its group")


# Tokens.


@dataclass(frozen=True)
class MediaTokens:
    """Token ids of what stands in a prompt in a medium's place."""

    tokenizer: Any
    """A transformers tokenizer."""
    settings: ImageSettings

    def __post_init__(self) -> None:
        vocabulary = self.tokenizer.get_vocab()
        wanted = [PLACEHOLDER, *BRACKET_TOKENS]
        # Without one of them `convert_tokens_to_ids` would silently give the unknown token.
        if missing := [token for token in wanted if token not in vocabulary]:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}; take the one of MiniCPM-V 4.5"
            )

    def encode(self, text: str) -> list[int]:
        """Tokens of a text alone, none added around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def image(self, width: int, height: int, place: int) -> list[int]:
        """Tokens of the image at `place` among the prompt's images, counted from 0."""
        whole, grid = self._block("image"), slice_grid(width, height, self.settings)
        if grid is None:
            return self.image_id(place) + whole
        columns, rows = grid
        slices = self._lines([self._block("slice") * columns] * rows)
        return self.image_id(place) + whole + slices

    def video(self, num_groups: int) -> list[int]:
        """Tokens of a video: a block per group, on lines of their own as in the published chat."""
        return self._lines([self._block("image")] * num_groups)

    def image_id(self, place: int) -> list[int]:
        """Tokens of an image's number."""
        start, end = self._brackets["image_id"]
        return [start, *self.encode(str(place)), end]

    def renumbered(self, tokens: Sequence[int], place: int) -> list[int]:
        """An image's tokens with another place's number."""
        # Nothing else depends on the place, so nothing else need be laid out again.
        _, end = self._brackets["image_id"]
        return self.image_id(place) + list(tokens[tokens.index(end) + 1 :])

    @cached_property
    def placeholder(self) -> int:
        """The token id that no policy may sample: in an answer it would read as a visual token."""
        return self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)

    @property
    def block_starts(self) -> tuple[int, int]:
        """Each stands before a block of visual tokens, and nowhere else."""
        return self._brackets["image"][0], self._brackets["slice"][0]

    @cached_property
    def _brackets(self) -> dict[str, tuple[int, int]]:
        ids = self.tokenizer.convert_tokens_to_ids
        return {name: (ids(f"<{name}>"), ids(f"</{name}>")) for name in _BRACKETS}

    def _block(self, name: str) -> list[int]:
        # Every view takes the same number of tokens, whatever its shape: the resampler's queries.
        start, end = self._brackets[name]
        return [start, *[self.placeholder] * self.settings.tokens_per_view, end]

    def _lines(self, lines: Sequence[Sequence[int]]) -> list[int]:
        newline = self.encode("\n")
        return [*lines[0], *(token for line in lines[1:] for token in (*newline, *line))]
