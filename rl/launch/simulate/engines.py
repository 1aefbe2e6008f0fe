"""Engines as queues: what they sample takes the time that the roofline gives, and nothing is made.

    generate -> waiting -> running (one token each per step) -> group ends -> answer
                   ^ admitted while the engine has room, in the order in which they came

Between two events the set of running responses is fixed, so any number of steps is one formula and
the simulation costs nothing per token.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence

from rl.launch.simulate.hardware import EngineSpeed
from rl.loop.stages import RolloutGroup, RolloutRequest, Trajectory, WeightProof

CANARY_LOGPROBS = (-1.0,)


class SimulatedTrajectory(Trajectory):
    """A response of which only the length is known."""

    _lengths: tuple[int, int]

    def __init__(self, num_prompt: int, num_response: int, versions: tuple[int, int]) -> None:
        # Written at once, past the frozen fields: a run has millions of these.
        self.__dict__.update(versions=versions, _lengths=(num_prompt, num_response))

    @property
    def num_tokens(self) -> int:
        return sum(self._lengths)

    @property
    def num_response_tokens(self) -> int:
        return self._lengths[1]


class QueuedGroup:
    """A group that waits for an engine, or runs on it."""

    def __init__(self, prompt: int, lengths: Sequence[int], version: int, tokens: int) -> None:
        self.prompt, self.lengths, self.version = prompt, lengths, version
        self.tokens = tokens
        """By which engines are loaded: the budget of the request."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class EngineQueue:
    """One engine up to a point in time; `advance` moves it on."""

    def __init__(self, speed: EngineSpeed) -> None:
        self.time = 0.0
        self.busy_s = 0.0
        self.sampled = 0.0
        """Response tokens so far, and how many of them groups had that have ended."""
        self.answered = 0.0
        self._speed = speed
        self._steps = 0.0
        """Engine steps so far: every running response gets a token in each."""
        self._cached = 0.0
        self._taken = 0.0
        self._order = itertools.count()
        self._running: list[tuple[float, int, int, QueuedGroup]] = []
        """A heap of: the step at which a response ends, a tie-break, its length, its group."""
        self._waiting: deque[tuple[QueuedGroup, int, int]] = deque()
        """Of each response its group, its length, and the prompt tokens to compute for it."""
        self._left: dict[QueuedGroup, int] = {}
        """Responses that each group still lacks."""

    def copy(self) -> EngineQueue:
        """The same engine, to be moved on while this one stays."""
        twin = EngineQueue.__new__(EngineQueue)
        twin.__dict__.update(self.__dict__)
        twin._running, twin._left = self._running.copy(), self._left.copy()
        twin._waiting = self._waiting.copy()
        return twin

    def add(self, group: QueuedGroup) -> None:
        self._left[group] = len(group.lengths)
        # Once for the whole group, whose responses share their prompt.
        prompts = itertools.chain([group.prompt], itertools.repeat(0))
        self._waiting.extend((group, *own) for own in zip(group.lengths, prompts, strict=False))

    @property
    def groups(self) -> list[QueuedGroup]:
        """All that have not ended."""
        return list(self._left)

    def hold(self, until: float, recompute: bool) -> None:
        """It was paused until now. recompute: keys and values of what runs are made again."""
        self.time = until
        if recompute:
            self._work(self._speed.prompt_token_s * self._cached)

    def advance(self, until: float = math.inf) -> QueuedGroup | None:
        """Go on until the next group ends, which is returned, but no further than `until`."""
        speed, running = self._speed, self._running
        while True:
            if self._waiting:
                self._admit()
            if not running:
                if until < math.inf:
                    self.time = max(self.time, until)
                return None
            if self.time >= until:
                return None
            steps = running[0][0] - self._steps
            count = len(running)
            # Each step caches a token more of every response, so the seconds of a step grow evenly:
            # n steps take n x first + growth x n (n - 1) / 2.
            first, growth = speed.seconds(count, self._cached), speed.cached_token_s * count
            seconds = steps * (first + growth * (steps - 1) / 2)
            is_cut = self.time + seconds > until
            if is_cut:
                seconds = until - self.time
                slope = first - growth / 2
                # The same formula the other way round; without growth it is a division.
                root = math.sqrt(slope * slope + 2 * growth * seconds)
                steps = 2 * seconds / (slope + root)
            self.time += seconds
            self.busy_s += seconds
            self._steps += steps
            self._cached += count * steps
            self.sampled += count * steps
            if is_cut:
                self.time = until
                return None
            _, _, length, group = heapq.heappop(running)
            self._cached -= group.prompt + length
            self._taken -= group.prompt + length / 2
            self._left[group] -= 1
            if not self._left[group]:
                del self._left[group]
                self.answered += sum(group.lengths)
                return group

    def _admit(self) -> None:
        """Start what waits while there is room.

        A response is counted as half written, which is right on average for an engine that has been
        full for a while: vLLM takes in more and gives some up again when it was wrong.
        """
        speed, waiting, running = self._speed, self._waiting, self._running
        while waiting and len(running) < speed.max_sequences:
            group, length, prompt = waiting[0]
            need = group.prompt + length / 2
            if running and self._taken + need > speed.room_tokens:
                return
            waiting.popleft()
            self._work(speed.prompt_token_s * prompt)
            heapq.heappush(running, (self._steps + length, next(self._order), length, group))
            self._taken += need
            self._cached += group.prompt

    def _work(self, seconds: float) -> None:
        self.time += seconds
        self.busy_s += seconds


