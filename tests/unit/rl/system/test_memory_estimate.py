"""The arithmetic of memory: what ranks and engines hold, and what fits on which GPU."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl.config.policy import PolicyConfig
from rl.system.engine_environment import engine_environment
from rl.system.memory_estimate import (
    CARDS,
    MemoryPlan,
    ModelSize,
    UpdatePeak,
    cache_gib,
    checkpoint_bytes,
    config_sizes,
    count_parameters,
    describe_memory,
    rank_memory,
)
from rl.system.resident import GIB
from tests.fakes import config


def test_parameters_are_counted_over_all_shards(tmp_path):
    save_file({"a": np.zeros((3, 5), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(7, np.float16)}, tmp_path / "model-2.safetensors")
    assert count_parameters(str(tmp_path)) == 22


def test_a_model_that_is_not_here_has_no_count(tmp_path):
    assert count_parameters("Qwen/Qwen3-8B") is None
    assert count_parameters(str(tmp_path)) is None


BF16 = {"dtype": "bfloat16"}
OFFLOAD = {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 16 * 22),
        (BF16, 16 * 22),
        # The model itself, and the state of matrices of 3x2 and 2x5 for the one matrix.
        ({"lora": {"rank": 2}}, 4 * 22 + 16 * (6 + 10)),
        (BF16 | {"lora": {"rank": 2}, "train": ["llm"]}, 2 * 22 + 16 * 16),
        # What is trained whole beside the adapter may be nearly all.
        ({"lora": {"rank": 2}, "train": ["llm", "vision"]}, 16 * 22),
    ],
)
def test_bytes_of_a_checkpoint_by_hand(tmp_path, settings, expected):
    weights = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    assert checkpoint_bytes(str(tmp_path), PolicyConfig(**settings)) == expected
    assert checkpoint_bytes("Qwen/Qwen3-8B", PolicyConfig(**settings)) == 0


@pytest.mark.parametrize(
    ("settings", "per_parameter", "on_host"),
    [
        ({}, 4 + 4 + 8, 0),
        (BF16, 2 + 4 + 12, 0),
        (BF16 | {"ranks": 4, "zero_stage": 0}, 2 + 4 + 12 / 4, 0),
        # From stage 2 on, a bucket of gradients in bfloat16 and its sum in float32.
        (BF16 | {"ranks": 4, "zero_stage": 2}, 2 + 16 / 4 + 6, 0),
        # Stage 3 gathers weights: of a model so small, all of them.
        (BF16 | {"ranks": 4, "zero_stage": 3}, 18 / 4 + 6 + 2, 0),
        (BF16 | {"lora": {"rank": 8}}, 2, 0),
        (BF16 | OFFLOAD, 2 + 4, 12),
        (BF16 | OFFLOAD | {"zero_stage": 2}, 2 + 6, 16),
    ],
)
def test_bytes_of_a_rank_by_hand(settings, per_parameter, on_host):
    memory = rank_memory(PolicyConfig(**settings), 1000)
    assert memory.device == pytest.approx(1000 * per_parameter)
    assert memory.host == 1000 * on_host


def test_under_lora_the_adapter_has_gradients_and_state():
    policy = PolicyConfig(dtype="bfloat16", lora={"rank": 8})
    assert rank_memory(policy, 1000, trained=10).device == 2 * 1000 + 16 * 10


def write_config(directory: Path, **settings: object) -> Path:
    save_file({"a": np.zeros((3, 5), np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


# Layers x heads x width of a head, for keys and for values.
QWEN3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN3 |= {"head_dim": 128, "hidden_size": 1024, "vocab_size": 151_936}


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        (QWEN3, 2 * 28 * 8 * 128),
        ({"text_config": QWEN3, "hidden_size": 1}, 2 * 28 * 8 * 128),
        ({**QWEN3, "head_dim": None, "num_key_value_heads": None}, 2 * 28 * 1024),
        ({"vocab_size": 9}, None),
    ],
)
def test_keys_and_values_of_a_token_by_hand(model, numbers):
    assert config_sizes(model)[1] == numbers


def test_an_engine_on_cpu_has_room_for_four_responses_of_full_length(tmp_path):
    model = str(write_config(tmp_path, **QWEN3))
    # 57,344 numbers of 4 bytes and 9,216 tokens make 1.97 GiB.
    assert cache_gib(model, "float32", 9216) == 8
    assert cache_gib(model, "bfloat16", 9216) == 4
    assert cache_gib(model, "float32", 64) == 1
    assert cache_gib(str(tmp_path / "no"), "float32", 9216) == 1
    environment = engine_environment(1, on_gpu=False, cache_gib=8)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "8"


def test_the_peak_of_a_micro_batch_lies_on_the_line_between_the_metered_ones():
    peaks = {100: UpdatePeak(10, 5, 12), 200: UpdatePeak(30, 5, 30)}
    size = ModelSize(1, 9, peaks=peaks, vision=2)
    assert size.peak(150) == UpdatePeak(20 + 300, 5, 21 + 300)
    assert ModelSize(1, 9, peaks=peaks).peak(50) == peaks[100]
    assert ModelSize(1, 9, peaks=peaks).peak(300) == UpdatePeak(50, 5, 48)
    assert ModelSize(1, 9).peak(50) is None


# A model of half a billion parameters: 9 GiB at 18 bytes, less than a gigabyte in an engine.
PEAKS = {1024: UpdatePeak(GIB, 2 * GIB, 3 * GIB), 65536: UpdatePeak(64 * GIB, 2 * GIB, 66 * GIB)}
HALF = ModelSize(2**29, 1000, 2**19, trained=2**29, largest=2**28, width=2**12, peaks=PEAKS)


def shared(**changes: object) -> MemoryPlan:
    """One GPU, which a rank and an engine share."""
    settings = {
        "policy": {"dtype": "bfloat16", "micro_batch_tokens": 4096},
        "rollout__max_model_length": 1024,
        "rollout__engine": {"max_num_batched_tokens": 2**14, "gpu_memory_utilization": 0.4},
        "resources": {"gpus": 1, "colocate": True},
    }
    return MemoryPlan(config(**settings | changes), HALF)


def test_the_phases_of_a_gpu_that_is_shared_by_hand():
    held, update = 9 * GIB + 3 * GIB, 6 * GIB
    publish, engine = GIB + GIB, GIB
    asleep = shared().phases(4096, card=40 * GIB)
    # An engine that sleeps leaves its CUDA context; its weights come back for the publish, and its
    # cache for sampling alone.
    assert asleep == {
        "update": held + update + 2 * GIB,
        "publish": held + publish + engine + 2 * GIB,
        "sampling": held + 16 * GIB,
    }
    awake = shared(rollout__sleep=False).phases(4096, card=40 * GIB)
    assert awake == {"update": held + update + 16 * GIB, "publish": held + publish + 16 * GIB}


def test_sleep_gives_the_memory_of_the_update_to_the_cache_and_that_of_the_engine_to_the_update():
    card = 40 * GIB
    asleep, awake = shared().fit(card), shared(rollout__sleep=False).fit(card)
    # All but the 12 GiB that a rank holds is the engine's: 70 %.
    assert asleep.gpu_memory_utilization == 0.70
    # Beside 12 GiB and the 6 of an update.
    assert awake.gpu_memory_utilization == 0.55
    assert asleep.cached_tokens > awake.cached_tokens
    assert asleep.micro_batch_tokens > awake.micro_batch_tokens
    plan = shared(policy={"dtype": "bfloat16", "micro_batch_tokens": asleep.micro_batch_tokens})
    assert max(plan.phases(asleep.micro_batch_tokens).values()) <= card
    assert max(plan.phases(asleep.micro_batch_tokens + 1024).values()) > card


def test_what_the_engine_lacks_at_the_least_does_not_fit():
    # A rank holds 12 GiB, its update 3 GiB at the least, and the engine's context 2 GiB.
    assert shared().fit(16.9 * GIB) is None
    # 1 of weights, 2 of CUDA's, and a response beside the workspace.
    assert shared().fit(17.1 * GIB).micro_batch_tokens == 1024


def test_ranks_that_share_rows_hold_a_stretch_of_each_and_engines_whole_responses():
    def ranks(sequence_parallel: int) -> MemoryPlan:
        policy = {"dtype": "bfloat16", "micro_batch_tokens": 1024, "ranks": 4}
        return shared(
            policy=policy | {"sequence_parallel": sequence_parallel},
            rollout__max_model_length=4095,
            rollout__workers=4,
            resources={"gpus": 4, "colocate": True},
        )

    whole, stretch = ranks(1), ranks(4)
    assert (whole.config.rank_row_tokens, stretch.config.rank_row_tokens) == (4095, 1024)
    more = HALF.peak(4095).total - HALF.peak(1024).total
    assert whole.phases(1024)["update"] - stretch.phases(1024)["update"] == more
    assert "with micro-batches of 1,024 tokens" in describe_memory(stretch)
    assert whole.least_engine == stretch.least_engine
    # The update of a whole row takes 15.5 GiB, of a stretch 12.5.
    assert whole.fit(15 * GIB) is None
    assert stretch.fit(15 * GIB).micro_batch_tokens == 3072


def test_a_rank_and_an_engine_on_gpus_of_their_own_do_not_compete():
    plan = shared(
        resources={"gpus": 2},
        policy={"dtype": "bfloat16"},
        rollout__engine={"max_num_batched_tokens": 2**14},
    )
    fit = plan.fit(40 * GIB)
    assert fit.gpu_memory_utilization == 0.9
    # 40 GiB without 12 that are held, and 63 / 64512 GiB a token above the first 3.
    assert fit.micro_batch_tokens == (1024 + 25 * 64512 // 63) // 1024 * 1024
    assert plan.phases(1024) == {"update": 15 * GIB, "publish": 14 * GIB}


def test_every_part_is_told_with_what_fits_on_every_common_gpu():
    told = describe_memory(shared())
    assert "536,870,912 parameters, 536,870,912 of them trained" in told
    assert "weights 1.00, gradients 2.00, optimizer 6.00, activations 4.00, logits 2.00" in told
    assert "at most 20.00 GiB at once, in the update, with micro-batches of 4,096 tokens" in told
    assert "a vocabulary of 1,000 (policy.logprob_chunk_tokens)" in told
    assert "the engine sleeps while the learner updates" in told
    assert all(f"GPUs of {size} GB: " in told for size in CARDS)
    assert "GPUs of 24 GB: it does not fit" not in told
    own = describe_memory(shared(), card=15 * GIB)
    assert "GPUs of 15.0 GiB (this machine's): it does not fit" in own and "24 GB" not in own


def test_what_was_not_metered_is_said():
    size = ModelSize(15, 110)
    policy = {"logprob_chunk_tokens": 16384}
    told = describe_memory(MemoryPlan(config(policy=policy), size))
    # 16,384 positions x 110 tokens x 4 bytes, four times: 29 MB.
    assert "  15 parameters\n" in told and "logits 0.03 GiB" in told
    assert "and activations on top" in told and "GPUs of" not in told


def test_a_machine_without_gpus_holds_all_ranks_and_engines():
    plan = MemoryPlan(config(policy={"ranks": 2}, rollout__workers=3), HALF)
    # 16 bytes a parameter and the update for each rank, 4 for each engine.
    update = HALF.peak(16384).total
    assert plan.total_bytes == pytest.approx(2 * (8 * GIB + update) + 3 * 2 * GIB)
