"""Which models can share their sequences, and what each rank has of a row."""

import pytest
import torch
from transformers import MistralConfig, Qwen3Config

from policy.learner.sequence_parallel import SequenceShare, share_sequences
from tests.minicpmv_tiny import tiny_model
from tests.qwen3_tiny import SIZES


def test_stretches_make_up_rows_that_are_filled_up_with_zeros():
    rows = torch.arange(1, 15).reshape(2, 7)
    shares = [SequenceShare(None, 3, place) for place in range(3)]
    assert shares[0].padded(7) == 9
    assert shares[0].padded(9) == 9
    stretches = [share.own(rows, 9) for share in shares]
    assert stretches[2].tolist() == [[7, 0, 0], [14, 0, 0]]
    assert torch.equal(torch.cat(stretches, dim=1)[:, :7], rows)
    pairs = torch.stack([rows, -rows], dim=-1)
    assert shares[1].own(pairs, 9)[1].tolist() == [[11, -11], [12, -12], [13, -13]]
    mask = shares[2].own(rows > 3, 9)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (Qwen3Config(**SIZES), 4, "has 2, and 1 of keys and values"),
        (Qwen3Config(**SIZES | {"num_attention_heads": 12, "num_key_value_heads": 4}), 6, "has 12"),
        (MistralConfig(sliding_window=8), 2, "a sliding window"),
        (
            Qwen3Config(**SIZES | {"layer_types": ["full_attention", "sliding_attention"]}),
            2,
            "full_attention, sliding_attention",
        ),
        (tiny_model().config, 2, "places images in its rows"),
    ],
    ids=["heads", "heads of keys", "window", "some windows", "images"],
)
def test_a_model_that_cannot_share_its_rows_is_refused(config, size: int, message: str):
    with pytest.raises(ValueError, match=message):
        share_sequences(config, size, rank=0)
