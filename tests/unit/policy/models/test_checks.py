import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    PretrainedConfig,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from policy.models.checks import refuse_longer_than_model
from policy.models.loading import resolve_model
from tests.qwen3_tiny import SIZES, tiny_qwen3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    tiny_qwen3(32).save_pretrained(directory)
    return directory


def edit(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(directory: Path, is_trained: bool = True) -> str:
    """What a person is told who names this directory; it never names its parent to them."""
    with pytest.raises(ValueError, match=r"policy\.model") as caught:
        resolve_model(str(directory), untie=True, is_trained=is_trained)
    return str(caught.value).replace(str(directory.parent), "")


@pytest.fixture
def adapter(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a LoRA fine-tune saves of the model: no weights of its own, no config.json."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "cache"))
    base = Qwen3ForCausalLM.from_pretrained(model)
    directory = model.parent / "adapter"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base, settings).save_pretrained(directory)
    (directory / "chat_template.jinja").write_text("of the fine-tune")
    return directory


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_usable_model_is_taken_as_it_is(model, is_trained):
    assert resolve_model(str(model), untie=True, is_trained=is_trained) == model


def test_missing_weights_are_named(model):
    (model / "model.safetensors").unlink()
    assert "has no *.safetensors weights" in refusal(model)


def test_weights_as_pickles_are_named_with_how_to_convert_them(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"")
    told = refusal(model)
    assert "but pytorch_model.bin" in told and "save_pretrained" in told


@pytest.mark.parametrize(
    "content", [None, b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"]
)
def test_weights_that_are_cut_short_are_named(model, content):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content or whole[:100])
    told = refusal(model)
    assert "model.safetensors is damaged or cut short" in told and "git lfs pull" in told


def test_shards_must_all_be_there_with_their_index(model):
    (model / "model.safetensors").unlink()
    tiny_qwen3(32).save_pretrained(model, max_shard_size="8KB")
    assert resolve_model(str(model), untie=True, is_trained=True) == model
    last = sorted(model.glob("*.safetensors"))[-1]
    content = last.read_bytes()
    last.unlink()
    assert (
        f"lacks 1 of the files that its model.safetensors.index.json names, such as {last.name}"
        in (refusal(model))
    )
    last.write_bytes(content)
    (model / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json" in refusal(model)


def test_a_config_that_is_no_json_is_named(model):
    (model / "config.json").write_text("{")
    assert "config.json cannot be used" in refusal(model)


def test_a_setting_of_another_type_is_named(model):
    edit(model, hidden_size="128")
    assert "config.json cannot be used: " in (told := refusal(model))
    assert "hidden_size" in told and "\n" not in told
    edit(model, hidden_size=SIZES["hidden_size"], hidden_act="nope")
    assert "no qwen3 can be made by /model/config.json: KeyError('nope')" in refusal(model)


def test_a_directory_without_a_model_says_where_there_are_some(model):
    for number in (10, 20):
        (model / f"checkpoint-{number}").mkdir(parents=True)
        (model / f"checkpoint-{number}" / "config.json").write_text("{}")
    os.utime(model / "checkpoint-10" / "config.json", (0, 0))
    (model / "model.gguf").write_bytes(b"GGUF")
    (model / "config.json").unlink()
    below = "/model/checkpoint-20, /model/checkpoint-10, model.gguf"
    assert f"without a config.json, but with {below}; name the directory" in refusal(model)


def test_a_model_of_another_kind_is_refused(model):
    edit(model, model_type="vit")
    assert "vit, which is no causal language model" in refusal(model)


def test_code_of_the_checkpoint_is_never_run_nor_advised(model):
    code = {"AutoConfig": "configuration_minicpm.MiniCPMConfig"}
    edit(model, model_type="minicpm", auto_map=code)
    told = refusal(model, is_trained=False)
    assert "configuration_minicpm.MiniCPMConfig" in told and "never run here" in told
    assert "trust_remote_code" not in told
    # Of a type that transformers has itself, the code is not needed.
    edit(model, model_type="qwen3")
    assert resolve_model(str(model), untie=True, is_trained=True) == model


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ],
)
def test_a_quantised_model_can_be_asked_but_not_trained(model, settings, name):
    edit(model, quantization_config=settings)
    assert f"is quantised ({name})" in refusal(model)
    assert resolve_model(str(model), untie=True) == model


def test_a_model_that_older_tools_quantised_has_a_file_that_says_so(model):
    (model / "quantize_config.json").write_text('{"bits": 4}')
    assert "is quantised (quantize_config.json)" in refusal(model)


