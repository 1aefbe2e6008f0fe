"""Decodes image and video files, from a path or from bytes.

Files come from strangers, so whatever a file holds, the result is pixels or a MediaError. Sizes are
checked before anything is decoded. Only formats that are decoded in this process are opened, and no
video container that could name other files or addresses, such as a playlist.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from math import floor, sqrt
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rl.config.data import VideoConfig
from rl.data.media.names import MediaError, MediumKind, StillImage, Video, as_rgb, refuse_size
from rl.data.media.video_frames import STEP_S, plan_frames

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow decodes in this process; it gives others, such as PostScript, to programs."""
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif"
MAX_SECONDS = 3600
"""A policy's temporal ids end there (rl/data/media/minicpmv.py)."""

MIN_SKIPPED = 30
"""Frames that must lie between two wanted ones for a seek to be cheaper than decoding them."""

Source = str | BytesIO


def check(kind: MediumKind, source: Source, name: str) -> None:
    """Raise MediaError for a file whose header already tells that it cannot be used.

    name: what the error calls it.
    """
    if kind == "image":
        with _image(source, name):
            return
    with _video(source, name) as (container, stream):
        # The first packet is enough: a header alone is also written where a recording failed.
        first = next(iter(container.demux(stream)), None)
        if first is None or not first.size:
            raise MediaError(f"no_frames: {name} is a video without a frame")


# Images.


def read_image(source: Source, name: str) -> StillImage:
    """Decode the whole image, of an animation its first frame; raises MediaError."""
    with _image(source, name) as image:
        image.load()
        upright = as_rgb(image)
    return still_image(upright)


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
def _image(source: Source, name: str) -> Iterator[Image.Image]:
    """The opened file, its size checked, not yet decoded."""
    _refuse_missing(source, name)
    with _readable(name):
        try:
            # Reads the header only, so a size that would fill the memory is refused in time.
            image = Image.open(source, formats=IMAGE_FORMATS)
        except UnidentifiedImageError as error:
            formats = ", ".join(IMAGE_FORMATS)
            raise MediaError(f"not_an_image: {name} is none of {formats}") from error
        # A warning where the caller turns warnings into errors.
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(f"too_large: {name}: {error}") from error
        with image:
            refuse_size(image.width, image.height, name)
            yield image


# Videos.


def read_video(source: Source, name: str, config: VideoConfig) -> Video:
    """Decode the frames that `config` chooses, all of one size; raises MediaError."""
    with _video(source, name) as (container, stream):
        timeline = _timeline(container, stream, name)
        num_frames, fps = len(timeline.times), timeline.fps
        _refuse_long(num_frames / fps, name)
        plan = plan_frames(num_frames, fps, config.fps, config.max_groups, config.frames_per_group)
        chosen = [timeline.times[index] for index in plan.indices]
        scale = min(1.0, sqrt(config.max_frame_pixels / (stream.width * stream.height)))
        size = max(1, floor(stream.width * scale)), max(1, floor(stream.height * scale))
        frames = _decoded(container, stream, timeline, chosen, size, name)
    times_s = tuple((time - timeline.times[0]) * timeline.tick_s for time in chosen)
    key = digest(frames.shape, frames, np.array(times_s))
    return Video(frames, times_s, plan.groups, len(frames) * fps / num_frames, key)


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
    turn = 0
    # Seeking is fast but goes wrong in files with a missing or a false index; then every frame is
    # decoded from the start.
    for method in (_by_seeking, _one_by_one):
        count = 0
        for frame in method(container, stream, timeline, chosen):
            # AREA averages all pixels that fall together, so small writing stays legible.
            scaled = frame.reformat(*size, "rgb24", interpolation="AREA")
            frames[count], turn = scaled.to_ndarray(), frame.rotation
            count += 1
        if count == len(chosen):
            # Phones store frames lying on their side, and a note of how to turn them.
            upright = np.ascontiguousarray(np.rot90(frames, round(turn / 90), axes=(1, 2)))
            # The array is shared by everyone who reads this video from the store.
            upright.setflags(write=False)
            return upright
    second = (chosen[count] - timeline.times[0]) * timeline.tick_s
    raise MediaError(f"unreadable: {name} has no whole frame at {second:.1f} s")


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
def _video(source: Source, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its first video, its size and length checked."""
    _refuse_missing(source, name)
    with (
        _readable(name),
        av.open(source, "r", options={"format_whitelist": VIDEO_FORMATS}) as container,
    ):
        if not container.streams.video:
            raise MediaError(f"no_frames: {name} holds no video")
        stream = container.streams.video[0]
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


def _refuse_missing(source: Source, name: str) -> None:
    # A pipe would keep the reader waiting for ever.
    if isinstance(source, str) and not os.path.isfile(source):
        is_there = os.path.lexists(source) if "\0" not in source else False
        raise MediaError(f"missing: {name} {'is no file' if is_there else 'does not exist'}")


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
