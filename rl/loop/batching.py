"""Cuts a batch into micro-batches: who forwards which samples together, and the padded tensors."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl.loop.stages import ReferenceRequest, TrainSample, Trajectory

ATTENTION_PARITY_TOKENS = 24_576
"""Length at which causal attention costs as much as all linear layers: 6 x a hidden size of 4096.
It only weighs long against short samples when ranks are balanced."""

MIN_TIME = 2
"""Columns of an empty micro-batch, which a rank forwards so that collectives stay aligned."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that one rank forwards at once, padded on the right."""

    token_ids: Int[Tensor, "batch time"]
    loss_mask: Bool[Tensor, "batch time"]
    """True on sampled tokens; False on prompt and padding, and on a choice."""
    rollout_logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, " batch"]
    temperature: Float[Tensor, " batch"]
    choice_mask: Bool[Tensor, "batch time"]
    """True on the token by which a row chose its kind, if it did."""
    choice_advantages: Float[Tensor, " batch"]
    choice_weights: Float[Tensor, " batch"]
    choice_reasons: Bool[Tensor, " batch"]
    """Whether the row chose to reason."""
    choice_is_forced: Bool[Tensor, " batch"]

    @property
    def scored_mask(self) -> Bool[Tensor, "batch time"]:
        """True where a log-probability is needed: on loss tokens and choices."""
        return self.loss_mask | self.choice_mask

    @property
    def is_choice(self) -> Bool[Tensor, " n"]:
        """Of each scored token, in row order."""
        return self.choice_mask[self.scored_mask]

    def to(self, device: torch.device) -> MicroBatch:
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return MicroBatch(**moved)