def test_weights_of_few_bits_are_refused_whatever_the_configuration_says(model):
    edit(model, quantization={"group_size": 64, "bits": 4})
    assert "is quantised" in refusal(model)
    tiny_qwen3(32).save_pretrained(model)
    weights = load_file(model / "model.safetensors")
    for dtype, name in ((torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")):
        weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        assert f"stores lm_head.weight as {name}, as quantised weights are" in refusal(model)


def test_weights_of_another_shape_than_the_configuration_says_are_refused(model):
    edit(model, intermediate_size=2 * SIZES["intermediate_size"])
    told = refusal(model)
    assert "stores model.layers.0.mlp" in told and "its config.json wants" in told


SMALL = {key: value for key, value in SIZES.items() if key != "initializer_range"}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            Qwen3MoeConfig(vocab_size=32, num_experts=4, **SMALL),
            "is a mixture of experts",
        ),
        (Gemma2Config(vocab_size=32, **SMALL), "'final_logit_softcapping': 30.0"),
        (GraniteConfig(vocab_size=32, logits_scaling=8.0), "'logits_scaling': 8.0"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else "",
)
def test_architectures_that_cannot_be_trained_are_refused_by_their_configuration(
    model, config, why
):
    config.save_pretrained(model)
    assert why in refusal(model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_from_inside_a_wrapper_are_named(model, prefix):
    file = model / "model.safetensors"
    stored = {f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    told = refusal(model)
    assert f"names its weights {prefix}lm_head.weight where qwen3 has lm_head.weight" in told


def test_parameters_that_the_checkpoint_lacks_or_names_otherwise_are_refused(model):
    file = model / "model.safetensors"
    stored = load_file(file)
    stored["model.layers.0.mlp.up.weight"] = stored.pop("model.layers.0.mlp.up_proj.weight")
    save_file(stored, file, metadata={"format": "pt"})
    assert "such as model.layers.0.mlp.up_proj.weight" in refusal(model)


def test_a_tied_model_has_no_output_layer_among_its_weights(tmp_path):
    tiny_qwen3(32, tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert resolve_model(str(tmp_path), untie=False, is_trained=True) == tmp_path


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_merged_into_its_base(model, adapter, has_config):
    if has_config:
        (adapter / "config.json").write_text((model / "config.json").read_text())
    merged = resolve_model(str(adapter), untie=True, is_trained=True)
    assert resolve_model(str(adapter), untie=True, is_trained=True) == merged
    assert (merged / "chat_template.jinja").read_text() == "of the fine-tune"
    base, policy = (AutoModelForCausalLM.from_pretrained(path) for path in (model, merged))
    deltas = load_file(adapter / "adapter_model.safetensors")
    name = "layers.1.self_attn.q_proj"
    a, b = (deltas[f"base_model.model.model.{name}.lora_{side}.weight"] for side in "AB")
    before, after = (each.model.get_submodule(name).weight for each in (base, policy))
    # Of rank 2 with the default alpha of 8, which scales by 4.
    torch.testing.assert_close(after, before + 4 * b @ a)
    assert not torch.equal(after, before)


def test_an_adapter_without_its_base_says_which_it_needs(model, adapter):
    model.rename(model.parent / "elsewhere")
    told = refusal(adapter)
    assert "/adapter is an adapter, and its base model" in told and "/model'" in told


def test_an_adapter_without_weights_is_named(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    assert "/adapter lacks adapter_model.safetensors" in refusal(adapter)


def test_an_adapter_of_a_quantised_base_is_not_merged(model, adapter):
    edit(model, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "/model is quantised (bitsandbytes)" in refusal(adapter)


def test_an_adapter_that_does_not_fit_is_named(model, adapter):
    tiny_qwen3(32, num_attention_heads=1).save_pretrained(model)
    told = refusal(adapter)
    assert "the adapter /adapter cannot be merged into its base /model" in told
    assert "\n" not in told and len(told) < 500
    assert not list((model.parent / "cache" / "hybrid-rl").glob("merged-*[!k]"))


def test_an_adapter_beside_weights_is_refused(model, adapter):
    (model / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    assert "holds weights and an adapter" in refusal(model, is_trained=False)


def test_lengths_beyond_the_positions_of_the_model_are_refused(model):
    refuse_longer_than_model(model, 64)
    with pytest.raises(ValueError, match="max_model_length 65 exceeds the 64 positions"):
        refuse_longer_than_model(model, 65)


def test_scaled_positions_count(model):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    edit(model, rope_parameters=rope | {"rope_theta": 10000.0})
    refuse_longer_than_model(model, 256)
