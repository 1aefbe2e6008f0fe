"""The Ray actors that a preference model runs in, whichever it is.

    score(group) -> least loaded actor -> its answer, or the name of an actor that is gone

An actor whose process dies starts again, and what it was asked is asked once more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray

from rewards.preference.preference import PreferenceInput
from rl.system.actors import call, close_all

MAX_GROUPS_IN_FLIGHT = 10_000
MAX_RESTARTS = 2
CLOSE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class ActorPlaces:
    """What Ray reserves for each copy of a preference model, and where."""

    cpus: float
    gpus: int = 0
    """A copy without any runs on CPU."""
    strategies: tuple[Any, ...] = ("DEFAULT",)
    """A Ray scheduling strategy per copy: `DEFAULT`, or a bundle of a placement group."""

    def start(self, kind: type, environment: dict[str, str], *arguments: Any) -> list[Any]:
        """Start `kind(*arguments)` in each place, as actors that come back when they die."""
        return [
            ray.remote(kind)
            .options(
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_concurrency=MAX_GROUPS_IN_FLIGHT,
                max_restarts=MAX_RESTARTS,
                # What a dead actor was asked is asked again.
                max_task_retries=MAX_RESTARTS,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": environment},
            )
            .remote(*arguments)
            for strategy in self.strategies
        ]


class PreferenceActors:
    """Implements rewards.preference.PreferenceModel over Ray actors that hold a copy each.

    An actor has `load`, `score` and `close`. It is started again when its process dies, at most
    MAX_RESTARTS times.
    """

    def __init__(self, actors: Sequence[Any], deadline_s: float) -> None:
        self.actors = list(actors)
        self._deadline_s = deadline_s
        self._answered = [-math.inf] * len(self.actors)
        self._load = [0] * len(self.actors)

    async def score(self, inputs: Sequence[PreferenceInput]) -> tuple[float | None, ...]:
        """Raises RuntimeError if the actor asked is gone for good, TimeoutError if it is late."""
        if not inputs:
            return ()
        place = min(range(len(self.actors)), key=self._load.__getitem__)
        self._load[place] += len(inputs)
        try:
            scores = tuple(await self._ask(place, "score", list(inputs)))
        finally:
            self._load[place] -= len(inputs)
        for asked, score in zip(inputs, scores, strict=True):
            if score is not None and not math.isfinite(score):
                raise RuntimeError(
                    f"preference model {place} scored {score} for the answer {asked.answer[:80]!r};"
                    " its weights are damaged, or overflow in its dtype"
                )
        return scores

    async def loaded(self) -> Self:
        """Return this once every actor has loaded its model; leaves no actor behind on an error.

        Raises ValueError for a model that cannot be used.
        """
        places = range(len(self.actors))
        try:
            await asyncio.gather(*(self._ask(place, "load") for place in places))
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Stop what the actors started, then the actors; also if some are dead or stuck."""
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
