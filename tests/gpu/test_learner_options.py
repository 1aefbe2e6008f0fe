"""The learner's options where only a CUDA device can show them. Skipped, by what is missing."""

from __future__ import annotations

import importlib.util
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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NUM_GPUS = torch.cuda.device_count()
VOCABULARY = 151_936


def needs(*packages: str, gpus: int = 1):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing) or gpus > NUM_GPUS,
        reason=f"needs {', '.join(missing) or f'{gpus} GPUs, {NUM_GPUS} here'}",
    )


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
    lm_head = torch.nn.Linear(2560, VOCABULARY, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(4096, 2560, device="cuda", dtype=torch.bfloat16) * 8
    targets = torch.randint(VOCABULARY, (4096,), device="cuda")
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


def wide_model(directory: Path) -> Path:
    """Two layers as wide as those of Qwen3-8B, whose embedding is one tensor above 1 GiB."""
    from policy.builtin.names import builtin_policy
    from policy.models.cache import find_model
    from policy.models.loading import copy_companions

    sizes = {"hidden_size": 4096, "intermediate_size": 4096, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes, **heads)
        )
    model.bfloat16().save_pretrained(directory)
    config = (directory / "config.json").read_text()
    copy_companions(find_model(builtin_policy("builtin:tiny"), "policy.model"), directory)
    (directory / "config.json").write_text(config)
    return directory


def run_steps(run: Path, model: Path | str, *settings: str) -> list[dict]:
    """The metrics of a run of three steps on the built-in task."""
    command = [
        *(sys.executable, "-m", "rl.launch", "config=hybrid_50_50.yaml", f"run={run}"),
        *(f"policy.model={model}", "data.kind=chain_sum", "steps=3", "eval.prompts=16"),
        *("modes.short.max_tokens=8", "modes.long.max_tokens=72", "rollout.max_model_length=128"),
        "rollout.prompts_per_step=16",
        *settings,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3
    assert max(step["rollout/mismatch_kl"] for step in steps) <= 0.01
    return steps


@needs("vllm", "ray", "deepspeed")
@pytest.mark.parametrize(
    "settings", [(), ("policy.lora.rank=16", "policy.lora.alpha=32")], ids=["full", "lora"]
)
def test_a_tensor_above_one_gib_is_published_over_ipc(tmp_path, settings):
    small = "rollout.engine.gpu_memory_utilization=0.3"
    run_steps(tmp_path / "run", wide_model(tmp_path / "model"), "scale=one_gpu", small, *settings)


@needs("vllm", "ray", "deepspeed")
@pytest.mark.parametrize(
    "settings",
    [
        ("policy.logprobs=chunked", "policy.gradient_checkpointing=2"),
        ("policy.attention=cudnn",),
        ("policy.zero_stage=3",),
        (
            "policy.zero_stage=2",
            "policy.deepspeed.zero_optimization.offload_optimizer.device=cpu",
        ),
    ],
    ids=["chunks and every second layer", "cudnn", "zero3", "offload"],
)
def test_a_run_with_an_option_of_the_learner_agrees_with_its_engine(tmp_path, settings):
    small = "rollout.engine.gpu_memory_utilization=0.2"
    run_steps(tmp_path / "run", "builtin:tiny", "scale=one_gpu", small, *settings)


@needs("vllm", "ray", "deepspeed", "liger_kernel")
def test_a_run_with_fused_layers_agrees_with_its_engine(tmp_path):
    small = "rollout.engine.gpu_memory_utilization=0.2"
    fused = "policy.fused_layers=true"
    run_steps(tmp_path / "run", "builtin:tiny", "scale=one_gpu", small, fused)


@needs("vllm", "ray", "deepspeed", gpus=3)
@pytest.mark.parametrize(
    "settings",
    [("policy.zero_stage=3",), ("policy.sequence_parallel=2",)],
    ids=["zero3", "ulysses"],
)
def test_two_ranks_publish_over_nccl(tmp_path, settings):
    placed = ("resources.gpus=3", "resources.colocate=false", "policy.ranks=2")
    run_steps(tmp_path / "run", "builtin:tiny", "scale=one_gpu", *placed, *settings)


@needs("vllm", "ray", "deepspeed", gpus=3)
@pytest.mark.parametrize(
    "settings",
    [
        ("rollout.workers=2", "eval.samples=4"),
        ("rollout.tensor_parallel=2",),
        # The canary must not wait for a response of an engine that is full.
        ("rollout.workers=2", "rollout.max_staleness=1", "rollout.engine.max_num_seqs=2"),
    ],
    ids=["two engines", "an engine of two GPUs", "full engines"],
)
def test_engines_on_gpus_of_their_own_agree_with_the_learner(tmp_path, settings):
    placed = ("resources.gpus=3", "resources.colocate=false", "policy.ranks=1")
    run_steps(tmp_path / "run", "builtin:tiny", "scale=one_gpu", *placed, *settings)


@needs("vllm", "ray", "deepspeed")
def test_a_checkpoint_in_bfloat16_is_exported_and_proven(tmp_path):
    small = "rollout.engine.gpu_memory_utilization=0.2"
    run_steps(tmp_path / "run", "builtin:tiny", "scale=one_gpu", small)
    command = [sys.executable, "-m", "rl.export", f"run={tmp_path / 'run'}"]
    command += [f"out={tmp_path / 'exported'}", "prove=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "exported" / "model.safetensors").exists()
