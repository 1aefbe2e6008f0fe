"""The rollout workers as one engine: spreads groups over Ray actors and gathers their proofs."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.data import SourceConfig
from rl.config.reward import PreferenceConfig
from rl.config.run import Config, RecoveryConfig
from rl.loop.interfaces import EngineLost, GenerationFailed, WorkerFailed
from rl.loop.loop import sampling_seed
from rl.loop.race import first_of
from rl.loop.stages import (
    Canary,
    NextTokenRequest,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    WeightProof,
)
from rl.system.actors import ActorPlaces, call, call_all, close_all, kill_actor
from rl.system.cluster import has_room
from rl.system.engine_environment import engine_environment
from rl.system.memory_estimate import cache_gib
from rl.system.resident import ANSWER_S
from rl.system.supervision import Loss, Supervisor, watch_over, watch_restarts
from rl.system.vitals import Vitals, end_processes
from rollout.engines.statistics import EngineStatistics
from rollout.engines.worker import RolloutWorker, WorkerSettings

CLOSE_TIMEOUT_S = 20.0
IDLE_S = 0.2
"""How often an engine that is to be replaced is looked at, whether it has ended its requests."""
GROW_S = 15.0
"""How often a pool that may grow looks for room."""

State = Literal["serving", "leaving", "lost", "starting", "joining"]


class Deadline(NamedTuple):
    """Seconds, and the setting that they come from, which errors name."""

    seconds: float
    setting: str


class Deadlines(NamedTuple):
    """Of one call each."""

    start: Deadline
    request: Deadline
    publish: Deadline


@dataclass(frozen=True)
class Spawner:
    """How a pool starts engines, in the place of lost ones and beside the first ones."""

    spawn: Callable[[int], Any]
    """Starts the actor of the engine of an index."""
    min_serving: int = 1
    """Engines without which no request is dealt out."""
    most: int = 0
    """Engines that the pool may grow to, one by one."""
    has_room: Callable[[], bool] = lambda: False
    """Whether there is room for one more."""


@dataclass(eq=False)
class _Engine:
    """One incarnation of an engine; what replaces it is another one of the same index."""

    index: int
    name: str
    actor: Any
    state: State = "serving"
    load: int = 0
    """Tokens that it was asked for and that may still come."""
    answered: float = -math.inf
    """When it last answered a request that waits in its queue."""
    vitals: Vitals | None = None
    why: str = ""
    """Why it was lost."""


class EnginePool:
    """Implements Engine, ReferenceScorer and NextToken (rl/loop/interfaces.py) over Ray actors.

    An engine that is lost is replaced, while the others go on and take over what it was asked:

        serving -> lost -> starting -> joining (waits for the weights) -> serving

    A publish goes to all engines that are serving or joining when it begins. `admit` is asked for
    one as soon as an engine is joining; without it the engines' weights are those of their model,
    and they serve once they have started.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[Any],
        deadlines: Deadlines,
        supervisor: Supervisor,
        spawner: Spawner | None = None,
    ) -> None:
        """name: what an engine is called in errors. spawner: None where Ray itself starts lost
        engines again."""
        self.canary: Canary | None = None
        self.admit: Callable[[], Awaitable[None]] | None = None
        """Publishes the current weights to the engines that are joining, and to no others."""
        self._name = name
        self._start, self._request, self._publish = deadlines
        self._supervisor, self._spawner = supervisor, spawner
        self._min_serving = 1 if spawner is None else spawner.min_serving
        self._num_placed = len(actors)
        self._engines = [_Engine(index, f"{name} {index}", a) for index, a in enumerate(actors)]
        self._receivers: Sequence[_Engine] = ()
        self._changed = asyncio.Event()
        """Set, and replaced, whenever an engine changes its state."""
        self._was_proven = False
        """Whether any weights have been proven."""
        self._may_start = asyncio.Event()
        """Set unless the learner has the memory of the GPUs that it shares with the engines."""
        self._may_start.set()
        self._is_waiting = False
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of_run(
        cls,
        config: Config,
        settings: WorkerSettings,
        group: PlacementGroup,
        bundles: Sequence[int],
        devices: Sequence[str] | None = None,
        logs: Path | None = None,
        supervisor: Supervisor | None = None,
    ) -> EnginePool:
        """Create one actor per bundle of the run's engines; `start` loads them.

        devices: CUDA device ids per engine where learner ranks hold the GPUs of the bundle. logs:
        where the engines' output goes.
        """
        on_gpu = config.resources.gpus > 0
        cpus = config.resources.engine_cpus
        environment = engine_environment(
            cpus, on_gpu, cache_gib(settings.model, settings.dtype, settings.max_model_length)
        )
        if settings.transport == "ipc":
            # IPC handles hold torch types, which vLLM hands to its own processes only as pickles.
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        # IPC hands over GPU memory by handle, so engine and learner rank must see the same devices.
        if devices is not None:
            # Ray would hide the GPUs from an actor that reserves none.
            environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        # Colocated engines reserve no GPU, because the learner rank of the same bundle holds it.
        gpus = settings.tensor_parallel if on_gpu and devices is None else 0
        strategies = (PlacementGroupSchedulingStrategy(group, bundle) for bundle in bundles)
        places = ActorPlaces(cpus, gpus, tuple(strategies), logs)

        def arguments(index: int) -> tuple:
            # Engines of one seed would draw the same numbers: where requests bring no seed of their
            # own, the samples of a prompt, which are dealt to all engines, would be copies.
            seed = sampling_seed(settings.seed, f"engine/{index}")
            own = dataclasses.replace(settings, seed=seed)
            return f"engine {index}", own, devices[index] if devices else None

        def spawn(index: int) -> Any:
            return places.start_one(index, RolloutWorker, "engine", environment, arguments(index))

        all_arguments = [arguments(index) for index in range(len(bundles))]
        return cls(
            "engine",
            places.start(RolloutWorker, "engine", environment, all_arguments),
            Deadlines(
                start=Deadline(config.rollout.start_timeout_s, "rollout.start_timeout_s"),
                request=Deadline(config.rollout.group_timeout_s, "rollout.group_timeout_s"),
                publish=Deadline(config.sync.deadline_s, "sync.deadline_s"),
            ),
            supervisor or Supervisor(config.recovery),
            Spawner(
                spawn,
                min_serving=min(config.rollout.min_workers, len(bundles)),
                most=config.rollout.max_workers or 0,
                has_room=lambda: has_room(cpus, gpus),
            ),
        )

    @classmethod
    def of_judge(
        cls,
        config: PreferenceConfig,
        model: Path,
        places: ActorPlaces,
        data: SourceConfig,
        supervisor: Supervisor | None = None,
    ) -> EnginePool:
        """Create one actor per place for a judge, whose weights never change.

        So an engine that dies comes back by itself, which none of the policy's may. data: where the
        media of the questions are read from.
        """
        settings = WorkerSettings(
            model=str(model.absolute()),
            dtype=config.dtype,
            max_model_length=None,
            tensor_parallel=max(1, places.gpus),
            transport=None,
            thinking={},
            comes_back=True,
            engine=config.engine,
            data=data,
        )
        environment = engine_environment(places.cpus, places.gpus > 0)
        arguments = [(f"judge {index}", settings) for index in range(len(places.strategies))]
        deadline = Deadline(config.deadline_s, "reward.preference.deadline_s")
        actors = places.start(RolloutWorker, "judge", environment, arguments, restarts=-1)
        supervisor = supervisor or Supervisor(RecoveryConfig())
        return cls("judge", actors, Deadlines(deadline, deadline, deadline), supervisor)

    @property
    def actors(self) -> list[Any]:
        return [engine.actor for engine in self._engines]

    @property
    def receivers(self) -> list[Any]:
        """The actors that the publish under way goes to."""
        return [engine.actor for engine in self._receivers]

    async def start(self) -> None:
        """Load all engines at the same time; returns when every one can sample."""
        seconds, setting = self._start
        await call_all(
            self.actors, "start", deadline_s=seconds, who=self._name, hint=f" ({setting})"
        )
        for engine in self._engines:
            self._in_background(self._watch_over(engine))
        if self._spawner is not None and self._spawner.most > self._num_placed:
            self._in_background(self._grow(self._spawner))

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        # By tokens that may come and not by groups: one long group is as much work as many short
        # ones.
        tokens = request.n * request.max_tokens
        engine, group = await self._ask(tokens, "generate", request)
        return dataclasses.replace(group, engine=engine.index)

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Implements ReferenceScorer, on the engine that has the context cached."""
        tokens = len(request.reference_token_ids)
        _, logprobs = await self._ask(tokens, "reference_logprobs", request, request.engine)
        return logprobs

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        """Implements NextToken; late is only an engine that answers no such request for long."""
        engine, logprobs = await self._ask(1, "next_token_logprobs", request, is_queued=True)
        engine.answered = time.monotonic()
        return logprobs

    async def _ask(
        self,
        tokens: int,
        method: str,
        request: Any,
        preferred: int | None = None,
        is_queued: bool = False,
    ) -> tuple[_Engine, Any]:
        """The engine that answered, and its answer; an engine that is lost passes on its requests.

        preferred: index of the engine to ask if it serves. is_queued: whether an engine is late
        only if it answers nobody. Raises GenerationFailed for a request that failed or took too
        long, WorkerFailed if too few engines are left.
        """
        while True:
            engine = await self._choose(preferred)
            engine.load += tokens
            try:
                answer = await call(
                    engine.actor,
                    method,
                    request,
                    deadline_s=self._request.seconds,
                    who=engine.name,
                    last_sign=lambda asked=engine: asked.answered if is_queued else -math.inf,
                )
            except TimeoutError:
                raise GenerationFailed("timeout", f"{self._request.setting} passed") from None
            except WorkerFailed as error:
                self._lose(engine, error)
            else:
                return engine, answer
            finally:
                engine.load -= tokens

    async def _choose(self, preferred: int | None) -> _Engine:
        """The preferred engine if it serves, or else the one with the least work."""
        least = self._min_serving
        if len(self._in_state("serving")) < least:
            await self._until(lambda: len(self._in_state("serving")) >= least, least)
        engines = self._in_state("serving")
        for engine in engines:
            if engine.index == preferred:
                return engine
        return min(engines, key=lambda engine: engine.load)

    def _in_state(self, *states: State) -> list[_Engine]:
        return [engine for engine in self._engines if engine.state in states]

    # A publish

    async def sleep(self) -> None:
        """Engines that share the learner's GPUs give their memory up until the next publish."""
        self._may_start.clear()
        # One that is being loaded would take the memory that the update needs, and cannot be told
        # to give it up before it has started.
        while self._in_state("starting"):
            await self._supervisor.until(self._changed.wait())
        self._receivers = self._in_state("joining", "serving", "leaving")
        # An engine that is lost holds no memory either, and the publish goes to those that are
        # left.
        with suppress(EngineLost):
            await self._each("sleep")

    async def pause(self) -> None:
        # The update is over: engines that were lost may come back, and this may wait for them.
        self._may_start.set()
        loaded = partial(self._in_state, "joining", "serving", "leaving")
        if not loaded():
            await self._until(lambda: bool(loaded()), 1)
        self._receivers = loaded()
        await self._each("pause")

    async def pause_joining(self) -> int:
        """In the place of `pause`: the publish goes to those that wait for their first weights."""
        self._receivers = self._in_state("joining")
        await self._each("pause")
        return len(self._receivers)

    async def resume(self, version: int) -> None:
        await self._each("resume", version)

    async def watch(self) -> None:
        """Raise EngineLost as soon as a receiver of the publish is lost, and name it."""
        while not (lost := [e for e in self._receivers if e.state == "lost"]):
            await self._supervisor.until(self._changed.wait())
        raise EngineLost("; ".join(f"{engine.name}: {engine.why}" for engine in lost))

    async def prove(self, version: int) -> list[WeightProof]:
        assert self.canary is not None, "set a canary before the first publish"
        proofs = await self._each("prove", self.canary)
        self._was_proven = True
        # Whoever compares the proofs does so before any request is dealt out again.
        for engine in self._receivers:
            if engine.state == "joining":
                self._serve(engine)
        return [proof for of_actor in proofs for proof in of_actor]

    async def statistics(self) -> dict[int, EngineStatistics]:
        """What each engine did since it was last asked, by number; of those that answer soon."""
        # One that is being loaded would answer nothing for as long as that takes.
        serving = self._in_state("serving")
        answers = await asyncio.gather(
            *(call(e.actor, "statistics", deadline_s=ANSWER_S, who=e.name) for e in serving),
            return_exceptions=True,
        )
        return {
            engine.index: answer
            for engine, answer in zip(serving, answers, strict=True)
            if isinstance(answer, EngineStatistics)
        }

    async def _each(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all receivers; raises EngineLost if one of them is lost."""
        deadline_s, setting = self._publish

        async def ask(engine: _Engine) -> Any:
            try:
                return await call(
                    engine.actor,
                    method,
                    *arguments,
                    deadline_s=deadline_s,
                    who=engine.name,
                    hint=f" ({setting})",
                )
            except (WorkerFailed, TimeoutError) as error:
                self._lose(engine, error)
                raise EngineLost(str(error)) from error

        # All of them, because nobody else is told which of the others are lost too.
        answers = await asyncio.gather(*map(ask, self._receivers), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, EngineLost)):
            raise error
        return list(answers)

    # Loss and replacement

    def _lose(self, engine: _Engine, why: BaseException | str) -> None:
        """An engine is lost and will be replaced; raises WorkerFailed if it cannot be."""
        if engine.state == "lost":
            return
        # Before the first proof a fault is one of the model or the settings, which another engine
        # would meet as well.
        is_first = self.admit is not None and not self._was_proven
        if self._spawner is None or is_first:
            raise why if isinstance(why, BaseException) else WorkerFailed(f"{engine.name}: {why}")
        engine.why = str(why)
        self._set_state(engine, "lost")
        if engine.index < self._num_placed:
            self._supervisor.lost(engine.name, why)
            self._in_background(self._replace(engine))
        else:
            # It stood on what others had left free, and comes back when that is free again.
            self._supervisor.event("left", engine.name, why)
            self._supervisor.note(f"{engine.name} has left: {why}")
            self._in_background(self._end(engine))

    async def recycle(self, why: str) -> None:
        """Replace the engines one after the other; each ends what it was asked before."""
        for engine in list(self._engines):
            if engine.state != "serving":
                continue
            self._set_state(engine, "leaving")
            while engine.load and engine.state == "leaving":
                await asyncio.sleep(IDLE_S)
            # It may have been lost meanwhile, and is then being replaced.
            if engine.state == "leaving":
                engine.why = why
                self._set_state(engine, "lost")
                self._supervisor.event("recycled", engine.name, why)
                await self._replace(engine)
            # Two at a time would leave too few.
            while self._engines[engine.index].state != "serving":
                await self._supervisor.until(self._changed.wait())

    async def _replace(self, lost: _Engine) -> None:
        """Start an engine in the place of a lost one, and let it join."""
        await self._end(lost)
        await self._let_join(lost.index)

    async def _end(self, lost: _Engine) -> None:
        # What is left of it would hold its memory, and the cores that the new one is to have.
        if lost.vitals is not None:
            await end_processes(lost.vitals)
        kill_actor(lost.actor)

    async def _grow(self, spawner: Spawner) -> None:
        """Start engines beside those that were reserved whenever Ray has room for one."""
        while True:
            await asyncio.sleep(GROW_S)
            for index in range(self._num_placed, spawner.most):
                is_there = index < len(self._engines) and self._engines[index].state != "lost"
                if not is_there and spawner.has_room():
                    await self._let_join(index)
                    break

    async def _let_join(self, index: int) -> None:
        """Start the engine of this index and have it given the weights."""
        assert self._spawner is not None
        await self._may_start.wait()
        engine = _Engine(index, f"{self._name} {index}", self._spawner.spawn(index), "starting")
        self._engines[index : index + 1] = [engine]
        seconds, setting = self._start
        hint = f" ({setting})"
        try:
            await call(engine.actor, "start", deadline_s=seconds, who=engine.name, hint=hint)
        except (WorkerFailed, TimeoutError) as error:
            return self._lose(engine, error)
        self._in_background(self._watch_over(engine))
        if self.admit is None:
            self._serve(engine)
        else:
            self._set_state(engine, "joining")
            # A publish that comes first takes it in too.
            await self.admit()

    def _serve(self, engine: _Engine) -> None:
        self._set_state(engine, "serving")
        self._supervisor.event("joined", engine.name)
        self._supervisor.note(f"{engine.name} serves")

    async def _watch_over(self, engine: _Engine) -> None:
        """Lose the engine once it has died or fallen silent."""

        def heartbeat_s(vitals: Vitals) -> float:
            return self._publish.seconds if vitals.is_receiving else config.heartbeat_s

        def heard(vitals: Vitals) -> None:
            engine.vitals = vitals
            self._supervisor.heard(engine.name, vitals)

        async def death() -> Loss:
            try:
                await call(engine.actor, "watch", deadline_s=math.inf, who=engine.name)
            except WorkerFailed as error:
                return Loss(str(error), was_killed=False)
            raise AssertionError("an engine ends its watch by dying alone")

        config = self._supervisor.config
        if self._spawner is None:
            return await watch_restarts(self._supervisor, engine.actor, engine.name)
        # Ray tells of a death at once; only a sign of life tells of a process that was stopped.
        silence = watch_over(engine.actor, heartbeat_s, heard)
        async with first_of(silence, death()) as signs:
            loss = next(sign for sign in signs if sign.done()).result()
        self._lose(engine, loss.why)

    def _set_state(self, engine: _Engine, state: State) -> None:
        engine.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, is_met: Callable[[], bool], needed: int) -> None:
        """Wait for engines; raises WorkerFailed, which names them, after `recovery.wait_s`."""
        wait_s = self._supervisor.config.wait_s
        deadline = time.monotonic() + wait_s

        def names() -> str:
            away = [e for e in self._engines if e.state != "serving"]
            return ", ".join(f"{engine.name} ({engine.state})" for engine in away)

        while not is_met():
            left = deadline - time.monotonic()
            if not self._is_waiting:
                self._is_waiting = True
                until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
                self._supervisor.note(f"waiting for {names()}, until {until} at the latest")
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._supervisor.until(self._changed.wait())
            except TimeoutError:
                raise WorkerFailed(
                    f"fewer than {needed} {self._name}s (rollout.min_workers) served for "
                    f"{wait_s:g} s (recovery.wait_s); waited for {names()}"
                ) from None
        self._is_waiting = False

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._supervisor.in_background(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop the engines' own processes, then the actors."""
        # First, so that no engine is replaced because it is closed.
        for task in self._tasks:
            task.cancel()
        await close_all(self.actors, CLOSE_TIMEOUT_S)
