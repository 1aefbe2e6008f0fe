"""Prompts from a data set: a .jsonl or .parquet file, a directory of them, or a Hugging Face name.

Everything that can be wrong with the rows is found when the source is opened, before anything
heavy starts. No code of a data set is ever run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from rl.config import ColumnsConfig, SourceConfig
from rl.stages import Prompt
from rollout.conversation import conversation, stable_hash, system_message

READERS = {".jsonl": "json", ".parquet": "parquet"}
SHOWN_IDS = 5


class DatasetSource:
    """Rows are shuffled by rollout/prompts.py; here they keep the order of the data set."""

    def __init__(self, config: SourceConfig, modes: Collection[str]) -> None:
        if config.path is None:
            raise ValueError(
                "data.path is required: name a .jsonl or .parquet file, a directory of them, or a "
                "Hugging Face data set"
            )
        self._columns = config.columns
        self._task = config.task
        self._system_prompt = config.system_prompt
        rows = _Rows(_Location(config.path, config.subset, config.split), config.columns, modes)
        if config.heldout_path or config.heldout_split:
            location = _Location(
                config.heldout_path or config.path, config.subset, config.heldout_split or "train"
            )
            self._heldout_rows = _Rows(location, config.columns, modes)
            self._train = _not_among(rows, self._heldout_rows)
            self._heldout = np.arange(len(self._heldout_rows))
        else:
            self._heldout_rows = rows
            self._train, self._heldout = _divide(rows, config.heldout_share)
        self._rows = rows
        pins = rows.pins()
        self._pins = None if pins is None else [pins[row] for row in self._train]

    @property
    def train_count(self) -> int:
        return len(self._train)

    @property
    def heldout_count(self) -> int:
        return len(self._heldout)

    def train(self, index: int) -> Prompt:
        return self._prompt(self._rows, "train", int(self._train[index]))

    def heldout(self, index: int) -> Prompt:
        return self._prompt(self._heldout_rows, "heldout", int(self._heldout[index]))

    def rows_for(self, mode: str) -> list[int] | None:
        if self._pins is None:
            return None
        return [place for place, pin in enumerate(self._pins) if pin in (None, mode)]

    def _prompt(self, rows: _Rows, split: str, number: int) -> Prompt:
        row, columns = rows.table[number], self._columns
        images = tuple(row[columns.images] or ()) if columns.images else ()
        return Prompt(
            id=f"{rows.name}/{split}/{rows.id_of(number)}",
            messages=self._messages(row, len(images)),
            reference=_text(row[columns.reference]),
            task=(row[columns.task] if columns.task else None) or self._task,
            mode=row[columns.mode] or None if columns.mode else None,
            images=images,
        )

    def _messages(self, row: Mapping[str, Any], num_images: int) -> tuple[Mapping[str, Any], ...]:
        if self._columns.messages is None:
            question = _text(row[self._columns.question])
            *system, asked = conversation(question, self._system_prompt)
            if num_images:
                parts = [{"type": "image"}] * num_images + [{"type": "text", "text": question}]
                asked = {"role": "user", "content": parts}
            return (*system, asked)
        messages = tuple(row[self._columns.messages])
        if self._system_prompt is None or messages[0]["role"] == "system":
            return messages
        return (system_message(self._system_prompt), *messages)


@dataclass(frozen=True)
class _Location:
    """Where rows are read from; subset and split matter to Hugging Face names alone."""

    path: str
    subset: str | None
    split: str


class _Rows:
    """The rows of one split, all of them usable."""

    def __init__(self, location: _Location, columns: ColumnsConfig, modes: Collection[str]) -> None:
        self.name = Path(location.path).stem
        self.table = _read(location)
        self._columns = columns
        self._path = location.path
        self._refuse_missing_columns()
        self._ids = [_text(i) for i in self.table[columns.id]] if columns.id else None
        self._refuse_bad_rows(modes)

    def __len__(self) -> int:
        return len(self.table)

    def id_of(self, number: int) -> str:
        return self._ids[number] if self._ids is not None else str(number)

    def pins(self) -> list[str | None] | None:
        if self._columns.mode is None:
            return None
        return [pin or None for pin in self.table[self._columns.mode]]

    def split_keys(self) -> list[str]:
        """What decides a row's split: its content, so that equal questions never fall apart."""
        names = [self._columns.messages or self._columns.question]
        names += [self._columns.images] if self._columns.images else []
        contents = zip(*(self.table[name] for name in names), strict=True)
        return [repr(content) for content in contents]

    def _refuse_missing_columns(self) -> None:
        mapped = self._columns.model_dump()
        if self._columns.messages is not None:
            del mapped["question"]
        missing = {key: name for key, name in mapped.items() if name not in (None, *self._present)}
        if missing:
            listed = ", ".join(f"data.columns.{key}={name}" for key, name in missing.items())
            raise ValueError(
                f"{self._path} has no column for {listed}; its columns are "
                f"{', '.join(self._present)}"
            )

    @property
    def _present(self) -> list[str]:
        return self.table.column_names

    def _refuse_bad_rows(self, modes: Collection[str]) -> None:
        if not len(self):
            raise ValueError(f"{self._path} has no rows")
        self._refuse_wrong_shapes()
        columns = self._columns
        asked = columns.messages or columns.question
        for name in (columns.reference, asked):
            empty = [n for n, value in enumerate(self.table[name]) if not _text(value).strip()]
            self._refuse(empty, f"with nothing in column {name}; fill or remove them")
        if columns.messages is not None:
            told = [
                n for n, m in enumerate(self.table[columns.messages]) if m[-1]["role"] != "user"
            ]
            self._refuse(
                told,
                f"whose column {columns.messages} does not end with the user, so that the answer "
                "may stand in the prompt; cut them after the question",
            )
        if columns.id is not None:
            counts = Counter(self._ids)
            repeated = [n for n in range(len(self)) if counts[self.id_of(n)] > 1]
            self._refuse(
                repeated, f"whose id in column {columns.id} is not unique; name another column"
            )
        pinned = [n for n, pin in enumerate(self.pins() or ()) if pin and pin not in modes]
        self._refuse(
            pinned,
            f"pinned in column {columns.mode} to a mode that is none of {', '.join(modes)}",
        )

    def _refuse_wrong_shapes(self) -> None:
        """One row tells: all cells of a column have the same type."""
        row, columns = self.table[0], self._columns
        if columns.messages is not None:
            messages = row[columns.messages]
            if not isinstance(messages, list) or not all(
                isinstance(message, dict) and {"role", "content"} <= message.keys()
                for message in messages
            ):
                raise ValueError(
                    f"{self._path}: column {columns.messages} must hold lists of messages with "
                    f"role and content, got {messages!r:.120}"
                )
        if columns.images is not None:
            images = row[columns.images] or []
            if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
                raise ValueError(
                    f"{self._path}: column {columns.images} must hold lists of image paths, got "
                    f"{images!r:.120}"
                )

    def _refuse(self, numbers: Sequence[int], why: str) -> None:
        if numbers:
            shown = ", ".join(self.id_of(number) for number in numbers[:SHOWN_IDS])
            raise ValueError(f"{self._path} has {len(numbers)} rows {why}; the first ids: {shown}")


def _text(value: Any) -> str:
    """A cell as text; empty for a missing value or an empty list."""
    return "" if value is None or value == [] else str(value)


def _divide(rows: _Rows, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of training and held out; a row's split depends on itself alone.

    A data set so small that no row falls into the held-out share gives up its nearest ones.
    """
    keys = np.array([stable_hash(key) for key in rows.split_keys()], dtype=np.uint64)
    bound = max(np.uint64(share * 2**64), keys.min())
    heldout, train = np.flatnonzero(keys <= bound), np.flatnonzero(keys > bound)
    if not len(train):
        raise ValueError(
            f"data.path has {len(rows)} rows, too few to hold out data.heldout_share={share} of "
            "different questions; name data.heldout_path"
        )
    return train, heldout


def _not_among(rows: _Rows, heldout: _Rows) -> np.ndarray:
    """Return the numbers of the rows that are not held out as well."""
    held = set(heldout.split_keys())
    train = np.array([n for n, key in enumerate(rows.split_keys()) if key not in held], dtype=int)
    if not len(train):
        raise ValueError(
            "every row of data.path is among the held-out rows, so nothing is left to train on; "
            "name other rows in data.heldout_path or data.heldout_split"
        )
    return train


def _read(location: _Location) -> Dataset:
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
