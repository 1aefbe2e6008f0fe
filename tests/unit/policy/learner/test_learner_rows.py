"""The rows that scripts/bench_learner.py prints, at a size that a CPU computes in a moment."""

import importlib.util
from pathlib import Path

import pytest
import torch

from rl.config.policy import PolicyConfig
from tests.qwen3_tiny import tiny_qwen3

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "bench_learner.py"


def load_script():
    """scripts/ is no package, so that nothing of the source can come to need it."""
    spec = importlib.util.spec_from_file_location("bench_learner", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def test_every_row_is_measured_or_says_what_it_needs(monkeypatch, capsys):
    """Each adds to the one before it, so on CPU none after the fused layers can run."""
    measured = []
    original = script.measure_row

    def note(model, policy, *rest):
        measured.append(policy)
        return original(model, policy, *rest)

    monkeypatch.setattr(script, "measure_row", note)
    figures = script.learner_rows(
        tiny_qwen3(64).config, PolicyConfig(dtype="bfloat16"), 32, 16, rounds=2, device="cpu"
    )
    assert [
        (p.logprobs, p.fused_layers, p.checkpoint_every, p.attention) for p in measured
    ] == [
        ("chunked", False, 1, "sdpa"),
        ("fused", True, 1, "sdpa"),
        ("fused", True, 2, "sdpa"),
        ("fused", True, 2, "cudnn"),
    ]  # fmt: skip
    first, *others = figures.values()
    assert 0 < first["range"][0] <= first["tokens_per_second"] <= first["range"][1]
    assert first["peak_gib"] is None
    assert [row["needs"] for row in others] == ["it takes kernels that run on a GPU"] * 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "1.00 x as it is" in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_it_needs():
    with pytest.raises(ValueError, match=r"take one with CUDA.*hybrid-rl\[fused\]"):
        script.refuse_cpu()
