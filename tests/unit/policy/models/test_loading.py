import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy.models.loading import load_policy, resolve_model, untied_copy
from policy.weights import full_weights
from policy.weights.full_weights import FullWeights, write_model_directory
from rl.config.policy import PolicyConfig
from tests.qwen3_tiny import tiny_qwen3


def make_model(directory: Path, **settings: object) -> Path:
    directory.mkdir()
    tiny_qwen3(32, **settings).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_directory_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"got .* without a config\.json"):
        resolve_model(str(tmp_path), untie=True)


def test_a_name_that_is_nothing_is_refused():
    with pytest.raises(ValueError, match="got 'no/such/model'; there is no such directory"):
        resolve_model("no/such/model", untie=True)


def test_dropout_is_off_in_training(tmp_path: Path):
    directory = make_model(tmp_path / "model", attention_dropout=0.5)
    model = load_policy(directory, PolicyConfig()).train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_untied_copy_computes_the_same(tmp_path: Path):
    directory = make_model(tmp_path / "tied", tie_word_embeddings=True)
    copy = untied_copy(directory, tmp_path / "cache")
    assert untied_copy(directory, tmp_path / "cache") == copy
    stored = load_file(copy / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert json.loads((copy / "config.json").read_text())["tie_word_embeddings"] is False
    assert (copy / "tokenizer.json").read_text() == "{}"
    tied = load_policy(directory, PolicyConfig())
    untied = load_policy(copy, PolicyConfig())
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    ids = torch.arange(8)[None]
    assert torch.equal(tied(input_ids=ids).logits, untied(input_ids=ids).logits)


def test_tied_weights_appear_once(tmp_path: Path):
    directory = make_model(tmp_path / "tied", tie_word_embeddings=True)
    weights = FullWeights(load_policy(directory, PolicyConfig()), torch.float32, False)
    names = [name for name, _ in weights]
    assert names == [name for name, _, _ in weights.metadata]
    assert set(names) == set(load_file(directory / "model.safetensors"))


def test_a_written_model_loads_back_from_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = make_model(tmp_path / "model")
    policy = load_policy(directory, PolicyConfig())
    monkeypatch.setattr(full_weights, "SHARD_BYTES", 4096)
    weights = FullWeights(policy, torch.bfloat16, False)
    write_model_directory(weights, directory, tmp_path / "out", is_writer=True)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (tmp_path / "out" / "tokenizer.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, parameter in policy.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.to(torch.bfloat16)), name
