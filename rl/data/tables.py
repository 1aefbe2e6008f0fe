"""Tables of a data set: a .jsonl or .parquet file, a directory of them, or a Hugging Face name.

Whoever needs rows opens the same table: the driver for its prompts, and an engine or a learner rank
for the media inside it. No code of a data set is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from rl.config.data import SourceConfig

READERS = {".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Location:
    """Where rows are read from; subset and split matter to Hugging Face names alone."""

    path: str
    subset: str | None
    split: str

    @property
    def directory(self) -> Path:
        """Where relative paths inside the rows start."""
        local = Path(self.path)
        if local.is_dir():
            return local.absolute()
        return local.absolute().parent if local.is_file() else Path.cwd()


def train_location(data: SourceConfig) -> Location | None:
    """Where the training rows are; None where `data.path` names none."""
    return None if data.path is None else Location(data.path, data.subset, data.split)


def heldout_location(data: SourceConfig) -> Location | None:
    """Where the held-out rows are; None where they are a share of the training rows."""
    path = data.heldout_path or data.path
    if path is None or not (data.heldout_path or data.heldout_split):
        return None
    return Location(path, data.subset, data.heldout_split or "train")


def media_in(cell: Any) -> list[str | bytes | None]:
    """The paths and bytes of a cell, in order; None for a list's element with nothing in it.

    A cell is a path, bytes, a `{"bytes": ..., "path": ...}` of which the bytes count first, a list
    of them, or empty. Raises ValueError for anything else.

    Example: media_in([{"bytes": b"x", "path": "a.png"}, "b.png"]) == [b"x", "b.png"]
    """
    if isinstance(cell, list):
        return [_medium_in(element) for element in cell]
    alone = _medium_in(cell)
    return [] if alone is None else [alone]


def _medium_in(element: Any) -> str | bytes | None:
    if isinstance(element, dict) and {"bytes", "path"} >= element.keys():
        return _medium_in(element.get("bytes")) or _medium_in(element.get("path"))
    if element is None or isinstance(element, str | bytes):
        return element or None
    raise ValueError(
        f"must hold paths, bytes or {{bytes, path}}, or lists of them, got {element!r:.120}"
    )


def read_table(location: Location) -> Dataset:
    """Return the rows; raises ValueError where there are none to read."""
    path, local = location.path, Path(location.path)
    if local.is_dir():
        files = sorted(file for file in local.rglob("*") if file.suffix in READERS)
        kinds = {file.suffix for file in files}
        if len(kinds) != 1:
            raise ValueError(
                f"{path} must hold files of one kind, {' or '.join(READERS)}, got "
                f"{', '.join(sorted(kinds)) or 'none'}"
            )
        return _read_files(kinds.pop(), files)
    if local.is_file():
        if local.suffix not in READERS:
            raise ValueError(f"{path} must end in {' or '.join(READERS)}, got {local.suffix!r}")
        return _read_files(local.suffix, [local])
    if local.suffix in READERS or path.startswith((".", "/", "~")):
        raise ValueError(f"{path} does not exist; paths start at {Path.cwd()}")
    try:
        return load_dataset(path, location.subset, split=location.split)
    except (DatasetNotFoundError, ConnectionError, ValueError) as error:
        raise ValueError(
            f"{path} is no file here, and as a Hugging Face data set (data.subset="
            f"{location.subset}, split {location.split}) it cannot be read: {error}"
        ) from error


def _read_files(suffix: str, files: Sequence[Path]) -> Dataset:
    try:
        return load_dataset(
            READERS[suffix], data_files=[str(file) for file in files], split="train"
        )
    except (DatasetGenerationError, StopIteration) as error:
        # The library lets StopIteration escape for a file without a single row.
        why = error.__cause__ or "no rows"
        raise ValueError(
            f"{', '.join(map(str, files))} cannot be read as {suffix[1:]}: {why}"
        ) from error
