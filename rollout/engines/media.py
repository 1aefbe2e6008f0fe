"""The engines' adapters: what vLLM needs for each family of vision-language models.

Everyone else asks the adapter of a model, and never which family it is. A new family is an entry in
rl/data/media/families.py, one here, and one in policy/models/family.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.data.media.families import family_name
from rl.data.media.names import StillImage, Video
from rollout.engines import minicpmv


@dataclass(frozen=True)
class EngineFamily:
    """How vLLM is told of a family's media; the defaults are those of a model of text alone.

    A family whose model class is not vLLM's own also registers that class through an entry point
    (pyproject.toml), because vLLM looks for model classes in every process that it starts.
    """

    video_metadata: Callable[[Video], dict[str, Any]] = lambda video: {}
    """What the family's processor is told of a video besides its frames."""
    pairs_frames: bool = False
    """Whether it sees frames two at a time, and needs as many."""
    serving_arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM engine arguments without which no server can serve the model."""
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those with which an engine shows the model exactly what the learner shows it."""

    def inputs(self, read: Sequence[StillImage | Video]) -> dict[str, Any]:
        """What a prompt of vLLM holds besides its tokens, which have one marker for each medium."""
        # vLLM takes each kind apart; the markers in the tokens keep the order of the prompt.
        stills = [medium.pixels for medium in read if isinstance(medium, StillImage)]
        videos = [v.in_pairs if self.pairs_frames else v for v in read if isinstance(v, Video)]
        told = [(video.frames, self.video_metadata(video)) for video in videos]
        media = {kind: shown for kind, shown in (("image", stills), ("video", told)) if shown}
        return {"multi_modal_data": media} if media else {}


ENGINE_FAMILIES: dict[str, EngineFamily] = {
    "minicpmv": EngineFamily(
        video_metadata=lambda video: {"temporal_ids": video.groups},
        serving_arguments={"hf_overrides": {"architectures": [minicpmv.ARCHITECTURE]}},
    ),
    "qwen_vl": EngineFamily(
        # vLLM takes the time between frames out of these.
        video_metadata=lambda video: {
            "fps": video.fps,
            "total_num_frames": len(video.frames),
            "frames_indices": [time * video.fps for time in video.times_s],
            "duration": len(video.frames) / video.fps,
            "do_sample_frames": False,
        },
        pairs_frames=True,
        training_arguments={
            # A video's frames were chosen before (rl/data/media/video_frames.py), so vLLM must not.
            "mm_processor_kwargs": {"do_sample_frames": False},
            # The processor normalises pixels in float32, as the learner does. On the device vLLM
            # would do it in the model's type, and engine and learner would see other pixels.
            "mm_device_do_normalize": False,
        },
    ),
}
"""The adapters by the names of rl/data/media/families.py."""
TEXT_ONLY = EngineFamily()


def engine_family(directory: Path) -> EngineFamily:
    """The adapter for the model of a directory."""
    # Read as JSON: transformers, which would read it too, need not know the model type here.
    name = family_name(json.loads((directory / "config.json").read_text())["model_type"])
    return TEXT_ONLY if name is None else ENGINE_FAMILIES[name]


def serving_arguments(directory: Path) -> dict[str, Any]:
    """vLLM engine arguments without which no server can serve the model of a directory."""
    return dict(engine_family(directory).serving_arguments)
