"""One prompt of text, images and videos as tokens and views.

The text between media is tokenised piece by piece and never again: the engine is given the very
tokens that the learner trains on, and what a policy wrote stays as it wrote it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoTokenizer

from rl.data.media.minicpmv import (
    IMAGE_MARKER,
    STILL,
    VIDEO_MARKER,
    ImageSettings,
    MediaTokens,
    PackedVideo,
    View,
    as_rgb,
    frame_views,
    image_views,
)
from rl.data.media.names import StillImage, Video

_MARKERS = re.compile(f"({re.escape(IMAGE_MARKER)}|{re.escape(VIDEO_MARKER)})")


@dataclass(frozen=True)
class MediaPrompt:
    """A prompt as the policy gets it: T tokens, S views in G groups, Q tokens to a group."""

    token_ids: tuple[int, ...]
    """[T]"""
    views: tuple[View, ...]
    """[S], in the order of the text."""
    groups: tuple[tuple[int, ...], ...]
    """[G] temporal ids of the views; a still is alone in its group, with id -1."""
    ranges: tuple[tuple[int, int], ...]
    """[G] (start, end) of each group's tokens. Positions, because the placeholder's id may also
    stand in a text or in an answer, where it is a word like any other."""


@dataclass(frozen=True)
class MediumTokens:
    """One medium as the policy gets it; the fields are those of `MediaPrompt`."""

    token_ids: tuple[int, ...]
    views: tuple[View, ...]
    groups: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, int], ...]
    """(start, end) of each group's tokens among `token_ids`."""


class MiniCPMVProcessor:
    """Turns a chat's text, with a marker where each medium goes, into a `MediaPrompt`."""

    def __init__(self, tokenizer: Any, settings: ImageSettings) -> None:
        """Raises ValueError for the tokenizer of another model."""
        self.settings = settings
        self.tokens = MediaTokens(tokenizer, settings)

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> MiniCPMVProcessor:
        """Load the tokenizer and image settings of a model directory."""
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        return cls(tokenizer, ImageSettings.from_directory(Path(directory)))

    def __call__(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        videos: Sequence[PackedVideo] = (),
    ) -> MediaPrompt:
        """Put images and videos, each kind in order, where their markers stand.

        Raises ValueError if their numbers differ from the markers', for a medium that is too large,
        and for a text that writes a medium's own tokens.
        """
        _refuse_counts(text, IMAGE_MARKER, images)
        _refuse_counts(text, VIDEO_MARKER, videos)
        # Iterators, so that each marker takes the next medium of its kind.
        left = {IMAGE_MARKER: map(self.image, range(len(images)), images)}
        left[VIDEO_MARKER] = map(self.video, videos)
        token_ids: list[int] = []
        shown: list[tuple[int, MediumTokens]] = []
        for piece in _MARKERS.split(text):
            if piece not in left:
                token_ids += self.tokens.text(piece)
                continue
            medium = next(left[piece])
            shown.append((len(token_ids), medium))
            token_ids += medium.token_ids
        return media_prompt(token_ids, shown)

    def image(self, place: int, image: Image.Image) -> MediumTokens:
        """place: the image's number among the prompt's images, from 0, which the tokens hold."""
        views = image_views(image, self.settings)
        token_ids = self.tokens.image(*as_rgb(image).size, place)
        return self._medium(token_ids, views, [(STILL,)] * len(views))

    def video(self, video: PackedVideo) -> MediumTokens:
        # The number of groups alone decides the tokens, and the frames in them the views.
        views = frame_views(video.frames, self.settings)
        return self._medium(self.tokens.video(len(video.groups)), views, video.groups)

    def media(self, read: Sequence[StillImage | Video]) -> list[MediumTokens]:
        """A prompt's media in its order."""
        place = itertools.count()
        return [
            self.image(next(place), medium.pixels)
            if isinstance(medium, StillImage)
            else self.video(PackedVideo(medium.frames, medium.groups))
            for medium in read
        ]

    def _medium(
        self,
        token_ids: Sequence[int],
        views: Sequence[View],
        groups: Sequence[tuple[int, ...]],
    ) -> MediumTokens:
        blocks = tuple(self._blocks(token_ids))
        return MediumTokens(tuple(token_ids), tuple(views), tuple(groups), blocks)

    def _blocks(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(start, end) of each block of placeholders in the tokens of one medium."""
        # Within one medium the placeholder stands for nothing else, so its runs can be trusted;
        # in a whole prompt they cannot.
        length = self.settings.tokens_per_view
        start = 0
        while start < len(tokens):
            if tokens[start] == self.tokens.placeholder:
                yield start, start + length
                start += length
            else:
                start += 1


def media_prompt(
    token_ids: Sequence[int], shown: Sequence[tuple[int, MediumTokens]]
) -> MediaPrompt:
    """A prompt from its token ids, and the position at which each medium's tokens start."""
    return MediaPrompt(
        tuple(token_ids),
        tuple(view for _, medium in shown for view in medium.views),
        tuple(group for _, medium in shown for group in medium.groups),
        tuple(
            (start + first, start + end) for start, medium in shown for first, end in medium.blocks
        ),
    )


def _refuse_counts(text: str, marker: str, media: Sequence[Any]) -> None:
    if (count := text.count(marker)) != len(media):
        raise ValueError(
            f"the text has {count} markers {marker} and {len(media)} were given for them; give one "
            "for each marker, in order"
        )
