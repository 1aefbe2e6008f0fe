"""A digest of a tensor that every device computes to the same bits.

Learner and engines each digest the weights where they lie, so that a publish is compared without
moving anything. Only wrap-around 64-bit integer sums are used: they do not depend on the order in
which a device adds.
"""

from __future__ import annotations

import functools
import hashlib

import torch

from rl.data.fingerprint import digest

CHUNK_WORDS = 2**20
"""Words that are digested at one time; bounds the memory to 8 bytes x this, a few times over."""

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
    for chunk, start in enumerate(range(0, words.numel(), CHUNK_WORDS)):
        # In chunks, because the widened copy of a whole embedding would not fit beside the model.
        part = words[start : start + CHUNK_WORDS].to(torch.int64)
        for place, seed in enumerate(_SEEDS):
            weighted = (part * multipliers[place, : part.numel()]).sum()
            # An odd number that looks random and depends on sum and chunk alone, so that two
            # chunks that change places change the digest.
            key = (seed + chunk).to_bytes(16, "little")
            odd = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") | 1
            sums[place] += weighted * _signed(odd)
    # The sums know nothing of shape and type: a transposed or a reinterpreted tensor must differ as
    # well.
    header = f"{tensor.dtype} {tuple(tensor.shape)} {sums.tolist()}"
    return digest(header, 16)


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
