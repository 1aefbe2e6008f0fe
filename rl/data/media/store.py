"""Reads the media of prompts, one store per process; what was read lately is kept."""

from __future__ import annotations

from collections import OrderedDict
from io import BytesIO
from threading import Lock
from typing import Any

from rl.config.data import SourceConfig
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
"""Memory for the pixels that were read lately."""


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
        self._tables: dict[str, Any] = {}
        """The opened data sets by split."""
        self._cache_lock, self._open_lock, self._paint_lock = Lock(), Lock(), Lock()

    def read(self, medium: Medium) -> StillImage | Video:
        """Return the pixels, complete and checked; raises MediaError if there are none to show.

        What is returned is shared with other readers and must not be changed.
        """
        with self._cache_lock:
            if medium in self._cache:
                self._cache.move_to_end(medium)
                return self._cache[medium][0]
        # Outside the lock, since decoding takes long and readers of other media need not wait.
        pixels = self._read(medium)
        self._keep(medium, pixels)
        return pixels

    def check(self, medium: Medium) -> None:
        """Raise MediaError for a medium whose header already tells that it cannot be used."""
        if isinstance(medium, RenderedImage):
            # The settings that draw it were checked when the data were opened.
            return
        check(medium.kind, self._source(medium), describe(medium))

    def _read(self, medium: Medium) -> StillImage | Video:
        if isinstance(medium, RenderedImage):
            # Imported on use: some tasks load matplotlib, and most data are not drawn.
            from rl.data.tasks.pictures import read_settings, render

            settings = read_settings(medium.task, self._data.settings)
            # One at a time, because matplotlib shares its fonts between threads.
            with self._paint_lock:
                drawn = medium.seed, medium.index, medium.is_heldout
                example = render(medium.task, settings, *drawn)
            return still_image(example.images[medium.place])
        if medium.kind == "image":
            return read_image(self._source(medium), describe(medium))
        return read_video(self._source(medium), describe(medium), self._data.video)

    def _source(self, medium: MediaFile | MediaCell) -> str | BytesIO:
        """Return the path of a file, or the bytes of a cell."""
        if isinstance(medium, MediaFile):
            return medium.path
        # Imported on use: `datasets` takes seconds to load, and most media are files.
        from rl.data import tables

        with self._open_lock:
            if medium.split not in self._tables:
                if medium.split == "heldout":
                    location = tables.heldout_location(self._data)
                else:
                    location = tables.train_location(self._data)
                if location is None:
                    raise MediaError("missing: `data` names no data set that its media could be in")
                try:
                    # As Arrow, so that an image column of `datasets` stays bytes: our own reader
                    # decodes them, after checking their size.
                    opened = tables.read_table(location).with_format("arrow")
                except ValueError as error:
                    raise MediaError(f"missing: the data set cannot be opened: {error}") from error
                self._tables[medium.split] = opened
            table = self._tables[medium.split]
        # The names of media outlive the run, and another data set may lie there by now.
        try:
            stored = tables.media_in(table[medium.row : medium.row + 1][medium.column][0].as_py())
            content = stored[medium.place]
        except (KeyError, IndexError, ValueError) as error:
            raise MediaError(f"missing: the data set has no {describe(medium)}") from error
        if not isinstance(content, bytes):
            raise MediaError(f"missing: {describe(medium)} holds no bytes but {content!r:.200}")
        return BytesIO(content)

    def _keep(self, medium: Medium, pixels: StillImage | Video) -> None:
        is_video = isinstance(pixels, Video)
        size = pixels.frames.nbytes if is_video else 3 * pixels.pixels.width * pixels.pixels.height
        with self._cache_lock:
            # Another thread may have kept it in the meantime.
            if size > self._cache_bytes or medium in self._cache:
                return
            self._cache[medium] = pixels, size
            self._cached_bytes += size
            while self._cached_bytes > self._cache_bytes:
                _, (_, freed) = self._cache.popitem(last=False)
                self._cached_bytes -= freed
