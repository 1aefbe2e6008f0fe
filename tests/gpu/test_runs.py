"""Runs of three steps with what only GPUs have, each held to its engine's log-probabilities."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.gpu.requirements import QWEN3_VOCABULARY, needs
from tests.gpu.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def wide_model(directory: Path) -> Path:
    """Two layers as wide as those of Qwen3-8B, whose embedding is one tensor above 1 GiB."""
    from policy.builtin.names import builtin_policy
    from policy.models.cache import find_model
    from policy.models.loading import copy_companions

    sizes = {"hidden_size": 4096, "intermediate_size": 4096, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=QWEN3_VOCABULARY, tie_word_embeddings=False, **sizes, **heads)
        )
    model.bfloat16().save_pretrained(directory)
    config = (directory / "config.json").read_text()
    copy_companions(find_model(builtin_policy("builtin:tiny"), "policy.model"), directory)
    (directory / "config.json").write_text(config)
    return directory


def run_steps(run: Path, model: Path | str, *settings: str) -> list[dict[str, Any]]:
    """The metrics of a run of three steps on the built-in task."""
    common = [
        *("config=hybrid_50_50.yaml", f"policy.model={model}", "data.kind=chain_sum"),
        *("modes.short.max_tokens=8", "modes.long.max_tokens=72", "rollout.max_model_length=128"),
        *("eval.prompts=16", "rollout.prompts_per_step=16"),
    ]
    return train(run, 3, 900, *common, *settings)


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
