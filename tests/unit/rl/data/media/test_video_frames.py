"""Which frames of a video are shown, and in which groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.data.media.video_frames import frames_per_group, plan_frames, spread, temporal_ids


@pytest.mark.parametrize(
    ("seconds", "packing", "frames", "groups"),
    [(10, 1, 30, 30), (60, 1, 180, 180), (61, 2, 183, 92), (180, 3, 540, 180), (900, 3, 540, 180)],
)
def test_published_recipe_at_three_frames_a_second(seconds, packing, frames, groups):
    plan = plan_frames(seconds * 30, 30, fps=3)
    assert frames_per_group(seconds, 3, 180, 3) == packing
    assert (len(plan.indices), len(plan.groups)) == (frames, groups)
    assert max(map(len, plan.groups)) == packing


def test_frames_are_the_middles_of_their_shares():
    assert spread(10, 5) == (1, 3, 5, 7, 9)
    assert spread(7, 2) == (1, 5)


def test_a_fraction_of_a_second_makes_no_group_too_many():
    """541 frames at 29.97 a second are 18.05 s, which rounds to 181 tenths."""
    assert len(plan_frames(541, 29.97, fps=10).groups) == 180


def test_a_rate_above_the_files_takes_every_frame():
    plan = plan_frames(5, 2, fps=30)
    assert plan.indices == (0, 1, 2, 3, 4)
    assert plan.groups == ((0,), (5,), (10,), (15,), (20,))


def test_a_slide_show_shows_its_pictures():
    """Each stands for three seconds; a third of a frame a second rounds to none."""
    assert plan_frames(4, 1 / 3).indices == (0, 1, 2, 3)


@settings(deadline=None)
@given(
    st.integers(1, 20_000), st.sampled_from([1, 12.5, 24, 29.97, 60]), st.sampled_from([1, 3, 10])
)
def test_times_are_the_nearest_steps_within_the_video(num_frames, native_fps, fps):
    plan = plan_frames(num_frames, native_fps, fps)
    ids = np.array([time for group in plan.groups for time in group])
    times_s = np.array(plan.indices) / native_fps
    last = len(np.arange(0, num_frames / native_fps, 0.1)) - 1
    around = np.stack([np.floor(times_s / 0.1), np.ceil(times_s / 0.1)]).clip(0, last)
    assert np.allclose(abs(times_s - 0.1 * ids), abs(times_s - 0.1 * around).min(0), atol=1e-9)
    assert len(plan.groups) <= 180
    assert (np.diff(plan.indices) > 0).all()


def test_a_step_is_not_cut_to_the_one_before():
    """4.3 / 0.1 is 42.99... in floating point."""
    assert temporal_ids([4.3], 10) == (43,)


def test_an_empty_video_is_refused():
    with pytest.raises(ValueError, match="0 frames at 30 a second"):
        plan_frames(0, 30)
