"""How a command ends: an error that a user can mend is one line and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rl.atomic_write import FULL_DISK


def exit_code(command: Callable[[], None], when_full: str) -> int:
    """Run the command; 0, 2 after a line about what its user can mend, or 130 after Ctrl-C.

    when_full: what to do after a full disk.
    """
    try:
        command()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        print(f"error: {error}; {when_full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0
