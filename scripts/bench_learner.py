"""What each option of the learner gains on one GPU: forward and backward of one micro-batch.

    python scripts/bench.py scale=one_gpu against=learner
    python scripts/bench_learner.py [model=DIR] [tokens=16384] [length=8192] [rounds=10]

Four rows, each with what the one before it has. Weights are random, since speed does not depend on
them: a directory with a config.json is enough, and without one the sizes are those of Qwen3-1.7B.
Needs a GPU, and liger-kernel for rows 1 to 3; no engine, no Ray and no DeepSpeed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen3Config

from policy.learner.logprobs import LogprobModel, wants_kernel
from policy.models.kernels import attention_implementation, fuse_layers, preferred_attention
from policy.models.loading import DTYPES, checkpoint_layers
from rl.config.policy import PolicyConfig

ROWS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {"logprobs": "chunked", "gradient_checkpointing": True},
    "1. fused layers and log-probabilities": {"logprobs": "fused", "fused_layers": True},
    "2. every second layer recomputed": {"gradient_checkpointing": 2},
    "3. cuDNN attention": {"attention": "cudnn"},
}
"""Settings of `policy` that each row adds to those of the rows before it."""
# https://huggingface.co/Qwen/Qwen3-1.7B
QWEN3_1_7B = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
}
WARMUP_ROUNDS = 3


def learner_rows(
    model: PretrainedConfig,
    policy: PolicyConfig,
    tokens: int,
    length: int,
    rounds: int,
    device: str = "cuda",
) -> dict[str, dict[str, Any]]:
    """Measure every row, print it, and return the figures by its name.

    tokens, length: of the micro-batch, and of each of its rows. A row whose kernels cannot run here
    says in words what it needs.
    """
    batch = make_batch(model.vocab_size, tokens, length, device)
    settings = policy.model_dump()
    results: dict[str, dict[str, Any]] = {}
    for name, added in ROWS.items():
        settings |= added
        try:
            row = measure_row(model, PolicyConfig.model_validate(settings), batch, rounds, device)
        except ValueError as error:
            results[name] = {"needs": str(error)}
            print(f"{name:38s} not measured: {error}", flush=True)
            continue
        results[name] = row
        base = results["as it is"].get("tokens_per_second")
        gain = f", {row['tokens_per_second'] / base:.2f} x as it is" if base else ""
        peak = f", {row['peak_gib']:.1f} GiB beyond weights" if row["peak_gib"] else ""
        print(
            f"{name:38s} {row['tokens_per_second']:>9,.0f} tok/s ({row['range'][0]:,.0f} to "
            f"{row['range'][1]:,.0f}){gain}{peak}",
            flush=True,
        )
    return results


def make_batch(vocabulary: int, tokens: int, length: int, device: str) -> tuple[torch.Tensor, ...]:
    """Rows of one length, a quarter of it prompt; token ids, loss mask and temperatures."""
    rows = max(1, tokens // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, length), generator=generator).to(device)
    mask = (torch.arange(length, device=device) >= max(1, length // 4)).expand(rows, length)
    return ids, mask, torch.ones(rows, device=device)


def measure_row(
    model: PretrainedConfig,
    policy: PolicyConfig,
    batch: tuple[torch.Tensor, ...],
    rounds: int,
    device: str,
) -> dict[str, Any]:
    """Tokens a second of forward and backward, and the peak beyond weights on a GPU.

    Raises ValueError for kernels that cannot run here.
    """
    use_cuda = device == "cuda"
    if not use_cuda and (policy.fused_layers or policy.attention != "sdpa"):
        raise ValueError("it takes kernels that run on a GPU")
    with torch.device(device):
        causal_lm = AutoModelForCausalLM.from_config(
            model,
            dtype=DTYPES[policy.dtype],
            attn_implementation=attention_implementation(policy.attention),
        ).train()
    if policy.fused_layers:
        fuse_layers(causal_lm)
    if policy.checkpoint_every:
        checkpoint_layers(causal_lm, policy.checkpoint_every)
    is_fused = wants_kernel(policy.logprobs, causal_lm.get_output_embeddings(), use_cuda)
    learner = LogprobModel(causal_lm, policy.logprob_chunk_tokens, is_fused=is_fused)
    seconds, weights = [], torch.cuda.memory_allocated() if use_cuda else 0
    with preferred_attention(policy.attention):
        for place in range(WARMUP_ROUNDS + rounds):
            if use_cuda and place == WARMUP_ROUNDS:
                torch.cuda.reset_peak_memory_stats()
            started = time.monotonic()
            logprobs, _ = learner(*batch)
            logprobs.mean().backward()
            learner.zero_grad(set_to_none=True)
            if use_cuda:
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - started)
    rates = sorted(batch[0].numel() / second for second in seconds[WARMUP_ROUNDS:])
    return {
        "tokens_per_second": statistics.median(rates),
        "range": [rates[0], rates[-1]],
        "peak_gib": (torch.cuda.max_memory_allocated() - weights) / 2**30 if use_cuda else None,
    }


def refuse_cpu() -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "the rows of the learner compare kernels that run on a GPU, and this machine shows "
            "none: take one with CUDA, bfloat16 and, for rows 1 to 3, liger-kernel "
            "(pip install 'hybrid-rl[fused]')"
        )


def model_config(directory: Path | None) -> PretrainedConfig:
    if directory is None:
        return Qwen3Config(**QWEN3_1_7B)
    return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    refuse_cpu()
    figures = learner_rows(
        model_config(Path(given["model"]) if "model" in given else None),
        PolicyConfig(dtype="bfloat16"),
        int(given.get("tokens", 16_384)),
        int(given.get("length", 8192)),
        int(given.get("rounds", 10)),
    )
    print(json.dumps(figures))
