"""What learner and engine share of MiniCPM-V: slices, patches, placeholders, groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from rl.data.media.minicpmv import (
    ImageSettings,
    MediaTokens,
    PackedVideo,
    View,
    as_rgb,
    image_views,
    slice_grid,
    sliced_size,
    view_size,
)
from tests.minicpmv_tiny import noise_frames, noise_image, tiny_tokenizer

PUBLISHED = ImageSettings()
SMALL = ImageSettings(scale_resolution=56, tokens_per_view=2)


@pytest.mark.parametrize(
    ("size", "view", "grid", "sliced"),
    [
        ((448, 448), (448, 448), None, None),
        # Small images are enlarged: 448 / sqrt(2/3) = 548.7 rows, 365 columns.
        ((20, 30), (364, 546), None, None),
        # Six areas; 3 x 2 has exactly the shape.
        ((1344, 896), (546, 364), (3, 2), (1344, 896)),
        ((1344, 1344), (448, 448), (3, 3), (1344, 1344)),
        # 1001 rows are 71.5 patches, and a half goes to the even 72. Slices are 300 x 375 each.
        ((300, 1500), (196, 1008), (1, 4), (406, 2016)),
    ],
)
def test_geometry_worked_by_hand(size, view, grid, sliced):
    assert view_size(*size, PUBLISHED) == view
    assert slice_grid(*size, PUBLISHED) == grid
    if grid is not None:
        assert sliced_size(*size, grid, PUBLISHED) == sliced


def unfolded(patches: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """[3, rows * side, columns * side] of patches [3, side, side * rows * columns]."""
    cells = patches.reshape(3, side, rows, columns, side).transpose(0, 2, 1, 3, 4)
    return cells.reshape(3, rows * side, columns * side)


@pytest.mark.parametrize(
    "size", [(448, 448), (30, 44), (640, 480), (1000, 700), (573, 350), (300, 1500), (900, 1800)]
)
def test_pixels_are_those_of_transformers_own_processor(size: tuple[int, int]):
    """MiniCPM-V 4.6 slices as 4.5 does, with views in multiples of 4 x 14 = 56 pixels."""
    image = noise_image(*size)
    other = MiniCPMV4_6ImageProcessorPil(patch_size=14)(image, return_tensors="np")
    views = image_views(image, ImageSettings(patch_size=56))
    assert len(views) == len(other["target_sizes"])
    start = 0
    for view, (rows, columns) in zip(views, other["target_sizes"], strict=True):
        end = start + 14 * rows * columns
        expected = unfolded(other["pixel_values"][0][:, :, start:end], rows, columns, 14)
        assert np.array_equal(unfolded(view.patches, *view.size, 56), expected)
        start = end


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_every_view_is_near_the_towers_area(width: int, height: int):
    if max(width, height) > 200 * min(width, height):
        return
    grid = slice_grid(width, height, PUBLISHED)
    sizes = [view_size(width, height, PUBLISHED)]
    if grid is not None:
        columns, rows = grid
        assert 2 <= columns * rows <= 9
        whole = sliced_size(width, height, grid, PUBLISHED)
        sizes.append((whole[0] // columns, whole[1] // rows))
    for size in sizes:
        assert size[0] % 14 == size[1] % 14 == 0
        assert 0.7 * 1024 < size[0] * size[1] / 14**2 < 1.25 * 1024


def test_patches_lie_side_by_side_row_by_row():
    """Four patches of 14 x 14, each of one grey: 0, 85, 170, 255."""
    greys = np.array([[0, 85], [170, 255]], dtype=np.uint8).repeat(14, 0).repeat(14, 1)
    image = Image.fromarray(np.stack([greys] * 3, axis=-1))
    (view,) = image_views(image, ImageSettings(scale_resolution=28))
    assert view.patches.shape == (3, 14, 56)
    assert view.size == (2, 2)
    assert np.allclose(view.patches[:, :, ::14], np.array([-1, -1 / 3, 1 / 3, 1]), atol=1e-6)


def test_slices_come_after_the_whole_row_by_row():
    """Left half black, right half white: 3 x 1 slices are black, both, white."""
    image = Image.new("RGB", (168, 56))
    image.paste((255, 255, 255), (84, 0, 168, 56))
    whole, *slices = image_views(image, SMALL)
    assert slice_grid(168, 56, SMALL) == (3, 1)
    means = [float(view.patches.mean()) for view in slices]
    assert means == pytest.approx([-1, 0, 1], abs=0.05)
    assert whole.size == (2, 7)  # 97 columns, 32 rows


def test_images_become_upright_rgb():
    transparent = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    assert np.asarray(as_rgb(transparent)).min() == 255
    assert as_rgb(Image.new("L", (4, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    assert as_rgb(turned).size == (2, 4)


@pytest.mark.parametrize("size", [(2010, 10), (1, 201), (9000, 8000)])
def test_images_out_of_bounds_are_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"got {size[0]} x {size[1]}"):
        slice_grid(*size, PUBLISHED)


def test_placeholders_of_an_image_and_of_a_video():
    tokens = MediaTokens(tiny_tokenizer(), SMALL)
    whole, part = "<image><unk><unk></image>", "<slice><unk><unk></slice>"

    def text(ids: list[int]) -> str:
        return tokens.tokenizer.decode(ids)

    assert text(tokens.image(56, 56, 0)) == f"<image_id>0</image_id>{whole}"
    assert text(tokens.image(168, 56, 12)) == f"<image_id>12</image_id>{whole}{part * 3}"
    assert text(tokens.image(112, 112, 3)) == (
        f"<image_id>3</image_id>{whole}{part * 2}\n{part * 2}"
    )
    assert text(tokens.video(3)) == f"{whole}\n{whole}\n{whole}"


def test_an_images_number_can_be_changed_in_its_tokens():
    tokens = MediaTokens(tiny_tokenizer(), SMALL)
    assert tokens.renumbered(tokens.image(168, 56, 9), 10) == tokens.image(168, 56, 10)


def test_the_placeholder_is_the_unknown_token():
    tokenizer = tiny_tokenizer()
    assert MediaTokens(tokenizer, SMALL).placeholder == tokenizer.get_vocab()["<unk>"]


def test_another_models_tokenizer_is_refused():
    tokenizer = tiny_tokenizer()
    vocabulary = {k: v for k, v in tokenizer.get_vocab().items() if k != "</slice>"}
    tokenizer.get_vocab = lambda: vocabulary
    with pytest.raises(ValueError, match="no </slice>;"):
        MediaTokens(tokenizer, SMALL)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((0, 1),), "each of the 3 frames once"),
        (((0, 1, 2), ()), "none may be empty"),
        (((0, 1), (36_000,)), "below 36000 .* got 36000"),
        (((-2,), (0, 1)), "got -2"),
        (((0,), (-1, 1)), "alone in its group"),
    ],
)
def test_groups_out_of_bounds_are_refused(groups: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        PackedVideo(noise_frames(3, 8, 8), groups)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (2, 8, 8, 4)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="must be a uint8 array"):
        PackedVideo(np.zeros(shape, dtype=np.uint8), ((0,),))


def test_settings_come_from_the_checkpoints_file():
    stored = {"scale_resolution": 56, "max_slice_nums": 4, "norm_mean": [0.4] * 3, "other": 1}
    assert ImageSettings.from_mapping(stored) == ImageSettings(56, max_slices=4, mean=0.4)
    with pytest.raises(ValueError, match="norm_std must be the same"):
        ImageSettings.from_mapping({"norm_std": [0.5, 0.5, 0.4]})
    with pytest.raises(ValueError, match="must equal query_num 8"):
        ImageSettings().require_tokens(8)


def test_views_are_contiguous_float32():
    view: View = image_views(noise_image(56, 56), SMALL)[0]
    assert view.patches.dtype == np.float32
    assert view.patches.flags["C_CONTIGUOUS"]
