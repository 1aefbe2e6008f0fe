"""The images and videos of a run as a page shows them: small, and embedded in it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from pydantic import ValidationError
from yaml import YAMLError

from rl.config.data import SourceConfig
from rl.data.media.names import MediaError, Medium, Video, describe
from rl.data.media.store import MediaStore
from rl.data.media.video_frames import spread
from rl.show.page import Picture

MAX_SIDE = 448
"""Pixels of the longer side of an image on the page."""
MAX_FRAMES, MAX_FRAME_SIDE = 6, 160
"""Frames that stand for a video on the page, and the longer side of each in pixels."""


@dataclass(frozen=True)
class Pictures:
    """The media of a run as they are on disk now."""

    config_path: Path
    """The run's."""

    def of(self, media: Sequence[Medium], digests: Sequence[str]) -> tuple[Picture, ...]:
        """Return the media of a prompt; raises ValueError where the run's data are not known.

        digests: of the pixels that the policy saw; empty where they are not known.
        """
        known = digests or (None,) * len(media)
        pictures: list[Picture] = []
        for medium, digest in zip(media, known, strict=True):
            name, is_strip = describe(medium), medium.kind == "video"
            try:
                pixels = self._store.read(medium)
            except MediaError as error:
                pictures.append(Picture(name, None, f"not shown: {error}", is_strip))
                continue
            if isinstance(pixels, Video):
                # Frames from all over the video, as the policy's are, but fewer: a strip is to be
                # recognised.
                numbers = spread(len(pixels.frames), min(MAX_FRAMES, len(pixels.frames)))
                frames = [Image.fromarray(pixels.frames[number]) for number in numbers]
                strip = [np.asarray(_small(frame, MAX_FRAME_SIDE)) for frame in frames]
                image = Image.fromarray(np.hstack(strip))
            else:
                image = _small(pixels.pixels, MAX_SIDE)
            # A file may have changed since; the page must not pass it off as what was seen.
            is_same = digest in (None, pixels.digest)
            changed = None if is_same else "changed since: these are not the pixels the policy saw"
            # JPEG: as PNG a page with hundreds of photographs would be several times as large.
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=85)
            uri = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
            pictures.append(Picture(name, uri, changed, is_strip))
        return tuple(pictures)

    # Made when a prompt has media: a run without any is shown whatever its configuration says.
    @cached_property
    def _store(self) -> MediaStore:
        try:
            stored = OmegaConf.to_container(OmegaConf.load(self.config_path))
            data = stored.get("data") if isinstance(stored, dict) else None
            return MediaStore(SourceConfig.model_validate(data))
        except (YAMLError, OmegaConfBaseException, ValidationError) as error:
            raise ValueError(
                f"{self.config_path} does not say where the media of the run are: {error}"
            ) from error


def _small(image: Image.Image, side: int) -> Image.Image:
    """Return a copy with no side longer than `side`; it is never enlarged."""
    small = image.copy()
    small.thumbnail((side, side))
    return small
