"""Opens the files that rows come in, as Arrow tables that many processes map from one file.

Cells of text formats stay as they are written: no column gets a type, so a date is no time, a
number in quotes stays text, and rows need not have the same keys. Every such cell is kept as JSON.
"""

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME

from rl.data.fingerprint import stamp
from rl.data.splits import ENDINGS, file_kind

# A cell may hold megabytes of media, and a batch is in memory as a whole.
BATCH_ROWS = 256
JSON_CELL = pa.json_(pa.large_string())
_STARTS = {
    b"\x1f\x8b": ("gzip", "compressed by gzip; put .gz behind its name"),
    b"\x28\xb5\x2f\xfd": ("zstd", "compressed by zstd; put .zst behind its name"),
    b"PAR1": ("parquet", "a parquet file; let its name end in .parquet"),
    b"ARROW1": ("arrow", "an Arrow file; let its name end in .arrow"),
    b"BZh": ("bzip2", "compressed by bzip2; unpack it"),
    b"\xfd7zXZ": ("xz", "compressed by xz; unpack it"),
    b"PK\x03\x04": ("zip", "a zip archive or a spreadsheet; unpack it, or save it as .csv"),
    b"version https://git-lfs": ("lfs", "a Git LFS pointer, not the data; run git lfs pull there"),
    b"<!DOCTYPE": ("html", "a web page, such as one that asks to log in; download the file itself"),
}
"""How files begin -> what they are, and what to do where the name says something else."""
START_BYTES = 32
# Where a .json file that is one object keeps its rows.
_ROWS_KEYS = "data rows train test examples instances questions annotations items samples".split()
# Of what is written to the cache; a change makes every table anew.
_FORM = 1


def open_file(path: Path) -> pa.Table:
    """Return the rows of a file; raises ValueError, which names the file, for one without any."""
    kind, compression = file_kind(path)
    if kind is None:
        raise ValueError(
            f"{path} must end in {', '.join(ENDINGS)}, also with .gz or .zst, got {path.suffix!r}; "
            "unpack or convert it, or rename it if it is one of these"
        )
    with _named_errors(path, kind):
        with path.open("rb") as file:
            form, what = content_form(file.read(START_BYTES))
        if form not in ("", kind, compression):
            raise ValueError(f"it is {what}")
        if kind == "arrow" and compression is None:
            table = _open_arrow(pa.memory_map(str(path)))
        else:
            table = _open_arrow(pa.memory_map(str(_converted(path, kind, compression))))
        _refuse_repeated(table.column_names)
        if not len(table):
            raise ValueError("no rows")
        return table


def content_form(start: bytes) -> tuple[str, str]:
    """What a file is by its first START_BYTES, and what to do with it; empty where that is open."""
    return next((_STARTS[each] for each in _STARTS if start.startswith(each)), ("", ""))


def _refuse_repeated(names: Sequence[str]) -> None:
    """Raise ValueError for a name that several columns have: which of them is meant?"""
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"several columns are called {', '.join(repeated)}; rename all but one")


@contextmanager
def _named_errors(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        # The error counts bytes of a block; a person looks for a line.
        with path.open("rb") as file:
            wrong = (
                n for n, line in enumerate(file, 1) if "\ufffd" in line.decode(errors="replace")
            )
            number = next(wrong, "?")
        raise ValueError(
            f"{path} cannot be read as {kind}: line {number} is not UTF-8; convert the file, as in "
            f"iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error


def _open_arrow(source: pa.NativeFile) -> pa.Table:
    """Read either of Arrow's formats: of files, which can be sought, or of streams."""
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _converted(path: Path, kind: str, compression: str | None) -> Path:
    """Return the file's rows as an Arrow file, made on first use of this content."""
    stat = path.stat()
    name = stamp(json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, _FORM]))
    # Beside the data sets of the hub, because a person has put those where there is room.
    default = Path(HF_HOME) / "datasets"
    folder = Path(os.environ.get("HF_DATASETS_CACHE", default)) / "hybrid-rl"
    target = folder / f"{name}.arrow"
    if target.is_file():
        return target
    if kind == "parquet":
        source: Any = str(path) if compression is None else pa.py_buffer(_bytes(path, compression))
        with pq.ParquetFile(source) as file:
            _write(target, file.schema_arrow, file.iter_batches(BATCH_ROWS))
    elif kind == "arrow":
        table = _open_arrow(pa.BufferReader(_bytes(path, compression)))
        _write(target, table.schema, table.to_batches())
    else:

        def rows() -> Iterator[dict[str, Any]]:
            return _json_rows(path, compression) if kind == "json" else _csv_rows(path, compression)

        _write(target, *_as_json(rows))
    return target


