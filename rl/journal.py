"""What a long stage has done so far: a JSON object a line, read back where a killed process ended.

A process that dies while writing leaves at most one torn line, which the next one cuts off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """The file of one stage; only one process at a time may have it open."""

    def __init__(self, path: Path) -> None:
        """Open or make it; raises ValueError for a whole line that is no JSON object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        self._file.truncate(path.read_bytes().rfind(b"\n") + 1)
        self.records = [self._read(line) for line in path.read_bytes().splitlines()]
        """What earlier processes added."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; once it returns, it outlives this process."""
        self._file.write(json.dumps(dict(record)).encode() + b"\n")
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

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{self.path} has a line that is not JSON ({error}); something else changed the "
                "file: remove it, and its stage starts again"
            ) from error
        return record
