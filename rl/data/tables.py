"""Tables of a data set: files, a directory of them, or a Hugging Face name.

Whoever needs rows opens the same table: the driver for its prompts, and an engine or a learner rank
for the media inside it. No code of a data set is ever run.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from rl.config.data import PromptsConfig
from rl.data.cells import field_of, plain
from rl.data.files import BATCH_ROWS, open_file
from rl.data.media.names import MediaError
from rl.data.splits import (
    by_split,
    choose_split,
    data_files,
    file_kind,
    find_files,
    is_passed_over,
)


@dataclass(frozen=True)
class Location:
    """Where rows are read from."""

    paths: tuple[str, ...]
    subset: str | None
    split: str | None
    """None takes the only split there is."""
    split_key: str
    """The setting that names the split, for errors."""
    max_rows: int | None = None
    media_dir: str | None = None
    """Where relative paths inside the rows start; None for the directory of the rows."""
    allow_outside: bool = False
    """Whether rows may name files outside the directories that relative paths start at."""

    @property
    def name(self) -> str:
        """Of the first file or the data set, without folders and endings."""
        path = Path(self.paths[0])
        if has_magic(path.name):
            path = path.parent
        while file_kind(path)[0] is not None or path.suffix.lower() in (".gz", ".zst"):
            path = path.with_suffix("")
        return path.name or "rows"


def train_location(data: PromptsConfig) -> Location | None:
    """Where the training rows are; None where `data.path` names none."""
    if data.path is None:
        return None
    media = (data.media_dir, data.allow_outside)
    split = (data.subset, data.split, "data.split")
    return Location(_paths(data.path), *split, data.max_rows, *media)


def heldout_location(data: PromptsConfig) -> Location | None:
    """Where the held-out rows are; None where they are a share of the training rows."""
    path = data.heldout_path or data.path
    if path is None or not (data.heldout_path or data.heldout_split):
        return None
    paths = _paths(path)
    # The subset is one of data.path; files beside it have none.
    is_own = data.heldout_path is not None and Path(paths[0]).expanduser().exists()
    subset = None if is_own else data.subset
    split = (subset, data.heldout_split, "data.heldout_split")
    return Location(paths, *split, None, data.media_dir, data.allow_outside)


def _paths(path: str | list[str]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else tuple(path)


@dataclass(frozen=True)
class Part:
    """The rows of one file, or of a data set of the Hugging Face hub."""

    path: Path
    directory: Path
    """The one that `data.path` names, or the one with its file."""
    arrow: pa.Table

    @property
    def features(self) -> dict[str, Any]:
        """What the `datasets` library noted of the columns, such as the names of classes."""
        noted = json.loads((self.arrow.schema.metadata or {}).get(b"huggingface", b"{}"))
        own = {column.name: _noted(column.type) for column in self.arrow.schema}
        return own | noted.get("info", {}).get("features", {})


def _noted(kind: pa.DataType) -> Any:
    """What rl.data.cells.plain must know of a type, as the `datasets` library would note it."""
    if isinstance(kind, pa.JsonType):
        return {"_type": "Json"}
    if pa.types.is_floating(kind):
        return {"dtype": kind.to_pandas_dtype().__name__}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"feature": _noted(kind.value_type)}
    return {field.name: _noted(field.type) for field in kind} if pa.types.is_struct(kind) else None


class Table:
    """The rows of all files of a location, in order; a cell is read when it is asked for."""

    def __init__(
        self,
        parts: Sequence[Part],
        max_rows: int | None = None,
        media_dir: str | None = None,
        allow_outside: bool = True,
    ) -> None:
        self._parts = parts
        self._allow_outside = allow_outside
        self._media_dirs = [] if media_dir is None else [Path(media_dir).expanduser().absolute()]
        self._features = [part.features for part in parts]
        self._starts = [0, *accumulate(len(part.arrow) for part in parts)]
        self._num_rows = min(self._starts[-1], max_rows or self._starts[-1])
        self.names = tuple(dict.fromkeys(n for part in parts for n in part.arrow.column_names))

    def __len__(self) -> int:
        return self._num_rows

    def has_column(self, name: str) -> bool:
        """Whether a column, or a field of one, is called so."""
        top, path = self._address(name)
        return top is not None and (not path or any(cell is not None for cell in self.column(name)))

    def fields_beside(self, name: str) -> list[str]:
        """The fields of the struct that a dotted name begins with."""
        top, path = self._address(name)
        cells = self.column(top) if top is not None and path else iter(())
        struct = next((cell for cell in cells if isinstance(cell, dict)), {})
        return [f"{top}.{field}" for field in struct]

    def column(self, name: str) -> Iterator[Any]:
        """Yield a column's cells, in the types of JSON; None where a file has no such column."""
        for first in range(0, len(self), BATCH_ROWS):
            for row in self.rows([name], first, min(first + BATCH_ROWS, len(self))):
                yield row[name]

    def rows(self, names: Sequence[str], start: int, stop: int) -> list[dict[str, Any]]:
        """Return some columns of the rows from `start` up to `stop`."""
        rows: list[dict[str, Any]] = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            part, features = self._parts[number].arrow, self._features[number]
            within = start - self._starts[number]
            count = min(stop - start, len(part) - within)
            columns = []
            for name in names:
                top, path = self._address(name)
                if top is not None and top in part.column_names:
                    column = part.column(top).slice(within, count)
                    cells = column.to_pylist(maps_as_pydicts="lossy")
                    cells = [field_of(plain(cell, features.get(top)), path) for cell in cells]
                else:
                    cells = [None] * count
                columns.append(cells)
            rows += (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))
            start += count
        return rows

    def cell(self, name: str, row: int) -> Any:
        return self.rows([name], row, row + 1)[0][name]

    def find(self, path: str, row: int) -> str:
        """Return the absolute path of a file that a row names.

        Relative paths start at `data.media_dir`, else at the data set's directory, else at that of
        the row's file, else at the working directory. Raises MediaError for a path that leads out
        of all of them, unless `data.allow_outside` is set.
        """
        part = self._parts[bisect_right(self._starts, row) - 1]
        starts = (*self._media_dirs, part.directory, part.path.parent, Path.cwd())
        candidates = [os.path.join(start, os.path.expanduser(path)) for start in starts]
        # isfile, because a cell may hold anything, even what is no path at all.
        found = next(filter(os.path.isfile, candidates), candidates[0])
        # Rows come from strangers, and what they name is shown to a policy, whose answers may be
        # published. A link is followed: whoever put the files there made it.
        inside = (os.path.join(os.path.abspath(start), "") for start in starts)
        if not self._allow_outside and not os.path.normpath(found).startswith(tuple(inside)):
            raise MediaError(
                f"outside: {path} leads out of the data's directories; move it there, set "
                "data.media_dir, or allow it with data.allow_outside=true"
            )
        return found

    def where(self, row: int) -> str:
        """The row in words: its file, and its number there from 1."""
        number = bisect_right(self._starts, row) - 1
        return f"{self._parts[number].path.name} row {row - self._starts[number] + 1}"

    def _address(self, name: str) -> tuple[str | None, list[str]]:
        """The column and the fields within it that a dotted name means."""
        words = name.split(".")
        # A column may have dots in its own name.
        for count in range(len(words), 0, -1):
            if (top := ".".join(words[:count])) in self.names:
                return top, words[count:]
        return None, []


