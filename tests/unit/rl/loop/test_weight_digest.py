import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rl.loop import weight_digest
from rl.loop.weight_digest import CHUNK_WORDS, compare_changes, tensor_digest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def ramp(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)


def test_a_digest_does_not_depend_on_memory_layout():
    tensor = ramp(12).reshape(3, 4)
    transposed_storage = tensor.t().contiguous().t()
    assert not transposed_storage.is_contiguous()
    assert tensor_digest(transposed_storage) == tensor_digest(tensor)
    assert tensor_digest(ramp(24)[::2]) == tensor_digest(ramp(24)[::2].clone())


def test_a_digest_is_stable_between_versions_of_the_code():
    assert tensor_digest(ramp(5)) == "8cd5c64c424d054997b121dc8a51ec58"


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_count(dtype: torch.dtype):
    tensor = torch.zeros(6, dtype=dtype)
    digests = {tensor_digest(tensor), tensor_digest(tensor.reshape(2, 3))}
    digests |= {tensor_digest(torch.zeros(6, dtype=d)) for d in DTYPES}
    assert len(digests) == 1 + len(DTYPES)


def test_negative_zero_and_nan_payloads_are_bits_like_any_other():
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert tensor_digest(nan) == tensor_digest(nan.clone())


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 99), bit=st.integers(0, 31))
def test_one_flipped_bit_is_seen(place: int, bit: int):
    words = torch.arange(100, dtype=torch.int32)
    flipped = words.clone()
    flipped[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert tensor_digest(words.view(torch.float32)) != tensor_digest(flipped.view(torch.float32))


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 99), second=st.integers(0, 99))
def test_two_exchanged_words_are_seen(first: int, second: int):
    tensor = ramp(100)
    exchanged = tensor.clone()
    exchanged[[first, second]] = tensor[[second, first]]
    assert (tensor_digest(tensor) == tensor_digest(exchanged)) == (first == second)


def test_exchanged_chunks_are_seen(monkeypatch: pytest.MonkeyPatch):
    assert CHUNK_WORDS > 16
    monkeypatch.setattr(weight_digest, "CHUNK_WORDS", 4)
    tensor = ramp(16)
    exchanged = torch.cat([tensor[4:8], tensor[:4], tensor[8:]])
    assert tensor_digest(tensor) != tensor_digest(exchanged)


def test_a_digest_does_not_depend_on_how_much_is_widened_at_one_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(weight_digest, "CHUNK_WORDS", 4)
    digests = set()
    for chunks in (1, 2, 5, 100):
        monkeypatch.setattr(weight_digest, "CHUNKS_AT_ONCE", chunks)
        digests.add(tensor_digest(ramp(39)))
    assert len(digests) == 1


def test_an_empty_tensor_has_a_digest():
    assert tensor_digest(torch.zeros(0, 3)) != tensor_digest(torch.zeros(3, 0))


MADE_OF = {"q": {"qkv"}, "k": {"qkv"}, "v": {"qkv"}, "norm": {"norm"}, "packed": {"unreadable"}}
HELD = {"qkv", "norm", "scale"}


@pytest.mark.parametrize(
    ("new", "changed", "unapplied", "unexplained"),
    [
        ({"q", "norm"}, {"qkv", "norm"}, [], []),
        (set(), set(), [], []),
        # One part of a fused tensor is enough, and what cannot be read says nothing.
        ({"v", "packed"}, {"qkv"}, [], []),
        # The scales of a quantised model follow from others.
        ({"q"}, {"qkv", "scale"}, [], []),
        ({"q", "norm"}, {"qkv"}, ["norm"], []),
        ({"k", "v"}, set(), ["k", "v"], []),
        ({"q"}, {"qkv", "norm"}, [], ["norm"]),
    ],
)
def test_a_tensor_changes_if_and_only_if_something_it_is_made_of_does(
    new, changed, unapplied, unexplained
):
    assert compare_changes(MADE_OF, new, changed, HELD, False) == (unapplied, unexplained)


def test_from_zeros_every_tensor_must_be_loaded_and_filled():
    everything = set(MADE_OF)
    assert compare_changes(MADE_OF, everything, HELD, HELD, True) == ([], [])
    left_out = MADE_OF | {"norm": set()}
    found = compare_changes(left_out, everything, HELD - {"norm"}, HELD, True)
    assert found == (["norm"], ["norm"])
    assert compare_changes(MADE_OF, everything, HELD, HELD | {"extra"}, True) == ([], ["extra"])
    # A bias of zeros is none the less applied.
    assert compare_changes(MADE_OF, everything - {"norm"}, HELD - {"norm"}, HELD, True) == ([], [])
