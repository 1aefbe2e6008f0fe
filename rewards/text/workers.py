"""Worker processes that verify answers and can be killed, one sample at a time.

A sample that hangs, eats memory or crashes its process fails alone, within its limit; pebble kills
the process and starts another. No signals are used, so it works in any thread of any actor. Workers
are forked from a fork server, a clean process without threads.
"""

import asyncio
import math
import multiprocessing
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WorkerTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from rewards.rules.verifier import NotScorable
from rl.loop.stages import Failed, Failure

PRELOAD = "rewards.text.preload"
SAMPLES_PER_PROCESS = 2000
"""A process is replaced after this many, so that what sympy caches does not grow for ever."""
MAX_MESSAGE_BYTES = 8 * 2**20
"""Largest sample that is sent to a worker: some million words."""
MAX_ERROR_CHARACTERS = 300
MAX_TRIES = 3
START_DEADLINE_S = 120.0
"""For a worker to be there; its limit per sample counts from then."""

_START_LOCK = Lock()

T = TypeVar("T", bound=float | str)
S = TypeVar("S")


class SampleFailed(Failed):
    """A sample was not verified; the reason is `timeout`, `memory`, `crash` or `plugin_error`."""


class WorkerPool:
    def __init__(self, num_workers: int, timeout_s: float, memory_mib: int) -> None:
        """timeout_s: wall-clock limit of one sample, from when a worker takes it; memory_mib: what
        a worker may add to its own start-up size."""
        context = multiprocessing.get_context("forkserver")
        # The server imports once, so that a replaced worker is there in milliseconds.
        context.set_forkserver_preload([PRELOAD, __name__])
        self._timeout_s = timeout_s
        prepared = {"initializer": _prepare_worker, "initargs": (memory_mib,), "context": context}
        self._open = partial(ProcessPool, num_workers, SAMPLES_PER_PROCESS, **prepared)
        self._pool = self._open()
        self._threads = ThreadPoolExecutor(num_workers, "reward_worker")
        self._under_way: set[Future[tuple[str, Any]]] = set()
        self._is_closed = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """`call` without blocking the event loop."""
        return await self.beside(self.call, function, *arguments)

    async def beside(self, function: Callable[..., S], *arguments: object) -> S:
        """Run a function that blocks in `call` in a thread of the pool's own."""
        return await asyncio.wrap_future(self._threads.submit(function, *arguments))

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function of an importable module in a worker and return its number or text.

        Raises SampleFailed if there is no value, NotScorable if the function raised it.
        """
        message = _message(function, arguments)
        for _ in range(MAX_TRIES):
            try:
                future = self._schedule(message)
                self._under_way.add(future)
                try:
                    kind, value = future.result(self._timeout_s + START_DEADLINE_S)
                finally:
                    self._under_way.discard(future)
                if kind == "not_scorable":
                    raise NotScorable(value)
                if kind == "failed":
                    raise SampleFailed(value.reason, value.detail)
                return value
            except BrokenProcessPool:
                continue  # A worker without a sample died; this one is not at fault.
            except WorkerTimeout:
                raise SampleFailed("timeout") from None
            except (ProcessExpired, CancelledError):
                break
        raise SampleFailed("crash")

    def close(self) -> None:
        """Kill the workers; samples under way fail."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        # pebble stops its workers without a word to those who wait for them.
        for future in tuple(self._under_way):
            future.cancel()
        self._pool.stop()
        self._pool.join()

    def _schedule(self, message: bytes) -> Future[tuple[str, Any]]:
        # One at a time in the whole process: `_no_main` changes what every thread sees.
        with _START_LOCK:
            if self._is_closed:
                raise RuntimeError("the worker pool is closed")
            if not self._pool.active:
                # pebble gives a pool up when a worker dies that has no sample.
                self._pool.stop()
                self._pool = self._open()
            with _no_main():
                return self._pool.schedule(
                    _bounded, args=(self._timeout_s, message), timeout=self._timeout_s
                )


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the main script of this process while a worker may be started.

    multiprocessing makes a worker import it first, which would bring all of Ray, or a user's
    training script, into every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _message(function: Callable, arguments: tuple) -> bytes:
    """Pickled here, so that what cannot be sent, or is too long, fails alone."""
    try:
        message = pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SampleFailed("crash", f"the sample cannot be sent to a worker: {error}") from error
    if len(message) > MAX_MESSAGE_BYTES:
        detail = f"the sample is {len(message)} bytes long, a worker takes {MAX_MESSAGE_BYTES}"
        raise SampleFailed("memory", detail)
    return message


def _prepare_worker(memory_mib: int) -> None:
    """Limit this process to `memory_mib` above what it holds when it starts."""
    import_module(PRELOAD)  # free where the fork server preloaded it
    # pebble's handler waits for the interpreter, which a hang in C code does not give back in time.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that owns the pool
    with open("/proc/self/statm") as statm:
        own_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    # Above the size at the start, most of which is libraries that all workers share.
    limit = own_bytes + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # A crash fails its sample; it leaves no dump of a gibibyte behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bounded(timeout_s: float, message: bytes) -> tuple[str, Any]:
    """Run one sample under a CPU limit too, which ends a hang whose pool has been killed.

    Everything that can be said is said in plain values, so that no exception of a sample has to
    cross to the other process.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    # The wall clock is watched from outside and ends first; this one ends a worker whose watcher is
    # gone.
    soft = math.ceil(time.process_time() + timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    try:
        function, arguments = pickle.loads(message)
        value = function(*arguments)
    except MemoryError:
        return "failed", Failure("memory")
    except NotScorable as error:
        return "not_scorable", str(error)[:MAX_ERROR_CHARACTERS]
    except SampleFailed as failed:
        reason, why = failed.failure.reason, failed.failure.detail
        return "failed", Failure(reason, why[:MAX_ERROR_CHARACTERS])
    except (Exception, SystemExit) as error:
        return "failed", Failure("crash", f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS])
    if not isinstance(value, int | float | str) or len(str(value)) > MAX_MESSAGE_BYTES:
        return "failed", Failure("crash", f"{type(value).__name__} is no number and no short text")
    return "value", value
