"""The media of prompts as an engine takes them: read once per worker, in the family's form."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rl.config.run import SourceConfig
from rl.data.media.families import VisionFamily, vision_family
from rl.data.media.names import Medium, StillImage, Video
from rl.data.media.store import MediaStore


def serving_arguments(directory: Path) -> dict[str, Any]:
    """vLLM engine arguments without which no server can serve the model of a directory."""
    family = _family(directory)
    if family is None or family.name != "minicpmv":
        return {}
    return _module(family).engine_arguments()


def _family(directory: Path) -> VisionFamily | None:
    return vision_family(json.loads((directory / "config.json").read_text())["model_type"])


def _module(family: VisionFamily) -> ModuleType:
    """What vLLM is told of the family; imported for policies that see alone."""
    return importlib.import_module(f"rollout.engines.{family.name}")


class EngineMedia:
    def __init__(self, model: str, data: SourceConfig) -> None:
        """model: the policy's directory. data: where the media are read from."""
        self._family = _family(Path(model))
        self._store = MediaStore(data)

    @property
    def engine_arguments(self) -> Mapping[str, Any]:
        """vLLM engine arguments that the family needs."""
        return {} if self._family is None else _module(self._family).engine_arguments()

    async def read(self, media: Sequence[Medium]) -> list[StillImage | Video]:
        """The media of a prompt; raises MediaError."""
        if not media:
            return []
        # Reading and decoding must not hold up the requests in flight.
        return await asyncio.to_thread(lambda: [self._store.read(medium) for medium in media])

    def inputs(self, read: Sequence[StillImage | Video]) -> dict[str, Any]:
        """What a prompt of vLLM holds besides its tokens."""
        if not read:
            return {}
        # A prompt with media was written by the family's chat template.
        assert self._family is not None
        stills = [medium for medium in read if isinstance(medium, StillImage)]
        videos = [medium for medium in read if isinstance(medium, Video)]
        return _module(self._family).multi_modal_inputs(stills, videos)
