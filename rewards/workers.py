"""Worker processes that verify answers and can be killed, one sample at a time.

A sample that hangs, eats memory or crashes its process fails alone, within its limit; pebble kills
the process and starts another. No signals are used, so it works in any thread of any actor. Workers
are forked from a fork server, a clean process without threads.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as WorkerTimeout
from importlib import import_module

from pebble import ProcessExpired, ProcessPool

SAMPLES_PER_PROCESS = 2000
"""A process is replaced after this many, so that what sympy caches does not grow for ever."""


PRELOAD = "rewards.preload"


class SampleFailed(Exception):
    """A sample was not verified; the message is `timeout`, `memory` or `crash`."""


class WorkerPool:
    def __init__(self, num_workers: int, timeout_s: float, memory_mib: int) -> None:
        """timeout_s: wall-clock limit of one sample; memory_mib: what a worker may add to its own
        start-up size."""
        context = multiprocessing.get_context("forkserver")
        # The server imports once, so that a replaced worker is there in milliseconds.
        context.set_forkserver_preload([PRELOAD])
        self._timeout_s = timeout_s
        self._pool = ProcessPool(
            max_workers=num_workers,
            max_tasks=SAMPLES_PER_PROCESS,
            initializer=_prepare_worker,
            initargs=(memory_mib,),
            context=context,
        )

    async def run(self, function: Callable[..., float], *arguments: object) -> float:
        """Call a module-level function in a worker; raises SampleFailed if it does not finish."""
        future = self._pool.schedule(
            _bounded, args=(self._timeout_s, function, arguments), timeout=self._timeout_s
        )
        try:
            return await asyncio.wrap_future(future)
        except WorkerTimeout:
            raise SampleFailed("timeout") from None
        except MemoryError:
            raise SampleFailed("memory") from None
        except ProcessExpired:
            raise SampleFailed("crash") from None

    def close(self) -> None:
        """Kill the workers; samples under way fail."""
        self._pool.stop()
        self._pool.join()


def _prepare_worker(memory_mib: int) -> None:
    """Limit this process to `memory_mib` above what it holds when it starts."""
    import_module(PRELOAD)  # free where the fork server preloaded it
    # pebble's handler waits for the interpreter, which a hang in C code does not give back in time.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open("/proc/self/statm") as statm:
        own_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    limit = own_bytes + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _bounded(timeout_s: float, function: Callable[..., float], arguments: tuple) -> float:
    """Call the function under a CPU limit too: it ends a hang whose pool has been killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    return function(*arguments)
