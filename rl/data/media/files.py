"""Decodes image and video files, from a path or from bytes.

Files come from strangers, so whatever a file holds, the result is pixels or a MediaError. Sizes are
checked before anything is decoded. Only formats that are decoded in this process are opened, and no
video container that could name other files or addresses, such as a playlist.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from math import floor, inf, sqrt
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, InvalidDataError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from rl.config.data import VideoConfig
from rl.data.files import START_BYTES, content_form
from rl.data.media.names import MediaError, MediumKind, StillImage, Video, as_rgb, refuse_size
from rl.data.media.video_frames import STEP_S, keep_frames, plan_frames

Image.init()
# Older builds of Pillow lack some of them, and would refuse every picture for an unknown name.
IMAGE_FORMATS = tuple(
    form
    for form in "PNG JPEG WEBP GIF BMP TIFF AVIF JPEG2000 PPM ICO".split()
    if form in Image.OPEN
)
"""What Pillow decodes in this process; it gives others, such as PostScript, to programs."""
# Image generators write megabytes of text into a picture. The limit is against files of a few
# kilobytes that unpack to fill the memory, and MAX_PIXELS allows as much.
PngImagePlugin.MAX_TEXT_CHUNK = 2**26
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif"
MAX_SECONDS = 3600
"""A policy's temporal ids end there (rl/data/media/minicpmv.py)."""

FILM_FPS = 30
"""Frames per second of a video that is drawn."""
MIN_SKIPPED = 30
"""Frames that must lie between two wanted ones for a seek to be cheaper than decoding them."""

File = str | BytesIO
Source = File | tuple[File, ...]
"""A file by its path or its bytes; a video may be the files of its frames."""

_END_MARKERS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"IEND",
    # Their header says how long they are, and opening them compares.
    "WEBP": b"",
    "AVIF": b"",
}
_TAIL_BYTES = 2**16
"""Cameras write notes of their own behind the end of a picture."""


def check(kind: MediumKind, source: Source, name: str) -> None:
    """Raise MediaError for a file whose header already tells that it cannot be used.

    name: what the error calls it.
    """
    if isinstance(source, tuple):
        for frame in source:
            check("image", frame, frame if isinstance(frame, str) else name)
        return
    if kind == "image":
        with _image(source, name) as image, _readable(name):
            if isinstance(source, BytesIO):
                tail = bytes(source.getbuffer()[-_TAIL_BYTES:])
            else:
                with open(source, "rb") as file:
                    file.seek(max(0, os.path.getsize(source) - _TAIL_BYTES))
                    tail = file.read()
            # Without its end the file is probably cut, which decoding alone can tell for sure.
            marker = _END_MARKERS.get(image.format or "")
            if marker is None or marker not in tail:
                image.load()
        return
    with _video(source, name) as (container, stream):
        # The first packet is enough: a header alone is also written where a recording failed.
        first = next(iter(container.demux(stream)), None)
        if first is None or not first.size:
            raise MediaError(f"no_frames: {name} is a video without a frame")


# Images.


def read_image(
    source: File, name: str, settings: Mapping[str, float] = MappingProxyType({})
) -> StillImage:
    """Decode the whole image, of an animation its first frame; raises MediaError.

    settings: of rl.data.cells.SETTINGS, for its size.
    """
    with _image(source, name) as image, _readable(name):
        image.load()
        upright = as_rgb(image)
        size = sized(upright.size, settings)
    return still_image(upright if size == upright.size else upright.resize(size))


def sized(size: tuple[int, int], settings: Mapping[str, float]) -> tuple[int, int]:
    """Return the width and height (pixels) that a medium's own settings give it."""
    if {"resized_width", "resized_height"} <= settings.keys():
        return max(1, int(settings["resized_width"])), max(1, int(settings["resized_height"]))
    pixels = size[0] * size[1]
    wanted = max(pixels, settings.get("min_pixels", pixels))
    scale = sqrt(min(wanted, settings.get("max_pixels", wanted)) / pixels)
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def still_image(pixels: Image.Image) -> StillImage:
    """pixels: RGB, upright."""
    return StillImage(pixels, digest(pixels.size, pixels.tobytes()))


