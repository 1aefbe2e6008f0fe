"""The rollout workers as one engine: spreads groups over Ray actors and gathers their proofs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.run import Config
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import (
    Canary,
    NextTokenRequest,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    WeightProof,
)
from rl.system.actors import call, call_all, close_all
from rl.system.engine_environment import engine_environment
from rollout.engines.worker import RolloutWorker, WorkerSettings

# Groups an actor accepts at once; vLLM queues what does not fit its batch.
MAX_GROUPS_IN_FLIGHT = 10_000
CLOSE_TIMEOUT_S = 20.0


class EnginePool:
    """Implements rl.loop.interfaces.Engine over any number of rollout workers."""

    def __init__(
        self,
        config: Config,
        settings: WorkerSettings,
        group: PlacementGroup,
        bundles: Sequence[int],
        devices: Sequence[str] | None = None,
    ) -> None:
        """Create one actor per bundle; `start` loads their engines.

        devices: CUDA device ids per engine where learner ranks hold the GPUs of the bundle.
        """
        on_gpu = config.resources.gpus > 0
        cpus = config.resources.engine_cpus
        environment = engine_environment(cpus, on_gpu)
        if settings.transport == "ipc":
            # IPC handles hold torch types, which vLLM hands to its own processes only as pickles.
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        if devices is not None:
            # Ray would hide the GPUs from an actor that reserves none.
            environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        self.actors: list[Any] = [
            ray.remote(RolloutWorker)
            .options(
                num_cpus=cpus,
                num_gpus=settings.tensor_parallel if on_gpu and devices is None else 0,
                max_concurrency=MAX_GROUPS_IN_FLIGHT,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
                runtime_env={"env_vars": environment},
            )
            .remote(f"engine {index}", settings, None if devices is None else devices[index])
            for index, bundle in enumerate(bundles)
        ]
        self.canary: Canary | None = None
        self._deadline_s = config.sync.deadline_s
        self._start_timeout_s = config.rollout.start_timeout_s
        self._group_timeout_s = config.rollout.group_timeout_s
        self._load = [0] * len(self.actors)

    async def start(self) -> None:
        """Load all engines at the same time; returns when every one can sample."""
        await call_all(
            self.actors,
            "start",
            deadline_s=self._start_timeout_s,
            who="engine",
            hint=" (rollout.start_timeout_s)",
        )

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        place = self._least_loaded()
        tokens = request.n * request.max_tokens
        group = await self._ask(place, tokens, "generate", request)
        return dataclasses.replace(group, engine=place)

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Implements ReferenceScorer, on the engine that has the context cached."""
        place = self._least_loaded() if request.engine is None else request.engine
        tokens = len(request.reference_token_ids)
        return await self._ask(place, tokens, "reference_logprobs", request)

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        """Log-probability of each asked token as the next one, or GenerationFailed."""
        return await self._ask(self._least_loaded(), 1, "next_token_logprobs", request)

    def _least_loaded(self) -> int:
        return min(range(len(self.actors)), key=self._load.__getitem__)

    async def _ask(self, index: int, tokens: int, method: str, request: Any) -> Any:
        """Call one engine; raises GenerationFailed for a request that failed or took too long."""
        self._load[index] += tokens
        try:
            return await call(
                self.actors[index],
                method,
                request,
                deadline_s=self._group_timeout_s,
                who=f"engine {index}",
            )
        except TimeoutError:
            raise GenerationFailed("timeout", "rollout.group_timeout_s passed") from None
        finally:
            self._load[index] -= tokens

    async def pause(self) -> None:
        await self._each("pause")

    async def resume(self, version: int) -> None:
        await self._each("resume", version)

    async def prove(self, version: int) -> list[WeightProof]:
        assert self.canary is not None, "set a canary before the first publish"
        proofs = await self._each("prove", self.canary)
        return [proof for of_actor in proofs for proof in of_actor]

    async def close(self) -> None:
        """Stop the engines' own processes, then the actors."""
        await close_all(self.actors, CLOSE_TIMEOUT_S)

    async def _each(self, method: str, *arguments: Any) -> list[Any]:
        return await call_all(
            self.actors,
            method,
            *arguments,
            deadline_s=self._deadline_s,
            who="engine",
            hint=" (sync.deadline_s)",
        )