def read_table(location: Location) -> Table:
    """Return the rows; raises ValueError where there are none to read."""
    parts: list[Part] = []
    for path in location.paths:
        parts += _parts(path, location)
    return Table(parts, location.max_rows, location.media_dir, location.allow_outside)


def _parts(path: str, location: Location) -> list[Part]:
    local = Path(path).expanduser()
    if "://" in path:
        raise ValueError(
            f"data.path={path} is an address, and rows are read from files; download it, or name a "
            "data set of the Hugging Face hub as OWNER/NAME"
        )
    if local.is_dir():
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            return [_saved_to_disk(local, location)]
        files = find_files(local, location.subset, location.split, location.split_key)
        directory = local.absolute()
    elif local.is_file():
        _refuse_split(local, location)
        files, directory = [local], local.absolute().parent
    elif has_magic(path):
        files = _matching(str(local), location)
        directory = files[0].absolute().parent
    elif file_kind(local)[0] is not None or path.startswith((".", "/", "~")):
        raise ValueError(f"{local} does not exist; paths start at {Path.cwd()}")
    else:
        return [_published(path, location)]
    # Named one by one they are meant; in a directory one kind is often a copy of the other.
    kinds = {file_kind(file)[0] for file in files} - {None}
    if len(kinds) > 1 and len(location.paths) == 1:
        raise ValueError(
            f"{path} must hold files of one kind, got {', '.join(sorted(map(str, kinds)))}; name "
            "the files in data.path"
        )
    return [Part(file.absolute(), directory, open_file(file)) for file in files]


