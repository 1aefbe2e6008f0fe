"""Short texts and numbers that tell contents apart, the same in every process and on every machine.

They stand on disk (names of cached models, digests of what was asked) and decide what is drawn
(held-out rows, sampling seeds), so a change here makes stored work unusable and runs different.
"""

import json
from hashlib import blake2b
from pathlib import Path

_CHUNK_BYTES = 16 * 2**20


def digest(text: str, size: int = 8) -> str:
    """`2 * size` hexadecimal digits; two texts share them with a chance near 2^(-8 * size)."""
    return blake2b(text.encode(), digest_size=size).hexdigest()


def stable_hash(text: str, size: int = 8) -> int:
    """An integer of `size` bytes that is the same in every process, unlike Python's own hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big")


def stamp(text: str) -> str:
    """12 hexadecimal digits: what settings and directory names hold of what decides an answer."""
    return digest(text, 6)


def stamp_of_model(directory: Path) -> str:
    """Changes when anything in the directory is written anew: weights, tokenizer, chat template."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    stats = [(file.name, file.stat()) for file in files]
    # Sizes and times instead of contents: reading tens of GiB would delay every command.
    return stamp(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


def file_digest(path: Path) -> str:
    """64 hexadecimal digits of a file's content, which is read in pieces."""
    state = blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
