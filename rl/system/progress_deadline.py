"""A deadline on silence: what works through a queue may take long, but must go on answering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any


class ProgressDeadline:
    """Waits for the answers of one actor; late is only an actor that answers nobody for so long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._answered = -float("inf")

    async def wait(self, answer: Awaitable[Any]) -> Any:
        """Return the answer; raises TimeoutError once nothing was answered for `seconds`."""
        asked = time.monotonic()
        task = asyncio.ensure_future(answer)
        try:
            while True:
                left = max(asked, self._answered) + self.seconds - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                done, _ = await asyncio.wait([task], timeout=left)
                if done:
                    self._answered = time.monotonic()
                    return task.result()
        finally:
            task.cancel()
