"""The stage that a pass calls: DPO ranks as Ray actors, from pairs to a model directory.

Ray rather than accelerate's launcher: the ranks stand on the GPUs that the run has reserved, on
whatever node, and end with the driver however it ends.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from policy.dpo.checkpoints import remove_torn_checkpoints
from policy.dpo.pairs import DpoPair, keep_pairs, refuse_bad_pairs
from policy.dpo.rank import HEARTBEAT, DpoRank, DpoTask
from policy.learner.rank_actor import rank_actor, rank_failure
from rl.config.run import Config
from rl.system.cluster import Cluster

START_TIMEOUT_S = 900.0
STALL_TIMEOUT_S = 3600.0
"""Longest time without a micro-batch: loading, a checkpoint or the result take less."""
POLL_S = 5.0
QUIET = {
    "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
BLAME_S = 5.0
"""How long a failure waits for those of other ranks, to name the rank that failed first."""


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
        address, port = ray.get(ranks[0].free_address.remote(), timeout=START_TIMEOUT_S)
        _wait([rank.train.remote(address, port, aside) for rank in ranks], directory / HEARTBEAT)
    finally:
        for rank in ranks:
            ray.kill(rank)
    aside.rename(model)
    _remove_checkpoints(directory)
    return model


def _remove_checkpoints(directory: Path) -> None:
    """What the result makes needless."""
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _wait(calls: Sequence[Any], heartbeat: Path) -> None:
    """Return when every rank has ended; the first one that fails ends the wait."""
    left, beat, moved = list(calls), None, time.monotonic()
    while left:
        done, left = ray.wait(left, num_returns=1, timeout=POLL_S)
        if any(_error(call) for call in done):
            ended, _ = ray.wait(calls, num_returns=len(calls), timeout=BLAME_S)
            errors = {calls.index(call): e for call in ended if (e := _error(call))}
            raise rank_failure("DPO", "train", errors)
        if beat != (beat := _time_of(heartbeat)):
            moved = time.monotonic()
        if left and time.monotonic() - moved > STALL_TIMEOUT_S:
            late = [calls.index(call) for call in left]
            raise TimeoutError(
                f"DPO ranks {late} have not begun a micro-batch for {STALL_TIMEOUT_S:g} s"
            )


def _time_of(heartbeat: Path) -> int | None:
    return heartbeat.stat().st_mtime_ns if heartbeat.exists() else None


def _error(call: Any) -> RayError | None:
    """What ended a rank that has ended."""
    try:
        ray.get(call, timeout=BLAME_S)
    except RayError as error:
        return error
    return None
