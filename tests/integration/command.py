"""The project's commands as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m module` in a process group of its own, so that a kill reaches nothing else."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


HANGS_S = 900
"""Longer than any command takes, on a slow machine that does other things too, or has to make the
built-in models first."""


def finish(process: subprocess.Popen[str], timeout_s: float = HANGS_S, code: int = 0) -> str:
    """Its output, once it has ended with this exit code; one that is late is killed."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            kill(process)
    assert process.returncode == code, output[-5000:]
    return output


def kill(process: subprocess.Popen[str]) -> None:
    """End it with -9, and all that it started in its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
