"""Ranks as Ray actors: where they stand and what their processes are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.run import Config
from rl.system.cluster import Cluster


def rank_actor(
    rank_class: type, config: Config, cluster: Cluster, rank: int, environment: Mapping[str, str]
) -> Any:
    """Return the actor class of a rank, placed in its bundle.

    environment: variables beside those that all ranks have.
    """
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
        # A rank that came back alone would find no peers; the run resumes from a checkpoint.
        max_restarts=0,
        runtime_env={"env_vars": variables},
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=cluster.group,
            placement_group_bundle_index=cluster.placement.rank_bundles[rank],
        ),
    )
