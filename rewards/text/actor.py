"""The text rewards as a Ray actor of their own, and the client that the service talks to."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rewards.composition import TextParts
from rewards.text.text_rewards import TextRewards
from rl.config.policy import ThinkTags
from rl.config.reward import RewardConfig
from rl.config.rollout import ModeConfig
from rl.loop.stages import RolloutGroup
from rl.system.actors import ActorPlaces, call, close_all

CLOSE_TIMEOUT_S = 10.0
SILENCE_S = 1800.0
"""Far beyond the limits of all samples of a group together: only a broken actor answers nobody for
so long."""


class TextRewardClient:
    """Implements rewards.service.TextSource."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._answered = -math.inf

    @classmethod
    def start(
        cls,
        config: RewardConfig,
        modes: Mapping[str, ModeConfig],
        tags: ThinkTags,
        places: ActorPlaces,
    ) -> TextRewardClient:
        """Start the actor in the first place; its first score waits until it is up."""
        # One thread each: the work is done in worker processes, as many as there are cores. Ray
        # would let each of them use the threads of all.
        environment = {"OMP_NUM_THREADS": "1"}
        (actor,) = places.start(TextRewards, "rewards", environment, [(config, dict(modes), tags)])
        return cls(actor)

    async def parts(self, group: RolloutGroup, by_rules: bool) -> list[TextParts]:
        """Raises RuntimeError if the actor is gone, TimeoutError if it answers nobody."""
        parts = await call(
            self._actor,
            "parts",
            group,
            by_rules,
            deadline_s=SILENCE_S,
            who="the actor of the text rewards",
            last_sign=lambda: self._answered,
        )
        self._answered = time.monotonic()
        return parts

    async def close(self) -> None:
        """Stop the verification workers, then the actor."""
        await close_all([self._actor], CLOSE_TIMEOUT_S)