def digest(shape: Sequence[float], *contents: Any) -> str:
    """64 bits of a shape and of bytes that have it, as 16 hexadecimal digits."""
    state = blake2b(repr(tuple(shape)).encode(), digest_size=8)
    for content in contents:
        state.update(content)
    return state.hexdigest()


@contextmanager
def _image(source: File, name: str) -> Iterator[Image.Image]:
    """The opened file, its size checked, not yet decoded."""
    _refuse_missing(source, name)
    with _readable(name):
        try:
            # Reads the header only, so a size that would fill the memory is refused in time.
            image = Image.open(source, formats=IMAGE_FORMATS)
        except UnidentifiedImageError as error:
            formats = ", ".join(IMAGE_FORMATS)
            raise MediaError(
                f"not_an_image: {name} is none of {formats}{_instead(source)}"
            ) from error
        # A warning where the caller turns warnings into errors.
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(f"too_large: {name}: {error}") from error
        with image:
            refuse_size(image.width, image.height, name)
            yield image


# Videos.


def read_video(
    source: Source,
    name: str,
    config: VideoConfig,
    settings: Mapping[str, float] = MappingProxyType({}),
) -> Video:
    """Decode the frames that `config` chooses, all of one size; raises MediaError.

    settings: of rl.data.cells.SETTINGS, which go before those of `config`.
    """
    config = _with_settings(config, settings)
    if isinstance(source, tuple):
        return _read_frames(source, name, config)
    with _video(source, name) as (container, stream):
        timeline = _timeline(container, stream, name)
        start, end = settings.get("video_start", 0), settings.get("video_end", inf)
        shown = [
            time
            for time in timeline.times
            if start <= (time - timeline.times[0]) * timeline.tick_s <= end
        ]
        if not shown:
            raise MediaError(f"no_frames: {name} has no frame from {start} to {end} s")
        num_frames, fps = len(shown), timeline.fps
        _refuse_long(num_frames / fps, name)
        wanted_fps = config.fps
        if "nframes" in settings:
            wanted_fps = settings["nframes"] * fps / num_frames
        plan = plan_frames(num_frames, fps, wanted_fps, config.max_groups, config.frames_per_group)
        chosen = [shown[index] for index in plan.indices]
        size = _frame_size(stream.width, stream.height, config)
        frames = _decoded(container, stream, timeline, chosen, size, name)
    times_s = tuple((time - shown[0]) * timeline.tick_s for time in chosen)
    return _as_video(frames, times_s, plan.groups, len(frames) * fps / num_frames)


def _read_frames(sources: Sequence[File], name: str, config: VideoConfig) -> Video:
    """A video whose frames are pictures, `config.fps` of them a second."""
    _refuse_long(len(sources) / config.fps, name)
    plan = keep_frames(len(sources), config.fps, config.max_groups, config.frames_per_group)
    chosen = [sources[index] for index in plan.indices]
    stills = [read_image(s, s if isinstance(s, str) else name).pixels for s in chosen]
    size = _frame_size(*stills[0].size, config)
    frames = np.stack([np.asarray(still.resize(size)) for still in stills])
    frames.setflags(write=False)
    times_s = tuple(index / config.fps for index in plan.indices)
    return _as_video(frames, times_s, plan.groups, len(frames) * config.fps / len(sources))


def film(images: Sequence[Image.Image], seconds: Sequence[float], config: VideoConfig) -> Video:
    """The video that shows each image for so many seconds, one after the other.

    images: of one size. Frames are chosen as of a film of FILM_FPS: what is shown between two of
    them is missed.
    """
    counts = [max(1, round(shown * FILM_FPS)) for shown in seconds]
    timeline = np.repeat(np.arange(len(images)), counts)
    groups, packing = config.max_groups, config.frames_per_group
    plan = plan_frames(len(timeline), FILM_FPS, config.fps, groups, packing)
    # [N, H, W, 3]
    frames = np.stack([np.asarray(images[timeline[index]]) for index in plan.indices])
    frames.setflags(write=False)
    times_s = tuple(index / FILM_FPS for index in plan.indices)
    return _as_video(frames, times_s, plan.groups, len(frames) * FILM_FPS / len(timeline))


