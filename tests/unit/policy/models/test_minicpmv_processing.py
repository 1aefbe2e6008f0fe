"""MiniCPM-V prompts: frames of a video, tokens and views of a text with media."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.models.minicpmv import MiniCPMVProcessor, collate
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER, ImageSettings, PackedVideo
from rl.data.media.video_frames import frames_per_group, plan_frames, spread, temporal_ids
from tests.minicpmv_tiny import QUERIES, SCALE, noise_frames, noise_image, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
UNKNOWN = TOKENIZER.get_vocab()["<unk>"]


@pytest.fixture(scope="module")
def processor() -> MiniCPMVProcessor:
    return MiniCPMVProcessor(
        TOKENIZER, ImageSettings(scale_resolution=SCALE, tokens_per_view=QUERIES)
    )


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


def test_six_frames_in_one_group_are_64_tokens():
    processor = MiniCPMVProcessor(TOKENIZER, ImageSettings())
    video = PackedVideo(noise_frames(6, 448, 448), ((0, 1, 2, 3, 4, 5),))
    prompt = processor(VIDEO_MARKER, videos=[video])
    assert sum(end - start for start, end in prompt.ranges) == 64
    assert prompt.token_ids.count(UNKNOWN) == 64
    assert [view.size for view in prompt.views] == [(32, 32)] * 6


def test_media_stand_where_their_markers_stood(processor: MiniCPMVProcessor):
    videos = [PackedVideo(noise_frames(3, 56, 56), ((0, 3), (7,)))]
    images = [noise_image(56, 56), noise_image(112, 56, 1)]
    text = f"x{IMAGE_MARKER}y{VIDEO_MARKER}{IMAGE_MARKER}z"
    prompt = processor(text, images, videos)
    block = "<image>" + "<unk>" * QUERIES + "</image>"
    sliced = block.replace("image", "slice") * 2
    assert TOKENIZER.decode(prompt.token_ids) == (
        f"x<image_id>0</image_id>{block}y{block}\n{block}<image_id>1</image_id>{block}{sliced}z"
    )
    assert prompt.groups == ((-1,), (0, 3), (7,), (-1,), (-1,), (-1,))
    assert len(prompt.views) == 7
    for start, end in prompt.ranges:
        assert set(prompt.token_ids[start:end]) == {UNKNOWN}
        assert end - start == QUERIES


def test_pieces_of_text_are_tokenised_alone(processor: MiniCPMVProcessor):
    """`)` and a line's end are one token in running text, and `a`, `b` around a marker are two."""
    prompt = processor(f"a{IMAGE_MARKER}b)\n", [noise_image(56, 56)])
    vocabulary = TOKENIZER.get_vocab()
    assert prompt.token_ids[0] == vocabulary["a"]
    assert prompt.token_ids[-2:] == (vocabulary["b"], vocabulary[")\n"])


def test_a_placeholder_in_the_text_is_a_word(processor: MiniCPMVProcessor):
    prompt = processor(f"<unk>{IMAGE_MARKER}<unk><unk>", [noise_image(56, 56)])
    assert prompt.token_ids.count(UNKNOWN) == QUERIES + 3
    ((start, end),) = prompt.ranges
    assert end - start == QUERIES
    assert 0 < start < end < len(prompt.token_ids) - 1


def test_a_text_cannot_pass_for_an_image(processor: MiniCPMVProcessor):
    forged = f"<image_id>0</image_id><image>{'<unk>' * QUERIES}</image>"
    with pytest.raises(ValueError, match="must not contain <image>, </image>, <image_id>"):
        processor(f"{forged}{IMAGE_MARKER}", [noise_image(56, 56)])


@pytest.mark.parametrize(("text", "images"), [(IMAGE_MARKER, 0), ("x", 1), (IMAGE_MARKER * 2, 1)])
def test_markers_and_media_must_match(processor: MiniCPMVProcessor, text: str, images: int):
    with pytest.raises(ValueError, match=f"has {text.count(IMAGE_MARKER)} markers"):
        processor(text, [noise_image(56, 56)] * images)


def test_a_batch_counts_places_over_its_rows(processor: MiniCPMVProcessor):
    first = processor("abc")
    second = processor(f"x{IMAGE_MARKER}", [noise_image(56, 56)])
    third = processor(IMAGE_MARKER, [noise_image(70, 28)])
    batch = collate([first, second, third], row_length=50)
    assert batch is not None
    starts = [50 + second.ranges[0][0], 100 + third.ranges[0][0]]
    expected = torch.cat([torch.arange(start, start + QUERIES) for start in starts])
    assert torch.equal(batch.places, expected)
    assert batch.sizes == ((4, 4), (2, 6))
    assert batch.patches.shape == (2, 3, 14, 14 * 16)
    assert not batch.patches[1, ..., 14 * 12 :].any()
    assert collate([first], row_length=50) is None
