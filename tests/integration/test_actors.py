"""Calls to real Ray actors: who is blamed, what is raised, and that no wait is for ever."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import RayActorError

from rl.loop.interfaces import GenerationFailed
from rl.system.actors import call, call_all, close_all

pytestmark = pytest.mark.usefixtures("local_ray")


@ray.remote(num_cpus=0, max_concurrency=4)
class Worker:
    def __init__(self) -> None:
        self.begun = self.cancelled = 0

    async def double(self, number: int) -> int:
        return 2 * number

    async def sleep(self, seconds: float) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def num_cancelled(self) -> int:
        return self.cancelled

    async def num_begun(self) -> int:
        return self.begun

    async def fail(self) -> None:
        raise GenerationFailed("empty", "no tokens")

    async def refuse(self) -> None:
        raise ValueError("the input is of no use")

    async def meet_a_dead_actor(self, other: list) -> None:
        await call(other[0], "double", 1, deadline_s=60, who="the other")

    async def die(self) -> None:
        os._exit(1)

    async def close(self) -> None:
        await asyncio.sleep(600)


@pytest.fixture
def workers() -> Iterator[list]:
    workers = [Worker.remote() for _ in range(2)]
    ray.get([worker.double.remote(1) for worker in workers], timeout=60)
    yield workers
    for worker in workers:
        ray.kill(worker)


def test_a_call_returns_the_answer_and_raises_what_the_method_raised(workers: list) -> None:
    async def body() -> None:
        assert await call(workers[0], "double", 21, deadline_s=60, who="worker 0") == 42
        assert await call_all(workers, "double", 2, deadline_s=60, who="worker") == [4, 4]
        with pytest.raises(GenerationFailed) as caught:
            await call(workers[0], "fail", deadline_s=60, who="worker 0")
        assert (type(caught.value), str(caught.value)) == (GenerationFailed, "empty: no tokens")

    asyncio.run(body())


def test_what_is_late_is_named_and_cancelled(workers: list) -> None:
    async def body() -> None:
        with pytest.raises(
            TimeoutError, match=r"worker 1 did not finish sleep within 0\.2 s; wait"
        ):
            await call(workers[1], "sleep", 60, deadline_s=0.2, who="worker 1", hint="; wait")
        with pytest.raises(TimeoutError, match=r"workers \[0, 1\] did not finish sleep"):
            await call_all(workers, "sleep", 60, deadline_s=0.2, who="worker")
        async with asyncio.timeout(30):
            while await asyncio.gather(*(w.num_cancelled.remote() for w in workers)) != [1, 2]:
                await asyncio.sleep(0.05)

    asyncio.run(body())


def test_what_nobody_waits_for_any_more_is_cancelled(workers: list) -> None:
    async def body() -> None:
        asked = call(workers[0], "sleep", 60, deadline_s=60, who="worker 0")
        asker = asyncio.create_task(asked)
        async with asyncio.timeout(30):
            while not await workers[0].num_begun.remote():
                await asyncio.sleep(0.05)
            asker.cancel()
            while not await workers[0].num_cancelled.remote():
                await asyncio.sleep(0.05)

    asyncio.run(body())


def test_an_actor_that_gives_signs_of_life_is_not_late(workers: list) -> None:
    """The deadline of 0.5 s counts from the last sign, and the call takes 1.5 s."""

    async def body() -> None:
        await call(
            workers[0], "sleep", 1.5, deadline_s=0.5, who="worker 0", last_sign=time.monotonic
        )

    asyncio.run(body())


def test_the_first_failure_ends_the_wait_for_all(workers: list) -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="worker 0 failed in fail: empty: no tokens"):
            await call_all(workers, "fail", deadline_s=60, who="worker")
        with pytest.raises(ValueError, match=r"^the input is of no use$"):
            await call_all(workers, "refuse", deadline_s=60, who="worker", refusal=ValueError)
        with pytest.raises(RuntimeError, match="worker 0 failed in refuse"):
            await call_all(workers, "refuse", deadline_s=60, who="worker")

    asyncio.run(body())


def test_a_dead_actor_is_blamed_and_not_the_one_that_met_it(workers: list) -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="worker 1: its process died"):
            await call(workers[1], "die", deadline_s=60, who="worker 1")
        with pytest.raises(RuntimeError, match="the other: its process died"):
            await call(workers[0], "meet_a_dead_actor", [workers[1]], deadline_s=60, who="worker 0")
        with pytest.raises(RuntimeError, match="worker 1 died in double"):
            await call_all(workers, "double", 1, deadline_s=60, who="worker")

    asyncio.run(body())


def test_closing_ends_actors_that_do_not_close(workers: list) -> None:
    started = time.monotonic()
    asyncio.run(close_all(workers, deadline_s=0.5))
    assert time.monotonic() - started < 30
    # Ray ends an actor a moment after it was told to, and until then it may still answer.
    deadline = time.monotonic() + 60
    for worker in workers:
        with pytest.raises(RayActorError):
            while time.monotonic() < deadline:
                ray.get(worker.double.remote(1), timeout=60)
                time.sleep(0.1)
