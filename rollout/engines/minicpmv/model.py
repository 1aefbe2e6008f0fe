"""vLLM's MiniCPM-V 4.5, with the frames of a video packed into groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.models.minicpmv import MiniCPMV4_5
from vllm.multimodal import MULTIMODAL_REGISTRY

from rl.data.media.minicpmv import STILL
from rollout.engines.minicpmv.processing import DummyMedia, MediaInfo, MediaProcessor


@MULTIMODAL_REGISTRY.register_processor(MediaProcessor, info=MediaInfo, dummy_inputs=DummyMedia)
class PackedMiniCPMV(MiniCPMV4_5):
    """vLLM's class, which knows how to read groups but is never told of any by its processor."""

    def embed_multimodal(self, **fields: Any) -> list[torch.Tensor]:
        """Visual tokens [tokens, D] of each medium: images, then videos."""
        embedded: list[torch.Tensor] = []
        if "pixel_values" in fields:
            # Each view of an image is a group of its own, without a time.
            views = fields["pixel_values"]
            stills = [[[STILL]] * len(patches) for patches in views]
            embedded += self._see(views, fields["tgt_sizes"], stills)
        if "video_pixel_values" in fields:
            times = [
                [group.tolist() for group in groups] for groups in fields["video_temporal_ids"]
            ]
            embedded += self._see(fields["video_pixel_values"], fields["video_tgt_sizes"], times)
        return embedded

    def _see(
        self,
        views: Sequence[Sequence[torch.Tensor]],
        sizes: Sequence[torch.Tensor],
        groups: Sequence[Sequence[Sequence[int]]],
    ) -> list[torch.Tensor]:
        """Per medium: patches [3, P, P * N] and sizes [views, 2] of its views, ids by group."""
        inputs = {
            "pixel_values": [patches for medium in views for patches in medium],
            "tgt_sizes": torch.cat(list(sizes)),
            "temporal_ids": groups,
        }
        # All views together, so that the tower runs once for all images, or all videos, of a step.
        tokens = self.get_vision_hidden_states(inputs)  # [groups, Q, D]
        return [part.flatten(0, 1) for part in tokens.split([len(medium) for medium in groups])]
