"""The policy losses, with no KL and no entropy term: GRPO, GSPO and CISPO.

Everything is over the n loss tokens of a micro-batch, in row order. Normalisation is by counts of
the whole batch over all ranks, so that micro-batch gradients add up to the gradient of one big
batch. A sequence is always whole in its micro-batch, so what is taken over sequences does not
depend on how the batch is cut either.

A choice, the one token by which a response decides whether to reason, is no loss token: it has a
loss of its own (`choice_loss`), normalised by the number of choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl.config.policy import AlgorithmConfig
from rl.loop.batching import MicroBatch
from rl.loop.stages import TrainSample, Trajectory

MAX_KEY = "max_abs_log_ratio"
"""The one entry of the metric sums that is a maximum."""
SETTLED = 0.98
"""A forced choice that is as probable as this, or as improbable as the rest, is pushed no further
that way: it has the same gradient however sure the policy is, and would never stop. One that the
policy made itself has a gradient that fades by itself."""


def is_in_loss(trajectory: Trajectory, algorithm: AlgorithmConfig) -> bool:
    """Whether the tokens of a trajectory are in the loss: overlong filtering of DAPO
    (https://arxiv.org/abs/2503.14476, section 3.4)."""
    return not (algorithm.mask_truncated and trajectory.finish_reason == "length")


@dataclass(frozen=True)
class GlobalCounts:
    """Sizes of one optimizer step, over all ranks and micro-batches."""

    num_loss_tokens: int
    """Of the sequences that are in the loss."""
    num_sequences: int
    """Of all, also of those that `mask_truncated` leaves out of the loss."""
    num_choices: int = 0
    """Choices of the sequences that are in the loss."""

    @classmethod
    def of(cls, samples: Sequence[TrainSample], algorithm: AlgorithmConfig) -> GlobalCounts:
        # As in TRL: a truncated answer is a sequence without tokens, so it makes a mean over
        # sequences smaller and leaves a mean over tokens as it is.
        in_loss = [s for s in samples if is_in_loss(s.trajectory, algorithm)]
        num_choices = sum(sample.choice is not None for sample in in_loss)
        return cls(sum(s.num_loss_tokens for s in in_loss), len(samples), num_choices)


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
        weights = 1 / (counts.num_sequences * num_tokens.clamp(min=1))
    else:
        weights = torch.full(
            num_tokens.shape, 1 / (counts.num_sequences * algorithm.constant_length)
        )
    return weights.to(loss_mask.device).expand(loss_mask.shape)[loss_mask]


@dataclass(frozen=True)
class LossInputs:
    """What the loss needs of each loss token, in row order."""

    loss_mask: Bool[Tensor, "batch time"]
    """The rows that the n tokens are of."""
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


def over_sequences(
    values: Float[Tensor, " n"], loss_mask: Bool[Tensor, "batch time"], is_mean: bool
) -> Float[Tensor, " n"]:
    """Give every loss token the sum, or the mean, over the loss tokens of its sequence."""
    table = values.new_zeros(loss_mask.shape).masked_scatter(loss_mask, values)
    totals = table.sum(dim=1, keepdim=True)  # [B, 1]
    if is_mean:
        totals = totals / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return totals.expand(loss_mask.shape)[loss_mask]


def importance_ratio(
    inputs: LossInputs, old_logprobs: Float[Tensor, " n"], algorithm: AlgorithmConfig
) -> Float[Tensor, " n"]:
    """Return policy / old for each token, or for each token's sequence under GSPO.

    GSPO (https://arxiv.org/abs/2507.18071, eq. 7) takes the geometric mean over the sequence. Its
    token form (eq. 14) has the same value, while each token has the gradient of its own
    probability; the two differ only where tokens of a sequence have different rollout weights.
    """
    log_ratio = inputs.policy_logprobs - old_logprobs
    if algorithm.loss in ("gspo", "gspo_token"):
        log_ratio = over_sequences(log_ratio, inputs.loss_mask, is_mean=True)
    if algorithm.loss == "gspo_token":
        log_ratio = log_ratio.detach() + (inputs.policy_logprobs - inputs.policy_logprobs.detach())
    return torch.exp(log_ratio)


def clipped_gain(
    ratio: Float[Tensor, " n"], inputs: LossInputs, algorithm: AlgorithmConfig
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return what each token gains, and where the clip is at work.

    grpo, gspo: min(ratio A, clip(ratio) A). A clipped token has no gradient; that is so on the side
    alone that the clip would reward.
    cispo: min(ratio, 1 + clip_high) A log policy with no gradient through the ratio, so that a
    clipped token keeps a gradient (MiniMax-M1, https://arxiv.org/abs/2506.13585, eq. 4; it has no
    lower bound there).
    """
    advantages, upper = inputs.advantages, 1 + algorithm.clip_high
    if algorithm.loss == "cispo":
        ratio = ratio.detach()
        return ratio.clamp(max=upper) * advantages * inputs.policy_logprobs, ratio > upper
    lower = 1 - algorithm.clip_low
    gain = torch.minimum(ratio * advantages, ratio.clamp(lower, upper) * advantages)
    return gain, ((advantages > 0) & (ratio > upper)) | ((advantages < 0) & (ratio < lower))


def rollout_weights(
    log_mismatch: Float[Tensor, " n"],
    loss_mask: Bool[Tensor, "batch time"],
    algorithm: AlgorithmConfig,
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return the importance weight of each token against the engine, and where it is out of bounds.

    The weight is old / rollout of the token or, for `sequence_*`, the product over its sequence. It
    is cut to floor and cap (`*_truncate`), or 0 outside them (`*_mask`).

    log_mismatch: log of old / rollout for each token, without gradient.
    """
    cap, floor = algorithm.rollout_weight_cap, algorithm.rollout_weight_floor
    if cap is None and floor is None:
        return torch.ones_like(log_mismatch), torch.zeros_like(log_mismatch, dtype=torch.bool)
    if algorithm.rollout_weight in ("sequence_truncate", "sequence_mask"):
        log_mismatch = over_sequences(log_mismatch, loss_mask, is_mean=False)
    mismatch = torch.exp(log_mismatch)
    low = -math.inf if floor is None else floor
    high = math.inf if cap is None else cap
    is_outside = (mismatch < low) | (mismatch > high)
    if algorithm.rollout_weight in ("token_mask", "sequence_mask"):
        return mismatch.masked_fill(is_outside, 0.0), is_outside
    return mismatch.clamp(low, high), is_outside


def is_off_policy(inputs: LossInputs, limit: float) -> Bool[Tensor, " n"]:
    """Where a bad sequence is so unlikely by now that it only pulls the policy astray.

    That is where the advantage is negative and the mean over the sequence's tokens of
    log(rollout / policy) is over the limit (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556,
    eq. 9).
    """
    drift = inputs.rollout_logprobs - inputs.policy_logprobs.detach()
    mean_drift = over_sequences(drift, inputs.loss_mask, is_mean=True)
    return (inputs.advantages < 0) & (mean_drift > limit)


def policy_loss(
    inputs: LossInputs, algorithm: AlgorithmConfig
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return this micro-batch's share of the loss, and metric sums for `reduce_sums`.

    The clipped objective is taken against `old_logprobs`. Each token is multiplied by the bounded
    importance weight old / rollout, which corrects for an engine that computes slightly other
    probabilities than the learner. Tokens that a mask takes out still count as loss tokens.
    """
    # Without gradient: the ratio is 1 in the first update, and its derivative is that of the new
    # policy alone.
    old_logprobs = inputs.old_logprobs.detach()
    ratio = importance_ratio(inputs, old_logprobs, algorithm)
    gain, is_clipped = clipped_gain(ratio, inputs, algorithm)
    # What the engine sampled from differs a little from what the learner computes, by kernels and
    # dtype. The weight corrects for that; the cap keeps one rare token from dominating the step.
    log_mismatch = old_logprobs - inputs.rollout_logprobs
    rollout_weight, is_outside = rollout_weights(log_mismatch, inputs.loss_mask, algorithm)
    sums: dict[str, Tensor] = {}
    is_sequence_mask = algorithm.rollout_weight == "sequence_mask"
    if is_sequence_mask or algorithm.off_policy_limit is not None:
        is_masked = is_outside & is_sequence_mask
        if algorithm.off_policy_limit is not None:
            is_far = is_off_policy(inputs, algorithm.off_policy_limit)
            gain, is_masked = gain.masked_fill(is_far, 0.0), is_masked | is_far
        rows = torch.zeros_like(inputs.loss_mask).masked_scatter(inputs.loss_mask, is_masked)
        sums["masked_sequences"] = rows.any(dim=1).sum()
        # The row of a rank without samples is no sequence.
        sums["num_sequences"] = inputs.loss_mask.any(dim=1).sum()
    loss = -(inputs.weights * rollout_weight * gain).sum()
    sums |= {
        "loss": loss.detach(),
        "num_loss_tokens": torch.tensor(float(len(ratio)), device=ratio.device),
        "clipped": is_clipped.sum(),
        # expm1: near 0 the difference of exp and 1 is all rounding.
        "mismatch_kl": (torch.expm1(log_mismatch) - log_mismatch).sum(),
        "rollout_weight": rollout_weight.sum(),
        "truncated": is_outside.sum(),
        "entropy": inputs.entropies.detach().sum(),
        MAX_KEY: log_mismatch.abs().max() if len(ratio) else torch.zeros_like(loss.detach()),
    }
    return loss, sums


def choice_loss(
    policy_logprobs: Float[Tensor, " c"],
    old_logprobs: Float[Tensor, " c"],
    entropies: Float[Tensor, " c"],
    micro_batch: MicroBatch,
    counts: GlobalCounts,
    algorithm: AlgorithmConfig,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return this micro-batch's share of the loss of the choices, and metric sums.

    It is `policy_loss` over one token a sequence, weighed by the mode's `choice_weight` over the
    number of choices. So its part of the gradient does not depend on how long responses are: in a
    mean over all tokens a choice would weigh the less the longer they grow (DeGRPO,
    https://arxiv.org/abs/2505.13379). A forced choice has no probability under the engine, and none
    that would say how often it comes; it is taken as if the policy of the batch's start had sampled
    it.

    policy_logprobs, old_logprobs, entropies: as in LossInputs, of the c choices in row order.
    """
    is_chosen = micro_batch.choice_mask.any(dim=1)  # [B]
    advantages = micro_batch.choice_advantages[is_chosen]
    old_logprobs = old_logprobs.detach()
    probability = old_logprobs.exp()
    is_forced = micro_batch.choice_is_forced[is_chosen]
    is_sure = torch.where(advantages > 0, probability > SETTLED, probability < 1 - SETTLED)
    is_settled = is_forced & is_sure
    rollout_logprobs = micro_batch.rollout_logprobs[micro_batch.choice_mask]
    inputs = LossInputs(
        loss_mask=is_chosen[is_chosen, None],
        policy_logprobs=policy_logprobs,
        old_logprobs=old_logprobs,
        rollout_logprobs=torch.where(is_forced, old_logprobs, rollout_logprobs),
        advantages=advantages.masked_fill(is_settled, 0.0),
        weights=micro_batch.choice_weights[is_chosen] / max(counts.num_choices, 1),
        entropies=entropies,
    )
    loss, sums = policy_loss(inputs, algorithm)
    does_reason = micro_batch.choice_reasons[is_chosen]
    return loss, {
        "choice_loss": sums["loss"],
        "num_choices": is_chosen.sum(),
        "choice_entropy": sums["entropy"],
        "choice_reasons": torch.where(does_reason, probability, 1 - probability).sum(),
        "choice_settled": is_settled.sum(),
    }


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
    # A response may end with its choice, and then has none.
    return [each.mean().item() if len(each) else 0.0 for each in differences]


def reduce_sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine metric sums of micro-batches or of ranks: sums add up, the maximum stays one."""
    return {
        key: (max if key == MAX_KEY else sum)(float(part[key]) for part in parts)
        for key in (parts[0] if parts else ())
    }


def loss_metrics(sums: Mapping[str, float], num_updates: int) -> dict[str, float]:
    """Turn reduced sums into means per loss token (or sequence), under their documented keys."""
    # A batch may have no loss tokens on any rank; its means are then 0 and not an error.
    num_tokens = max(sums["num_loss_tokens"], 1.0)
    metrics = {
        "loss/policy": sums["loss"] / num_updates,
        "policy/entropy": sums["entropy"] / num_tokens,
        "policy/clip_fraction": sums["clipped"] / num_tokens,
        "rollout/mismatch_kl": sums["mismatch_kl"] / num_tokens,
        "rollout/importance_weight": sums["rollout_weight"] / num_tokens,
        "rollout/truncated_weights": sums["truncated"] / num_tokens,
        "rollout/max_abs_log_ratio": sums[MAX_KEY],
    }
    if "masked_sequences" in sums:
        share = sums["masked_sequences"] / max(sums["num_sequences"], 1.0)
        metrics["rollout/masked_sequences"] = share
    if num_choices := sums.get("num_choices"):
        metrics["loss/choice"] = sums["choice_loss"] / num_updates
        for name in ("entropy", "reasons", "settled"):
            metrics[f"choice/{name}"] = sums[f"choice_{name}"] / num_choices
    return metrics
