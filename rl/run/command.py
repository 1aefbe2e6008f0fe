"""How a command ends: an error that a user can mend is one line and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rl.config.recipe import load
from rl.config.run import Config
from rl.run.directory import RunDirectory
from rl.run.files import FULL_DISK


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


def config_of_run(arguments: Sequence[str]) -> Config:
    """The stored configuration of `run=DIR`, with the other arguments over it."""
    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(runs) != 1:
        raise ValueError("name one run directory: run=runs/NAME")
    stored = RunDirectory(Path(runs[0])).config_path
    if not stored.is_file():
        raise ValueError(f"{runs[0]} is no run directory: it has no {stored.name}")
    return load([f"config={stored}", *arguments]).config
