"""An event loop whose clock jumps to the next timer, so that hours pass as fast as they are told.

Everything that waits by asyncio, such as `asyncio.sleep` and `asyncio.wait(timeout=...)`, takes
part without knowing. Nothing may wait for a thread, a process or a socket: there, no time passes.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Where an event loop sleeps until its next timer is due; here the clock moves instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            # A real loop would sleep for ever.
            raise RuntimeError("everything waits and no timer is set: nothing can ever happen")
        self.now += max(0.0, timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at second 0."""

    def __init__(self) -> None:
        self._clock = _Jump()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Return what `main` returns; raises RuntimeError if it waits for what can never happen."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
