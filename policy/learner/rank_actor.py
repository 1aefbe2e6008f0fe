"""Ranks as Ray actors: where they stand, and which is to blame when a call on all fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.run import Config
from rl.system.cluster import Cluster


def rank_actor(
    rank_class: type, config: Config, cluster: Cluster, rank: int, environment: Mapping[str, str]
) -> Any:
    """The actor class of a rank, placed in its bundle; environment: beside what all ranks have."""
    use_cuda = config.resources.gpus > 0
    variables = {
        "DS_ACCELERATOR": "cuda" if use_cuda else "cpu",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        **environment,
    }
    if not use_cuda:
        variables["OMP_NUM_THREADS"] = str(config.policy.threads)
    return ray.remote(rank_class).options(
        num_cpus=config.resources.rank_cpus,
        num_gpus=1 if use_cuda else 0,
        max_restarts=0,
        runtime_env={"env_vars": variables},
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=cluster.group,
            placement_group_bundle_index=cluster.placement.rank_bundles[rank],
        ),
    )


def rank_failure(who: str, method: str, errors: Mapping[int, BaseException]) -> Exception:
    """Name the rank at fault: one that died, else the first that raised.

    The others wait in a collective for one that will not come. A ValueError is about the input and
    comes back as it was.
    """
    dead = [rank for rank, error in errors.items() if isinstance(error, RayActorError)]
    rank = min(dead or errors)
    error = errors[rank]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ValueError):
        cause.__cause__ = error
        return cause
    verb = "died" if dead else "failed"
    failure = RuntimeError(f"{who} rank {rank} {verb} in {method}: {cause}")
    failure.__cause__ = error
    return failure
