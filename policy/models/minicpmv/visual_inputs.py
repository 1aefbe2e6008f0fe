"""Trained sequences of text, images and videos: where their visual tokens are, and of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from policy.models.minicpmv.batching import VisualBatch, collate
from policy.models.minicpmv.processing import (
    MediaPrompt,
    MediumTokens,
    MiniCPMVProcessor,
    media_prompt,
)
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import Medium, describe
from rl.data.media.store import MediaStore
from rl.loop.stages import TrainSample

_MARKERS = {"image": IMAGE_MARKER, "video": VIDEO_MARKER}


class MiniCPMVInputs:
    """Implements policy.models.family.VisualInputs."""

    def __init__(self, directory: Path, store: MediaStore) -> None:
        self._processor = MiniCPMVProcessor.from_pretrained(directory)
        self._store = store

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> VisualBatch | None:
        # The samples of a group show the same media, which are read and laid out once.
        known = {sample.media: self._tokens(sample.media) for sample in samples}
        located = [self._located(sample, known[sample.media]) for sample in samples]
        return collate(located, token_ids.shape[1])

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        # The search goes on behind each medium, so that its tokens are not taken for a marker.
        ids, done = list(token_ids), 0
        for medium, shown in zip(media, self._tokens(media), strict=True):
            marker = self._processor.tokens.encode(_MARKERS[medium.kind])
            start = find(ids, marker, done)
            if start is None:
                raise ValueError(f"a prompt has fewer markers than its {len(media)} media")
            ids[start : start + len(marker)] = shown.token_ids
            done = start + len(shown.token_ids)
        return tuple(ids)

    def _located(self, sample: TrainSample, media: Sequence[MediumTokens]) -> MediaPrompt:
        """The sample's views, and where in its tokens they are.

        Raises ValueError if its tokens are not those that its media give here.
        """
        ids, done = sample.trajectory.token_ids.tolist(), 0
        shown = []
        for tokens in media:
            start = find(ids, tokens.token_ids, done)
            if start is None:
                raise self._difference(sample, media)
            shown.append((start, tokens))
            done = start + len(tokens.token_ids)
        # Blocks are counted too, because an image that is not cut looks like the beginning of one
        # that is: where the engine cut an image and the learner does not, the search succeeds.
        if _num_blocks(sample, self._processor) != sum(len(tokens.blocks) for _, tokens in shown):
            raise self._difference(sample, media)
        return media_prompt(ids, shown)

    def _difference(self, sample: TrainSample, media: Sequence[MediumTokens]) -> ValueError:
        blocks = [len(tokens.blocks) for tokens in media]
        size = self._processor.settings.tokens_per_view
        return ValueError(
            f"sample {sample.id}: the engine saw {_num_blocks(sample, self._processor)} blocks of "
            f"{size} visual tokens, and the learner makes {sum(blocks)} of "
            f"{', '.join(map(describe, sample.media))}, or in another order; has a file changed "
            "since it was sampled from?"
        )

    def _tokens(self, media: Sequence[Medium]) -> list[MediumTokens]:
        return self._processor.media([self._store.read(medium) for medium in media])


def _num_blocks(sample: TrainSample, processor: MiniCPMVProcessor) -> int:
    """Blocks of visual tokens in the prompt as the engine laid it out."""
    # In the prompt alone: a policy never samples a bracket, but what it wrote must not count.
    prompt = sample.trajectory.token_ids[~sample.trajectory.loss_mask]
    return int(np.isin(prompt, processor.tokens.block_starts).sum())


def find(token_ids: Sequence[int], part: Sequence[int], start: int) -> int | None:
    """The first position from `start` on at which `part` stands in the tokens; None if nowhere."""
    first, length = part[0], len(part)
    for position in range(start, len(token_ids) - length + 1):
        # The first token is compared alone, because slicing at every position is slow.
        if token_ids[position] != first:
            continue
        if list(token_ids[position : position + length]) == list(part):
            return position
    return None
