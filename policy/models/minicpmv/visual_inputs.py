"""Images and videos of trained sequences: laid out as tokens and views, located, and batched.

The tower runs once per micro-batch over all of its views. Under ZeRO-3 every rank then gathers the
tower's weights equally often, however many images each has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from rl.data.media.families import FAMILIES
from rl.data.media.minicpmv import (
    STILL,
    Groups,
    ImageSettings,
    MediaTokens,
    View,
    frame_views,
    image_views,
    refuse_groups,
)
from rl.data.media.names import Medium, StillImage, describe
from rl.data.media.store import MediaStore
from rl.loop.stages import TrainSample


@dataclass(frozen=True)
class VisualBatch:
    """S views of at most N patches, in G groups with Q tokens each, for token ids [B, T]."""

    patches: Tensor
    """[S, 3, P, P * N], zero beyond a view's own patches."""
    sizes: tuple[tuple[int, int], ...]
    """[S] (rows, columns) of patches."""
    groups: Groups
    """[G] temporal ids of the views, in order."""
    shown: Tensor
    """[R] the group of each block of visual tokens; one that several rows show is there once."""
    places: Tensor
    """[R * Q] where each visual token goes, counted over the batch: row * T + position."""

    def arguments(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, VisualBatch]:
        """Implements rl.loop.interfaces.VisualArguments."""
        patches = self.patches.to(device, dtype)
        shown, places = self.shown.to(device), self.places.to(device)
        return {"visual": replace(self, patches=patches, shown=shown, places=places)}


@dataclass(frozen=True)
class Block:
    """A block of Q visual tokens: one view of an image, or the frames of one group."""

    start: int
    """Position of its first visual token among its medium's tokens."""
    times: tuple[int, ...]
    """Temporal ids of the views; a still is alone in its block, with id -1."""
    views: tuple[View, ...]


@dataclass(frozen=True)
class MediumTokens:
    """One medium as a prompt holds it."""

    token_ids: list[int]
    blocks: list[Block]


class MiniCPMVInputs:
    """Implements rl.loop.interfaces.VisualInputs."""

    def __init__(self, directory: Path, store: MediaStore) -> None:
        """Raises ValueError for the tokenizer of another model."""
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        self._settings = ImageSettings.from_directory(directory)
        self._tokens = MediaTokens(tokenizer, self._settings)
        self._store = store

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> VisualBatch | None:
        # The samples of a group show the same media, which are read and laid out once.
        every = dict.fromkeys(sample.media for sample in samples)
        known = {media: self._laid_out(media) for media in every}
        shown: list[Block] = []
        starts: list[int] = []
        for row, sample in enumerate(samples):
            for position, medium in self._located(sample, known[sample.media]):
                shown += medium.blocks
                begin = row * token_ids.shape[1] + position
                starts += [begin + block.start for block in medium.blocks]
        if not shown:
            return None
        # What several samples show goes through the tower once. Blocks are known by identity,
        # because comparing their pixels would take longer than it saves.
        distinct = list({id(block): block for block in shown}.values())
        numbers = {id(block): number for number, block in enumerate(distinct)}
        views = [view for block in distinct for view in block.views]
        longest = max(view.patches.shape[-1] for view in views)
        # Padded to the longest view: the tower's mask leaves the padding out.
        patches = torch.zeros(len(views), *views[0].patches.shape[:2], longest)
        for row, view in zip(patches, views, strict=True):
            row[..., : view.patches.shape[-1]] = torch.from_numpy(view.patches)
        in_block = torch.arange(self._settings.tokens_per_view)
        return VisualBatch(
            patches,
            tuple(view.size for view in views),
            tuple(block.times for block in distinct),
            torch.tensor([numbers[id(block)] for block in shown]),
            (torch.tensor(starts)[:, None] + in_block).flatten(),
        )

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        text, done = _as_text(token_ids), 0
        ids: list[int] = []
        for medium, shown in zip(media, self._laid_out(media), strict=True):
            marker = self._tokens.encode(FAMILIES["minicpmv"].markers[medium.kind])
            start = text.find(_as_text(marker), done)
            if start < 0:
                raise ValueError(f"a prompt has fewer markers than its {len(media)} media")
            ids += [*token_ids[done:start], *shown.token_ids]
            done = start + len(marker)
        return (*ids, *token_ids[done:])

    def _laid_out(self, media: Sequence[Medium]) -> list[MediumTokens]:
        """A prompt's media, read, in its order."""
        laid_out = []
        # Each image's tokens hold its number among the prompt's images.
        image_numbers = itertools.count()
        for medium in media:
            read = self._store.read(medium)
            if isinstance(read, StillImage):
                token_ids = self._tokens.image(*read.pixels.size, next(image_numbers))
                views = image_views(read.pixels, self._settings)
                groups: Groups = [(STILL,)] * len(views)
            else:
                refuse_groups(read.groups, len(read.frames))
                # The number of groups alone decides the tokens, and the frames in them the views.
                token_ids = self._tokens.video(len(read.groups))
                views, groups = frame_views(read.frames, self._settings), read.groups
            # Behind the brackets. In a whole prompt the placeholders themselves cannot be trusted:
            # a text or an answer may hold them too, where they are a word like any other.
            starts = np.flatnonzero(np.isin(token_ids, self._tokens.block_starts)) + 1
            left = iter(views)
            blocks = [
                Block(start, tuple(group), tuple(itertools.islice(left, len(group))))
                for start, group in zip(starts.tolist(), groups, strict=True)
            ]
            laid_out.append(MediumTokens(token_ids, blocks))
        return laid_out

    def _located(
        self, sample: TrainSample, media: Sequence[MediumTokens]
    ) -> list[tuple[int, MediumTokens]]:
        """Where each medium's tokens start in the sample's.

        Raises ValueError if its tokens are not those that its media give here.
        """
        token_ids, located, done = sample.trajectory.token_ids, [], 0
        text = _as_text(token_ids)
        for medium in media:
            start = text.find(_as_text(medium.token_ids), done)
            if start < 0:
                break
            located.append((start, medium))
            done = start + len(medium.token_ids)
        # Blocks are counted too, because an image that is not cut looks like the beginning of one
        # that is: where the engine cut an image and the learner does not, the search succeeds. In
        # the prompt alone: a policy never samples a bracket, but what it wrote must not count.
        prompt = token_ids[~sample.trajectory.loss_mask]
        num_seen = np.isin(prompt, self._tokens.block_starts).sum()
        num_here = sum(len(medium.blocks) for medium in media)
        if len(located) < len(media) or num_seen != num_here:
            raise ValueError(
                f"sample {sample.id}: the engine saw {num_seen} blocks of "
                f"{self._settings.tokens_per_view} visual tokens, and the learner makes {num_here} "
                f"of {', '.join(map(describe, sample.media))}, or in another order; has a file "
                "changed since it was sampled from?"
            )
        return located


def _as_text(token_ids: Iterable[int]) -> str:
    """A character per token, because `str.find` is the quickest search for a run of tokens."""
    return "".join(map(chr, token_ids))