def _as_video(
    frames: NDArray[np.uint8],
    times_s: tuple[float, ...],
    groups: tuple[tuple[int, ...], ...],
    fps: float,
) -> Video:
    return Video(frames, times_s, groups, fps, digest(frames.shape, frames, np.array(times_s)))


def _with_settings(config: VideoConfig, settings: Mapping[str, float]) -> VideoConfig:
    most = min(settings.get(key, config.max_frames) for key in ("max_frames", "nframes"))
    most = max(1, min(int(most), config.max_frames))
    pixels = min(settings.get("max_pixels", config.max_frame_pixels), config.max_frame_pixels)
    # Fewer frames than make whole groups are not packed.
    packing = 1 if most % config.frames_per_group else config.frames_per_group
    update = {"max_frames": most, "max_frame_pixels": pixels, "frames_per_group": packing}
    return config.model_copy(update=update | {"fps": settings.get("fps", config.fps)})


def _frame_size(width: int, height: int, config: VideoConfig) -> tuple[int, int]:
    scale = min(1.0, sqrt(config.max_frame_pixels / (width * height)))
    return max(1, floor(width * scale)), max(1, floor(height * scale))


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a video are shown, in the stream's ticks."""

    times: list[int]
    """Of every frame, ascending."""
    starts: list[tuple[int, int]]
    """Where decoding can start, ascending: a key frame's time, and the time to seek for it."""
    tick_s: float
    fps: float


def _timeline(container: InputContainer, stream: VideoStream, name: str) -> _Timeline:
    """Read where the frames lie, without decoding them.

    Headers state numbers and rates that files do not keep; packets tell the truth.
    """
    # A packet without a time of showing, as in AVI, is shown in the order of decoding.
    packets = [
        (packet.dts if packet.pts is None else packet.pts, packet)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    known = [(time, packet) for time, packet in packets if time is not None]
    times = sorted({time for time, _ in known})
    if not times:
        raise MediaError(f"no_frames: {name} is a video without a frame")
    # Some containers are sought by the time of decoding, which is never after that of showing.
    starts = sorted(
        (time, time if packet.dts is None else min(time, packet.dts))
        for time, packet in known
        if packet.is_keyframe
    )
    tick_s = float(stream.time_base or 1)
    # Measured from the first frame to the last: n frames have n - 1 steps between them.
    span_s = (times[-1] - times[0]) * tick_s
    fps = (len(times) - 1) / span_s if span_s > 0 else float(stream.average_rate or 1)
    return _Timeline(times, starts or [(times[0], times[0])], tick_s, fps)


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    timeline: _Timeline,
    chosen: Sequence[int],
    size: tuple[int, int],
    name: str,
) -> NDArray[np.uint8]:
    """The frames at the chosen times: [N, H, W, 3]."""
    frames = np.empty((len(chosen), size[1], size[0], 3), np.uint8)
    noted = None
    # Seeking is fast but goes wrong in files with a missing or a false index; then every frame is
    # decoded from the start.
    for method in (_by_seeking, _one_by_one):
        count = 0
        for frame in method(container, stream, timeline, chosen):
            # AREA averages all pixels that fall together, so small writing stays legible.
            scaled = frame.reformat(*size, "rgb24", interpolation="AREA")
            frames[count], noted = scaled.to_ndarray(), frame.side_data.get("DISPLAYMATRIX")
            count += 1
        if count == len(chosen):
            # Phones store frames lying on their side or mirrored, and a note of how to show them.
            upright = frames if noted is None else _upright(frames, np.frombuffer(noted, np.int32))
            upright = np.ascontiguousarray(upright)
            # The array is shared by everyone who reads this video from the store.
            upright.setflags(write=False)
            return upright
    second = (chosen[count] - timeline.times[0]) * timeline.tick_s
    raise MediaError(f"unreadable: {name} has no whole frame at {second:.1f} s")


