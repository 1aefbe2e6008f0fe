"""One process at a time in a directory, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class DirectoryLock:
    """An flock on `.lock`; the kernel frees it even after kill -9."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        return self._file is not None

    def acquire(self) -> None:
        """Make the directory if need be and hold it until `release`.

        Raises ValueError if it cannot be written, or if another process holds it.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            file = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"run directory {self._root} cannot be written ({error.strerror}: "
                f"{error.filename}); name another with run=PATH"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 200, 0).decode().strip() or "another process"
            os.close(file)
            raise ValueError(
                f"run directory {self._root} is in use by {owner}; wait for it to end, stop it, or "
                "name another with run=PATH"
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
