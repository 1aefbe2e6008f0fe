"""The learner's options where only a CUDA device can show them. Skipped, by what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from policy.learner.logprobs import ChunkedHead, LogprobModel
from policy.models.kernels import attention_implementation, fuse_layers, preferred_attention
from policy.models.loading import checkpoint_layers
from tests.gpu.requirements import QWEN3_VOCABULARY, needs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def small_model(**settings) -> Qwen3ForCausalLM:
    """Four layers in bfloat16 with heads of 128, as the models have that people train."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
    attention = settings.pop("attn_implementation", "sdpa")
    with torch.random.fork_rng(devices=[0]), torch.device("cuda"):
        torch.manual_seed(0)
        config = Qwen3Config(vocab_size=1024, **sizes, **heads, **settings)
        config._attn_implementation = attention
        return Qwen3ForCausalLM(config).bfloat16().train()


def batch(length: int = 512, rows: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1024, (rows, length), generator=generator).cuda()
    mask = (torch.arange(length, device="cuda") >= 5).expand(rows, length)
    return ids, mask, torch.linspace(0.7, 1.3, 2, device="cuda").repeat(rows // 2)


def outcome(model: LogprobModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the batch, and the gradient of their mean, flat."""
    logprobs, _ = model(*batch())
    gradient = torch.autograd.grad(logprobs.mean(), list(model.backbone.parameters()))
    return logprobs.detach(), torch.cat([part.flatten().float() for part in gradient])


def check_alike(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """As near as two orders of the same sums are in bfloat16."""
    assert (found[0] - expected[0]).abs().mean() < 0.02
    cosine = torch.nn.functional.cosine_similarity(found[1], expected[1], dim=0)
    assert cosine > 0.999


def test_the_kernel_takes_less_memory_than_chunks_and_rounds_no_logit():
    """The output layer of Qwen3-4B; float64 is the judge of both."""
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(
        2560, QWEN3_VOCABULARY, bias=False, device="cuda", dtype=torch.bfloat16
    )
    hidden = torch.randn(4096, 2560, device="cuda", dtype=torch.bfloat16) * 8
    targets = torch.randint(QWEN3_VOCABULARY, (4096,), device="cuda")
    temperature = torch.tensor([1.0, 0.8], device="cuda").repeat(2048)
    few = slice(64)
    logits = hidden[few].double() @ lm_head.weight.double().t() / temperature[few, None].double()
    exact = torch.log_softmax(logits, dim=-1).gather(1, targets[few, None])[:, 0]
    del logits
    peaks = {}
    for is_fused in (False, True):
        rows = hidden.clone().requires_grad_()
        head = ChunkedHead(lm_head, 2048, (), is_fused)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        logprobs, entropies = head(rows, targets, temperature)
        logprobs.mean().backward()
        peaks[is_fused] = torch.cuda.max_memory_allocated() - before
        assert (logprobs[few].double() - exact).abs().max() < 1e-3, is_fused
        assert entropies.isfinite().all()
        assert rows.grad.isfinite().all()
        lm_head.zero_grad(set_to_none=True)
    assert peaks[True] < peaks[False]


def test_every_nth_layer_is_recomputed_in_between_the_memory_of_all_and_of_none():
    peaks = []
    expected = outcome(LogprobModel(small_model(), 2048))
    for every in (1, 2, 0):
        model = small_model()
        if every:
            checkpoint_layers(model, every)
        torch.cuda.reset_peak_memory_stats()
        check_alike(outcome(LogprobModel(model, 2048)), expected)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize("attention", ["flash", "cudnn", "flash_attention_2", "flash_attention_3"])
def test_attention_kernels_agree(attention):
    try:
        implementation = attention_implementation(attention)
    except ValueError as error:
        pytest.skip(str(error))
    expected = outcome(LogprobModel(small_model(), 2048))
    with preferred_attention(attention):
        model = small_model(attn_implementation=implementation)
        check_alike(outcome(LogprobModel(model, 2048)), expected)


@needs("liger_kernel")
def test_fused_layers_agree_with_those_of_transformers():
    # liger-kernel changes functions of transformers' module too, so the other side comes first.
    expected = outcome(LogprobModel(small_model(), 2048))
    model = small_model()
    fuse_layers(model)
    norm = type(model.model.norm)
    assert "liger" in (model.model.norm.forward.__module__ + norm.__module__).lower()
    check_alike(outcome(LogprobModel(model, 2048)), expected)


@needs("ray", "deepspeed")
def test_the_rows_of_the_learner_are_measured():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "scripts/bench_learner.py", "tokens=4096", "length=2048", "rounds=2"]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows["as it is"]["tokens_per_second"] > 0
    assert len(rows) == 4
