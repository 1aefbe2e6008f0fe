"""Files of JSON objects, one a line: the only place that appends to them and reads them back.

A line counts once its newline is there. A process that is killed while it writes, or that fills
the disk, leaves at most one torn line at the end: readers leave it out, and the next writer cuts it
off.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rl.run.files import atomic_write, full_disk_named

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a file, none if it is not there; raises ValueError for a line that is none."""
    return list(each_record(path))


def each_record(path: Path) -> Iterator[Record]:
    """`read_records` of a file of which no more than a line is to be held at a time."""
    if path.exists():
        with path.open("rb") as lines:
            yield from _records(path, (line for line in lines if line.endswith(b"\n")))


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by these records, all or nothing."""
    with atomic_write(path) as partial:
        partial.write_bytes(b"".join(map(_line, records)))


class Journal(AbstractContextManager):
    """A file of records that is open for appending; it knows what earlier processes added.

    Whoever opens one must own its directory (rl/run/directory.py): it does not lock by itself.
    """

    def __init__(self, path: Path) -> None:
        """Open the file or make it; raises ValueError for a whole line that is no JSON object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        try:
            whole = _whole_lines(path)
            # As bytes: str.splitlines would also split at characters such as U+2028, which answers
            # hold.
            self.records = list(_records(path, whole.splitlines()))
            """What the file held when it was opened."""
            # A new line added behind a torn one would join it, and both would be lost.
            self._file.truncate(len(whole))
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; once this returns, the record outlives the process."""
        with full_disk_named(self.path):
            self._file.write(_line(record))
            self._file.flush()

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def remove(self) -> None:
        """Delete the file: what its records led to is complete and on disk elsewhere."""
        self._file.close()
        self.path.unlink()

    def close(self) -> None:
        # What the disk had no room for is tried once more.
        with full_disk_named(self.path):
            self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(record), ensure_ascii=False)
    # A server can send half a surrogate pair, which UTF-8 cannot hold. Python's backslash escape
    # of it happens to be JSON's own.
    return text.encode(errors="backslashreplace") + b"\n"


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _records(path: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"it is a {type(record).__name__}")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is no JSON object ({error}); something else changed the "
                "file: remove the line, and what it stood for is done again"
            ) from error
        yield record
