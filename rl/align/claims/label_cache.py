"""Labels by content, in one file that outlives the run: what was asked once costs nothing again.

One JSON object a line, appended under a lock. A process that dies while writing leaves at most one
line that cannot be read, which is skipped; any number of processes may write at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from threading import Lock

from rl.align.claims.types import Label


def label_key(labeller: str, media_digests: Sequence[str], question: str) -> str:
    """What a label is kept under (32 hexadecimal digits).

    labeller: its name and version, with all that changes its answers. media_digests: of the media
    it is shown, in order. question: the whole text that it is asked.
    """
    content = json.dumps([labeller, list(media_digests), question])
    return blake2b(content.encode(), digest_size=16).hexdigest()


class LabelCache:
    """The labels of one file; any thread of any process may read and write.

    Of two labels for one key the first stays, so that all who ask see the same.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if `path` cannot be made or read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._labels: dict[str, Label] = {}
        self._end = 0
        """Bytes of the file that were read: whole lines only."""
        self._num_damaged = 0
        self._lock = Lock()
        with self._lock:
            path.touch()
            self._read_on()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_damaged(self) -> int:
        """Lines that were skipped: writers that died, or a file that something else changed."""
        return self._num_damaged

    def get(self, key: str) -> Label | None:
        """The label, also if another process put it there meanwhile; None if there is none."""
        with self._lock:
            if key not in self._labels:
                self._read_on()
            return self._labels.get(key)

    def put(self, labels: Mapping[str, Label]) -> None:
        """Keep labels by `label_key`; once it returns they outlive this process.

        Waits for writers of other processes, each of which holds the file for one write.
        """
        with self._lock, self._only_writer() as file:
            self._read_on()
            lines = [
                json.dumps({"key": key, **vars(label)}) + "\n"
                for key, label in labels.items()
                if key not in self._labels
            ]
            if not lines:
                return
            # A dead writer's half line must not swallow the next one.
            torn = "\n" if os.fstat(file).st_size > self._end else ""
            _write_all(file, (torn + "".join(lines)).encode())
            self._read_on()

    @contextmanager
    def _only_writer(self) -> Iterator[int]:
        # A file of its own for every call: locks of one open file do not exclude each other.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _read_on(self) -> None:
        """Read the whole lines that were added since the last time."""
        if self._path.stat().st_size <= self._end:
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            self._keep(line)

    def _keep(self, line: bytes) -> None:
        try:
            stored = json.loads(line)
            key, label = str(stored["key"]), Label(float(stored["p_yes"]), float(stored["p_no"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            self._num_damaged += 1
            return
        self._labels.setdefault(key, label)


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
