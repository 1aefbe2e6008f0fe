"""Work that would hold up the event loop, such as writing large files, in a thread of its own."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")

SWITCH_S = 0.0005
"""How long a thread that computes keeps Python's lock from one that waits for it."""


def shorten_stalls() -> None:
    """Call this once all that stays is loaded: less holds up the event loop from then on."""
    # To look through what is loaded for garbage again and again would take half a second each time.
    gc.collect()
    gc.freeze()
    # A call to an actor gives the lock up for a moment. While a thread packs a batch or writes the
    # ledger, each of the hundreds of calls of a step would wait for it as long as this: 5 ms, by
    # Python's own setting, which add up to seconds.
    sys.setswitchinterval(SWITCH_S)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Return what the function returns; a cancellation waits for its end."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A thread cannot be stopped. Whoever cancelled this goes on to give up what the thread
        # writes to, such as the lock of a directory, which must not happen before it has ended.
        await asyncio.wait([work])
        raise


@asynccontextmanager
async def entered_in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """The context manager, whose own work is done in a thread; the block stays on the loop."""
    value = await in_thread(manager.__enter__)
    try:
        yield value
    except BaseException:
        if not await in_thread(manager.__exit__, *sys.exc_info()):
            raise
    else:
        await in_thread(manager.__exit__, None, None, None)
