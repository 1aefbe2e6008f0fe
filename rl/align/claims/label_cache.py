"""Labels by content, in one SQLite file that outlives the run: no question is paid for twice.

Any number of threads and processes may read and write at once. SQLite writes each label as a whole
or not at all, also where its process is killed.
"""

import errno
import sqlite3
from pathlib import Path

from rl.align.claims.types import Label

# How long a writer waits for the others; each holds the file for one `put`.
WAIT_S = 60.0


class LabelCache:
    """The labels of one file. Of two labels for one key the first stays: all see the same one."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or sqlite3.OperationalError if `path` cannot be made, ValueError if it is
        another kind of file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite makes calls from several threads take turns. Each statement is a transaction.
        self._database = sqlite3.connect(
            path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            # A put that waited for the disk would hold up the engine at every label. Without the
            # wait it still survives the end of its process, which is what a pass needs; only a
            # failure of the whole machine can spoil the file, and then it is refused here.
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS labels (key TEXT PRIMARY KEY, p_yes REAL, p_no REAL)"
            )
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise ValueError(
                f"{path} holds no labels ({error}); remove it, and the questions are asked again"
            ) from error

    def get(self, key: str) -> Label | None:
        """The label, whichever process put it there; None if there is none."""
        query = "SELECT p_yes, p_no FROM labels WHERE key = ?"
        row = self._database.execute(query, (key,)).fetchone()
        return Label(*row) if row else None

    def put(self, key: str, label: Label) -> None:
        """Keep a label; once this returns, the label outlives this process."""
        row = (key, label.p_yes, label.p_no)
        try:
            self._database.execute("INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            # The command knows a full disk by this error, and says what to do (rl/run/command.py).
            raise OSError(errno.ENOSPC, str(error)) from error
