"""What an update takes of a rank: its GPU's arithmetic, and memory.

Model FLOPs utilisation (https://arxiv.org/abs/2204.02311, appendix B) is the arithmetic that the
model itself asks for, over what the GPU could do in that time. What is computed twice to save
memory does not count, and neither do vision towers, whose tokens are not those of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from policy.models.family import model_family
from rl.system.resident import GIB, peak_resident_bytes, resident_bytes

# Dense bfloat16 in TFLOP/s, from NVIDIA's data sheets, which often print twice as much for sparse
# matrices. A name that is part of another one stands behind it.
PEAK_TFLOPS = {
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "B100": 1750.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class ModelFlops:
    """What a policy's language model computes of a sequence, forward and backward."""

    parameters: int
    """All that a token is multiplied with: an input embedding of its own is looked up."""
    trained: int
    """How many of them get a gradient."""
    attention: int
    """Layers x heads x numbers of a head."""

    @classmethod
    def of(cls, policy: PreTrainedModel | PeftModel) -> ModelFlops:
        # Any: to a type checker an attribute of a module may be a tensor.
        base: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        config = base.config.get_text_config()
        parts = model_family(base.config.model_type).parts(base)["llm"]
        # By identity, since a tied output layer is the input embedding too, and is computed once.
        weights = {id(weight): weight for part in parts for weight in part.parameters()}
        embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
        if head is None or head.weight is not embedding.weight:
            weights.pop(id(embedding.weight), None)
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=sum(map(_size, weights.values())),
            trained=sum(_size(weight) for weight in weights.values() if weight.requires_grad),
            attention=config.num_hidden_layers * heads * width,
        )

    def of_sequence(self, length: int) -> float:
        """FLOPs of a training step on `length` tokens.

        6 N + 12 L H Q T a token, as in the paper, which counts the whole square of the attention:
        2 N forward, 2 N for the gradients of activations and 2 N for those of weights, which
        weights that are not trained, such as those below an adapter, do without.
        """
        per_token = 4 * self.parameters + 2 * self.trained + 12 * self.attention * length
        return float(length * per_token)


def _size(weight: torch.Tensor) -> int:
    # Of a weight that DeepSpeed has divided among the ranks, the size of the whole.
    return getattr(weight, "ds_numel", None) or weight.numel()


@dataclass(frozen=True)
class RankUsage:
    """What one rank took for one update."""

    flops: ModelFlops
    """Of the policy, which is the same on every rank."""
    peak_bytes: int
    """The most that its tensors held on the GPU during the update; on CPU, that the process has
    ever held."""
    resident_bytes: int
    device: str | None
    """The GPU's name; None on CPU."""

    @classmethod
    def now(cls, flops: ModelFlops, use_cuda: bool) -> RankUsage:
        """Memory since `torch.cuda.reset_peak_memory_stats`."""
        return cls(
            flops=flops,
            peak_bytes=torch.cuda.max_memory_allocated() if use_cuda else peak_resident_bytes(),
            resident_bytes=resident_bytes(with_children=True),
            device=torch.cuda.get_device_name() if use_cuda else None,
        )


def peak_tflops(device: str) -> float | None:
    """Dense bfloat16 peak of a GPU by the name that CUDA gives it; None if it is not known."""
    # Whole words: the A100 is no A10.
    words = f" {device.replace('-', ' ')} "
    return next((peak for name, peak in PEAK_TFLOPS.items() if f" {name} " in words), None)


def usage_metrics(
    usages: Sequence[RankUsage], lengths: Sequence[int], seconds: float
) -> dict[str, float]:
    """The learner's speed and memory; no MFU on CPU, nor on a GPU whose peak is not known.

    usages: of all ranks. lengths: of the batch's sequences, in tokens, however the ranks share
    them. seconds: of the slowest rank.
    """
    tokens = sum(lengths)
    metrics = {
        "perf/learner_tokens_per_second": tokens / seconds,
        "memory/rank_peak_gib": max(usage.peak_bytes for usage in usages) / GIB,
        "memory/rss_rank_gib": max(usage.resident_bytes for usage in usages) / GIB,
    }
    devices = [usage.device for usage in usages if usage.device is not None]
    if devices:
        metrics["perf/learner_tokens_per_second_per_gpu"] = tokens / seconds / len(devices)
        peaks = [peak for device in devices if (peak := peak_tflops(device)) is not None]
        if len(peaks) == len(usages):
            flops = sum(map(usages[0].flops.of_sequence, lengths))
            metrics["perf/mfu"] = flops / (seconds * sum(peaks) * 1e12)
    return metrics