def _upright(frames: NDArray[np.uint8], matrix: NDArray[np.int32]) -> NDArray[np.uint8]:
    """frames: [N, H, W, 3]. matrix: [9], which gives (x', y') = (a x + c y, b x + d y)."""
    a, b, _, c, d = matrix[:5].tolist()
    if abs(a) < abs(c):
        # x' follows y, and y' follows x.
        frames, a, d = frames.swapaxes(1, 2), c, b
    return frames[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _by_seeking(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, chosen: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames at exactly the chosen times, up to the first that is not met."""
    _, position = timeline.starts[0]
    container.seek(position, stream=stream)
    decoding = _timed(container, stream)
    for time in chosen:
        # The last key frame from which this frame can be reached. Decoding goes on to it from where
        # it is, unless so many frames lie between that a seek is cheaper.
        key, sought = timeline.starts[max(bisect_right(timeline.starts, (time, time)) - 1, 0)]
        num_between = bisect_left(timeline.times, key) - bisect_left(timeline.times, position)
        if num_between > MIN_SKIPPED:
            container.seek(sought, stream=stream)
            decoding = _timed(container, stream)
        shown, frame = next((each for each in decoding if each[0] >= time), (None, None))
        if shown != time or frame is None or frame.is_corrupt:
            return
        position = time
        yield frame


def _one_by_one(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, chosen: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames nearest after the chosen times, up to the first that is broken."""
    container.seek(timeline.starts[0][1], stream=stream)
    decoding = _timed(container, stream)
    shown, frame = next(decoding, (None, None))
    for time in chosen:
        while shown is not None and shown < time:
            shown, frame = next(decoding, (None, None))
        if frame is None or frame.is_corrupt:
            return
        yield frame


def _timed(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
    """The frames from here on with their times."""
    for frame in container.decode(stream):
        time = frame.dts if frame.pts is None else frame.pts
        if time is not None:
            yield time, frame


@contextmanager
def _video(source: File, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its film, its size and length checked."""
    _refuse_missing(source, name)
    with _readable(name), ExitStack() as stack:
        try:
            options = {"format_whitelist": VIDEO_FORMATS}
            container = stack.enter_context(av.open(source, "r", options=options))
        except (ArgumentError, InvalidDataError) as error:
            # What FFmpeg says of a format that is not in the list, and of none that it knows.
            raise MediaError(
                f"unreadable: {name} is none of the video formats {VIDEO_FORMATS}{_instead(source)}"
            ) from error
        cover = Disposition.attached_pic
        films = [film for film in container.streams.video if not film.disposition & cover]
        if not films:
            what = "only a cover picture" if container.streams.video else "no video"
            raise MediaError(f"no_frames: {name} holds {what}")
        # Some covers are not marked as such; FFmpeg looks at rates and frames.
        best = container.streams.best("video")
        stream = next((film for film in films if best and film.index == best.index), films[0])
        if not stream.width or not stream.height:
            raise MediaError(f"no_frames: {name} holds a video without a size")
        refuse_size(stream.width, stream.height, name)
        _refuse_long((container.duration or 0) / av.time_base, name)
        # Several threads decode, of which the codec says how many help.
        stream.thread_type = "AUTO"
        yield container, stream


def _refuse_long(seconds: float, name: str) -> None:
    # A frame in the middle of the last step still has a temporal id.
    if seconds > MAX_SECONDS + STEP_S:
        raise MediaError(
            f"too_large: {name} lasts {seconds:,.0f} s, more than {MAX_SECONDS:,}; cut it"
        )


# Both.


def _refuse_missing(source: File, name: str) -> None:
    # A pipe would keep the reader waiting for ever.
    if isinstance(source, str) and not os.path.isfile(source):
        what = "does not exist"
        if "\0" not in source and os.path.lexists(source):
            is_folder = os.path.isdir(source)
            what = "is a directory; list its files" if is_folder else "is no file"
        raise MediaError(f"missing: {name} {what}")


def _instead(source: File) -> str:
    """What a file is that is no medium, as far as that tells a person what to do."""
    if isinstance(source, BytesIO):
        start = bytes(source.getbuffer()[:START_BYTES])
    else:
        with open(source, "rb") as file:
            start = file.read(START_BYTES)
    form, what = content_form(start)
    if not start:
        return "; it is empty"
    return f"; it is {what}" if form in ("lfs", "html") else ""


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what a decoder raises into a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        # On broken bytes decoders raise whatever happens to them, from IndexError to struct.error.
        raise MediaError(f"unreadable: {name}: {error or type(error).__name__}") from error
