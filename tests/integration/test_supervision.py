"""Bounds on restarts, what is told of them, and a run in which nothing goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl.config.run import RecoveryConfig
from rl.loop.interfaces import WorkerFailed
from rl.system import supervision, vitals, watchdog
from rl.system.actors import WAITING, call
from rl.system.supervision import Supervisor, watch_restarts
from rl.system.vitals import Process, Vitals, kill_processes, process_of
from tests.fake_actors import FakeActor


def supervised(**recovery: float) -> tuple[Supervisor, list[dict[str, Any]], list[float]]:
    events: list[dict[str, Any]] = []
    now = [0.0]
    config = RecoveryConfig(**recovery)
    return Supervisor(config, record=events.append, clock=lambda: now[0]), events, now


def test_restarts_are_counted_by_process_and_hour():
    supervisor, events, now = supervised(restarts_per_hour=2)
    for seconds in (0.0, 1800.0):
        now[0] = seconds
        supervisor.lost("engine 0", "died")
    supervisor.lost("engine 1", "died")
    # The first one is an hour ago, and counts no longer.
    now[0] = 3600.0
    supervisor.lost("engine 0", "died")
    now[0] = 3700.0
    with pytest.raises(WorkerFailed, match=r"engine 0 failed 3 times within an hour[^:]*:\nwhy"):
        supervisor.lost("engine 0", "why")
    assert [event["event"] for event in events] == ["lost"] * 4 + ["gave_up"]
    assert events[-1]["who"] == "engine 0"
    assert events[-1]["why"] == "why"


def test_an_error_of_the_background_ends_what_the_run_waits_for():
    async def body() -> None:
        supervisor, *_ = supervised()

        async def fail() -> None:
            raise WorkerFailed("engine 0 is gone")

        supervisor.in_background(fail())
        with pytest.raises(WorkerFailed, match="engine 0 is gone"):
            await supervisor.until(asyncio.Event().wait())
        supervisor.mended()

        async def answer() -> int:
            return 42

        assert await supervisor.until(answer()) == 42

    asyncio.run(asyncio.wait_for(body(), 30))


def test_an_actor_that_ray_starts_again_is_told_of_and_given_up_after_its_restarts(monkeypatch):
    async def body() -> None:
        supervisor, events, _ = supervised(restarts_per_hour=2, heartbeat_s=0.06)
        actor, killed, ended = FakeActor(0, []), [], []

        async def end_processes(of: Vitals) -> None:
            ended.append(of.process.started)

        monkeypatch.setattr(supervision, "kill_actor", killed.append)
        monkeypatch.setattr(supervision, "end_processes", end_processes)
        watching = asyncio.create_task(watch_restarts(supervisor, actor, "rewards"))
        for restart in range(3):
            while len(events) < 2 * restart:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            actor.process = Process(os.getpid(), restart)
        with pytest.raises(WorkerFailed, match="rewards failed 3 times"):
            await watching
        assert killed == [actor]
        await asyncio.sleep(0)
        assert ended == [process_of(os.getpid()).started, 0, 1]
        assert [e["event"] for e in events] == ["lost", "joined", "lost", "joined", "gave_up"]

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_call_that_keeps_the_run_waiting_is_named_and_its_process_killed_and_then_given_up(
    monkeypatch, tmp_path
):
    async def body() -> None:
        supervisor, events, _ = supervised()
        killed: list[Vitals] = []

        async def end_processes(of: Vitals) -> None:
            killed.append(of)

        monkeypatch.setattr(supervision, "end_processes", end_processes)
        rank = Vitals("node", Process(1, 1), ())
        supervisor.heard("learner rank 0", rank)
        supervisor.heard("engine 0", Vitals("node", Process(2, 2), ()))
        actor = FakeActor(0, [])
        actor.is_stopped = True
        rank_call = call(actor, "pause", deadline_s=60, who="learner rank")
        later_call = call(actor, "start", deadline_s=60, who="engine 0")
        waiting = [asyncio.ensure_future(one) for one in (rank_call, later_call)]
        await asyncio.sleep(0)
        stacks = tmp_path / "stacks.txt"
        with pytest.raises(WorkerFailed, match=r"learner rank: nothing .* has been at pause for"):
            await watchdog.watch_progress(supervisor, 0.2, lambda: stacks)
        assert killed == [rank]
        assert [(e["event"], e["who"]) for e in events] == [("stalled", "learner rank")] * 2
        assert all(event["stacks"] == str(stacks) for event in events)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(asyncio.wait_for(body(), 30))


def test_as_long_as_calls_are_answered_nobody_is_suspected():
    async def body() -> None:
        supervisor, events, _ = supervised()
        watching = asyncio.create_task(watchdog.watch_progress(supervisor, 0.2, Path))
        for _ in range(20):
            with WAITING.at("engine 0", "generate"):
                await asyncio.sleep(0.03)
        assert not watching.done()
        watching.cancel()
        assert not events

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_driver_whose_event_loop_is_stuck_ends_with_its_stacks(tmp_path):
    path = tmp_path / "stacks.txt"
    script = (
        "import asyncio, time\n"
        "from pathlib import Path\n"
        "from rl.system.watchdog import LoopWatch\n"
        "async def body():\n"
        f"    watch = LoopWatch(0.5, Path({str(path)!r})).start()\n"
        "    await asyncio.sleep(0.1)\n"
        "    time.sleep(60)\n"
        "asyncio.run(body())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "the driver itself has been stuck" in done.stderr
    assert "in body" in path.read_text()


def test_a_process_and_what_it_started_are_killed_and_nothing_else():
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeper) as process, subprocess.Popen(sleeper) as other:
        assert {process.pid, other.pid} <= set(vitals.descendants(os.getpid()))
        one = process_of(process.pid)
        # The same id, but of a process that was there before.
        kill_processes((Process(other.pid, process_of(other.pid).started - 1), one))
        assert process.wait(30) != 0
        assert not one.is_there()
        assert other.poll() is None
        other.kill()


def test_a_process_that_ends_in_time_is_not_killed():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"]) as process:
        kill_processes((process_of(process.pid),), patience_s=30)
        assert process.wait(30) == 0


def test_a_process_that_an_actor_started_and_that_stays_stopped_is_killed(monkeypatch):
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(vitals.ray, "get_runtime_context", lambda: context)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeper) as stopped, subprocess.Popen(sleeper) as other:
        actor = vitals.Watched()
        stopped.send_signal(signal.SIGSTOP)
        one = process_of(stopped.pid)
        while not one.is_stopped():
            time.sleep(0.01)
        for _ in range(2 * vitals.PINGS_PER_HEARTBEAT):
            assert one in actor.vitals().children
        assert one.is_there()
        actor.vitals()
        assert stopped.wait(30) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
