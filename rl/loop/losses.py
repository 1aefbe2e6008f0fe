"""The GRPO objective (https://arxiv.org/abs/2402.03300, eq. 3), with no KL and no entropy term.

Everything is over the N loss tokens of a micro-batch. Normalisation is by counts of the whole
batch over all ranks, so that micro-batch gradients add up to the gradient of one big batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl.config.policy import AlgorithmConfig

MAX_KEY = "max_abs_log_ratio"
"""The one entry of the metric sums that is a maximum."""


@dataclass(frozen=True)
class GlobalCounts:
    """Sizes of all that enters one optimizer step, over all ranks and micro-batches."""

    num_loss_tokens: int
    num_sequences: int


def token_weights(
    loss_mask: Bool[Tensor, "batch time"], counts: GlobalCounts, algorithm: AlgorithmConfig
) -> Float[Tensor, " n"]:
    """Weight of each loss token in the loss, in row order.

    token: 1 / num_loss_tokens (DAPO, https://arxiv.org/abs/2503.14476, eq. 8).
    sequence: 1 / (num_sequences x the row's own loss tokens) (GRPO).
    constant: 1 / (num_sequences x constant_length) (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    """
    num_tokens = loss_mask.sum(dim=1, keepdim=True)  # [B, 1]
    if algorithm.aggregation == "token":
        weights = torch.full(num_tokens.shape, 1 / max(counts.num_loss_tokens, 1))
    elif algorithm.aggregation == "sequence":
        weights = 1 / (counts.num_sequences * num_tokens.clamp(min=1).float())
    else:
        weights = torch.full(
            num_tokens.shape, 1 / (counts.num_sequences * algorithm.constant_length)
        )
    return weights.to(loss_mask.device).expand(loss_mask.shape)[loss_mask]


@dataclass(frozen=True)
class LossInputs:
    """What the loss needs of each loss token."""

    policy_logprobs: Float[Tensor, " n"]
    """Under the learner, with gradient."""
    old_logprobs: Float[Tensor, " n"]
    """Under the learner at the start of the step."""
    rollout_logprobs: Float[Tensor, " n"]
    """By the engine that sampled the token."""
    advantages: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    """Weight in the loss (`token_weights`)."""
    entropies: Float[Tensor, " n"]
    """Of the learner's distribution; measured, never optimised."""


def policy_loss(
    inputs: LossInputs, algorithm: AlgorithmConfig
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return this micro-batch's share of the loss, and metric sums for `reduce_sums`.

    The clipped objective is taken against `old_logprobs`. Each token is multiplied by the truncated
    importance weight min(old / rollout, cap), which corrects for an engine that computes slightly
    other probabilities than the learner.
    """
    # Without gradient: the ratio is 1 in the first update, and its derivative is that of the new
    # policy alone.
    old_logprobs = inputs.old_logprobs.detach()
    ratio = torch.exp(inputs.policy_logprobs - old_logprobs)
    clipped_ratio = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    gain = torch.minimum(ratio * inputs.advantages, clipped_ratio * inputs.advantages)
    # What the engine sampled from differs a little from what the learner computes, by kernels and
    # dtype. The weight corrects for that; the cap keeps one rare token from dominating the step.
    log_mismatch = old_logprobs - inputs.rollout_logprobs
    mismatch = torch.exp(log_mismatch)
    cap = algorithm.rollout_weight_cap
    rollout_weight = torch.ones_like(mismatch) if cap is None else mismatch.clamp(max=cap)
    loss = -(inputs.weights * rollout_weight * gain).sum()
    sums = {
        "loss": loss.detach(),
        "num_loss_tokens": torch.tensor(float(len(ratio)), device=ratio.device),
        # Only where the clip takes a token out of the gradient: on the side that it would reward.
        "clipped": (
            ((inputs.advantages > 0) & (ratio > 1 + algorithm.clip_high))
            | ((inputs.advantages < 0) & (ratio < 1 - algorithm.clip_low))
        ).sum(),
        # expm1: near 0 the difference of exp and 1 is all rounding.
        "mismatch_kl": (torch.expm1(log_mismatch) - log_mismatch).sum(),
        "rollout_weight": rollout_weight.sum(),
        "truncated": (mismatch > cap).sum() if cap is not None else torch.zeros_like(loss.detach()),
        "entropy": inputs.entropies.detach().sum(),
        MAX_KEY: log_mismatch.abs().max() if len(ratio) else torch.zeros_like(loss.detach()),
    }
    return loss, sums


def mean_log_ratios(
    old_logprobs: Float[Tensor, " n"],
    rollout_logprobs: Float[Tensor, " n"],
    num_tokens: Sequence[int],
) -> list[float]:
    """Mean over each sample's loss tokens of old - rollout, the log of the mismatch ratio.

    num_tokens: loss tokens of each sample, in row order; together they are the n tokens.

    Example: mean_log_ratios([-1, -2, -3], [-1.5, -2, -4], [2, 1]) == [0.25, 1.0]
    """
    differences = (old_logprobs.detach() - rollout_logprobs).split(list(num_tokens))
    return [difference.mean().item() for difference in differences]


def reduce_sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine metric sums of micro-batches or of ranks: sums add up, the maximum stays one."""
    return {
        key: (max if key == MAX_KEY else sum)(float(part[key]) for part in parts)
        for key in (parts[0] if parts else ())
    }


def loss_metrics(sums: Mapping[str, float], num_updates: int) -> dict[str, float]:
    """Turn reduced sums into means per loss token, under their documented keys."""
    # A batch may have no loss tokens on any rank; its means are then 0 and not an error.
    num_tokens = max(sums["num_loss_tokens"], 1.0)
    return {
        "loss/policy": sums["loss"] / num_updates,
        "policy/entropy": sums["entropy"] / num_tokens,
        "policy/clip_fraction": sums["clipped"] / num_tokens,
        "rollout/mismatch_kl": sums["mismatch_kl"] / num_tokens,
        "rollout/importance_weight": sums["rollout_weight"] / num_tokens,
        "rollout/truncated_weights": sums["truncated"] / num_tokens,
        "rollout/max_abs_log_ratio": sums[MAX_KEY],
    }
