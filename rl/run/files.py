"""Files that are either complete or absent, whenever the process is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""`errno` of an OSError after which there is only room to make."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write; it takes the place of `path` once it is on disk.

    If the block raises, `path` is left as it was and the error passes on.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync_to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Return when the file's bytes, or the directory's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
