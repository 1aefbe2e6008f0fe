"""Short texts that tell models, and whatever decides their answers, from one another."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path


def stamp(text: str) -> str:
    """12 hexadecimal digits that no other text has, but for a chance near 2^-48."""
    return blake2b(text.encode(), digest_size=6).hexdigest()


def stamp_of_model(directory: Path) -> str:
    """Changes when anything in the directory is written anew: weights, tokenizer, chat template."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    stats = [(file.name, file.stat()) for file in files]
    return stamp(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))
