"""A reward model in Ray actors, a copy each.

    score(group) -> least loaded actor -> its answer, or the name of an actor that is gone

An actor whose process dies starts again, and what it was asked is asked once more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.preference.preference import PreferenceInput
from rewards.preference.reward_model import OpenInputs, RewardModelActor
from rl.config.run import RecoveryConfig
from rl.system.actors import ActorPlaces, call, close_all
from rl.system.supervision import Supervisor, watch_restarts
from rl.system.vitals import Watched

CLOSE_TIMEOUT_S = 20.0


class WatchedRewardModel(Watched, RewardModelActor):
    pass


class RewardModelClient:
    """Implements rewards.preference.preference.PreferenceModel."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, supervisor: Supervisor) -> None:
        self.actors = list(actors)
        self._deadline_s = deadline_s
        self._answered = [-math.inf] * len(self.actors)
        self._load = [0] * len(self.actors)
        self._watches = [
            supervisor.in_background(watch_restarts(supervisor, actor, f"preference model {index}"))
            for index, actor in enumerate(self.actors)
        ]

    @classmethod
    async def start(
        cls,
        path: Path,
        places: ActorPlaces,
        dtype: str,
        deadline_s: float,
        open_inputs: OpenInputs,
        supervisor: Supervisor | None = None,
    ) -> RewardModelClient:
        """Start the actors and wait until each has loaded the model; without a GPU on CPU.

        deadline_s: of loading, and later of silence: a queue may be long, but an actor that answers
        nobody for so long is late. Raises ValueError if `path` holds no usable reward model; leaves
        no actor behind on an error.
        """
        threads = max(1, int(places.cpus))
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
        if not places.gpus:
            # This cluster hides no GPU from an actor that reserves none.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        device = "cuda" if places.gpus else "cpu"
        arguments = (path.absolute(), dtype, device, open_inputs, threads)
        copies = [arguments] * len(places.strategies)
        actors = places.start(WatchedRewardModel, "preference model", environment, copies, -1)
        client = cls(actors, deadline_s, supervisor or Supervisor(RecoveryConfig()))
        try:
            await asyncio.gather(*(client._ask(index, "load") for index in range(len(copies))))
        except BaseException:
            await client.close()
            raise
        return client

    async def score(self, inputs: Sequence[PreferenceInput]) -> tuple[float | None, ...]:
        """Raises RuntimeError if the actor asked is gone for good, TimeoutError if it is late."""
        if not inputs:
            return ()
        # By answers in flight and not by turns: groups differ in size, and a restarted actor is
        # behind.
        index = min(range(len(self.actors)), key=self._load.__getitem__)
        self._load[index] += len(inputs)
        try:
            scores = tuple(await self._ask(index, "score", list(inputs)))
        finally:
            self._load[index] -= len(inputs)
        for scored, score in zip(inputs, scores, strict=True):
            # A nan would pass through the z-scores of its group and become the reward of all of it.
            if score is not None and not math.isfinite(score):
                raise RuntimeError(
                    f"preference model {index} scored {score} for the answer {scored.answer[:80]!r}"
                    "; its weights are damaged, or overflow in its dtype"
                )
        return scores

    async def close(self) -> None:
        """End the actors; also if some are dead or stuck."""
        for watch in self._watches:
            watch.cancel()
        await close_all(self.actors, CLOSE_TIMEOUT_S)

    async def _ask(self, index: int, method: str, *arguments: Any) -> Any:
        answer = await call(
            self.actors[index],
            method,
            *arguments,
            deadline_s=self._deadline_s,
            who=f"preference model {index}",
            hint=" (reward.preference.deadline_s); it may be too slow, or Ray has no room for it",
            last_sign=lambda: self._answered[index],
        )
        self._answered[index] = time.monotonic()
        return answer
