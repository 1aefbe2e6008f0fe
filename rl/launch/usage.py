"""What the processes of a run take, asked once a step: memory, and what engines say of themselves.

The learner's own figures come with its updates (policy/learner/usage.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rl.config.run import Config
from rl.launch.metrics import Progress, step_metrics
from rl.loop.loop import StepResult
from rl.run.threads import in_thread
from rl.system.actors import call
from rl.system.resident import ANSWER_S, GIB, resident_bytes
from rollout.engines.statistics import engine_metrics

if TYPE_CHECKING:
    from rl.assembly import TrainingServices


async def gather_metrics(
    result: StepResult, config: Config, progress: Progress, services: TrainingServices
) -> dict[str, float]:
    """Every metric of a step but those of an evaluation."""
    metrics, usage = await asyncio.gather(
        in_thread(step_metrics, result, config, progress), usage_metrics(services, config)
    )
    return metrics | usage


async def usage_metrics(services: TrainingServices, config: Config) -> dict[str, float]:
    """Metrics of engines, rewards and driver since the last call.

    A process that does not answer is left out: who is gone is found out where it is needed.
    """
    statistics, rewards = await asyncio.gather(
        services.engine.statistics(), _resident_sizes(services.reward_actors)
    )
    gpus = config.rollout.tensor_parallel if config.resources.gpus else 0
    metrics = engine_metrics(statistics, gpus)
    # Alone: where Ray was started for the run, all its processes are children of the driver.
    metrics["memory/rss_driver_gib"] = resident_bytes(with_children=False) / GIB
    if rewards:
        metrics["memory/rss_rewards_gib"] = max(rewards) / GIB
    return metrics


async def _resident_sizes(actors: Sequence[Any]) -> list[int]:
    """Bytes of each Ray actor and of all that it started."""

    def own_size(actor: Any) -> int:
        return resident_bytes(with_children=True)

    sizes = await asyncio.gather(
        *(
            call(actor, "__ray_call__", own_size, deadline_s=ANSWER_S, who="an actor")
            for actor in actors
        ),
        return_exceptions=True,
    )
    return [size for size in sizes if isinstance(size, int)]
