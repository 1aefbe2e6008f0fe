"""A batch divided among the ranks: planned once, and each rank fetches its own rows and no others.

TrainBatch -> divide -> the updates of each rank -> one ray.put per share -> SharedBatch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from rl.config.run import Config
from rl.loop.batching import plan_micro_batches, split_updates
from rl.loop.losses import GlobalCounts, is_in_loss
from rl.loop.stages import TrainBatch, TrainSample


@dataclass(frozen=True)
class Update:
    """One optimizer step: a rank's micro-batches and the counts of all ranks."""

    micro_batches: list[dict[int, TrainSample]]
    """Samples that are forwarded together, by their place in the batch; none where a rank only
    keeps in step."""
    counts: GlobalCounts


@dataclass(frozen=True)
class SharedBatch:
    """A batch as ranks are sent it: where each finds its share."""

    step: int
    """The step it makes, 1-based."""
    shares: tuple[Any, ...]
    """Ray references to the `Update`s of each rank."""

    def of_rank(self, rank: int) -> list[Update]:
        return ray.get(self.shares[rank])


def plan_rows(lengths: Sequence[int], config: Config) -> list[list[list[int]]]:
    """Of samples of these lengths, those in each micro-batch of each rank."""
    policy = config.policy
    # Ranks that share sequences forward the same ones, as many tokens together as they can hold
    # together.
    shared = policy.sequence_parallel
    plan = plan_micro_batches(lengths, policy.ranks // shared, policy.micro_batch_tokens * shared)
    return [plan[rank // shared] for rank in range(policy.ranks)]


def divide(samples: Sequence[TrainSample], config: Config) -> list[list[Update]]:
    """The optimizer steps of a batch, by rank."""
    shares: list[list[Update]] = [[] for _ in range(config.policy.ranks)]
    algorithm = config.algorithm
    for indices in split_updates(len(samples), algorithm.updates_per_batch):
        part = {index: samples[index] for index in indices}
        # Counts of the whole update and not of one rank: the gradients of ranks and micro-batches
        # then add up to that of one big batch, however it is cut.
        counts = GlobalCounts.of([*part.values()], algorithm)
        # A truncated answer is among the longest, and without loss its forward is for nothing.
        places = [index for index in part if is_in_loss(part[index].trajectory, algorithm)]
        plan = plan_rows([part[index].trajectory.num_tokens for index in places], config)
        for share, micro_batches in zip(shares, plan, strict=True):
            own = [{places[row]: part[places[row]] for row in rows} for rows in micro_batches]
            share.append(Update(own, counts))
    return shares


def share_batch(batch: TrainBatch, config: Config) -> SharedBatch:
    """Put the share of each rank into Ray's object store, without the texts, which no rank reads.

    Copying a large batch takes a while, so this belongs into a thread.
    """
    samples = [
        replace(s, trajectory=replace(s.trajectory, text="", reasoning=None, answer=None))
        for s in batch.samples
    ]
    shared = config.policy.sequence_parallel
    references = [ray.put(share) for share in divide(samples, config)[::shared]]
    return SharedBatch(batch.step, tuple(r for r in references for _ in range(shared)))
