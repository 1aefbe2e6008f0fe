"""Qwen2.5-VL and Qwen3-VL in vLLM: its own model classes, shown what the learner is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl.data.media.names import StillImage, Video

TRAINING_ARGUMENTS: dict[str, Any] = {
    # A video's frames were chosen before (rl/data/media/video_frames.py), so vLLM must not choose.
    "mm_processor_kwargs": {"do_sample_frames": False},
    # The processor normalises pixels in float32, as the learner does. On the device vLLM would do
    # it in the model's type, and engine and learner would then see other pixels.
    "mm_device_do_normalize": False,
}
"""vLLM engine arguments with which the model is shown what the learner shows it."""


def multi_modal_inputs(stills: Sequence[StillImage], videos: Sequence[Video]) -> dict[str, Any]:
    """What a prompt holds besides its tokens, which have one marker for each medium."""
    media: dict[str, list[Any]] = {}
    if stills:
        media["image"] = [still.pixels for still in stills]
    if videos:
        media["video"] = [(video.frames, _metadata(video)) for video in videos]
    return {"multi_modal_data": media}


def _metadata(video: Video) -> dict[str, Any]:
    """Out of which vLLM takes the time between frames."""
    return {
        "fps": video.fps,
        "total_num_frames": len(video.frames),
        "frames_indices": [time * video.fps for time in video.times_s],
        "duration": len(video.frames) / video.fps,
        "do_sample_frames": False,
    }
