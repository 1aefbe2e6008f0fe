"""The engines' adapters: what vLLM needs for each family of vision-language models.

Media are read once per worker and handed over in the family's own form. Everyone else asks the
adapter of a model, and never which family it is. A new family is an entry in
rl/data/media/families.py, one here, and one in policy/models/family.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.config.data import SourceConfig
from rl.data.media.families import family_name
from rl.data.media.names import Medium, StillImage, Video
from rl.data.media.store import MediaStore
from rollout.engines import minicpmv, qwen_vl


@dataclass(frozen=True)
class EngineFamily:
    """How vLLM is told of a family's media.

    A family whose model class is not vLLM's own also registers that class through an entry point
    (pyproject.toml), because vLLM looks for model classes in every process that it starts.
    """

    inputs: Callable[[Sequence[StillImage], Sequence[Video]], dict[str, Any]]
    """What a prompt of vLLM holds besides its tokens, which have one marker for each medium."""
    serving_arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM engine arguments without which no server can serve the model."""
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those with which an engine shows the model exactly what the learner shows it."""


ENGINE_FAMILIES: dict[str, EngineFamily] = {
    "minicpmv": EngineFamily(
        inputs=minicpmv.multi_modal_inputs,
        serving_arguments={"hf_overrides": {"architectures": [minicpmv.ARCHITECTURE]}},
    ),
    "qwen_vl": EngineFamily(
        inputs=qwen_vl.multi_modal_inputs,
        training_arguments=qwen_vl.TRAINING_ARGUMENTS,
    ),
}
"""The adapters by the names of rl/data/media/families.py."""


def engine_family(directory: Path) -> EngineFamily | None:
    """The adapter for the model of a directory; None if it reads text only."""
    # Read as JSON: transformers, which would read it too, need not know the model type here.
    name = family_name(json.loads((directory / "config.json").read_text())["model_type"])
    return None if name is None else ENGINE_FAMILIES[name]


def serving_arguments(directory: Path) -> dict[str, Any]:
    """vLLM engine arguments without which no server can serve the model of a directory."""
    family = engine_family(directory)
    return {} if family is None else dict(family.serving_arguments)


class EngineMedia:
    """The media of prompts, for one engine."""

    def __init__(self, model: str, data: SourceConfig) -> None:
        """model: the policy's directory. data: where the media are read from."""
        self._family = engine_family(Path(model))
        self._store = MediaStore(data)

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """vLLM engine arguments that the model needs besides the usual ones."""
        if self._family is None:
            return {}
        return {**self._family.serving_arguments, **self._family.training_arguments}

    async def read(self, media: Sequence[Medium]) -> list[StillImage | Video]:
        """The media of a prompt; raises MediaError."""
        if not media:
            return []
        # In a thread, because reading and decoding must not hold up the requests in flight.
        return await asyncio.to_thread(lambda: [self._store.read(medium) for medium in media])

    def inputs(self, read: Sequence[StillImage | Video]) -> dict[str, Any]:
        """What a prompt of vLLM holds besides its tokens."""
        if not read:
            return {}
        assert self._family is not None, "rollout/chat.py refuses media for a text model"
        # vLLM takes each kind apart; the markers in the tokens keep the order of the prompt.
        stills = [medium for medium in read if isinstance(medium, StillImage)]
        videos = [medium for medium in read if isinstance(medium, Video)]
        return self._family.inputs(stills, videos)
