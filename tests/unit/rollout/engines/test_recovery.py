"""What becomes of requests and weights when an engine dies, hangs or joins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import pytest

from rl.config.run import RecoveryConfig
from rl.loop.interfaces import GenerationFailed, WorkerFailed
from rl.loop.loop import Parts, TrainingLoop
from rl.loop.publish import CanaryCheck, publish
from rl.loop.stages import Prompt, RolloutRequest, WeightProof
from rl.system import supervision
from rl.system.supervision import Supervisor
from rollout.engines import pool as pool_module
from rollout.engines.pool import Deadline, Deadlines, EnginePool, Spawner
from tests.fake_actors import NOBODY, FakeActor
from tests.fakes import FakeLearner, FakePrompts, FakeScorer, config, proof

LONG = Deadline(60.0, "a setting")


def request(name: str = "0/0/0") -> RolloutRequest:
    return RolloutRequest(name, Prompt(name, (), "12"), "short", (1, 2, 3), 2, 4, 1.0, 0)


@dataclass
class Engines:
    """A pool over fakes, and what happened to them."""

    actors: list[FakeActor]
    pool: EnginePool
    log: list[tuple[int, str]]
    notes: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def kinds(self) -> list[tuple[str, str]]:
        return [(event["event"], event["who"]) for event in self.events]


@asynccontextmanager
async def engines(
    monkeypatch: pytest.MonkeyPatch,
    num: int = 2,
    deadline: Deadline = LONG,
    most: int = 0,
    min_serving: int = 1,
    prepare: Callable[[FakeActor], None] = lambda actor: None,
    **recovery: float,
) -> AsyncIterator[Engines]:
    """prepare: is given every actor that is started later."""
    log: list[tuple[int, str]] = []
    actors = [FakeActor(index, log) for index in range(num)]

    async def end_processes(vitals: object) -> None:
        for actor in actors:
            if actor.is_stopped:
                actor.die()

    def spawn(index: int) -> FakeActor:
        actor = FakeActor(index, log)
        actors.append(actor)
        prepare(actor)
        return actor

    monkeypatch.setattr(pool_module, "kill_actor", lambda actor: actor.die())
    monkeypatch.setattr("rl.system.actors.kill_actor", lambda actor: actor.die())
    monkeypatch.setattr(supervision, "end_processes", end_processes)
    monkeypatch.setattr(pool_module, "end_processes", end_processes)
    monkeypatch.setattr(pool_module, "GROW_S", 0.01)
    found = Engines(actors, None, log)  # type: ignore[arg-type]
    supervisor = Supervisor(RecoveryConfig(**recovery), found.notes.append, found.events.append)
    spawner = Spawner(spawn, min_serving=min_serving, most=most, has_room=lambda: True)
    found.pool = EnginePool(
        "engine", actors[:], Deadlines(deadline, deadline, deadline), supervisor, spawner
    )
    found.pool.canary = object()  # type: ignore[assignment]
    await found.pool.start()
    # As after the first publish: before it a fault ends the run.
    found.pool._was_proven = True
    try:
        yield found
    finally:
        for task in found.pool._tasks:
            task.cancel()


def run(body: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await body

    return asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_of_a_dead_engine_go_to_the_others_at_once(monkeypatch):
    async def body() -> None:
        # The replacement never comes up.
        hold = lambda actor: setattr(actor, "is_stopped", True)  # noqa: E731
        async with engines(monkeypatch, prepare=hold) as found:
            for actor in found.actors:
                actor.held.clear()
            asked = [asyncio.create_task(found.pool.generate(request(f"0/{i}/0"))) for i in (0, 1)]
            await until(lambda: found.log.count((1, "generate")) == 1)
            found.actors[1].die()
            found.actors[0].held.set()
            groups = await asyncio.gather(*asked)
            assert [group.request.group_id for group in groups] == ["0/0/0", "0/1/0"]
            assert [group.engine for group in groups] == [0, 0]
            assert found.kinds() == [("lost", "engine 1")]
            assert any("engine 1 is replaced" in note for note in found.notes)

    run(body())


def test_a_replacement_serves_only_after_it_has_proven_the_current_weights(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch) as found:
            learner, canary = FakeLearner(), CanaryCheck.of(config())
            cfg = config()
            parts = Parts(FakePrompts(4), lambda *_: (1,), found.pool, FakeScorer(), learner)
            loop = TrainingLoop(cfg, parts, 3, canary)
            await publish(learner, found.pool, 3, canary)
            found.pool.admit = partial(loop.admit, found.pool)
            found.log.clear()
            found.actors[1].die()
            await until(lambda: ("joined", "engine 1") in found.kinds())
            new = found.actors[2]
            assert found.pool.actors == [found.actors[0], new]
            assert new.version == 3
            calls = [n for i, n in found.log if i == 1 and n not in ("vitals", "watch")]
            assert calls == ["start", "pause", "resume", "prove"]
            # The others go on meanwhile.
            assert not {(0, "pause"), (0, "resume")} & set(found.log)
            await asyncio.gather(*(found.pool.generate(request(f"1/{i}/0")) for i in range(2)))
            assert {(0, "generate"), (1, "generate")} <= set(found.log)

    run(body())


def test_a_replacement_without_the_right_weights_ends_the_run(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch) as found:
            learner, canary = FakeLearner(), CanaryCheck.of(config())
            parts = Parts(FakePrompts(4), lambda *_: (1,), found.pool, FakeScorer(), learner)
            loop = TrainingLoop(config(), parts, 0, canary)
            found.pool.admit = partial(loop.admit, found.pool)

            async def other(version: int) -> WeightProof:
                return proof(version, digests={"a.weight": "1", "b.weight": "other"})

            learner.send_weights = other
            found.actors[1].die()
            with pytest.raises(RuntimeError, match=r"b\.weight"):
                await found.pool._supervisor.until(asyncio.Event().wait())

    run(body())


def test_no_engine_is_loaded_or_awake_in_an_update_that_needs_its_memory(monkeypatch):
    async def body() -> None:
        hold = lambda actor: actor.may_start.clear()  # noqa: E731
        async with engines(monkeypatch, num=3, prepare=hold) as found:
            found.pool.admit = AsyncMock()
            found.actors[2].die()
            await until(lambda: len(found.actors) == 4)
            asleep = asyncio.create_task(found.pool.sleep())
            await asyncio.sleep(0.05)
            assert not asleep.done()
            found.actors[3].may_start.set()
            await asleep
            calls = [index for index, name in found.log if name == "sleep"]
            assert sorted(calls) == [0, 1, 2]
            # In the update: this one is replaced after it.
            found.actors[1].die()
            await until(lambda: found.kinds()[-1] == ("lost", "engine 1"))
            await asyncio.sleep(0.05)
            assert len(found.actors) == 4
            await publish(FakeLearner(), found.pool, 5, CanaryCheck.of(config()))
            assert found.actors[0].version == found.actors[3].version == 5
            await until(lambda: len(found.actors) == 5)

    run(body())


def test_a_publish_waits_for_the_only_engine_where_it_was_lost_in_the_update(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, num=1) as found:
            found.pool.admit = AsyncMock()
            await found.pool.sleep()
            found.actors[0].die()
            await until(lambda: found.kinds() == [("lost", "engine 0")])
            await publish(FakeLearner(), found.pool, 5, CanaryCheck.of(config()))
            assert found.actors[1].version == 5

    run(body())


@pytest.mark.parametrize("method", ["pause", "resume", "prove"])
def test_an_engine_that_dies_within_a_publish_leaves_it_to_the_others(monkeypatch, method):
    async def body() -> None:
        async with engines(monkeypatch, prepare=lambda a: setattr(a, "is_stopped", True)) as found:
            found.actors[1].dies_in = method
            await publish(FakeLearner(), found.pool, 5, CanaryCheck.of(config()))
            assert found.actors[0].version == 5
            assert found.pool.receivers == [found.actors[0]]
            assert found.kinds() == [("lost", "engine 1")]

    run(body())


def test_an_engine_that_dies_while_weights_are_sent_leaves_the_publish_to_the_others(monkeypatch):
    """The learner waits in its transfer for the engine that is gone, and is let go."""

    async def body() -> None:
        async with engines(monkeypatch, prepare=lambda a: setattr(a, "is_stopped", True)) as found:
            learner, sent = FakeLearner(), []

            async def send_weights(version: int) -> WeightProof:
                sent.append(list(found.pool.receivers))
                if len(sent) == 1:
                    found.actors[1].die()
                    await asyncio.Event().wait()
                return proof(version)

            learner.send_weights = send_weights
            await publish(learner, found.pool, 5, CanaryCheck.of(config()))
            assert sent == [found.actors[:2], found.actors[:1]]

    run(body())


def test_the_last_engine_is_waited_for_and_named_until_the_stated_time(monkeypatch):
    async def body() -> None:
        hold = lambda actor: setattr(actor, "is_stopped", True)  # noqa: E731
        async with engines(monkeypatch, num=1, prepare=hold, wait_s=0.2) as found:
            found.actors[0].die()
            with pytest.raises(WorkerFailed, match=r"waited for engine 0 \(starting\)"):
                await found.pool.generate(request())
            assert any("waiting for engine 0" in note for note in found.notes)

    run(body())


def test_with_fewer_engines_than_min_workers_requests_wait_for_the_replacement(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, min_serving=2) as found:
            found.actors[1].die()
            await until(lambda: bool(found.events))
            await found.pool.generate(request())
            assert found.log.index((0, "generate")) > found.log.index((1, "start"), 2)

    run(body())


def test_a_stopped_engine_is_noticed_within_its_heartbeat_killed_and_replaced(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, heartbeat_s=0.2) as found:
            await until(lambda: found.log.count((1, "vitals")) > 2)
            found.actors[1].is_stopped = True
            await until(lambda: ("joined", "engine 1") in found.kinds())
            (lost,) = [event for event in found.events if event["event"] == "lost"]
            assert lost["who"] == "engine 1"
            assert "answered nothing for 0.2 s" in lost["why"]
            assert found.pool.actors[1] is found.actors[2]

    run(body())


def test_a_group_that_an_engine_is_too_slow_for_fails_alone_and_the_engine_stays(monkeypatch):
    async def body() -> None:
        deadline = Deadline(0.1, "rollout.group_timeout_s")
        async with engines(monkeypatch, num=1, deadline=deadline) as found:
            found.actors[0].held.clear()
            with pytest.raises(GenerationFailed, match=r"timeout: rollout\.group_timeout_s passed"):
                await found.pool.generate(request())
            found.actors[0].held.set()
            await found.pool.generate(request())
            assert found.kinds() == []

    run(body())


def test_too_many_losses_within_an_hour_end_the_run_by_name(monkeypatch):
    async def body() -> None:
        mortal = lambda actor: setattr(actor, "dies_in", "start")  # noqa: E731
        async with engines(monkeypatch, num=1, prepare=mortal, restarts_per_hour=3) as found:
            found.actors[0].die()
            with pytest.raises(WorkerFailed, match="engine 0 failed 4 times within an hour"):
                await found.pool.generate(request())
            assert found.kinds() == [("lost", "engine 0")] * 3 + [("gave_up", "engine 0")]

    run(body())


def test_without_restarts_a_dead_engine_ends_the_run_by_name(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, restarts_per_hour=0) as found:
            found.actors[1].dies_in = "generate"
            with pytest.raises(WorkerFailed, match="engine 1 failed"):
                await asyncio.gather(*(found.pool.generate(request(f"0/{i}/0")) for i in range(2)))

    run(body())


def test_engines_join_where_there_is_room_and_come_back_after_they_have_left(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, num=1, most=2) as found:
            await until(lambda: ("joined", "engine 1") in found.kinds())
            assert len(found.pool.actors) == 2
            found.pool.actors[1].die()
            await until(lambda: found.kinds().count(("joined", "engine 1")) == 2)
            assert ("left", "engine 1") in found.kinds()
            assert len(found.pool.actors) == 2

    run(body())


def test_a_whole_run_goes_on_through_the_deaths_of_its_engines(monkeypatch):
    """Every group is trained once, in its step, and no sample is of weights that were not sent."""

    async def body() -> None:
        async with engines(monkeypatch, restarts_per_hour=100) as found:
            cfg = config(steps=8, rollout__max_staleness=2)
            learner = FakeLearner(0.002)
            parts = Parts(FakePrompts(4), lambda *_: (1,), found.pool, FakeScorer(), learner)
            loop, results = TrainingLoop(cfg, parts), []
            await publish(learner, found.pool, 0, CanaryCheck.of(cfg))
            found.pool.admit = partial(loop.admit, found.pool)

            async def kill_one(result: Any) -> bool:
                results.append(result)
                found.pool.actors[result.step % 2].die()
                await until(lambda: len(found.actors) == 2 + result.step)
                return True

            await loop.run(kill_one)
            ids = [[g.group.request.group_id for g in result.groups] for result in results]
            assert ids == [[f"{step}/{place}/0" for place in range(4)] for step in range(8)]
            assert all(not result.dropped for result in results)

    run(body())


def test_engines_are_recycled_one_by_one_and_end_what_they_were_asked_before(monkeypatch):
    async def body() -> None:
        async with engines(monkeypatch, restarts_per_hour=0) as found:
            monkeypatch.setattr(pool_module, "IDLE_S", 0.01)
            for actor in found.actors:
                actor.held.clear()
            asked = [asyncio.create_task(found.pool.generate(request(f"0/{i}/0"))) for i in (0, 1)]
            await until(lambda: found.log.count((1, "generate")) == 1)
            recycling = asyncio.create_task(found.pool.recycle("it has grown"))
            await asyncio.sleep(0.05)
            assert len(found.actors) == 2, "no engine goes before its request is done"
            # What is asked meanwhile goes to the engine that stays.
            late = asyncio.create_task(found.pool.generate(request("0/2/0")))
            await until(lambda: found.log.count((1, "generate")) == 2)
            for actor in found.actors:
                actor.held.set()
            groups = await asyncio.gather(*asked, late)
            assert [group.engine for group in groups] == [0, 1, 1]
            await recycling
            assert found.pool.actors == found.actors[2:]
            events = [("recycled", "engine 0"), ("joined", "engine 0")]
            events += [("recycled", "engine 1"), ("joined", "engine 1")]
            assert found.kinds() == events

    run(body())


def test_a_process_that_is_gone_is_not_there():
    assert not NOBODY.is_there()
