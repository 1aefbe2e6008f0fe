"""Reward workers at the size of a run: real hangs and crashes among thousands of good samples."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from rewards.text.workers import SampleFailed, WorkerPool
from tests import reward_tasks

GOOD = 10_000
TIMEOUT_S = 2.0


def test_nothing_is_lost_among_ten_thousand_samples_with_bombs_between_them() -> None:
    pool = WorkerPool(num_workers=2, timeout_s=TIMEOUT_S, memory_mib=64)
    bombs = [reward_tasks.hang_in_c, reward_tasks.eat_memory, reward_tasks.crash_in_c]
    rng = random.Random(0)
    tasks = [(reward_tasks.square, (number,)) for number in range(GOOD)]
    for bomb in bombs * 4:
        tasks.insert(rng.randrange(len(tasks)), (bomb, ()))

    async def run() -> list[object]:
        calls = (pool.run(function, *arguments) for function, arguments in tasks)
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(run())
    failures = Counter(str(one) for one in outcomes if isinstance(one, SampleFailed))
    assert failures == {"timeout": 4, "memory": 4, "crash": 4}
    good = [one for one in outcomes if not isinstance(one, SampleFailed)]
    assert good == [number * number for number in range(GOOD)]
    pool.close()
