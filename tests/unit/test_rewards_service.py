"""The workers and the service that uses them: real processes, killed for real."""

import asyncio
import os
import time

import pytest

from rewards.rules import symbolic
from rewards.service import RewardService
from rewards.workers import SampleFailed, WorkerPool
from rl.config import RewardConfig
from rl.stages import Prompt, RolloutGroup, RolloutRequest
from tests.fakes import trajectory
from tests.reward_tasks import crash, eat_memory, hang_in_c, loaded_modules, sleep_for_ever

TIMEOUT_S = 1.0
TOWER = r"\boxed{9^{9^{9^{9^{9}}}}}"


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(num_workers=2, timeout_s=TIMEOUT_S, memory_mib=512)
    asyncio.run(pool.run(os.getpid))
    yield pool
    pool.close()


async def timed(pool, function, *args):
    started = time.perf_counter()
    try:
        outcome = await pool.run(function, *args)
    except SampleFailed as error:
        outcome = str(error)
    return outcome, time.perf_counter() - started


@pytest.mark.parametrize("hang", [sleep_for_ever, hang_in_c])
def test_a_hang_is_killed_in_time_while_the_others_return(pool, hang):
    async def run():
        first = asyncio.create_task(timed(pool, hang))
        await asyncio.sleep(0.05)
        others = [await timed(pool, symbolic, "x+1", "1+x") for _ in range(5)]
        assert not first.done()
        return await first, others

    (outcome, seconds), others = asyncio.run(run())
    assert outcome == "timeout"
    assert seconds < TIMEOUT_S + 0.5
    assert [verdict for verdict, _ in others] == [1.0] * 5


def test_a_memory_hog_and_a_crash_are_told_apart_and_the_pool_goes_on(pool):
    async def run():
        return [await timed(pool, task) for task in (eat_memory, crash, os.getpid)]

    (hog, _), (crashed, seconds), (alive, _) = asyncio.run(run())
    assert (hog, crashed) == ("memory", "crash")
    assert seconds < TIMEOUT_S + 0.5
    assert isinstance(alive, int)


def test_workers_hold_sympy_and_nothing_heavier(pool):
    assert asyncio.run(pool.run(loaded_modules)) == ["sympy"]


def test_a_warm_sample_costs_a_worker_little(pool):
    async def run():
        for _ in range(20):
            await pool.run(os.getpid)
        started = time.perf_counter()
        await asyncio.gather(*(pool.run(os.getpid) for _ in range(400)))
        return (time.perf_counter() - started) / 400

    seconds = asyncio.run(run())
    print(f"\noverhead {1e3 * seconds:.3f} ms a sample")
    assert seconds < 5e-3


def group(reference, answers, mode="short", task="auto"):
    prompt = Prompt("prompt/0", (), reference, task)
    request = RolloutRequest("0/0/0", prompt, mode, (1,), len(answers), 16, 1.0, None)
    return RolloutGroup(request, tuple(answers))


@pytest.fixture(scope="module")
def service():
    config = RewardConfig(workers=2, timeout_s=TIMEOUT_S, memory_mib=512, repetition_ngram=20)
    service = RewardService(config, {"short": False, "long": True})
    yield service
    service.close()


def test_a_long_group_is_scored_part_by_part(service):
    texts = ["2+9\n</think>\n\n11", "2+9\n</think>\n\n12", "2+9, and so", "</think>\n\n11"]
    trajectories = [
        trajectory(
            text=text,
            reasoning=text.partition("</think>")[0],
            answer=text.partition("</think>")[2] or None,
        )
        for text in texts
    ]
    scores = asyncio.run(service.score(group("11", trajectories, "long")))
    assert [score.reward for score in scores] == pytest.approx([1.1, 0.1, 0.0, 1.0])
    assert [score.parts["accuracy"] for score in scores] == [1.0, 0.0, 0.0, 1.0]
    assert [score.parts["leak"] for score in scores] == [0.0, 0.0, 1.0, 1.0]
    assert {score.route for score in scores} == {"number/1"}


def test_a_bomb_fails_alone_and_a_failure_is_not_zero(service):
    answers = [TOWER, r"\sqrt{8}", "3", r"2\sqrt{2}"]
    started = time.perf_counter()
    scores = asyncio.run(
        service.score(group(r"2\sqrt{2}", [trajectory(text=a, answer=a) for a in answers]))
    )
    assert time.perf_counter() - started < TIMEOUT_S + 0.5
    assert [score.reward for score in scores] == [None, 1.1, 0.1, 1.1]
    assert scores[0].failure in ("timeout", "memory")
    assert scores[0].parts == {"format": 1.0, "repetition": 0.0, "leak": 0.0}


def test_a_reference_that_no_rule_can_check_is_a_failure_whatever_the_answer(service):
    long_reference = "because the light of the sun is scattered by the air"
    scores = asyncio.run(
        service.score(group(long_reference, [trajectory(text="x", answer=a) for a in ("x", None)]))
    )
    assert {score.reward for score in scores} == {None}
    assert all(score.failure.startswith("not_scorable: the reference is") for score in scores)
    unread = asyncio.run(service.score(group(r"\frac{", [trajectory(text="3", answer="3")])))
    assert unread[0].failure.startswith("not_scorable: no expression can be read")
    assert service.counts["failure/not_scorable"] == 3
