"""The media of prompts as an engine takes them: read once per worker, in the family's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rl.config import SourceConfig
from rl.media import Medium, StillImage, Video
from rl.media_store import MediaStore
from rl.vision_families import VisionFamily, vision_family


def serving_arguments(directory: Path) -> dict[str, Any]:
    """vLLM engine arguments without which no server can serve the model of a directory."""
    family = _family(directory)
    if family is not None and family.name == "minicpmv":
        from rollout.minicpmv import engine_arguments

        return engine_arguments()
    return {}


def _family(directory: Path) -> VisionFamily | None:
    return vision_family(json.loads((directory / "config.json").read_text())["model_type"])


class EngineMedia:
    def __init__(self, model: str, data: SourceConfig) -> None:
        """model: the policy's directory. data: where the media are read from."""
        self._family = _family(Path(model))
        self._store = MediaStore(data)

    @cached_property
    def engine_arguments(self) -> Mapping[str, Any]:
        """vLLM engine arguments that the family needs."""
        if self._family is None:
            return {}
        if self._family.name == "minicpmv":
            from rollout.minicpmv import engine_arguments
        else:
            from rollout.qwen_vl import engine_arguments
        return engine_arguments()

    async def inputs(self, media: Sequence[Medium]) -> dict[str, Any]:
        """What a prompt of vLLM holds besides its tokens; raises MediaError."""
        read = await self._read(media)
        if self._family is not None and self._family.name == "minicpmv":
            from rollout.minicpmv import multi_modal_inputs
        else:
            from rollout.qwen_vl import multi_modal_inputs
        stills = [medium for medium in read if isinstance(medium, StillImage)]
        videos = [medium for medium in read if isinstance(medium, Video)]
        return multi_modal_inputs(stills, videos)

    async def digests(self, media: Sequence[Medium]) -> tuple[str, ...]:
        return tuple(medium.digest for medium in await self._read(media))

    async def _read(self, media: Sequence[Medium]) -> list[StillImage | Video]:
        if not media:
            return []
        # Reading and decoding must not hold up the requests in flight.
        return await asyncio.to_thread(lambda: [self._store.read(medium) for medium in media])
