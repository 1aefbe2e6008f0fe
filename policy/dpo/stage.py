"""The stage that a pass calls: DPO ranks as Ray actors, from pairs to a model directory.

Ray rather than accelerate's launcher: the ranks stand on the GPUs that the run has reserved, on
whatever node, and end with the driver however it ends.
"""

import asyncio
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers import AutoTokenizer

from policy.dpo.pairs import (
    COMPLETE,
    DpoPair,
    PairCollator,
    keep_pairs,
    reference_batch_size,
    refuse_bad_pairs,
)
from policy.learner.deepspeed_engine import deepspeed_config, free_address, join_ranks
from policy.learner.learner import rank_actor, rank_bundles
from policy.models.family import open_visual_inputs
from policy.models.loading import DTYPES, load_policy
from policy.weights.full_weights import FullWeights, write_model_directory
from rl.config.run import Config
from rl.run.sinks import read_metrics
from rl.system.actors import call, call_all, kill_actor
from rl.system.cluster import Cluster

_log = logging.getLogger(__name__)
START_TIMEOUT_S = 900.0
# Longest time without a micro-batch: loading, a checkpoint or the result take less.
STALL_TIMEOUT_S = 3600.0
# A file whose time says when rank 0 last began a micro-batch. A file, because the rank cannot
# answer a call of the driver while it trains.
HEARTBEAT = "heartbeat"
# Time between two looks at the steps that were made.
REPORT_S = 1.0
# Every rank would write the same warnings and bars into the driver's terminal.
QUIET = {
    "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


async def train_dpo(
    config: Config,
    source: Path,
    pairs: Sequence[DpoPair],
    directory: Path,
    cluster: Cluster,
    on_step: Callable[[int, Mapping[str, float]], None],
) -> Path:
    """Optimise the policy of `source` on the pairs, as align.dpo says; return `directory`/model.

    source: the policy before, which is the reference too. Called again on a directory where it was
    cut short, it goes on from the last complete checkpoint, and where it ended, it returns at once.
    `metrics.jsonl` has the curves. on_step: told of every step and its metrics once, also of those
    that an earlier process made.

    Raises ValueError for pairs and settings that cannot be trained, RuntimeError naming a rank that
    failed, TimeoutError if nothing has moved for STALL_TIMEOUT_S.
    """
    refuse_bad_pairs(pairs, config.rollout.max_model_length)
    reference_batch = reference_batch_size(len(pairs), config)
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    kept = keep_pairs(pairs, directory)
    model = directory / "model"
    told = 0

    def report() -> None:
        nonlocal told
        # Rank 0 writes this file in any case. It is read here rather than sent, because a step may
        # have been made by a process that was killed before anyone heard of it.
        metrics = read_metrics(directory / "metrics.jsonl")
        for step in (step for step in metrics if step > told):
            on_step(step, metrics[step])
        told = max(metrics, default=0)

    if not model.exists():
        aside = directory / ".model.partial"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint = last_checkpoint(directory)
        task = (config, source.absolute(), kept, directory, reference_batch, checkpoint)
        ranks = [
            rank_actor(DpoRank, config, cluster, rank, bundle, QUIET).remote(*task, rank)
            for rank, bundle in enumerate(rank_bundles(cluster))
        ]
        training = asyncio.ensure_future(_train(ranks, aside, directory / HEARTBEAT))
        try:
            while not training.done():
                await asyncio.wait([training], timeout=REPORT_S)
                report()
            training.result()
        finally:
            training.cancel()
            for rank in ranks:
                kill_actor(rank)
        # The name says that it is whole, so it comes last.
        aside.rename(model)
    report()
    # The result makes them needless. Removed here too, where a kill came before they were.
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return model


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint; removes those that are not, so call it while no rank runs."""
    complete = []
    for checkpoint in directory.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        else:
            _log.warning("removing %s, which was not complete", checkpoint)
            shutil.rmtree(checkpoint)
    # By number and not by name, as `checkpoint-10` sorts before `checkpoint-2`.
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


async def _train(ranks: Sequence[Any], target: Path, heartbeat: Path) -> None:
    """Train on all ranks; late are only ranks that begin no micro-batch for too long."""

    def last_beat() -> float:
        if not heartbeat.exists():
            return -math.inf
        # The file's time is that of the wall clock, deadlines go by the monotonic one.
        return time.monotonic() - (time.time() - heartbeat.stat().st_mtime)

    address = await call(ranks[0], "free_address", deadline_s=START_TIMEOUT_S, who="DPO rank 0")
    await call_all(
        ranks,
        "train",
        *address,
        target,
        deadline_s=STALL_TIMEOUT_S,
        who="DPO rank",
        hint=" after the last micro-batch that was begun",
        last_sign=last_beat,
        refusal=ValueError,
    )


@dataclass
class DpoRank:
    """One rank; train_dpo makes a Ray actor of it."""

    config: Config
    source: Path
    """Directory of the policy as it is now, which is the reference too."""
    pairs: Path
    """What policy.dpo.pairs.keep_pairs wrote."""
    directory: Path
    """The stage's own; all ranks can reach it."""
    reference_batch_size: int
    """Pairs that a rank forwards at once in the pass over the reference."""
    checkpoint: Path | None
    """The checkpoint that the training goes on from, if any."""
    rank: int

    def free_address(self) -> tuple[str, int]:
        """Return an address of this node and a port that is free on it."""
        return free_address()

    def train(self, address: str, port: int, target: Path) -> None:
        """Meet the other ranks, train to the last step and write the model directory `target`."""
        config, is_writer = self.config, self.rank == 0
        join_ranks(config, self.rank, address, port)
        # LoRA adapters start with random weights, which must be the same on every rank.
        torch.manual_seed(config.seed)
        is_partitioned = config.policy.effective_zero_stage == 3
        # Divided as it is loaded: whole on every rank, a large model fits into no node.
        zero3 = deepspeed_config(config.policy) if is_partitioned else None
        policy = load_policy(self.source, config.policy, zero3)
        weights = FullWeights(policy, DTYPES[config.policy.dtype], is_partitioned)
        tokenizer = AutoTokenizer.from_pretrained(
            self.source, trust_remote_code=False, local_files_only=True
        )
        inputs = open_visual_inputs(self.source, config.data)
        # TRL takes seconds to load, and the driver needs none of it.
        from policy.dpo.trainer import MetricsLog, PairTrainer, training_arguments

        trainer = PairTrainer(
            policy,
            config.align.dpo,
            # One rank is enough: the others wait for it in every collective.
            on_batch=(self.directory / HEARTBEAT).touch if is_writer else lambda: None,
            # After the policy is loaded: see training_arguments.
            args=training_arguments(
                config, self.directory, config.resources.gpus > 0, self.reference_batch_size
            ),
            train_dataset=load_from_disk(str(self.pairs)),
            # Padding is masked in attention and in the loss, so any token serves.
            data_collator=PairCollator(
                tokenizer.pad_token_id or 0, inputs, config.rollout.max_model_length
            ),
            processing_class=tokenizer,
            callbacks=[MetricsLog(self.directory / "metrics.jsonl", is_writer)],
        )
        trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
        # Every rank takes part, because under ZeRO-3 each holds a share of every weight.
        write_model_directory(weights, self.source, target, is_writer=is_writer)
        # No rank may report success before the writer has finished.
        torch.distributed.barrier()
