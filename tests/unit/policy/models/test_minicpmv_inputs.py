"""Where the visual tokens of a trained sequence are, and what a difference says."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from policy.models.minicpmv import MiniCPMVInputs
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import Medium, StillImage, Video
from rl.loop.stages import TrainSample
from tests.minicpmv_tiny import QUERIES, noise_frames, noise_image, save_tiny, tiny_tokenizer
from tests.qwen_vl_tiny import Shelf, tiny_sample

TOKENIZER = tiny_tokenizer()
SHELF = Shelf()
STILL, LARGE, CLIP = SHELF.put(
    [
        StillImage(noise_image(56, 56), "0"),
        StillImage(noise_image(112, 56, 1), "1"),
        Video(noise_frames(3, 56, 56), (0.0, 0.3, 0.7), ((0, 3), (7,)), fps=3.0, digest="2"),
    ]
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> MiniCPMVInputs:
    directory: Path = tmp_path_factory.mktemp("policy")
    save_tiny(directory)
    return MiniCPMVInputs(directory, SHELF)


def encode(*pieces: str) -> list[int]:
    return [token for piece in pieces for token in TOKENIZER.encode(piece)]


PROMPT = ("a", IMAGE_MARKER, "b)", VIDEO_MARKER, IMAGE_MARKER, "c")
MEDIA = (STILL, CLIP, LARGE)


def sample(prompt: Sequence[int], response: list[int], *media: Medium) -> TrainSample:
    return tiny_sample("7/3/0/1", prompt, response, media)


def test_markers_grow_to_all_the_tokens_of_their_media(inputs: MiniCPMVInputs):
    expanded = inputs.expanded(encode(*PROMPT), MEDIA)
    block = "<image>" + "<unk>" * QUERIES + "</image>"
    sliced = block.replace("image", "slice") * 2
    assert TOKENIZER.decode(expanded) == (
        f"a<image_id>0</image_id>{block}b){block}\n{block}<image_id>1</image_id>{block}{sliced}c"
    )


def test_visual_tokens_are_found_where_the_engine_put_them(inputs: MiniCPMVInputs):
    """Rows of other lengths, one without media; the answer's own tokens are no place for them."""
    first = sample(inputs.expanded(encode(*PROMPT), MEDIA), encode("12"), *MEDIA)
    second = sample(tuple(encode("abc")), encode("1"))
    third = sample(inputs.expanded(encode(IMAGE_MARKER), [STILL]), encode("<unk>3"), STILL)
    token_ids = torch.zeros(3, 90, dtype=torch.long)
    batch = inputs([first, second, third], token_ids)
    assert batch is not None
    assert batch.groups == ((-1,), (0, 3), (7,), (-1,), (-1,), (-1,), (-1,))
    unknown = TOKENIZER.get_vocab()["<unk>"]
    expected = [
        row * 90 + place
        for row, one in enumerate((first, second, third))
        for place, token in enumerate(one.trajectory.token_ids)
        if token == unknown and not one.trajectory.loss_mask[place]
    ]
    assert batch.places.tolist() == expected
    assert len(expected) == QUERIES * 7


def test_what_a_group_shares_is_seen_once(inputs: MiniCPMVInputs):
    prompt = inputs.expanded(encode(*PROMPT), MEDIA)
    rows = [sample(prompt, encode(answer), *MEDIA) for answer in ("1", "22", "333")]
    token_ids = torch.zeros(3, 90, dtype=torch.long)
    alone, together = inputs(rows[:1], token_ids), inputs(rows, token_ids)
    assert torch.equal(together.patches, alone.patches)
    assert together.groups == alone.groups
    assert together.shown.tolist() == 3 * list(range(6))
    assert together.places.tolist() == [
        row * 90 + place for row in range(3) for place in alone.places.tolist()
    ]


def test_a_batch_counts_places_over_its_rows(inputs: MiniCPMVInputs):
    """A placeholder that stands in a text is a word like any other."""
    (wide,) = SHELF.put([StillImage(noise_image(70, 28), "3")])
    rows = [
        sample(encode("abc"), encode("1")),
        sample(inputs.expanded(encode("<unk>", IMAGE_MARKER, "<unk>"), [STILL]), [5], STILL),
        sample(inputs.expanded(encode(IMAGE_MARKER), [wide]), [5], wide),
    ]
    batch = inputs(rows, torch.zeros(3, 50))
    assert batch is not None
    # A placeholder and the image's number, `<image_id>0</image_id><image>`, stand before the first.
    starts = [50 + 1 + 4, 100 + 4]
    assert batch.places.tolist() == [start + i for start in starts for i in range(QUERIES)]
    assert batch.sizes == ((4, 4), (2, 6))
    assert batch.patches.shape == (2, 3, 14, 14 * 16)
    assert not batch.patches[1, ..., 14 * 12 :].any()


def test_six_frames_in_one_group_are_64_tokens(tmp_path: Path):
    """With the published settings, which a directory without a file of them has."""
    TOKENIZER.save_pretrained(tmp_path)
    published = MiniCPMVInputs(tmp_path, SHELF)
    frames, times = noise_frames(6, 448, 448), tuple(range(6))
    clip = SHELF.put([Video(frames, times, (times,), fps=1.0, digest="six")])
    prompt = published.expanded(encode(VIDEO_MARKER), clip)
    batch = published([sample(prompt, [5], *clip)], torch.zeros(1, 90))
    assert batch is not None
    assert len(batch.places) == 64 == prompt.count(TOKENIZER.get_vocab()["<unk>"])
    assert batch.sizes == ((32, 32),) * 6


def test_every_medium_needs_a_marker(inputs: MiniCPMVInputs):
    with pytest.raises(ValueError, match="fewer markers than its 2 media"):
        inputs.expanded(encode(IMAGE_MARKER), [STILL, LARGE])


def test_text_alone_has_no_batch(inputs: MiniCPMVInputs):
    assert inputs([sample(tuple(encode("abc")), encode("1"))], torch.zeros(1, 9)) is None
    assert inputs([], torch.zeros(1, 9)) is None


@pytest.mark.parametrize(
    ("engine_saw", "blocks"), [((LARGE,), 3), ((STILL, STILL), 2), ((), 0)], ids=str
)
def test_a_difference_names_the_sample(
    inputs: MiniCPMVInputs, engine_saw: tuple[Medium, ...], blocks: int
):
    prompt = inputs.expanded(encode(*[IMAGE_MARKER] * len(engine_saw), "?"), engine_saw)
    seen = sample(prompt, encode("12"), STILL)
    with pytest.raises(ValueError, match=rf"sample 7/3/0/1: the engine saw {blocks} .* makes 1"):
        inputs([seen], torch.zeros(1, 90, dtype=torch.long))
