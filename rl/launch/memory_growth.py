"""Which role of a run has grown so far in memory that it should be started anew."""

from collections import defaultdict
from collections.abc import Mapping

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
