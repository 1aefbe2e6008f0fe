import json

import pytest

from policy.models.checks import refuse_longer_than_model
from policy.models.loading import resolve_model
from tests.qwen3_tiny import tiny_qwen3


@pytest.fixture
def model(tmp_path):
    tiny_qwen3(32).save_pretrained(tmp_path)
    return tmp_path


def test_a_usable_model_is_taken_as_it_is(model):
    assert resolve_model(str(model), untie=True) == model


def test_missing_weights_are_named(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \*\.safetensors weights"):
        resolve_model(str(model), untie=True)


def test_weights_that_are_cut_short_are_named(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short"):
        resolve_model(str(model), untie=True)


def test_a_config_that_is_no_json_is_named(model):
    (model / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be used"):
        resolve_model(str(model), untie=True)


def test_a_model_of_another_kind_is_refused(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ValueError, match="vit, which is no causal language model"):
        resolve_model(str(model), untie=True)


def test_lengths_beyond_the_positions_of_the_model_are_refused(model):
    refuse_longer_than_model(model, 64)
    with pytest.raises(ValueError, match="max_model_length 65 exceeds the 64 positions"):
        refuse_longer_than_model(model, 65)


def test_scaled_positions_count(model):
    config = json.loads((model / "config.json").read_text())
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope["rope_theta"] = 10000.0
    (model / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    refuse_longer_than_model(model, 256)
