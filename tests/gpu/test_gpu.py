"""What only a CUDA device can show. Skipped, by what is missing, everywhere else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from rl.loop.weight_digest import tensor_digest
from rl.run.ledger import read_rows
from tests.gpu.requirements import needs
from tests.gpu.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_engines = needs("vllm", "ray", "deepspeed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_is_the_same_on_both_devices(dtype):
    tensor = torch.randn(1000, 1733).to(dtype)
    assert tensor_digest(tensor.cuda()) == tensor_digest(tensor)


def test_chunked_logprobs_in_bfloat16_are_near_the_float32_ones():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from policy.learner.logprobs import LogprobModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=1024, **sizes, **heads)).cuda()
    ids = torch.randint(1024, (4, 64), device="cuda")
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    inputs = (ids, mask, torch.ones(4, device="cuda"))
    with torch.no_grad():
        exact, _ = LogprobModel(model, 50)(*inputs)
        rounded, _ = LogprobModel(model.bfloat16(), 50)(*inputs)
    assert (exact - rounded).abs().mean() < 0.02


@needs_engines
@pytest.mark.parametrize(
    ("transport", "settings"),
    [
        # The engine sleeps through every update and drops its weights.
        ("ipc", []),
        ("host", []),
        # It keeps the base of the adapter in the memory of the host.
        ("auto", ["policy.lora.rank=8", "policy.optimizer.learning_rate=1e-5"]),
        ("ipc", ["rollout.sleep=false"]),
    ],
)
def test_a_colocated_run_in_bfloat16_proves_its_weights(tmp_path, transport, settings):
    from policy.learner.usage import peak_tflops

    run = tmp_path / "run"
    settings = [
        *("config=hybrid_50_50.yaml", "scale=one_gpu"),
        *("policy.model=builtin:tiny", "data.kind=chain_sum"),
        *("modes.short.max_tokens=8", "modes.long.max_tokens=72", "rollout.max_model_length=128"),
        *("rollout.prompts_per_step=16", "eval.prompts=16", f"sync.transport={transport}"),
        "rollout.engine.gpu_memory_utilization=0.2",
        # References are forced through vLLM's V2 model runner, which the CPU has not.
        "data.settings.probability_share=0.5",
        *settings,
    ]
    steps = train(run, 4, 500, *settings)
    is_known = peak_tflops(torch.cuda.get_device_name()) is not None
    for step in steps:
        assert 0 < step["perf/mfu"] < 1 if is_known else "perf/mfu" not in step
        assert 0 < step["memory/rank_peak_gib"] < torch.cuda.mem_get_info()[1] / 2**30
        assert 0 < step["engine/kv_use"] <= 1
        for speed in ("tokens", "learner_tokens", "engine_tokens"):
            assert step[f"perf/{speed}_per_second_per_gpu"] > 0
    rows = [row for path in sorted((run / "ledger").glob("*.parquet")) for row in read_rows(path)]
    parts = [row.parts for row in rows if row.route == "probability/1"]
    forced = [part["probability"] for part in parts if "probability" in part]
    assert forced
    assert all(0 < value <= 1 for value in forced)


@needs_engines
@pytest.mark.parametrize("model", ["tiny_qwen_vl", "tiny_minicpmv"])
def test_a_policy_that_sees_trains_in_bfloat16(tmp_path, model):
    settings = [
        *("config=hybrid_50_50_vision.yaml", "scale=one_gpu"),
        *(f"policy.model=builtin:{model}", "policy.lora=null"),
        *("data.kind=visual", "data.path=digits", "data.settings.wording=terse"),
        *("data.settings.width=84", "data.settings.height=28"),
        *("modes.short.max_tokens=6", "modes.long.max_tokens=32", "rollout.max_model_length=128"),
        *("rollout.prompts_per_step=16", "eval.prompts=16"),
        "rollout.engine.gpu_memory_utilization=0.2",
    ]
    train(tmp_path / "run", 4, 500, *settings)


@needs_engines
def test_the_pass_after_rl_runs_in_bfloat16(tmp_path):
    pytest.importorskip("trl")
    command = [
        *(sys.executable, "-m", "rl.align", "config=rlaif_v.yaml", "scale=one_gpu"),
        *(f"run={tmp_path / 'run'}", "model=builtin:tiny", "data.kind=chain_sum"),
        *("modes.short.max_tokens=8", "modes.long.max_tokens=72", "rollout.max_model_length=128"),
        *("rollout.prompts_per_step=16", "rollout.engine.gpu_memory_utilization=0.2"),
        *("align.divider=null", "align.labeller.model=builtin:tiny_labeller"),
        *("align.prompts=64", "align.responses=4", "align.temperature=1", "align.gate.prompts=32"),
        *("align.dpo.steps=4", "align.dpo.batch_size=16", "align.dpo.micro_batch_pairs=16"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    verdict = json.loads((tmp_path / "run" / "align" / "iteration_1" / "gate.json").read_text())
    assert verdict["pairs"] > 0
    assert set(verdict["after"]["hallucination"]) == {"short", "long"}
