"""The learner's side of media: what the policy's forward takes besides token ids.

Made micro-batch by micro-batch when it is forwarded; pixels of a whole batch never exist at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from policy.models.checks import read_config
from policy.models.minicpmv import MiniCPMVInputs
from policy.models.qwen_vl import QwenVLInputs
from rl.config.run import SourceConfig
from rl.data.media.families import vision_family
from rl.data.media.names import Medium
from rl.data.media.store import MediaStore
from rl.loop.stages import TrainSample


class VisualArguments(Protocol):
    """Media of one micro-batch."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments of the backbone."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> VisualArguments:
        """On a device, with pixels in the model's type."""
        ...


class VisualInputs(Protocol):
    """Reads media and lays them out for one family of policies."""

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> VisualArguments | None:
        """Media of the samples that begin the rows of token_ids [B, T]; None if there are none.

        Raises ValueError, naming the sample, if its tokens have other visual tokens than its media
        give here: the engine then saw something else.
        """
        ...

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        """A prompt's tokens with every visual token in the place of its media's markers."""
        ...


def open_visual_inputs(directory: Path, data: SourceConfig) -> VisualInputs | None:
    """Return what the model of a directory needs; None for a policy of text alone."""
    family = vision_family(read_config(directory).model_type)
    if family is None:
        return None
    store = MediaStore(data)
    inputs = MiniCPMVInputs if family.name == "minicpmv" else QwenVLInputs
    return inputs(directory, store)