def _refuse_split(file: Path, location: Location) -> None:
    """Raise ValueError where a file is to have a split that is not its own."""
    own = set(by_split([file], file.parent))
    # The default split says nothing about a file; any other was written by a person.
    is_default = location.split in (None, "train") and location.split_key == "data.split"
    if not is_default and location.split not in {None, *own}:
        raise ValueError(
            f"{file} is one file and has no split {location.split}; leave "
            f"{location.split_key} out, or name the file with the held-out rows in "
            "data.heldout_path"
        )
    if location.subset is not None and location.split_key == "data.split":
        raise ValueError(
            f"{file} is one file and has no subset {location.subset}; leave data.subset out"
        )


def _matching(pattern: str, location: Location) -> list[Path]:
    """The files that a pattern matches, of one split where their names say several."""
    matches = (Path(match) for match in sorted(glob(pattern, recursive=True)))
    files = [
        file
        for file in matches
        if file.is_file() and file_kind(file)[0] is not None and not is_passed_over(file, pattern)
    ]
    if not files:
        raise ValueError(f"data.path={pattern} matches no file with rows, from {Path.cwd()}")
    splits = by_split(files, Path(os.path.commonpath([file.parent for file in files])))
    if len(splits) == 1:
        return files
    return choose_split(splits, location.split, pattern, location.split_key)


def _saved_to_disk(directory: Path, location: Location) -> Part:
    """What `save_to_disk` of the `datasets` library wrote: a split, or a folder for each."""
    # Imported on use: it takes seconds to load, and most data sets are files.
    from datasets import load_from_disk

    listed = directory / "dataset_dict.json"
    if listed.is_file():
        names = json.loads(listed.read_text())["splits"]
        splits = {name: data_files(directory / name) for name in names}
        (file, *_) = choose_split(splits, location.split, str(directory), location.split_key)
        directory = file.parent
    try:
        saved: Any = load_from_disk(str(directory))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{directory} cannot be read as what save_to_disk wrote: {error}; copy it again, whole"
        ) from error
    own = str(saved.split or "train")
    if not listed.is_file() and location.split not in (None, "train", own):
        choose_split({own: [directory]}, location.split, str(directory), location.split_key)
    return Part(directory / "dataset", directory.absolute(), _table_of(saved))


def _published(name: str, location: Location) -> Part:
    """A data set of the Hugging Face hub."""
    # Imported on use: it takes seconds to load, and most data sets are files.
    from datasets import exceptions, load_dataset

    split = location.split or "train"
    try:
        rows = load_dataset(name, location.subset, split=split)
    except (
        exceptions.DatasetNotFoundError,
        exceptions.DatasetGenerationError,
        ConnectionError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{name} is no file here, and as a Hugging Face data set (data.subset="
            f"{location.subset}, {location.split_key}={split}) it cannot be read: {error}"
        ) from error
    return Part(Path(name), Path.cwd(), _table_of(rows))


def _table_of(rows: Any) -> pa.Table:
    """rows: a datasets.Dataset, of which the names of classes are kept."""
    return rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
