"""Work that would hold up the event loop, such as writing large files, in a thread of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


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
