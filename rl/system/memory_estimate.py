"""How much memory a run will take, before anything is loaded; shown by `dry_run`."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from rl.config.policy import PolicyConfig
from rl.config.rollout import RolloutConfig

GIB = 2**30
VOCABULARY_GUESS = 152_000
"""That of Qwen3: only the order of magnitude of a vocabulary matters here."""


def count_parameters(model: str) -> int | None:
    """Parameters of a model directory by its safetensors headers; None if it is not here."""
    # Headers alone are read, so a large model on a slow disk is counted at once.
    total = 0
    for path in Path(model).glob("*.safetensors"):
        with safe_open(path, "np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None


def rank_bytes(policy: PolicyConfig, parameters: int) -> int:
    """Bytes that weights, gradients and AdamW's state take on one learner rank.

    float32: 4 + 4 + 8 bytes a parameter. bfloat16: 2 + 4 (gradients accumulate in float32), and
    4 + 8 for master weights and state. ZeRO 1 divides the last over the ranks, 2 the gradients too,
    3 everything (https://arxiv.org/abs/1910.02054, section 3). Under LoRA only weights count: the
    adapter is small beside them.
    """
    # Of weights, gradients and optimizer state, each with the ZeRO stage from which it is divided.
    sizes = (2, 4, 12) if policy.dtype == "bfloat16" else (4, 4, 8)
    counted = zip(sizes[:1] if policy.lora else sizes, (3, 2, 1), strict=False)
    stage, ranks = policy.effective_zero_stage, policy.ranks
    return round(
        sum(parameters * size / (ranks if stage >= first else 1) for size, first in counted)
    )


def describe_memory(
    policy: PolicyConfig, rollout: RolloutConfig, parameters: int | None, vocabulary: int
) -> str:
    """Lines for people: learner rank, logits in flight, engine weights.

    parameters: of the policy; None where they cannot be counted yet.
    """
    # Three tensors of a chunk exist at once, in float32: its logits, their log-softmax, and the
    # gradient of that.
    logits = 3 * 4 * policy.logprob_chunk_tokens * vocabulary
    if parameters is None:
        return f"  unknown until {policy.model} is on this disk"
    engine = parameters * (2 if policy.dtype == "bfloat16" else 4) / rollout.tensor_parallel
    return (
        f"  {parameters:,} parameters\n"
        f"  each learner rank: {rank_bytes(policy, parameters) / GIB:.2f} GiB for weights, "
        "gradients and optimizer, and activations on top\n"
        f"  logits in flight: at most {logits / GIB:.2f} GiB for a vocabulary of "
        f"{vocabulary:,} (policy.logprob_chunk_tokens)\n"
        f"  each engine GPU or process: {engine / GIB:.2f} GiB for weights, and its KV cache"
    )
