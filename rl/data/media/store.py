"""Reads the media of prompts, one store per process; what was read lately is kept."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from io import BytesIO
from threading import Lock
from typing import Any

from PIL import Image

from rl.config.run import SourceConfig
from rl.data.media.files import check, read_image, read_video, still_image
from rl.data.media.names import (
    MediaCell,
    MediaError,
    MediaFile,
    Medium,
    RenderedImage,
    StillImage,
    Video,
    describe,
)

CACHE_BYTES = 256 * 2**20


class MediaStore:
    """Reads the media of one `data` section; what was read lately is kept.

    Any thread may read: a cache behind a lock, and libraries that are asked by one thread at a time
    where they need it. Two threads that want the same medium at once may both decode it.
    """

    def __init__(self, data: SourceConfig, cache_bytes: int = CACHE_BYTES) -> None:
        self._data = data
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[Medium, tuple[StillImage | Video, int]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock, self._open_lock, self._paint_lock = Lock(), Lock(), Lock()

    def read(self, medium: Medium) -> StillImage | Video:
        """Return the pixels, complete and checked; raises MediaError if there are none to show.

        What is returned is shared with other readers and must not be changed.
        """
        with self._cache_lock:
            if medium in self._cache:
                self._cache.move_to_end(medium)
                return self._cache[medium][0]
        seen = self._read(medium)
        self._keep(medium, seen)
        return seen

    def check(self, medium: Medium) -> None:
        """Raise MediaError for a medium whose header already tells that it cannot be used."""
        if isinstance(medium, RenderedImage):
            return
        check(medium.kind, self._source(medium), describe(medium))

    def _read(self, medium: Medium) -> StillImage | Video:
        if isinstance(medium, RenderedImage):
            return still_image(self._painted(medium))
        if medium.kind == "image":
            return read_image(self._source(medium), describe(medium))
        return read_video(self._source(medium), describe(medium), self._data.video)

    def _source(self, medium: MediaFile | MediaCell) -> str | BytesIO:
        return medium.path if isinstance(medium, MediaFile) else BytesIO(self._cell(medium))

    def _cell(self, medium: MediaCell) -> bytes:
        from rl.data.tables import media_in

        with self._open_lock:
            table = self._heldout_table if medium.split == "heldout" else self._train_table
        # Another data set may lie there by now.
        try:
            stored = media_in(table[medium.row : medium.row + 1][medium.column][0].as_py())
            content = stored[medium.place]
        except (KeyError, IndexError, ValueError) as error:
            raise MediaError(f"missing: the data set has no {describe(medium)}") from error
        if not isinstance(content, bytes):
            raise MediaError(f"missing: {describe(medium)} holds no bytes but {content!r:.200}")
        return content

    @cached_property
    def _train_table(self) -> Any:
        from rl.data.tables import train_location

        return self._opened(train_location(self._data))

    @cached_property
    def _heldout_table(self) -> Any:
        from rl.data.tables import heldout_location

        return self._opened(heldout_location(self._data))

    def _opened(self, location: Any) -> Any:
        """The rows as stored: an image column of `datasets` stays bytes, and nothing decodes it."""
        from rl.data.tables import read_table

        if location is None:
            raise MediaError("missing: `data` names no data set that its media could be in")
        try:
            return read_table(location).with_format("arrow")
        except ValueError as error:
            raise MediaError(f"missing: the data set cannot be opened: {error}") from error

    def _painted(self, medium: RenderedImage) -> Image.Image:
        from rl.data.tasks.pictures import read_settings, render

        # Some tasks draw with matplotlib, which shares fonts between threads.
        with self._paint_lock:
            settings = read_settings(medium.task, self._data.settings)
            example = render(medium.task, settings, medium.seed, medium.index, medium.is_heldout)
        return example.images[medium.place]

    def _keep(self, medium: Medium, seen: StillImage | Video) -> None:
        size = num_bytes(seen)
        with self._cache_lock:
            if size > self._cache_bytes or medium in self._cache:
                return
            self._cache[medium] = seen, size
            self._cached_bytes += size
            while self._cached_bytes > self._cache_bytes:
                _, (_, freed) = self._cache.popitem(last=False)
                self._cached_bytes -= freed


def num_bytes(seen: StillImage | Video) -> int:
    """Memory that the pixels take."""
    if isinstance(seen, Video):
        return seen.frames.nbytes
    return 3 * seen.pixels.width * seen.pixels.height
