"""Supervision: who died or fell silent is replaced, so many times an hour and never without a word.

watch_over   waits for an actor's answers; unblocked by its death, or by a silence that is too
             long, which it ends by killing the actor's processes
Supervisor   counts replacements, tells of them, and ends the run by name after too many
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from ray.exceptions import RayActorError, RayError

from rl.config.run import RecoveryConfig
from rl.loop.interfaces import WorkerFailed
from rl.loop.race import first_of
from rl.system.actors import answer_of, in_a_line, kill_actor
from rl.system.vitals import PINGS_PER_HEARTBEAT, VITALS, Vitals, end_processes

HOUR_S = 3600.0

T = TypeVar("T")


class Loss(NamedTuple):
    """That an actor can no longer be used."""

    why: str
    was_killed: bool
    """Because it was silent; else it died by itself."""


class Supervisor:
    """What a run does about the faults of its processes; all of its parts share one."""

    def __init__(
        self,
        config: RecoveryConfig,
        note: Callable[[str], None] = lambda text: None,
        record: Callable[[Mapping[str, Any]], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """note: tells a person. record: keeps an event, such as in events.jsonl of the run."""
        self.config = config
        self.note = note
        self._record = record
        self._clock = clock
        self._replaced: defaultdict[str, deque[float]] = defaultdict(deque)
        self._vitals: dict[str, Vitals] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: BaseException | None = None

    def lost(self, who: str, why: object) -> None:
        """A process is lost and is to be replaced; raises WorkerFailed if it was too often."""
        now, times = self._clock(), self._replaced[who]
        while times and now - times[0] >= HOUR_S:
            times.popleft()
        bound = self.config.restarts_per_hour
        if len(times) >= bound:
            self.event("gave_up", who, why)
            again = f" {bound + 1} times within an hour (recovery.restarts_per_hour)"
            raise WorkerFailed(f"{who} failed{again if bound else ''}; the last time:\n{why}")
        times.append(now)
        self.event("lost", who, why)
        self.note(f"{who} is replaced: {why}")

    def event(self, kind: str, who: str, why: object = "", **more: Any) -> None:
        """Keep that something happened to `who`."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._record({"time": at, "event": kind, "who": who, "why": str(why), **more})

    def fail(self, error: BaseException) -> None:
        """End the run with an error that nobody waits for, as that of a background task."""
        if self._error is None:
            self._error = error
            self._failed.set()

    def check(self) -> None:
        """Raise the error that `fail` was told of."""
        if self._error is not None:
            raise self._error

    def heard(self, who: str, vitals: Vitals) -> None:
        """The last sign of life of a process."""
        self._vitals[who] = vitals

    async def end(self, who: str) -> bool:
        """Kill the processes of `who`, or of all whose name begins so; False if none is known."""
        known = [v for name, v in self._vitals.items() if name == who or name.startswith(f"{who} ")]
        for vitals in known:
            await end_processes(vitals)
        return bool(known)

    def mended(self) -> None:
        """What `fail` was told of has been dealt with."""
        self._error = None
        self._failed.clear()

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something that nobody waits for: an error of it ends the run."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self.fail(error)

        task = asyncio.create_task(run())
        # asyncio itself keeps no task alive.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def until(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns, or the error that `fail` is told of meanwhile."""
        async with first_of(work, self._failed.wait()) as (task, _):
            if not task.done():
                self.check()
            return await task


async def watch_restarts(supervisor: Supervisor, actor: Any, who: str) -> None:
    """Tell of every restart of an actor that Ray starts again by itself.

    Returns once Ray has given it up; raises WorkerFailed if it was started again too often.
    """
    last: Vitals | None = None
    why = "its process died"

    def heard(vitals: Vitals) -> None:
        nonlocal last, why
        supervisor.heard(who, vitals)
        before, last = last, vitals
        if before is not None and before.process != vitals.process:
            # What the old one had started has lost the one that would have ended it.
            supervisor.in_background(end_processes(before))
            supervisor.lost(who, why)
            supervisor.event("joined", who)
            why = "its process died"

    while True:
        try:
            loss = await watch_over(actor, lambda _: supervisor.config.heartbeat_s, heard)
        except WorkerFailed:
            # Else Ray would start it for ever.
            kill_actor(actor)
            raise
        if not loss.was_killed:
            return
        why = loss.why


async def watch_over(
    actor: Any, heartbeat_s: Callable[[Vitals], float], heard: Callable[[Vitals], None]
) -> Loss:
    """Return once an actor can no longer be used; one that fell silent has been killed by then.

    heartbeat_s: for how long an actor of these last vitals may be silent. heard: is told of every
    sign of life.
    """
    vitals: Vitals | None = None
    ping = None
    try:
        while True:
            asked = time.monotonic()
            if ping is None:
                method = actor.vitals.options(concurrency_group=VITALS)
                ping = asyncio.ensure_future(answer_of(method.remote()))
            # An actor that has never answered is still being started, which has a deadline.
            limit_s = None if vitals is None else heartbeat_s(vitals)
            done, _ = await asyncio.wait((ping,), timeout=limit_s)
            if done:
                try:
                    answer: Vitals = ping.result()
                except RayActorError as error:
                    return Loss(f"its process died: {in_a_line(error)}", False)
                except RayError as error:
                    return Loss(f"it gives no sign of life: {in_a_line(error)}", False)
                ping, vitals = None, answer
                heard(answer)
                limit_s = heartbeat_s(answer)
            assert vitals is not None and limit_s is not None
            # Ray starts some actors again by itself. Of a process that is gone there is nothing
            # left to end, and the new one answers when it is up.
            if not done and vitals.process.is_there():
                await end_processes(vitals)
                return Loss(f"it answered nothing for {limit_s:g} s and was killed", True)
            if vitals.silent_s > limit_s:
                await end_processes(vitals)
                why = f"its engine answered nothing for {limit_s:g} s and was killed"
                return Loss(why, True)
            pause_s = limit_s / PINGS_PER_HEARTBEAT
            await asyncio.sleep(max(0.0, pause_s - (time.monotonic() - asked)))
    finally:
        if ping is not None:
            ping.cancel()
