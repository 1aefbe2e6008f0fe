"""Where the visual tokens of a trained sequence are, and what a difference says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from policy.models.minicpmv import MiniCPMVInputs, collate
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import MediaFile, StillImage, Video
from rl.loop.stages import TrainSample, Trajectory
from tests.minicpmv_tiny import QUERIES, noise_frames, noise_image, save_tiny, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STILL = MediaFile("image", "still")
LARGE = MediaFile("image", "large")
CLIP = MediaFile("video", "clip")


class Shelf:
    """Media by name; what a store would read."""

    def __init__(self) -> None:
        self.media = {
            STILL: StillImage(noise_image(56, 56), "0"),
            LARGE: StillImage(noise_image(112, 56, 1), "1"),
            CLIP: Video(
                frames=noise_frames(3, 56, 56),
                times_s=(0.0, 0.3, 0.7),
                groups=((0, 3), (7,)),
                fps=3.0,
                digest="2",
            ),
        }

    def read(self, medium: MediaFile) -> StillImage | Video:
        return self.media[medium]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> MiniCPMVInputs:
    directory: Path = tmp_path_factory.mktemp("policy")
    save_tiny(directory)
    return MiniCPMVInputs(directory, Shelf())


def encode(*pieces: str) -> list[int]:
    return [token for piece in pieces for token in TOKENIZER.encode(piece)]


PROMPT = ("a", IMAGE_MARKER, "b)", VIDEO_MARKER, IMAGE_MARKER, "c")
MEDIA = (STILL, CLIP, LARGE)


def sample(prompt: tuple[int, ...], response: list[int], *media: MediaFile) -> TrainSample:
    token_ids = np.array([*prompt, *response], np.int32)
    mask = np.arange(len(token_ids)) >= len(prompt)
    trajectory = Trajectory(
        token_ids=token_ids,
        loss_mask=mask,
        rollout_logprobs=np.zeros(len(token_ids), np.float32),
        versions=(0, 0),
        finish_reason="stop",
        text="",
        reasoning=None,
        answer=None,
    )
    return TrainSample(trajectory, 1.0, 1.0, "7/3/0/1", media)


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


def test_text_alone_has_no_batch(inputs: MiniCPMVInputs):
    assert inputs([sample(tuple(encode("abc")), encode("1"))], torch.zeros(1, 9)) is None
    assert collate([], 9) is None


@pytest.mark.parametrize(
    ("engine_saw", "blocks"), [((LARGE,), 3), ((STILL, STILL), 2), ((), 0)], ids=str
)
def test_a_difference_names_the_sample(
    inputs: MiniCPMVInputs, engine_saw: tuple[MediaFile, ...], blocks: int
):
    prompt = inputs.expanded(encode(*[IMAGE_MARKER] * len(engine_saw), "?"), engine_saw)
    seen = sample(prompt, encode("12"), STILL)
    with pytest.raises(ValueError, match=rf"sample 7/3/0/1: the engine saw {blocks} .* makes 1"):
        inputs([seen], torch.zeros(1, 90, dtype=torch.long))
