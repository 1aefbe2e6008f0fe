"""How fast engines and learner are, by roofline: sizes of the model over speeds of the device.

An engine's step makes one token of every running response. It reads all weights and the keys and
values of all tokens that are cached; with very many responses the arithmetic takes longer than the
reading of the weights. The learner does 6 FLOP per parameter and token, and attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config.run import Config
from rl.system.memory_estimate import BYTES, CACHED_RESPONSES, model_size
from rl.system.resident import GIB


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU core; speeds are what programs reach and not what a data sheet says."""

    name: str
    memory_bytes: float
    bandwidth: float
    """Bytes a second while decoding."""
    flops: float
    """Multiplications and additions a second in large matrix products."""
    learner_flops: float
    """The same of a whole training step."""
    step_s: float
    """Seconds of each engine step beside reading and computing: kernels, scheduling."""
    sequence_s: float
    """The same for each running response."""
    publish_s: float
    """Seconds of each publish beside the sending: pause, digests, load, proof."""


# Speeds of an H100: of its 989 TFLOP/s a training step reaches about 0.24 with 1.7B parameters and
# 0.32 with 8B; 1.2 ms are vLLM's own of a step. Nothing of it was measured here.
GPU = Device("H100 80 GB", 80e9, 2.9e12, 680e12, 0.3 * 989e12, 1.2e-3, 0.0, 0.5)
# Measured with the built-in policy, whose steps are all overhead: 13,800 tokens/s of 768 responses
# at once, and 59,000 tokens/s of training (BENCHMARKS.md).
CPU_CORE = Device("CPU core", 16e9, 8e9, 32e9, 32e9, 2e-3, 5e-5, 0.07)
PUBLISH_BANDWIDTH = 8e9
"""Bytes a second of a publish: gather, digests on both sides, transfer and load together."""
ZERO_3_SHARE = 0.85
"""What is left of a learner's speed where ranks gather each other's weights."""
UNUSED_BYTES = 4e9
"""Of an engine's share of a GPU: activations and CUDA graphs."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that speed depends on."""

    parameters: float
    layers: int
    attention_width: int
    """Attention heads x their size."""
    cached_numbers: int
    """Numbers that an engine keeps of each token: keys and values of all layers."""


# What the shipped recipes and scales name, so that a scale can be planned where the model is not.
SHAPES: Mapping[str, Shape] = {
    "builtin:tiny": Shape(9.0e4, 2, 64, 256),
    "Qwen/Qwen3-0.6B": Shape(0.60e9, 28, 2048, 57_344),
    "Qwen/Qwen3-1.7B": Shape(1.72e9, 28, 2048, 57_344),
    "Qwen/Qwen3-4B": Shape(4.02e9, 36, 4096, 73_728),
    "Qwen/Qwen3-8B": Shape(8.19e9, 36, 4096, 73_728),
    "Qwen/Qwen3-14B": Shape(14.8e9, 40, 5120, 81_920),
    "Qwen/Qwen3-32B": Shape(32.8e9, 64, 8192, 131_072),
}


