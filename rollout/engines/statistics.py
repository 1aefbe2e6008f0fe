"""What an engine did since it was last asked: how busy it was, and how full its KV cache."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl.system.resident import GIB

MOST_NAMED = 16
"""Engines of a run up to which each has figures of its own: those of a cluster are too many."""


@dataclass(frozen=True)
class EngineStatistics:
    """Sums over the iterations of vLLM's scheduler, so that those of engines can be added up."""

    iterations: int = 0
    running: int = 0
    """Sequences in the batch."""
    waiting: int = 0
    """Sequences in the queue."""
    most_waiting: int = 0
    cache_use: float = 0.0
    """Shares of the KV cache's blocks that are in use."""
    most_cache_use: float = 0.0
    queried_tokens: int = 0
    """Prompt tokens of the requests that were looked up in the prefix cache."""
    cached_tokens: int = 0
    """How many of them were found there."""
    preemptions: int = 0
    """Sequences that lost their blocks to others, and were computed once more."""
    sampled_tokens: int = 0
    busy_s: float = 0.0
    """Seconds in which sequences ran."""
    resident_bytes: int = 0
    """Memory of the engine's processes now."""


class EngineTally:
    """Adds up what vLLM reports after every iteration."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._last: float | None = None
        """When the last iteration ended, if sequences still ran."""

    def add(self, scheduler: Any, iteration: Any) -> None:
        """scheduler, iteration: vLLM's SchedulerStats and IterationStats, either may be None."""
        sums, now = self._sums, time.monotonic()
        if iteration is not None:
            added = iteration.num_generation_tokens
            sums["sampled_tokens"] = sums.get("sampled_tokens", 0) + added
        if scheduler is None:
            return
        queue = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
        cache = scheduler.prefix_cache_stats
        for name, value in (
            ("iterations", 1),
            ("running", scheduler.num_running_reqs),
            ("waiting", queue),
            ("cache_use", scheduler.kv_cache_usage),
            ("queried_tokens", cache.queries),
            ("cached_tokens", cache.hits),
            # Counted where they come back, which every preempted sequence does.
            ("preemptions", cache.preempted_requests),
            ("busy_s", 0.0 if self._last is None else now - self._last),
        ):
            sums[name] = sums.get(name, 0) + value
        for name, value in (("most_waiting", queue), ("most_cache_use", scheduler.kv_cache_usage)):
            sums[name] = max(sums.get(name, 0), value)
        self._last = now if scheduler.num_running_reqs else None

    def pause(self) -> None:
        """What runs is frozen from here to the next iteration, which is no time of work."""
        self._last = None

    def take(self, resident_bytes: int) -> EngineStatistics:
        """What was added since the last call."""
        sums, self._sums = self._sums, {}
        return EngineStatistics(**sums, resident_bytes=resident_bytes)


def engine_metrics(
    statistics: Mapping[int, EngineStatistics], gpus_per_engine: int
) -> dict[str, float]:
    """The `engine/...` metrics of a step, and speed and memory of its engines.

    statistics: by number of the engine, of those that answered. gpus_per_engine: 0 on CPU.
    """
    metrics: dict[str, float] = {}
    if not statistics:
        return metrics
    every = list(statistics.values())
    metrics |= {f"engine/{name}": value for name, value in _figures(every).items()}
    if 1 < len(every) <= MOST_NAMED:
        for index, one in statistics.items():
            metrics |= {f"engine/{index}/{name}": value for name, value in _figures([one]).items()}
    speed = sum(one.sampled_tokens / one.busy_s for one in every if one.busy_s)
    metrics["perf/engine_tokens_per_second"] = speed
    if gpus_per_engine:
        gpus = gpus_per_engine * sum(one.busy_s > 0 for one in every)
        metrics["perf/engine_tokens_per_second_per_gpu"] = speed / max(gpus, 1)
    metrics["memory/rss_engine_gib"] = max(one.resident_bytes for one in every) / GIB
    return metrics


def _figures(statistics: list[EngineStatistics]) -> dict[str, float]:
    def total(name: str) -> float:
        return sum(getattr(one, name) for one in statistics)

    figures: dict[str, float] = {"preemptions": total("preemptions")}
    # Without an iteration, or a look-up, there is no share; a zero would look like an empty cache.
    if iterations := total("iterations"):
        figures |= {
            "kv_use": total("cache_use") / iterations,
            "kv_use_max": max(one.most_cache_use for one in statistics),
            "queue": total("waiting") / iterations,
            "queue_max": max(one.most_waiting for one in statistics),
            "running": total("running") / iterations,
        }
    if queried := total("queried_tokens"):
        figures["prefix_hits"] = total("cached_tokens") / queried
    return figures
