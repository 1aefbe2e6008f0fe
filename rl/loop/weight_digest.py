"""A digest of a tensor that every device computes to the same bits.

Learner and engines each digest the weights where they lie, so that a publish is compared without
moving anything. Only wrap-around 64-bit integer sums are used: they do not depend on the order in
which a device adds.
"""

import functools
import hashlib
from collections.abc import Mapping, Set

import torch

from rl.data.fingerprint import digest

CHUNK_WORDS = 2**20
"""Words of a chunk, whose sums are mixed with the chunk's place."""
CHUNKS_AT_ONCE = 16
"""Chunks that are widened at one time; with 2^20 words each takes 8 MiB, a few times over."""

_SEEDS = (0x1F123BB5159A55E5, 0x2545F4914F6CDD1D)
_WORD_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return 32 hexadecimal digits of the tensor's dtype, shape and raw bits.

    A single changed bit always changes the digest: a word's difference times an odd number is
    never 0 modulo 2^64. Moved or exchanged words change it but for a chance near 2^-100.
    """
    word_dtype = _WORD_DTYPES[tensor.element_size()]
    words = tensor.detach().contiguous().view(-1).view(word_dtype)
    sums = torch.zeros(len(_SEEDS), dtype=torch.int64, device=tensor.device)
    multipliers = _multipliers(tensor.device)
    # Some chunks at a time: the widened copy of a whole embedding would not fit beside the model,
    # and one chunk at a time is so little work for a GPU that it would wait for its next order.
    step = CHUNK_WORDS * CHUNKS_AT_ONCE
    for start in range(0, words.numel(), step):
        part = words[start : start + step].to(torch.int64)
        whole = part.numel() // CHUNK_WORDS * CHUNK_WORDS
        rows = part[:whole].view(-1, CHUNK_WORDS), part[whole:].view(1, -1)
        for place, seed in enumerate(_SEEDS):
            chunk = start // CHUNK_WORDS
            for row in rows:
                weighted = (row * multipliers[place, : row.shape[1]]).sum(dim=1)
                # Odd numbers that look random and depend on sum and chunk alone, so that two chunks
                # that change places change the digest.
                keys = ((seed + chunk + i).to_bytes(16, "little") for i in range(len(row)))
                hashes = (hashlib.blake2b(key, digest_size=8).digest() for key in keys)
                odds = [_signed(int.from_bytes(value, "little") | 1) for value in hashes]
                mixed = weighted * torch.tensor(odds, dtype=torch.int64, device=tensor.device)
                sums[place] += mixed.sum()
                chunk += len(row)
    # The sums know nothing of shape and type: a transposed or a reinterpreted tensor must differ as
    # well.
    header = f"{tensor.dtype} {tuple(tensor.shape)} {sums.tolist()}"
    return digest(header, 16)


def compare_changes(
    made_of: Mapping[str, Set[str]],
    new: Set[str],
    changed: Set[str],
    held: Set[str],
    was_zeroed: bool,
) -> tuple[list[str], list[str]]:
    """What was sent and changed nothing, and what changed by nothing that was sent.

    made_of: by checkpoint name, the model's tensors that it is loaded into. new: checkpoint names
    whose values are others than before. changed: the model's tensors that are. held: the model's
    tensors that can be compared; vLLM on CPU keeps some in a form that cannot be read. was_zeroed:
    whether all the model's tensors were 0 before.
    """
    if not made_of:
        return [], []
    unapplied = []
    for name, targets in made_of.items():
        is_left_out = was_zeroed and not targets
        is_unchanged = name in new and targets <= held and targets and not targets & changed
        if is_left_out or is_unchanged:
            unapplied.append(name)
    fed = set().union(*made_of.values())
    explained = set().union(*(made_of.get(name, set()) for name in new))
    # Without a source of its own a tensor may follow from others, such as the scales of a quantised
    # model; but then it is filled.
    unexplained = fed & changed - explained
    if was_zeroed:
        unexplained = unexplained | (held - fed - changed)
    return unapplied, sorted(unexplained)


@functools.cache
def _multipliers(device: torch.device) -> torch.Tensor:
    """Odd numbers, one per place in a chunk and per sum: [2, CHUNK_WORDS] int64."""
    places = torch.arange(CHUNK_WORDS, dtype=torch.int64, device=device)
    rows = []
    for seed in _SEEDS:
        mixed = (places + 1) * seed
        mixed = (mixed ^ (mixed >> 29)) * _signed(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> 32)) * _signed(0x94D049BB133111EB)
        rows.append((mixed ^ (mixed >> 31)) | 1)
    return torch.stack(rows)


def _signed(value: int) -> int:
    """Return the number whose two's complement in 64 bits is `value`."""
    return value - 2**64 if value >= 2**63 else value
