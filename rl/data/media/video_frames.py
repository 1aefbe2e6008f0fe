"""Which frames of a video the policy sees, and in which groups.

This is the recipe of the published examples of MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154). In
a short video each frame has a block of visual tokens of its own. A longer video is seen at the same
rate, with up to `max_packing` frames to a block, and a still longer one at a lower rate. Pure
functions of numbers; rl/data/media/files.py decodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUPS = 180
MAX_PACKING = 3
"""As published, where 1 to 6 is called valid."""
STEP_S = 0.1
"""Seconds from one temporal id to the next."""


@dataclass(frozen=True)
class FramePlan:
    """What to take of a video."""

    indices: tuple[int, ...]
    """Numbers of the frames in the file, from 0, ascending."""
    groups: tuple[tuple[int, ...], ...]
    """Their temporal ids by group."""


def plan_frames(
    num_frames: int,
    native_fps: float,
    fps: float = 3,
    max_groups: int = MAX_GROUPS,
    max_packing: int = MAX_PACKING,
) -> FramePlan:
    """Choose frames evenly over the video, and pack them.

    num_frames, native_fps: of the file. fps: frames to see per second of video.
    Raises ValueError for an empty video.
    """
    if num_frames < 1 or native_fps <= 0 or fps <= 0:
        raise ValueError(
            f"a video needs at least one frame and positive rates, got {num_frames} frames at "
            f"{native_fps} a second, to be seen at {fps}"
        )
    duration_s = num_frames / native_fps
    packing = frames_per_group(duration_s, fps, max_groups, max_packing)
    if packing == 1:
        # A video filmed at a lower rate than `fps` has no more frames to show. The published
        # example rounds the rate, to 0 where a frame stands for seconds, as in a slide show.
        wanted = round(min(fps, round(native_fps) or native_fps) * min(max_groups, duration_s))
        # The part of a second that frames_per_group leaves out can round up to a frame too many.
        wanted = min(wanted, max_groups)
    else:
        wanted = min(round(duration_s * fps), max_groups * max_packing)
    # A short video may have fewer frames than are wanted, and never more than all are taken.
    indices = spread(num_frames, min(max(wanted, 1), num_frames))
    return _packed(indices, native_fps, duration_s, packing)


def keep_frames(num_frames: int, fps: float, max_groups: int, max_packing: int) -> FramePlan:
    """Take frames that were chosen before, `fps` of them a second: all, or as many as fit."""
    duration_s = num_frames / fps
    packing = frames_per_group(duration_s, fps, max_groups, max_packing)
    indices = spread(num_frames, min(num_frames, max_groups * packing))
    return _packed(indices, fps, duration_s, packing)


def _packed(
    indices: tuple[int, ...], native_fps: float, duration_s: float, packing: int
) -> FramePlan:
    ids = temporal_ids([index / native_fps for index in indices], duration_s)
    # The last group may be smaller.
    groups = tuple(ids[start : start + packing] for start in range(0, len(ids), packing))
    return FramePlan(indices, groups)


def frames_per_group(duration_s: float, fps: float, max_groups: int, max_packing: int) -> int:
    """Frames that share a block of visual tokens: 1 while the frames fit without sharing."""
    # Whole seconds only, as in the published example; plan_frames cuts off what that lets through.
    if fps * int(duration_s) <= max_groups:
        return 1
    return min(math.ceil(duration_s * fps / max_groups), max_packing)


def spread(num_frames: int, count: int) -> tuple[int, ...]:
    """Numbers of `count` frames, each in the middle of its share of the video."""
    share = num_frames / count
    return tuple(int(index * share + share / 2) for index in range(count))


def temporal_ids(times_s: Sequence[float], duration_s: float) -> tuple[int, ...]:
    """Number of the nearest step of 0.1 s that lies within the video.

    The published example divides the step's time by 0.1 and cuts off the fraction. In floating
    point that makes 1,632 of the first 36,000 ids one too small (42 for 4.3 s); these are exact.
    """
    # Rounding up at the very end would give a time after the video.
    last = max(math.ceil(duration_s / STEP_S) - 1, 0)
    return tuple(min(round(time_s / STEP_S), last) for time_s in times_s)
