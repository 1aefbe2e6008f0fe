"""The rollout workers as one engine: spreads groups over Ray actors and gathers their proofs."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.reward import PreferenceConfig
from rl.config.run import Config
from rl.loop.interfaces import GenerationFailed
from rl.loop.loop import sampling_seed
from rl.loop.stages import (
    Canary,
    NextTokenRequest,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    WeightProof,
)
from rl.system.actors import ActorPlaces, call, call_all, close_all
from rl.system.engine_environment import engine_environment
from rl.system.memory_estimate import cache_gib
from rl.system.resident import ANSWER_S
from rollout.engines.statistics import EngineStatistics
from rollout.engines.worker import RolloutWorker, WorkerSettings

CLOSE_TIMEOUT_S = 20.0
JUDGE_RESTARTS = 2


class Deadline(NamedTuple):
    """Seconds, and the setting that they come from, which errors name."""

    seconds: float
    setting: str


class EnginePool:
    """Implements Engine, ReferenceScorer and NextToken (rl/loop/interfaces.py) over Ray actors."""

    def __init__(
        self, name: str, actors: list[Any], start: Deadline, request: Deadline, publish: Deadline
    ) -> None:
        """name: what an engine is called in errors. The deadlines are of one call each."""
        self.actors = actors
        self.canary: Canary | None = None
        self.max_model_length = 0
        """Tokens of a prompt and its response, at most; known once the engines have started."""
        self._name = name
        self._start, self._request, self._publish = start, request, publish
        self._load = [0] * len(self.actors)
        self._answered = [-math.inf] * len(self.actors)

    @classmethod
    def of_run(
        cls,
        config: Config,
        settings: WorkerSettings,
        group: PlacementGroup,
        bundles: Sequence[int],
        devices: Sequence[str] | None = None,
        logs: Path | None = None,
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
        arguments = []
        for index, seen in enumerate(devices or [None] * len(bundles)):
            # Engines of one seed would draw the same numbers: where requests bring no seed of their
            # own, the samples of a prompt, which are dealt to all engines, would be copies.
            seed = sampling_seed(settings.seed, f"engine/{index}")
            own = dataclasses.replace(settings, seed=seed)
            arguments.append((f"engine {index}", own, seen))
        return cls(
            "engine",
            places.start(RolloutWorker, "engine", environment, arguments),
            start=Deadline(config.rollout.start_timeout_s, "rollout.start_timeout_s"),
            request=Deadline(config.rollout.group_timeout_s, "rollout.group_timeout_s"),
            publish=Deadline(config.sync.deadline_s, "sync.deadline_s"),
        )

    @classmethod
    def of_judge(cls, config: PreferenceConfig, model: Path, places: ActorPlaces) -> EnginePool:
        """Create one actor per place for a judge, whose weights never change.

        So an engine that dies comes back by itself, which none of the policy's may.
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
        )
        environment = engine_environment(places.cpus, places.gpus > 0)
        arguments = [(f"judge {index}", settings) for index in range(len(places.strategies))]
        deadline = Deadline(config.deadline_s, "reward.preference.deadline_s")
        actors = places.start(RolloutWorker, "judge", environment, arguments, JUDGE_RESTARTS)
        return cls("judge", actors, start=deadline, request=deadline, publish=deadline)

    async def start(self) -> None:
        """Load all engines at the same time; returns when every one can sample."""
        lengths = await self._each(self._start, "start")
        self.max_model_length = min(lengths)

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        index = self._least_loaded()
        tokens = request.n * request.max_tokens
        # By tokens that may come and not by groups: one long group is as much work as many short
        # ones.
        group = await self._ask(index, tokens, "generate", request)
        return dataclasses.replace(group, engine=index)

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Implements ReferenceScorer, on the engine that has the context cached."""
        index = self._least_loaded() if request.engine is None else request.engine
        tokens = len(request.reference_token_ids)
        return await self._ask(index, tokens, "reference_logprobs", request)

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        """Implements NextToken; late is only an engine that answers no such request for long."""
        index = self._least_loaded()
        logprobs = await self._ask(
            index, 1, "next_token_logprobs", request, lambda: self._answered[index]
        )
        self._answered[index] = time.monotonic()
        return logprobs

    def _least_loaded(self) -> int:
        return min(range(len(self.actors)), key=self._load.__getitem__)

    async def _ask(
        self,
        index: int,
        tokens: int,
        method: str,
        request: Any,
        last_sign: Callable[[], float] = lambda: -math.inf,
    ) -> Any:
        """Call one engine; raises GenerationFailed for a request that failed or took too long."""
        who, deadline_s = f"{self._name} {index}", self._request.seconds
        self._load[index] += tokens
        try:
            actor = self.actors[index]
            return await call(
                actor, method, request, deadline_s=deadline_s, who=who, last_sign=last_sign
            )
        except TimeoutError:
            raise GenerationFailed("timeout", f"{self._request.setting} passed") from None
        finally:
            self._load[index] -= tokens

    async def pause(self) -> None:
        await self._each(self._publish, "pause")

    async def resume(self, version: int) -> None:
        await self._each(self._publish, "resume", version)

    async def watch(self) -> None:
        """Raise RuntimeError as soon as an engine has died, and name it."""
        await self._each(Deadline(math.inf, "no setting"), "watch")

    async def prove(self, version: int) -> list[WeightProof]:
        assert self.canary is not None, "set a canary before the first publish"
        proofs = await self._each(self._publish, "prove", self.canary)
        return [proof for of_actor in proofs for proof in of_actor]

    async def statistics(self) -> dict[int, EngineStatistics]:
        """What each engine did since it was last asked, by number; of those that answer soon."""
        answers = await asyncio.gather(
            *(
                call(actor, "statistics", deadline_s=ANSWER_S, who=f"{self._name} {index}")
                for index, actor in enumerate(self.actors)
            ),
            return_exceptions=True,
        )
        return {
            i: answer for i, answer in enumerate(answers) if isinstance(answer, EngineStatistics)
        }

    async def close(self) -> None:
        """Stop the engines' own processes, then the actors."""
        await close_all(self.actors, CLOSE_TIMEOUT_S)

    async def _each(self, deadline: Deadline, method: str, *arguments: Any) -> list[Any]:
        seconds, setting = deadline
        hint = f" ({setting})"
        return await call_all(
            self.actors, method, *arguments, deadline_s=seconds, who=self._name, hint=hint
        )
