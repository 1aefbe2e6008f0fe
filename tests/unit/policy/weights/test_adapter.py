"""What of a LoRA policy goes to the engines, and what into its checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy.models.loading import choose_trained, load_policy
from policy.weights.full_weights import AdapterWeights, FullWeights
from rl.config.policy import PolicyConfig
from tests.minicpmv_tiny import tiny_model
from tests.qwen3_tiny import tiny_qwen3

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    """A text policy in bfloat16 whose adapter is no longer zero."""
    directory: Path = tmp_path_factory.mktemp("model")
    tiny_qwen3(32).save_pretrained(directory)
    policy = load_policy(directory, PolicyConfig(dtype="bfloat16", lora={"rank": 3, "alpha": 8}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(1e-3 * torch.randn(weight.shape, generator=generator))
    return policy


def test_checkpoints_get_the_sum_rounded_once(policy: PeftModel):
    merged = dict(FullWeights(policy, torch.bfloat16, is_partitioned=False))
    adapter = dict(AdapterWeights(policy, is_partitioned=False))
    a, b = (adapter[f"base_model.model.{LAYER}.lora_{side}.weight"].double() for side in "AB")
    base = policy.get_submodule(f"base_model.model.{LAYER}").base_layer.weight.double()
    exact = base + 8 / 3 * (b @ a)
    error = (merged[f"{LAYER}.weight"].double() - exact).abs()
    # Half a step of bfloat16, which keeps eight bits: rounding the update first would add to it.
    half_step = 2.0 ** (exact.abs().log2().floor() - 8)
    assert (error <= half_step * (1 + 1e-4)).all()
    assert not torch.equal(merged[f"{LAYER}.weight"].double(), base)


def test_engines_get_the_matrices_under_the_names_of_a_peft_file(policy: PeftModel):
    expected = get_peft_model_state_dict(policy)
    adapter = dict(AdapterWeights(policy, is_partitioned=False))
    assert adapter.keys() == expected.keys()
    for name, matrix in adapter.items():
        assert matrix.dtype == torch.bfloat16
        assert torch.equal(matrix, expected[name])


def test_a_stored_adapter_is_one_that_peft_loads(policy: PeftModel, tmp_path: Path):
    source = tmp_path / "source"
    tiny_qwen3(32).save_pretrained(source)
    adapter = AdapterWeights(policy, is_partitioned=False)
    adapter.write(source, tmp_path / "of another rank", is_writer=False)
    assert not (tmp_path / "of another rank").exists()
    adapter.write(source, tmp_path / "adapter", is_writer=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (str(source), 3)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = get_peft_model_state_dict(policy)
    found = get_peft_model_state_dict(loaded)
    assert found.keys() == expected.keys()
    for name, matrix in found.items():
        torch.testing.assert_close(matrix.to(expected[name].dtype), expected[name], atol=0, rtol=0)


def test_a_stored_adapter_has_the_names_of_the_modules_and_not_of_the_checkpoint(tmp_path: Path):
    sees = choose_trained(tiny_model(), PolicyConfig(lora={"rank": 2}))
    AdapterWeights(sees, is_partitioned=False).write(tmp_path, tmp_path / "adapter", True)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert names == get_peft_model_state_dict(sees).keys()


def test_beside_the_adapter_goes_only_what_is_trained_too(policy: PeftModel):
    assert FullWeights(policy, torch.bfloat16, False, beside_adapter=True).metadata == []
    settings = PolicyConfig(lora={"rank": 2}, train=["llm", "resampler"])
    sees = choose_trained(tiny_model(), settings)
    names = [name for name, *_ in FullWeights(sees, torch.float32, False, True).metadata]
    assert names
    assert all(name.startswith("resampler.") for name in names)


def test_adapters_on_embeddings_are_refused():
    lora = {"rank": 2, "targets": ["q_proj", "embed_tokens"]}
    with pytest.raises(ValueError, match="name embed_tokens, and only linear layers"):
        choose_trained(tiny_qwen3(32), PolicyConfig(lora=lora))
