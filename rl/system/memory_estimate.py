"""How much memory a run will take, before anything is loaded; shown by `dry_run`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rl.config.policy import PolicyConfig
from rl.config.rollout import RolloutConfig
from rl.config.run import Config

GIB = 2**30
CACHED_RESPONSES = 4
"""Responses of full length whose keys and values an engine on CPU has room for at the same time."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on; None where it is not known."""

    parameters: int | None
    vocabulary: int | None
    cached_numbers: int | None = None
    """Numbers that an engine keeps of each token: keys and values of all layers."""


def model_size(directory: str) -> ModelSize:
    """The size of the model in a directory, by its config.json and the headers of its weights."""
    file = Path(directory) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        # Whoever loads the model refuses such a file by name.
        config = {}
    return ModelSize(count_parameters(directory), *config_sizes(config))


def config_sizes(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Vocabulary and cached numbers per token of a model, as its config.json gives them."""
    # A vision-language model may hold its language model's configuration as one of its own.
    text = config.get("text_config") or config
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not layers or not heads:
        return text.get("vocab_size"), None
    width = text.get("head_dim") or text.get("hidden_size", 0) // heads
    return text.get("vocab_size"), 2 * layers * (text.get("num_key_value_heads") or heads) * width


def cache_gib(model: str, dtype: str, max_model_length: int | None) -> int:
    """GiB of keys and values that an engine on CPU should have room for, one at least."""
    numbers = model_size(model).cached_numbers
    if numbers is None or max_model_length is None:
        return 1
    tokens = CACHED_RESPONSES * max_model_length
    return max(1, math.ceil(tokens * numbers * BYTES[dtype] / GIB))


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


def logits_bytes(policy: PolicyConfig, vocabulary: int) -> int:
    """Bytes of the logits in flight on a learner rank, and of what is made of them."""
    # Four tensors of a chunk exist at once, in float32: its logits, their log-softmax, and what its
    # entropy takes, the probabilities and p log p. The backward pass holds no more.
    return 4 * 4 * policy.logprob_chunk_tokens * vocabulary


def describe_memory(
    policy: PolicyConfig, rollout: RolloutConfig, size: ModelSize | None = None
) -> str:
    """Lines for people: learner rank, logits in flight, engine weights and its cache.

    size: of the policy; by default that of the directory `policy.model`.
    """
    size = size or model_size(policy.model)
    if size.parameters is None:
        return f"  unknown until {policy.model} is on this disk"
    lines = [
        f"  {size.parameters:,} parameters",
        f"  each learner rank: {rank_bytes(policy, size.parameters) / GIB:.2f} GiB for weights, "
        "gradients and optimizer, and activations on top",
    ]
    if size.vocabulary is not None:
        logits = logits_bytes(policy, size.vocabulary)
        lines.append(
            f"  logits in flight: at most {logits / GIB:.2f} GiB for a vocabulary of "
            f"{size.vocabulary:,} (policy.logprob_chunk_tokens)"
        )
    weights = size.parameters * BYTES[policy.dtype] / rollout.tensor_parallel
    cache = "its KV cache"
    if size.cached_numbers is not None:
        numbers = size.cached_numbers * rollout.max_model_length / rollout.tensor_parallel
        cache += f", {numbers * BYTES[policy.dtype] / GIB:.2f} GiB for a response of full length"
        cache += f" ({rollout.max_model_length:,} tokens)"
    lines.append(f"  each engine GPU or process: {weights / GIB:.2f} GiB for weights, and {cache}")
    return "\n".join(lines)


def total_bytes(config: Config, size: ModelSize) -> int | None:
    """Bytes that learner ranks and engines take together, activations apart; None if unknown."""
    if size.parameters is None:
        return None
    policy, rollout = config.policy, config.rollout
    learner = policy.ranks * rank_bytes(policy, size.parameters)
    engines = rollout.workers * size.parameters * BYTES[policy.dtype]
    return learner + engines + logits_bytes(policy, size.vocabulary or 0)
