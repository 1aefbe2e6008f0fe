"""MiniCPM-V 4.5 in vLLM, with packed video and without remote code.

vLLM's own class never gets the frames' times, so it cannot pack; ours adds them. vLLM finds
`register` through the `vllm.general_plugins` entry point, in every process. The class has an
architecture name of its own: what other MiniCPM-V checkpoints say keeps its meaning.

    processing.py   prompts with media -> the tokens and views the engine works on
    model.py        vLLM's MiniCPM-V 4.5 with groups of frames
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rl.data.media.minicpmv_config import register_config
from rl.data.media.names import StillImage, Video

ARCHITECTURE = "HybridMiniCPMV"


@functools.cache
def register() -> None:
    """Make the configuration and the model class known to vLLM in this process."""
    # Imported on use: the module is loaded wherever an engine is described, and vLLM takes long.
    from vllm import ModelRegistry

    register_config()
    ModelRegistry.register_model(ARCHITECTURE, "rollout.engines.minicpmv.model:PackedMiniCPMV")


def multi_modal_inputs(stills: Sequence[StillImage], videos: Sequence[Video]) -> dict[str, Any]:
    """The media of a prompt as model and processor of this package take them."""
    media: dict[str, list[Any]] = {}
    if stills:
        media["image"] = [still.pixels for still in stills]
    if videos:
        media["video"] = [(video.frames, {"temporal_ids": video.groups}) for video in videos]
    return {"multi_modal_data": media}