class SimulatedEngines:
    """Implements Engine (rl/loop/interfaces.py) over queues, as the pool of a run does over actors.

    lengths: the response lengths of a request. keep_kv_cache: of the configuration.
    """

    def __init__(
        self,
        num_engines: int,
        speed: EngineSpeed,
        lengths: Callable[[RolloutRequest], Sequence[int]],
        keep_kv_cache: bool = True,
    ) -> None:
        self._speed, self._lengths, self._keep_kv_cache = speed, lengths, keep_kv_cache
        self._loop = asyncio.get_running_loop()
        self._version = 0
        self._is_paused = False
        self._queues = [EngineQueue(speed) for _ in range(num_engines)]
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._changed: set[int] = set()
        self._dead: set[int] = set()
        self._homeless: list[QueuedGroup] = []
        self._loads = [0] * num_engines
        self._by_load = [(0, index) for index in range(num_engines)]
        self.lost_tokens = 0.0

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        prompt, lengths = len(request.prompt_token_ids), self._lengths(request)
        group = QueuedGroup(prompt, lengths, self._version, request.n * request.max_tokens)
        self._place(group)
        await group.ended
        versions = (group.version, self._version)
        responses = [SimulatedTrajectory(prompt, length, versions) for length in lengths]
        return RolloutGroup(request, tuple(responses))

    async def sleep(self) -> None:
        # Nothing is in flight then (rl/loop/loop.py), and to give memory back takes no time here.
        await self.pause()

    async def pause(self) -> None:
        for index in range(len(self._queues)):
            self._catch_up(index)
        self._is_paused = True

    async def resume(self, version: int) -> None:
        self._version, self._is_paused = version, False
        for index, queue in enumerate(self._queues):
            queue.hold(self._loop.time(), recompute=not self._keep_kv_cache)
            self._look_ahead(index)

    async def watch(self) -> None:
        # An engine that dies is replaced, so this has nothing to report.
        await self._loop.create_future()

    async def prove(self, version: int) -> list[WeightProof]:
        return [WeightProof(version, {}, CANARY_LOGPROBS)]

    def die(self, index: int, back_s: float) -> None:
        """Lose an engine with all that it has sampled of its groups; others begin them again.

        back_s: seconds until another one stands in its place, with the weights of the time.
        """
        self._catch_up(index)
        queue = self._queues[index]
        self._dead.add(index)
        fresh = self._queues[index] = EngineQueue(self._speed)
        fresh.busy_s, fresh.sampled, fresh.answered = queue.busy_s, queue.answered, queue.answered
        self._loads[index] = 0
        self.lost_tokens += queue.sampled - queue.answered
        for group in queue.groups:
            group.version = self._version
            self._place(group)
        self._loop.call_later(back_s, self._come_back, index)

    def _come_back(self, index: int) -> None:
        self._dead.discard(index)
        self._queues[index].time = self._loop.time()
        heapq.heappush(self._by_load, (self._loads[index], index))
        homeless, self._homeless = self._homeless, []
        for group in homeless:
            self._place(group)

    def totals(self) -> tuple[float, float]:
        """Of all engines together: seconds in which they computed, and response tokens so far."""
        for index in range(len(self._queues)):
            self._change(index)
        queues = self._queues
        return math.fsum(q.busy_s for q in queues), math.fsum(q.sampled for q in queues)

    # A group goes to the engine of the least load, by the tokens that may come of it.

    def _place(self, group: QueuedGroup) -> None:
        heap = self._by_load
        # An entry is out of date where the load has changed, which has pushed another one.
        while heap and (heap[0][0] != self._loads[heap[0][1]] or heap[0][1] in self._dead):
            heapq.heappop(heap)
        if not heap:
            self._homeless.append(group)
            return
        index = heap[0][1]
        self._load(index, group.tokens)
        self._change(index)
        self._queues[index].add(group)

    def _load(self, index: int, tokens: int) -> None:
        self._loads[index] += tokens
        heapq.heappush(self._by_load, (self._loads[index], index))

    # An engine is moved on when its next group ends, which is computed ahead, on a copy: whatever
    # comes in before then is found by the engine as it was.

    def _change(self, index: int) -> None:
        """Bring an engine up to the present, to be changed; its next end is computed later.

        That is once all requests of this moment are in.
        """
        if index not in self._changed:
            if not self._changed:
                self._loop.call_soon(self._settle)
            self._changed.add(index)
            self._catch_up(index)

    def _settle(self) -> None:
        changed, self._changed = self._changed, set()
        if not self._is_paused:
            for index in sorted(changed):
                self._look_ahead(index)

    def _catch_up(self, index: int) -> None:
        """Move an engine to the present, without its timer; a paused one stands still."""
        if timer := self._timers.pop(index, None):
            timer.cancel()
        while not self._is_paused and (group := self._queues[index].advance(self._loop.time())):
            self._answer(index, group)

    def _look_ahead(self, index: int) -> None:
        ahead = self._queues[index].copy()
        if group := ahead.advance():
            self._timers[index] = self._loop.call_at(ahead.time, self._end, index, ahead, group)

    def _end(self, index: int, ahead: EngineQueue, group: QueuedGroup) -> None:
        self._queues[index] = ahead
        self._answer(index, group)
        self._look_ahead(index)

    def _answer(self, index: int, group: QueuedGroup) -> None:
        self._load(index, -group.tokens)
        # It is done already where the run has ended, and cancelled what was in flight.
        if not group.ended.done():
            group.ended.set_result(None)
