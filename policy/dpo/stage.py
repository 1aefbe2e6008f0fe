"""The stage that a pass calls: DPO ranks as Ray actors, from pairs to a model directory.

Ray rather than accelerate's launcher: the ranks stand on the GPUs that the run has reserved, on
whatever node, and end with the driver however it ends.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from policy.dpo.checkpoints import remove_torn_checkpoints
from policy.dpo.pairs import DpoPair, keep_pairs, refuse_bad_pairs
from policy.dpo.rank import HEARTBEAT, DpoRank, DpoTask
from policy.learner.rank_actor import rank_actor
from rl.config.run import Config
from rl.system.actors import call, call_all
from rl.system.cluster import Cluster

START_TIMEOUT_S = 900.0
STALL_TIMEOUT_S = 3600.0
"""Longest time without a micro-batch: loading, a checkpoint or the result take less."""
QUIET = {
    "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def train_dpo(
    config: Config,
    source: Path,
    pairs: Sequence[DpoPair],
    directory: Path,
    cluster: Cluster,
) -> Path:
    """Optimise the policy of `source` on the pairs, as align.dpo says; return `directory`/model.

    Blocks until it is there. Called again on a directory where it was cut short, it goes on from
    the last complete checkpoint, and where it ended, it returns at once. `metrics.jsonl` has the
    curves. Raises ValueError for pairs and settings that cannot be trained, RuntimeError naming a
    rank that failed, TimeoutError if nothing has moved for STALL_TIMEOUT_S.
    """
    config.align.dpo.accumulation(config.policy.ranks)
    refuse_bad_pairs(pairs, config.rollout.max_model_length)
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    kept = keep_pairs(pairs, directory)
    model = directory / "model"
    if model.exists():
        _remove_checkpoints(directory)
        return model
    aside = directory / ".model.partial"
    shutil.rmtree(aside, ignore_errors=True)
    remove_torn_checkpoints(directory)
    task = DpoTask(config, source.absolute(), kept, directory)
    ranks = [
        rank_actor(DpoRank, config, cluster, rank, QUIET).remote(task, rank)
        for rank in range(config.policy.ranks)
    ]
    try:
        asyncio.run(_train(ranks, aside, directory / HEARTBEAT))
    finally:
        for rank in ranks:
            ray.kill(rank)
    aside.rename(model)
    _remove_checkpoints(directory)
    return model


async def _train(ranks: Sequence[Any], target: Path, heartbeat: Path) -> None:
    """Train on all ranks; late are only ranks that begin no micro-batch for too long."""

    def last_beat() -> float:
        if not heartbeat.exists():
            return -math.inf
        # The file's time is that of the wall clock, deadlines go by the monotonic one.
        return time.monotonic() - (time.time() - heartbeat.stat().st_mtime)

    address, port = await call(
        ranks[0], "free_address", deadline_s=START_TIMEOUT_S, who="DPO rank 0"
    )
    await call_all(
        ranks,
        "train",
        address,
        port,
        target,
        deadline_s=STALL_TIMEOUT_S,
        who="DPO rank",
        hint=" after the last micro-batch that was begun",
        last_sign=last_beat,
        refusal=ValueError,
    )


def _remove_checkpoints(directory: Path) -> None:
    """What the result makes needless."""
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
