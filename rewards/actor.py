"""The reward service as a Ray actor of its own, and the scorer that the loop talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError

import __main__
from rewards.service import RewardService
from rl.config import RewardConfig
from rl.stages import RolloutGroup, Score

MAX_GROUPS_IN_FLIGHT = 10_000
CLOSE_TIMEOUT_S = 10.0
SCORE_TIMEOUT_S = 1800.0
"""Far beyond the limits of all samples of a group together: only a broken service takes it."""


class RewardActor:
    """RewardService with the coroutines that Ray calls."""

    def __init__(self, config: RewardConfig, thinking: Mapping[str, bool]) -> None:
        # A worker first imports the main script of its parent, which here is Ray's own and would
        # bring all of Ray into every worker; without a file there is nothing to import.
        if hasattr(__main__, "__file__"):
            del __main__.__file__
        self._service = RewardService(config, thinking)

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        return await self._service.score(group)

    async def close(self) -> None:
        self._service.close()


class RewardServiceClient:
    """Implements rl.interfaces.Scorer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls, config: RewardConfig, thinking: Mapping[str, bool]) -> RewardServiceClient:
        """Start the actor; its first score waits until it is up."""
        actor = ray.remote(RewardActor).options(num_cpus=0, max_concurrency=MAX_GROUPS_IN_FLIGHT)
        return cls(actor.remote(config, dict(thinking)))

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """Raises RuntimeError if the service itself is gone."""
        try:
            return await asyncio.wait_for(_answer(self._actor.score.remote(group)), SCORE_TIMEOUT_S)
        except TimeoutError:
            return tuple(Score(None, failure="timeout") for _ in group.trajectories)
        except RayActorError as error:
            raise RuntimeError(f"the reward service died: {error}") from error

    async def close(self) -> None:
        """Stop the verification workers, then the actor."""
        try:
            await asyncio.wait_for(_answer(self._actor.close.remote()), CLOSE_TIMEOUT_S)
        finally:
            ray.kill(self._actor)


async def _answer(reference: Any) -> Any:
    return await reference
