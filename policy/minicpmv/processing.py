"""One prompt of text, images and videos as tokens and views.

The text between media is tokenised piece by piece and never again: the engine is given the very
tokens that the learner trains on, and what a policy wrote stays as it wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer

from rl.minicpmv_media import (
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

    def visual_mask(self) -> NDArray[np.bool_]:
        """[T], True where a visual feature stands in the token's place."""
        mask = np.zeros(len(self.token_ids), dtype=np.bool_)
        for start, end in self.ranges:
            mask[start:end] = True
        return mask


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
        left_images, left_videos = iter(enumerate(images)), iter(videos)
        token_ids: list[int] = []
        views: list[View] = []
        groups: list[tuple[int, ...]] = []
        ranges: list[tuple[int, int]] = []
        for piece in _MARKERS.split(text):
            if piece == IMAGE_MARKER:
                tokens, seen, ids = self._image(*next(left_images))
            elif piece == VIDEO_MARKER:
                tokens, seen, ids = self._video(next(left_videos))
            else:
                token_ids += self.tokens.text(piece)
                continue
            ranges += self._blocks(tokens, len(token_ids))
            token_ids += tokens
            views += seen
            groups += ids
        return MediaPrompt(tuple(token_ids), tuple(views), tuple(groups), tuple(ranges))

    def _image(
        self, place: int, image: Image.Image
    ) -> tuple[list[int], list[View], list[tuple[int, ...]]]:
        views = image_views(image, self.settings)
        return self.tokens.image(*as_rgb(image).size, place), views, [(STILL,)] * len(views)

    def _video(self, video: PackedVideo) -> tuple[list[int], list[View], list[tuple[int, ...]]]:
        views = frame_views(video.frames, self.settings)
        return self.tokens.video(len(video.groups)), views, list(video.groups)

    def _blocks(self, tokens: Sequence[int], offset: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each block of placeholders in the tokens of one medium."""
        length = self.settings.tokens_per_view
        place = 0
        while place < len(tokens):
            if tokens[place] == self.tokens.placeholder:
                yield offset + place, offset + place + length
                place += length
            else:
                place += 1


def _refuse_counts(text: str, marker: str, media: Sequence[Any]) -> None:
    if (count := text.count(marker)) != len(media):
        raise ValueError(
            f"the text has {count} markers {marker} and {len(media)} were given for them; give one "
            "for each marker, in order"
        )


def engine_prompt(
    prompt: MediaPrompt, images: Sequence[Image.Image] = (), videos: Sequence[PackedVideo] = ()
) -> dict[str, Any]:
    """The prompt as an engine takes it: the learner's own tokens, and the media once more."""
    media: dict[str, list[Any]] = {}
    if images:
        media["image"] = [as_rgb(image) for image in images]
    if videos:
        media["video"] = [(video.frames, {"temporal_ids": video.groups}) for video in videos]
    return {"prompt_token_ids": list(prompt.token_ids), "multi_modal_data": media}