def _write(target: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a file that other processes see whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Engines may make the same table at the same time; each writes its own, and the last one stays.
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    try:
        # As a stream, whose batches may each have categories of their own.
        with os.fdopen(descriptor, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def _as_json(
    rows: Callable[[], Iterator[dict[str, Any]]],
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return a table in which every cell is JSON text.

    rows: reads them from the start, which is done twice: a key may first appear in the last row.
    """
    names = list(dict.fromkeys(chain.from_iterable(rows())))
    schema = pa.schema([(name, JSON_CELL) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        reading = rows()
        while batch := list(islice(reading, BATCH_ROWS)):
            columns = []
            for name in names:
                cells = (row.get(name) for row in batch)
                texts = [None if cell is None else json.dumps(cell) for cell in cells]
                storage = pa.array(texts, pa.large_string())
                columns.append(pa.ExtensionArray.from_storage(JSON_CELL, storage))
            yield pa.record_batch(columns, schema=schema)

    return schema, batches()


# Text formats.


def _bytes(path: Path, compression: str | None) -> bytes:
    with pa.input_stream(str(path), compression=compression) as stream:
        return stream.read()


@contextmanager
def _text(path: Path, compression: str | None, newline: str | None = None) -> Iterator[Any]:
    """The file as text; Windows writes UTF-16 and marks at the start, which are no content."""
    with pa.input_stream(str(path), compression=compression) as stream:
        start = stream.read(2)
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    # Without a mark the first character tells it by the zero beside it: headers and JSON are ASCII.
    if b"\0" in start:
        encoding = "utf-16-le" if start.endswith(b"\0") else "utf-16-be"
    with pa.input_stream(str(path), compression=compression) as stream:
        yield TextIOWrapper(stream, encoding, newline=newline)


def _json_rows(path: Path, compression: str | None) -> Iterator[dict[str, Any]]:
    """One object a line, an array of objects, or one object over several lines."""
    with _text(path, compression) as text:
        numbered = ((n, line) for n, line in enumerate(text, 1) if line.strip())
        lines = list(islice(numbered, 2))
        # By their first line and not by the name of the file, of which .json means either.
        try:
            are_rows = bool(lines) and isinstance(json.loads(lines[0][1]), dict)
        except json.JSONDecodeError:
            are_rows = False
        if are_rows and len(lines) == 1:
            # One line is one row by the name of .jsonl, and may hold all rows by that of .json.
            are_rows = ".jsonl" in path.name.lower() or ".ndjson" in path.name.lower()
        if are_rows:
            for number, line in chain(lines, numbered):
                yield _row(line, f"line {number}")
        elif lines:
            yield from _whole_json("".join(line for _, line in lines) + text.read(), lines[0][0])


def _whole_json(content: str, start: int) -> Iterator[dict[str, Any]]:
    """start: the line at which the content starts, from 1."""
    try:
        tree = json.loads(content)
    except json.JSONDecodeError as error:
        line = content.split("\n")[error.lineno - 1]
        raise ValueError(
            f"line {start + error.lineno - 1}: {error.msg}, got {line.strip():.60}; a file holds "
            "one object a line, or one list of them"
        ) from error
    if isinstance(tree, dict):
        held = [key for key in _ROWS_KEYS if isinstance(tree.get(key), list)]
        if len(held) > 1:
            raise ValueError(f"it has rows under {' and '.join(held)}; write each to a file")
        tree = tree[held[0]] if held else _rows_of_columns(tree)
    if not isinstance(tree, list):
        raise ValueError(f"it must hold rows, got {content:.60}")
    for number, row in enumerate(tree, 1):
        yield _object(row, f"row {number}")


def _rows_of_columns(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn columns as pandas writes them into rows; any other object is one row.

    Example: _rows_of_columns({"q": {"0": "a", "1": "b"}}) == [{"q": "a"}, {"q": "b"}]
    """
    columns = list(tree.values())
    if columns and all(isinstance(column, dict) for column in columns):
        keys = list(columns[0])
        if all(list(column) == keys for column in columns):
            return [{name: column[key] for name, column in tree.items()} for key in keys]
    are_lists = len(columns) > 1 and all(isinstance(column, list) for column in columns)
    if are_lists and len(set(map(len, columns))) == 1:
        return [dict(zip(tree, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [tree]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        return _object(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {error.msg}, got {line.strip():.60}") from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with a key for each column, got {row!r:.60}")
    return row


def _csv_rows(path: Path, compression: str | None) -> Iterator[dict[str, Any]]:
    # Whole articles stand in cells.
    csv.field_size_limit(2**31 - 1)
    with _text(path, compression, newline="") as text:
        header = text.readline()
        # Spreadsheets in much of Europe write semicolons.
        usual = "\t" if file_kind(path)[0] == "tsv" else ","
        delimiter = ";" if usual not in header and ";" in header else usual
        reader = csv.DictReader(chain([header], text), delimiter=delimiter, strict=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        _refuse_repeated(reader.fieldnames)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"line {reader.line_num} has more fields than the header: {row[None]!r:.60}"
                )
            yield row
