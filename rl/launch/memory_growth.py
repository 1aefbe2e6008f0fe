"""Which role of a run has grown so far in memory that it should be started anew, and how it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl.loop.interfaces import LearnerLost

if TYPE_CHECKING:
    from rl.assembly import TrainingServices

PREFIX, SUFFIX = "memory/rss_", "_gib"
SETTLED_STEPS = 20
"""Steps in which caches fill and allocators settle; what a role takes then is what it needs."""


class MemoryGrowth:
    """Follows the resident size of each role; one that only fills its caches is not named."""

    def __init__(self, limit: float) -> None:
        """limit: times the size that a role had once it was settled (resources.memory_growth)."""
        self._limit = limit
        self._sizes: defaultdict[str, list[float]] = defaultdict(list)

    def grown(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """The roles that are over the limit after a step, each with its sizes in words.

        metrics: of the step, with `memory/rss_{role}_gib`.
        """
        grown = {}
        for key, size in metrics.items():
            if not key.startswith(PREFIX):
                continue
            role = key.removeprefix(PREFIX).removesuffix(SUFFIX)
            settled = self._sizes[role]
            if len(settled) < SETTLED_STEPS:
                settled.append(size)
            elif size > self._limit * max(settled):
                grown[role] = f"{max(settled):.1f} GiB at first, {size:.1f} GiB now"
        return grown

    def start_anew(self, role: str) -> None:
        """The processes of the role are new ones, which settle again."""
        self._sizes.pop(role, None)


class Recycling:
    """Starts the processes of a role anew where that costs no sample."""

    def __init__(self, services: TrainingServices) -> None:
        self._services = services
        self._of_ranks = ""
        """Why the ranks are to start anew after the next checkpoint."""

    def begin(self, role: str, why: str) -> bool:
        """Whether the role, of `memory/rss_{role}_gib`, will be started anew."""
        engine, supervisor = self._services.engine, self._services.supervisor
        if role == "engine":
            supervisor.in_background(engine.recycle(why))
        elif role == "rewards":
            supervisor.in_background(self._end_rewards())
        elif role == "rank":
            self._of_ranks = why
        else:
            return False
        return True

    async def _end_rewards(self) -> None:
        # Ray starts them again, and repeats what they were asked.
        for who in ("text rewards actor", "preference model", "judge"):
            await self._services.supervisor.end(who)

    def after_checkpoint(self, is_last: bool) -> None:
        """Raise LearnerLost where the ranks are to go on from it in new processes."""
        if self._of_ranks and not is_last:
            raise LearnerLost(self._of_ranks)
