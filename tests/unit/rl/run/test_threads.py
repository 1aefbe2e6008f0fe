import asyncio
import threading
from contextlib import contextmanager

import pytest

from rl.run.threads import entered_in_thread, in_thread


def test_a_cancellation_waits_for_what_the_thread_writes():
    release, written = threading.Event(), []

    def write():
        release.wait(30)
        written.append("whole")

    async def main():
        task = asyncio.create_task(in_thread(write))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert written == ["whole"]

    asyncio.run(main())


def test_an_error_of_the_block_passes_through_the_manager():
    seen = []

    @contextmanager
    def manager():
        try:
            yield threading.current_thread()
        except ValueError as error:
            seen.append(error)
            raise OSError("the disk is full") from error

    async def main():
        async with entered_in_thread(manager()) as thread:
            assert thread is not threading.main_thread()
            raise ValueError("cannot save")

    with pytest.raises(OSError, match="full"):
        asyncio.run(main())
    assert len(seen) == 1