def shape_of(model: str) -> Shape:
    """The sizes of a model by its name or directory; raises ValueError if neither tells them."""
    if model in SHAPES:
        return SHAPES[model]
    file, size = Path(model) / "config.json", model_size(model)
    if size.parameters is None or size.cached_numbers is None:
        raise ValueError(
            f"policy.model={model}: its sizes are not known here; name the directory of a "
            f"transformers model, or one of {', '.join(SHAPES)}, which may be like it"
        )
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    heads = text["num_attention_heads"]
    width = heads * (text.get("head_dim") or text["hidden_size"] // heads)
    return Shape(size.parameters, text["num_hidden_layers"], width, size.cached_numbers)


@dataclass(frozen=True)
class EngineSpeed:
    """One engine: seconds per step, and how much it can hold."""

    step_s: float
    weights_s: float
    """Reading all weights once, in each step."""
    compute_s: float
    """Arithmetic of one running response in a step, which goes on while weights are read."""
    sequence_s: float
    cached_token_s: float
    """Reading the keys and values of one cached token, in each step."""
    prompt_token_s: float
    """Computing keys and values of one token of a prompt."""
    room_tokens: float
    """Tokens whose keys and values it can hold."""
    max_sequences: int

    def seconds(self, num_sequences: int, cached_tokens: float) -> float:
        """Of one step."""
        return (
            self.step_s
            + self.sequence_s * num_sequences
            + max(self.weights_s, self.compute_s * num_sequences)
            + self.cached_token_s * cached_tokens
        )


@dataclass(frozen=True)
class LearnerSpeed:
    """All ranks together."""

    token_s: float
    """Seconds per token of a batch, without attention."""
    pair_s: float
    """Seconds per token and token before it that it attends to."""
    publish_s: float

    def update_seconds(self, lengths: Sequence[int]) -> float:
        """Of a batch of sequences, which the ranks share evenly."""
        # Causal attention: each token attends to those before it.
        num_pairs = sum(length * length for length in lengths) / 2
        return self.token_s * sum(lengths) + self.pair_s * num_pairs


def device_of(config: Config) -> Device:
    return GPU if config.resources.gpus else CPU_CORE


def engine_speed(config: Config, shape: Shape) -> EngineSpeed:
    device, rollout = device_of(config), config.rollout
    ways, engine = rollout.tensor_parallel, rollout.engine
    number_bytes = BYTES[config.policy.dtype]
    weights = shape.parameters * number_bytes / ways
    # The largest lever of long responses, since steps are bound by what they read of the cache.
    is_fp8 = str(engine.get("kv_cache_dtype", "auto")).startswith("fp8")
    token = shape.cached_numbers * (1 if is_fp8 else number_bytes) / ways
    if config.resources.gpus:
        share = float(engine.get("gpu_memory_utilization", 0.9))
        room = share * device.memory_bytes - weights - UNUSED_BYTES
        if room <= 0:
            raise ValueError(
                f"{weights / GIB:.0f} GiB of weights leave no room for a KV cache in "
                f"gpu_memory_utilization={share:g} of a {device.name}; raise "
                "rollout.tensor_parallel, or take a smaller policy.model"
            )
    else:
        # What the engine is started with on CPU (rl/system/memory_estimate.py).
        room = max(GIB, CACHED_RESPONSES * rollout.max_model_length * token)
    compute = 2 * shape.parameters / (device.flops * ways)
    return EngineSpeed(
        step_s=device.step_s,
        weights_s=weights / device.bandwidth,
        compute_s=compute,
        sequence_s=device.sequence_s,
        cached_token_s=token / device.bandwidth,
        prompt_token_s=compute,
        room_tokens=room / token,
        # vLLM's own limit on a large GPU, and on CPU.
        max_sequences=int(engine.get("max_num_seqs", 1024 if config.resources.gpus else 256)),
    )


def learner_speed(config: Config, shape: Shape) -> LearnerSpeed:
    device, policy = device_of(config), config.policy
    flops = device.learner_flops * policy.ranks
    if policy.effective_zero_stage == 3 and policy.ranks > 1:
        flops *= ZERO_3_SHARE
    # With several updates per batch there is one forward more, a third of a training step.
    forwards = 6.0 if config.algorithm.updates_per_batch == 1 else 8.0
    # Under LoRA weights have no gradient of their own, and the adapter alone is sent.
    sent = 0.0 if policy.lora else shape.parameters * BYTES[policy.dtype]
    linear = forwards * (2 / 3 if policy.lora else 1)
    return LearnerSpeed(
        token_s=linear * shape.parameters / flops,
        # Scores and their use of the values: 2 x 2 FLOP forward, three times that in training.
        pair_s=2 * forwards * shape.layers * shape.attention_width / flops,
        publish_s=device.publish_s + sent / PUBLISH_BANDWIDTH,
    )
