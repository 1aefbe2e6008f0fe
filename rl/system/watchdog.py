"""The watchdog: sees that nothing goes on any more, says what is waited for, and ends the wait.

look       once in a while: has any call been answered since? If not for `recovery.stall_s`,
           the stacks of all processes are written down, and whoever has been waited for longest
           is killed, which leads to its replacement; the second time the run ends by name
a thread   sees whether the driver's own event loop still turns; else it ends the process
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rl.loop.interfaces import WorkerFailed
from rl.system.actors import WAITING
from rl.system.supervision import Supervisor

LOOKS_PER_STALL = 20


async def watch_progress(
    supervisor: Supervisor, stall_s: float, write_stacks: Callable[[], Path]
) -> None:
    """Look until cancelled; raises WorkerFailed that names whoever keeps the run waiting."""
    since, answered, suspect = time.monotonic(), WAITING.num_answered, None
    while True:
        await asyncio.sleep(stall_s / LOOKS_PER_STALL)
        now = time.monotonic()
        if answered != WAITING.num_answered:
            since, answered, suspect = now, WAITING.num_answered, None
        if now - since < stall_s:
            continue
        call = WAITING.oldest()
        who = "the driver, which waits for none of its processes" if call is None else call.who
        why = f"nothing has been finished for {now - since:.0f} s"
        if call is not None:
            why += f", and {call.who} has been at {call.method} for {now - call.since:.0f} s"
        path = await asyncio.to_thread(write_stacks)
        supervisor.event("stalled", who, why, stacks=str(path))
        supervisor.note(f"waiting for {who}: {why}; the stacks of all processes are in {path}")
        if call is None or suspect is not None or not await supervisor.end(call.who):
            raise WorkerFailed(f"the stacks of all processes are in {path}\n{who}: {why}")
        since, suspect = time.monotonic(), who


class LoopWatch:
    """Ends the process, by a thread, once its event loop has not turned for `stall_s`."""

    def __init__(self, stall_s: float, path: Path) -> None:
        """path: where the stacks of the process are written."""
        self._stall_s, self._path = stall_s, path
        self._turned = time.monotonic()
        self._ended = threading.Event()

    def start(self) -> asyncio.Task[None]:
        """Watch the loop that runs until the task is cancelled."""
        threading.Thread(target=self._look, daemon=True).start()
        return asyncio.create_task(self._turn())

    async def _turn(self) -> None:
        try:
            while True:
                self._turned = time.monotonic()
                await asyncio.sleep(self._stall_s / LOOKS_PER_STALL)
        finally:
            self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(self._stall_s / LOOKS_PER_STALL):
            if (silent_s := time.monotonic() - self._turned) < self._stall_s:
                continue
            with self._path.open("w") as file:
                faulthandler.dump_traceback(file)
            print(
                f"error: the driver itself has been stuck for {silent_s:.0f} s; its stacks are in "
                f"{self._path}; the same command goes on",
                file=sys.stderr,
                flush=True,
            )
            # Nothing of it can be asked to end: what it holds is freed as after any kill.
            os._exit(1)
