"""The views of several prompts as one visual batch.

The tower runs once per micro-batch over all of its views. Under ZeRO-3 every rank then gathers the
tower's weights equally often, however many images each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from policy.models.minicpmv.processing import MediaPrompt
from rl.data.media.minicpmv import STILL, View

Block = tuple[tuple[int, ...], tuple[View, ...]]
"""Temporal ids and views of one block of visual tokens."""


@dataclass(frozen=True)
class VisualBatch:
    """S views of at most N patches, in G groups with Q tokens each, for token ids [B, T]."""

    patches: Tensor
    """[S, 3, P, P * N], zero beyond a view's own patches."""
    sizes: tuple[tuple[int, int], ...]
    """[S] (rows, columns) of patches."""
    groups: tuple[tuple[int, ...], ...]
    """[G] temporal ids of the views, in order."""
    shown: Tensor
    """[R] the group of each block of visual tokens; one that several rows show is there once."""
    places: Tensor
    """[R * Q] where each visual token goes, counted over the batch: row * T + position."""

    @property
    def arguments(self) -> dict[str, VisualBatch]:
        """Implements policy.models.family.VisualArguments."""
        return {"visual": self}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> VisualBatch:
        """On a device, with the patches in the model's type."""
        return replace(
            self,
            patches=self.patches.to(device, dtype),
            shown=self.shown.to(device),
            places=self.places.to(device),
        )


def collate(prompts: Sequence[MediaPrompt], row_length: int) -> VisualBatch | None:
    """Batch the views of prompts that begin the rows of token ids [B, row_length].

    Returns None where no prompt has any.
    """
    blocks: list[Block] = []
    for prompt in prompts:
        views = iter(prompt.views)
        blocks += [(group, tuple(islice(views, len(group)))) for group in prompt.groups]
    if not blocks:
        return None
    # Samples of one group share their views, which then go through the tower once. Views are known
    # by identity, because comparing their pixels would take longer than it saves.
    distinct: dict[tuple[Any, ...], tuple[int, Block]] = {}
    shown = [
        distinct.setdefault((*group, *map(id, views)), (len(distinct), (group, views)))[0]
        for group, views in blocks
    ]
    views = [view for _, (_, seen) in distinct.values() for view in seen]
    longest = max(view.patches.shape[-1] for view in views)
    channels, height, _ = views[0].patches.shape
    # Padded to the longest view: the tower's mask leaves the padding out.
    patches = torch.zeros(len(views), channels, height, longest)
    for row, view in zip(patches, views, strict=True):
        row[..., : view.patches.shape[-1]] = torch.from_numpy(view.patches)
    places = [
        torch.arange(row * row_length + start, row * row_length + end)
        for row, prompt in enumerate(prompts)
        for start, end in prompt.ranges
    ]
    return VisualBatch(
        patches,
        tuple(view.size for view in views),
        tuple(group for _, (group, _) in distinct.values()),
        torch.tensor(shown),
        torch.cat(places),
    )


def smallest_batch(patch_size: int, like: Tensor) -> VisualBatch:
    """One black patch that goes nowhere: the least that can pass the tower and the resampler."""
    patches = like.new_zeros(1, 3, patch_size, patch_size)
    # Without a place to go no token changes, yet the tower's weights were used.
    nowhere = torch.empty(0, dtype=torch.long, device=like.device)
    return VisualBatch(patches, ((1, 1),), ((STILL,),), nowhere, nowhere)
