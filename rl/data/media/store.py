"""Reads the media of prompts, one store per process; what was read lately is kept."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from threading import Lock

from rl.config.data import SourceConfig
from rl.data.cells import Content, media_in
from rl.data.media.files import File, Source, check, film, read_image, read_video, still_image
from rl.data.media.names import (
    MediaCell,
    MediaError,
    MediaFile,
    Medium,
    RenderedMedium,
    StillImage,
    Video,
    describe,
    shortened,
)
from rl.data.tables import Table, heldout_location, read_table, train_location

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
        self._tables: dict[tuple[str, str], Table] = {}
        """The opened data sets by source and split."""
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
        if isinstance(medium, RenderedMedium):
            # The settings that draw it were checked when the data were opened.
            return
        source, _ = self._source(medium)
        check(medium.kind, source, named(source, medium))

    def _read(self, medium: Medium) -> StillImage | Video:
        if isinstance(medium, RenderedMedium):
            # Imported on use: some tasks load matplotlib, and most data are not drawn.
            from rl.data.tasks.pictures import read_settings, render

            # The names of media outlive the run, and another mixture may be configured by now.
            source = self._data.sources.get(medium.source)
            if source is None or source.path != medium.task:
                raise MediaError(f"missing: the data draw no {describe(medium)}")
            settings = read_settings(medium.task, source.settings)
            # One at a time, because matplotlib shares its fonts between threads.
            with self._paint_lock:
                drawn = medium.seed, medium.index, medium.is_heldout
                example = render(medium.task, settings, *drawn)
            if medium.kind == "video":
                return film(example.images, example.seconds, self._data.video)
            return still_image(example.images[medium.place])
        source, settings = self._source(medium)
        if medium.kind == "image":
            assert not isinstance(source, tuple)
            return read_image(source, named(source, medium), settings)
        return read_video(source, named(source, medium), self._data.video, settings)

    def _source(self, medium: MediaFile | MediaCell) -> tuple[Source, Mapping[str, float]]:
        """Return what holds a medium, and the settings that its cell gives it."""
        if isinstance(medium, MediaFile):
            return medium.path, {}
        # The names of media outlive the run, and another data set may lie there by now.
        try:
            table = self._table(medium)
        except (KeyError, ValueError) as error:
            raise MediaError(f"missing: the data set cannot be opened: {error}") from error
        try:
            content = media_in(table.cell(medium.column, medium.row), medium.kind)[medium.place]
        except (KeyError, IndexError, ValueError) as error:
            raise MediaError(f"missing: the data set has no {describe(medium)}: {error}") from error
        if content is None:
            raise MediaError(f"missing: {describe(medium)} is empty")
        return opened(content, partial(table.find, row=medium.row)), content.settings

    def _table(self, medium: MediaCell) -> Table:
        key = medium.source, medium.split
        with self._open_lock:
            if key not in self._tables:
                source = self._data.sources[medium.source]
                locate = train_location if medium.split == "train" else heldout_location
                location = locate(source)
                if location is None:
                    raise ValueError("`data` names no data set")
                self._tables[key] = read_table(location)
            return self._tables[key]

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


def opened(content: Content, find: Callable[[str], str]) -> Source:
    """Return what holds the pixels of a content: a path or bytes, or those of each frame.

    find: makes a path absolute.
    """

    def file(source: str | bytes) -> File:
        return find(source) if isinstance(source, str) else BytesIO(source)

    if isinstance(content.source, tuple):
        return tuple(map(file, content.source))
    return file(content.source)


def named(source: Source, medium: Medium) -> str:
    """What errors call a medium: the path of its file, if it has one."""
    return shortened(source, 240) if isinstance(source, str) else describe(medium)
