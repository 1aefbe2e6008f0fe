"""The text rewards as Ray actors of their own, and the client that the service talks to."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewards.composition import TextParts
from rewards.text.text_rewards import TextRewards
from rl.config.policy import ThinkTags
from rl.config.reward import RewardConfig
from rl.config.rollout import ModeConfig
from rl.loop.stages import RolloutGroup
from rl.system.actors import ActorPlaces, call, close_all
from rl.system.placement import divide_workers
from rl.system.supervision import Supervisor, watch_restarts
from rl.system.vitals import Watched

CLOSE_TIMEOUT_S = 10.0
SILENCE_S = 1800.0
"""Far beyond the limits of all samples of a group together: only a broken actor answers nobody for
so long."""
_NO_TOKENS, _NO_LOGPROBS = np.zeros(0, np.int32), np.zeros(0, np.float32)


WHO = "text rewards actor"


class TextRewardActor(Watched, TextRewards):
    pass


class TextRewardClient:
    """Implements rewards.service.TextSource over actors, each of which has its own workers.

    An actor whose process dies starts again, and what it was asked is asked once more.
    """

    def __init__(self, actors: Sequence[Any], supervisor: Supervisor | None = None) -> None:
        """supervisor: follows the actors' restarts."""
        self.actors = list(actors)
        self._answered = [-math.inf] * len(self.actors)
        self._waiting = [0] * len(self.actors)
        self._watches = [
            supervisor.in_background(watch_restarts(supervisor, actor, f"{WHO} {index}"))
            for index, actor in enumerate(self.actors)
            if supervisor is not None
        ]

    @classmethod
    def start(
        cls,
        config: RewardConfig,
        modes: Mapping[str, ModeConfig],
        tags: ThinkTags,
        places: ActorPlaces,
        supervisor: Supervisor,
    ) -> TextRewardClient:
        """Start an actor in each place; its first score waits until it is up.

        There must be as many places as rl.system.placement.divide_workers has shares.
        """
        # One thread each: the work is done in worker processes, as many as there are cores. Ray
        # would let each of them use the threads of all.
        environment = {"OMP_NUM_THREADS": "1"}
        arguments = [
            (config.model_copy(update={"workers": share}), dict(modes), tags)
            for share in divide_workers(config.workers)
        ]
        actors = places.start(TextRewardActor, "rewards", environment, arguments, restarts=-1)
        return cls(actors, supervisor)

    async def parts(self, group: RolloutGroup, by_rules: bool) -> list[TextParts]:
        """Raises RuntimeError if the actor is gone, TimeoutError if it answers nobody."""
        index = min(range(len(self.actors)), key=self._waiting.__getitem__)
        self._waiting[index] += len(group.trajectories)
        try:
            parts = await call(
                self.actors[index],
                "parts",
                _readable(group),
                by_rules,
                deadline_s=SILENCE_S,
                who=f"{WHO} {index}",
                last_sign=lambda: self._answered[index],
            )
        finally:
            self._waiting[index] -= len(group.trajectories)
        self._answered[index] = time.monotonic()
        return parts

    async def close(self) -> None:
        """Stop the verification workers, then the actors."""
        for watch in self._watches:
            watch.cancel()
        await close_all(self.actors, CLOSE_TIMEOUT_S)


def _readable(group: RolloutGroup) -> RolloutGroup:
    """The group as text rewards read it: without token ids and log-probabilities.

    These are most of its bytes, and the driver would pack them a second time.
    """
    responses = (
        dataclasses.replace(t, token_ids=_NO_TOKENS, rollout_logprobs=_NO_LOGPROBS)
        for t in group.trajectories
    )
    return dataclasses.replace(group, trajectories=tuple(responses))
