"""A random Qwen3 that a test makes in milliseconds: the language model of most tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    # Large weights, so that different inputs give clearly different outputs.
    "initializer_range": 0.3,
}


def tiny_qwen3(vocab_size: int, **settings: Any) -> Qwen3ForCausalLM:
    """The same weights on every call; settings: of Qwen3Config, in place of SIZES."""
    # Forked, so that a test's own random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, **SIZES | settings))
