"""The meter of an update's memory: against real memory, by hand, and on models of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from policy.learner import memory_meter
from policy.learner.logprobs import ChunkedHead, LogprobModel
from policy.learner.memory_meter import LiveBytes, meter_model
from policy.models.loading import make_trainable
from rl.config.policy import PolicyConfig
from rl.system.memory_estimate import ModelSize, logits_bytes
from tests.fakes import config
from tests.minicpmv_tiny import save_tiny as save_minicpmv
from tests.published_models import write_qwen3
from tests.qwen3_tiny import tiny_qwen3
from tests.qwen_vl_tiny import save_tiny as save_qwen_vl

SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 32}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}


def measured_peak(learner: LogprobModel, rows: int, time: int) -> int:
    """Bytes that PyTorch's allocator hands out at the same time in a forward and backward."""
    token_ids, temperature = torch.zeros(rows, time, dtype=torch.long), torch.ones(rows)
    loss_mask = torch.ones(rows, time, dtype=torch.bool)
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for p in learner.parameters()
        if p.requires_grad
    ]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        learner(token_ids, loss_mask, temperature)[0].sum().backward()
    for hook in hooks:
        hook.remove()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("gradient_checkpointing", "lora"),
    [
        (False, None),
        (True, {"rank": 8}),
        pytest.param(True, None, marks=pytest.mark.slow),
        pytest.param(False, {"rank": 8}, marks=pytest.mark.slow),
    ],
)
def test_the_meter_is_within_ten_percent_of_the_memory_that_a_small_model_takes(
    tmp_path, gradient_checkpointing, lora
):
    """Measured: between 0 and 7 % more than the allocator's own count."""
    policy = PolicyConfig(
        gradient_checkpointing=gradient_checkpointing,
        lora=lora,
        logprob_chunk_tokens=256,
        micro_batch_tokens=1024,
    )
    model = tiny_qwen3(4096, **SIZES)
    model.config.save_pretrained(tmp_path)
    learner = LogprobModel(make_trainable(model, policy), policy.logprob_chunk_tokens)
    learner.train()
    measured_peak(learner, 1, 64)
    measured = measured_peak(learner, 4, 256)
    settings = policy.model_dump(exclude_unset=True)
    metered = meter_model(tmp_path, config(policy=settings, rollout__max_model_length=256))
    assert metered.peak(1024).total == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize(
    ("name", "parameters", "largest"),
    [
        ("1.7B", 1_720_574_976, 151_936 * 2048),
        ("8B", 8_190_735_360, 151_936 * 4096),
        ("32B", 32_762_123_264, 151_936 * 5120),
    ],
)
def test_parameters_are_those_of_the_published_models(
    tmp_path, monkeypatch, name, parameters, largest
):
    monkeypatch.setattr(memory_meter, "meter_update", lambda *_: None)
    size = meter_model(write_qwen3(tmp_path, name), config())
    assert (size.parameters, size.trained, size.largest) == (parameters, parameters, largest)


def metered(directory: Path, *, gpus: int = 0, **policy: object) -> ModelSize:
    """Of a small model with a large vocabulary, for micro-batches of 128 and 4,096 tokens."""
    tiny_qwen3(32_768, **SIZES).config.save_pretrained(directory)
    sizes = {"gradient_checkpointing": True, "logprob_chunk_tokens": 128, "dtype": "bfloat16"}
    policy = sizes | {"micro_batch_tokens": 4096} | policy
    resources = {"gpus": 2 * gpus}
    return meter_model(
        directory, config(policy=policy, rollout__max_model_length=128, resources=resources)
    )


def test_between_metered_micro_batches_the_estimate_is_never_too_low_and_close(tmp_path):
    """Convex in the tokens: gradients rule small micro-batches and activations large ones."""
    wide = metered(tmp_path)
    assert sorted(wide.peaks) == [128, 4096]
    for tokens in (1024, 2048):
        exact = metered(tmp_path, micro_batch_tokens=tokens).peaks[tokens].total
        assert exact <= wide.peak(tokens).total <= 1.1 * exact


def test_what_fits_on_a_gpu_is_asked_of_more_micro_batches(tmp_path):
    wide = metered(tmp_path, gpus=1, logprob_chunk_tokens=4096)
    assert sorted(wide.peaks) == [128, 4096, 16384, 65536]


def test_of_rows_that_ranks_share_a_stretch_is_metered_where_the_attention_can_be_shared(tmp_path):
    policy = {"micro_batch_tokens": 16, "ranks": 6}
    assert sorted(metered(tmp_path, **policy, sequence_parallel=2).peaks) == [64]
    with pytest.raises(ValueError, match="has 8, and 4 of keys and values; take a divisor of both"):
        metered(tmp_path, **policy, sequence_parallel=3)


def test_gradients_that_wait_for_the_end_of_a_backward_are_counted(tmp_path):
    """At stage 1 DeepSpeed adds the bfloat16 gradients of a micro-batch up when it is over."""
    waiting, taken = metered(tmp_path, zero_stage=1), metered(tmp_path, zero_stage=2)
    more = waiting.peak(128).activations - taken.peak(128).activations
    # Two bytes a parameter, of which the largest is there at either stage.
    least = 2 * (waiting.parameters - 2 * waiting.largest)
    assert least < more <= 2 * waiting.parameters


def test_under_lora_the_adapter_alone_is_trained(tmp_path):
    run = config(policy={"lora": {"rank": 8}}, rollout__max_model_length=64)
    tiny_qwen3(100, **SIZES).config.save_pretrained(tmp_path)
    size = meter_model(tmp_path, run)
    # Of each layer: queries and output of 256, keys and values of 128, three of the feed-forward.
    pairs = 2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768)
    assert size.trained == 4 * 8 * pairs


@pytest.mark.parametrize("kind", ["minicpmv", "qwen2_5_vl", "qwen3_vl"])
def test_a_vision_language_model_is_metered_and_its_tower_estimated(tmp_path, kind):
    save_minicpmv(tmp_path) if kind == "minicpmv" else save_qwen_vl(tmp_path, kind)
    size = meter_model(tmp_path, config(rollout__max_model_length=64))
    assert size.peaks is not None and size.vision > 0
    assert size.peak(16384).total == size.peaks[16384].total + 16384 * size.vision
    frozen = config(policy={"train": ["llm"]}, rollout__max_model_length=64)
    assert meter_model(tmp_path, frozen).vision <= size.vision / 3


def test_an_architecture_that_reads_values_keeps_its_sizes(tmp_path, monkeypatch):
    def read_value(*_):
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(memory_meter, "meter_update", read_value)
    tiny_qwen3(100, **SIZES).config.save_pretrained(tmp_path)
    size = meter_model(tmp_path, config())
    assert size.parameters > 100 * 256 and size.peaks is None and size.peak(1) is None


def test_the_logits_of_a_chunk_take_what_the_arithmetic_says():
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
    assert logits_bytes(policy, vocabulary) == pytest.approx(counted.peak, rel=0.02)


def test_a_directory_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"without a config\.json"):
        meter_model(tmp_path, config())
