import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from policy.learner.logprobs import ChunkedHead
from rl.config.policy import PolicyConfig
from rl.config.rollout import RolloutConfig
from rl.system.engine_environment import engine_environment
from rl.system.memory_estimate import (
    GIB,
    ModelSize,
    cache_gib,
    config_sizes,
    count_parameters,
    describe_memory,
    rank_bytes,
)


def test_parameters_are_counted_over_all_shards(tmp_path):
    save_file({"a": np.zeros((3, 5), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(7, np.float16)}, tmp_path / "model-2.safetensors")
    assert count_parameters(str(tmp_path)) == 22


def test_a_model_that_is_not_here_has_no_count(tmp_path):
    assert count_parameters("Qwen/Qwen3-8B") is None
    assert count_parameters(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("settings", "bytes_per_parameter"),
    [
        ({}, 16),
        ({"dtype": "bfloat16"}, 18),
        ({"dtype": "bfloat16", "ranks": 4, "zero_stage": 0}, 2 + 4 + 12 / 4),
        ({"dtype": "bfloat16", "ranks": 4, "zero_stage": 2}, 2 + 16 / 4),
        ({"dtype": "bfloat16", "ranks": 4, "zero_stage": 3}, 18 / 4),
        ({"dtype": "bfloat16", "lora": {"rank": 8}}, 2),
    ],
)
def test_bytes_of_a_rank_by_hand(settings, bytes_per_parameter):
    assert rank_bytes(PolicyConfig(**settings), 1000) == round(1000 * bytes_per_parameter)


def write_config(directory: Path, **settings: object) -> Path:
    save_file({"a": np.zeros((3, 5), np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


def test_a_small_vocabulary_has_small_logits(tmp_path):
    """16,384 positions x 110 tokens x 4 bytes, four times: 29 MB."""
    model = write_config(tmp_path, vocab_size=110)
    policy = PolicyConfig(model=str(model), logprob_chunk_tokens=16384)
    told = describe_memory(policy, RolloutConfig(max_model_length=128))
    assert "  15 parameters" in told
    assert "logits in flight: at most 0.03 GiB for a vocabulary of 110" in told


def test_a_model_that_is_nowhere_has_no_estimate(tmp_path):
    policy, rollout = PolicyConfig(model=str(tmp_path)), RolloutConfig(max_model_length=128)
    assert describe_memory(policy, rollout) == f"  unknown until {tmp_path} is on this disk"


# Layers x heads x width of a head, for keys and for values.
QWEN3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN3 |= {"head_dim": 128, "hidden_size": 1024, "vocab_size": 151_936}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (QWEN3, 2 * 28 * 8 * 128),
        ({"text_config": QWEN3, "hidden_size": 1}, 2 * 28 * 8 * 128),
        ({**QWEN3, "head_dim": None, "num_key_value_heads": None}, 2 * 28 * 1024),
        ({"vocab_size": 9}, None),
    ],
)
def test_keys_and_values_of_a_token_by_hand(config, numbers):
    assert config_sizes(config)[1] == numbers


def test_an_engine_on_cpu_has_room_for_four_responses_of_full_length(tmp_path):
    model = str(write_config(tmp_path, **QWEN3))
    # 57,344 numbers of 4 bytes and 9,216 tokens make 1.97 GiB.
    assert cache_gib(model, "float32", 9216) == 8
    assert cache_gib(model, "bfloat16", 9216) == 4
    assert cache_gib(model, "float32", 64) == 1
    assert cache_gib(str(tmp_path / "no"), "float32", 9216) == 1
    environment = engine_environment(1, on_gpu=False, cache_gib=8)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "8"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that were made under it and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def test_the_logits_of_a_chunk_take_what_the_estimate_says():
    """Measured on the meta device, at the vocabulary of Qwen3: 4.64 GiB, and 4.66 with the rest."""
    policy, vocabulary = PolicyConfig(), 151_936
    tokens = 2 * policy.logprob_chunk_tokens
    with torch.device("meta"):
        output = torch.nn.Linear(64, vocabulary, bias=False, dtype=torch.bfloat16)
        head = ChunkedHead(output, policy.logprob_chunk_tokens, ())
        hidden = torch.empty(tokens, 64, dtype=torch.bfloat16, requires_grad=True)
        targets, temperature = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens)
        with LiveBytes() as counted:
            logprobs, _ = head(hidden, targets, temperature)
            logprobs.sum().backward()
    told = describe_memory(policy, RolloutConfig(max_model_length=128), ModelSize(1, vocabulary))
    estimate = float(re.search(r"at most ([0-9.]+) GiB", told)[1]) * GIB
    assert estimate == pytest.approx(counted.peak, rel=0.02)
