"""Two things at once, of which the first to end decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


@asynccontextmanager
async def first_of(
    work: Awaitable[T], other: Awaitable[S]
) -> AsyncIterator[tuple[asyncio.Future[T], asyncio.Future[S]]]:
    """Both as futures, of which at least one is done in the block; after it neither goes on."""
    futures = asyncio.ensure_future(work), asyncio.ensure_future(other)
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        yield futures
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