def split_updates(num_samples: int, num_updates: int) -> list[range]:
    """Return the samples of each optimizer step: consecutive parts that differ by at most one.

    There are fewer parts than updates where there are fewer samples.
    """
    num_parts = min(num_samples, num_updates)
    edges = [num_samples * part // num_parts for part in range(num_parts + 1)] if num_parts else []
    return [range(start, end) for start, end in itertools.pairwise(edges)]


def plan_micro_batches(
    lengths: Sequence[int], num_ranks: int, budget_tokens: int
) -> list[list[list[int]]]:
    """Return [rank][micro_batch][sample index], each sample exactly once.

    Samples of like length share a micro-batch, whose padded tokens (rows x longest) stay within
    the budget; a sample longer than the budget is alone. Every rank gets the same number of
    micro-batches, because each is a round of collectives; empty ones fill up. Micro-batches of the
    same place cost about the same on all ranks. Without samples each rank gets an empty one, whose
    gradient is 0.
    """
    # By length, and by index where lengths are equal: every rank must arrive at the same plan.
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    micro_batches = _pack(order, lengths, num_ranks, budget_tokens)
    micro_batches.sort(key=lambda rows: -_cost(len(rows), lengths[rows[0]]))
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for start in range(0, max(len(micro_batches), 1), num_ranks):
        batch_round = micro_batches[start : start + num_ranks]
        # A rank without samples forwards an empty row, because the others' collectives wait for it.
        batch_round += [[] for _ in range(num_ranks - len(batch_round))]
        least_loaded_first = sorted(range(num_ranks), key=lambda rank: (loads[rank], rank))
        for rank, rows in zip(least_loaded_first, batch_round, strict=True):
            plan[rank].append(rows)
            loads[rank] += _cost(len(rows), lengths[rows[0]]) if rows else 0
    return plan


def _pack(
    order: Sequence[int], lengths: Sequence[int], num_ranks: int, budget_tokens: int
) -> list[list[int]]:
    """Cut the length-sorted samples into as few rounds as the budget allows, evenly by cost."""
    if not order:
        return []
    # Every rank waits for its plan, and a step on a large cluster has a hundred thousand samples.
    # So how many rows fit below each sample is computed for all of them at once.
    longest = np.maximum(1, np.array([lengths[index] for index in order], np.int64))
    costs, by_memory = _cost(1, longest), budget_tokens // longest

    def cut(max_cost: int) -> list[int]:
        """Where micro-batches start that are closed when a row more would pass a limit."""
        num_rows = np.maximum(1, np.minimum(by_memory, max_cost // costs)).tolist()
        starts, start = [], 0
        while start < len(num_rows):
            starts.append(start)
            start += num_rows[start]
        return starts

    total = _cost(len(order), int(longest[0]))
    fewest = len(cut(total))
    # Every rank takes part in each round, so a round that is not full costs as much as a full one.
    allowed = -(-fewest // num_ranks) * num_ranks
    # The largest cost of a micro-batch is searched for: the smallest with which the samples still
    # fit into the fewest rounds that the memory allows. Then no rank waits long for another.
    max_cost = bisect.bisect_left(range(total), True, key=lambda cost: len(cut(cost)) <= allowed)
    edges = [*cut(max_cost), len(order)]
    return [list(order[start:end]) for start, end in itertools.pairwise(edges)]


def _cost(num_rows: int, longest: Any) -> Any:
    """Compute of a padded micro-batch, up to a factor: linear layers plus attention."""
    return num_rows * longest * (ATTENTION_PARITY_TOKENS + longest)


def collate(samples: Sequence[TrainSample]) -> MicroBatch:
    """Stack samples, padded on the right with mask False; no samples give one row without loss.

    Raises ValueError for a sample whose first token is in the loss: nothing predicts it.
    """
    num_rows = max(len(samples), 1)
    time = max([MIN_TIME, *(sample.trajectory.num_tokens for sample in samples)])
    token_ids = torch.zeros(num_rows, time, dtype=torch.int64)
    loss_mask = torch.zeros(num_rows, time, dtype=torch.bool)
    rollout_logprobs = torch.zeros(num_rows, time)
    advantages = torch.zeros(num_rows)
    temperature = torch.ones(num_rows)
    choice_mask = torch.zeros(num_rows, time, dtype=torch.bool)
    choice_advantages, choice_weights = torch.zeros(num_rows), torch.zeros(num_rows)
    choice_reasons, choice_is_forced = (torch.zeros(num_rows, dtype=torch.bool) for _ in range(2))
    for row, sample in enumerate(samples):
        trajectory = sample.trajectory
        if trajectory.loss_mask[0]:
            raise ValueError(
                "the first token of a trajectory cannot be in the loss, because no token precedes "
                "it; put at least one prompt token in front"
            )
        length = trajectory.num_tokens
        token_ids[row, :length] = torch.tensor(trajectory.token_ids)
        loss_mask[row, :length] = torch.tensor(trajectory.loss_mask)
        rollout_logprobs[row, :length] = torch.tensor(trajectory.rollout_logprobs)
        advantages[row] = sample.advantage
        temperature[row] = sample.temperature
        if (credit := sample.choice) is not None:
            first = int(trajectory.loss_mask.argmax())
            loss_mask[row, first : first + credit.num_tokens] = False
            choice_mask[row, first] = True
            choice_advantages[row], choice_weights[row] = credit.advantage, credit.weight
            choice_reasons[row] = credit.choice.thinking
            choice_is_forced[row] = credit.choice.is_forced
    return MicroBatch(
        token_ids,
        loss_mask,
        rollout_logprobs,
        advantages,
        temperature,
        choice_mask,
        choice_advantages,
        choice_weights,
        choice_reasons,
        choice_is_forced,
    )


def reference_sample(request: ReferenceRequest, context: Sequence[int]) -> TrainSample:
    """A sample whose loss tokens are the reference, to be forwarded and never trained on.

    context: the request's, with every token of its media.
    """
    token_ids = np.array([*context, *request.reference_token_ids], np.int32)
    loss_mask = np.arange(len(token_ids)) >= len(context)
    trajectory = Trajectory(
        token_ids=token_ids,
        loss_mask=loss_mask,
        rollout_logprobs=np.zeros(len(token_ids), np.float32),
        versions=(0, 0),
        finish_reason="stop",
        text="",
        reasoning=None,
        answer=None,
    )
    return TrainSample(
        trajectory,
        advantage=0.0,
        temperature=request.temperature,
        id=request.id,
        media=request.prompt.media,
    )
