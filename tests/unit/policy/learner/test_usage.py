"""Model FLOPs against hand-counted matrices, and what of them a GPU could do."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from policy.learner.usage import ModelFlops, RankUsage, peak_tflops, usage_metrics
from rl.system.resident import GIB

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, WIDTH = 50, 16, 24, 2, 4, 8
# Queries, keys, values and output (two heads of keys and values); gate, up and down; two norms of
# the layer, those of queries and keys.
LAYER = HIDDEN * WIDTH * (HEADS + 2 + 2 + HEADS) + 3 * HIDDEN * INNER + 2 * HIDDEN + 2 * WIDTH
# Beside the layers, the last norm and the output layer.
COMPUTED = LAYERS * LAYER + HIDDEN + VOCABULARY * HIDDEN


def policy(tied: bool = False) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            head_dim=WIDTH,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_input_embedding_counts_only_where_it_is_the_output_layer_too(tied: bool) -> None:
    flops = ModelFlops.of(policy(tied))
    assert (flops.parameters, flops.trained) == (COMPUTED, COMPUTED)
    assert flops.attention == LAYERS * HEADS * WIDTH


def test_a_token_takes_six_flops_a_weight_and_twelve_a_pair_of_attention() -> None:
    flops = ModelFlops(parameters=100, trained=100, attention=4)
    assert flops.of_sequence(10) == 10 * (6 * 100 + 12 * 4 * 10)


def test_weights_below_an_adapter_get_no_gradient_of_their_own() -> None:
    rank = 2
    adapted = get_peft_model(policy(), LoraConfig(r=rank, target_modules=["q_proj"]))
    flops = ModelFlops.of(adapted)
    adapter = LAYERS * rank * (HIDDEN + HEADS * WIDTH)
    assert (flops.parameters, flops.trained) == (COMPUTED + adapter, adapter)
    assert ModelFlops(100, 0, 0).of_sequence(1) == 4 * 100


def test_weights_that_zero_3_has_divided_count_whole() -> None:
    divided = policy()
    for weight in divided.parameters():
        weight.ds_numel = weight.numel()
        weight.data = weight.data.new_empty(0)
    assert ModelFlops.of(divided).parameters == COMPUTED


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GB200", 2500.0),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA A1000", None),
    ],
)
def test_the_peak_goes_by_the_whole_name_of_a_gpu(device: str, tflops: float | None) -> None:
    assert peak_tflops(device) == tflops


def usage(device: str | None, peak: int = GIB) -> RankUsage:
    return RankUsage(ModelFlops(10**9, 10**9, 0), peak, 2 * GIB, device)


def test_mfu_is_over_what_all_ranks_could_do_in_the_time_of_the_slowest() -> None:
    usages = [usage("NVIDIA H200"), usage("NVIDIA H200", peak=3 * GIB)]
    metrics = usage_metrics(usages, lengths=[60_000, 40_000], seconds=2.0)
    # 100,000 tokens at 6 GFLOP each, against 2 x 989 TFLOP/s for two seconds.
    assert metrics["perf/mfu"] == pytest.approx(6e14 / (2 * 2 * 989e12))
    assert metrics["perf/learner_tokens_per_second"] == 50_000
    assert metrics["perf/learner_tokens_per_second_per_gpu"] == 25_000
    assert metrics["memory/rank_peak_gib"] == 3
    assert metrics["memory/rss_rank_gib"] == 2


@pytest.mark.parametrize("device", [None, "Tesla V100-SXM2-16GB"])
def test_there_is_no_mfu_on_cpu_nor_on_an_unknown_gpu(device: str | None) -> None:
    metrics = usage_metrics([usage(device)], lengths=[1000], seconds=2.0)
    assert "perf/mfu" not in metrics
    assert ("perf/learner_tokens_per_second_per_gpu" in metrics) == (device is not None)


def test_a_rank_on_cpu_says_what_its_process_holds() -> None:
    now = RankUsage.now(ModelFlops(1, 1, 1), use_cuda=False)
    assert now.device is None
    assert 10 * 2**20 < now.resident_bytes <= now.peak_bytes * 1.01
