"""What a long stage has done so far: a JSON object a line, read back where a killed process ended.

A process that dies while writing leaves at most one torn line, which the next one cuts off.
"""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """The file of one stage; only one process at a time may have it open."""

    def __init__(self, path: Path) -> None:
        """Open or make it, and hold it until it is closed or the process ends, also by kill -9.

        Raises ValueError for a whole line that is no JSON object, BlockingIOError if another
        process has it open, and other OSErrors for a file that cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        try:
            self._lock()
            self.records = self._read()
            """What earlier processes added, a record a line."""
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; once it returns, it outlives this process."""
        line = json.dumps(dict(record), ensure_ascii=False)
        # Half a surrogate pair, which a server can send, is then written as JSON's own escape.
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Take it away, where what it led to is on disk."""
        self._file.close()
        self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process has it open", str(self.path)
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        written = self._file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        return [self._record(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"it is a {type(record).__name__}")
        except ValueError as error:
            raise ValueError(
                f"{self.path}, line {number} is no JSON object ({error}); something else changed "
                "the file: remove the line, and what it stood for is done again"
            ) from error
        return record
