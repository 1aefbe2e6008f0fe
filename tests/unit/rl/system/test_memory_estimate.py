import numpy as np
import pytest
from safetensors.numpy import save_file

from rl.config.policy import PolicyConfig
from rl.config.rollout import RolloutConfig
from rl.system.memory_estimate import count_parameters, describe_memory, rank_bytes


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


def test_a_small_vocabulary_has_small_logits():
    """16,384 positions x 110 tokens x 4 bytes, three times: 22 MB."""
    rollout = RolloutConfig(max_model_length=128)
    told = describe_memory(PolicyConfig(logprob_chunk_tokens=16384), rollout, 90_000, 110)
    assert "logits in flight: at most 0.02 GiB for a vocabulary of 110" in told
