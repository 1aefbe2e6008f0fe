"""Vision-language families: known by name in few rooms, and added without touching any other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rl
from policy.builtin.tokenizer import make_tokenizer
from policy.learner.logprobs import LogprobModel
from policy.models import family as learner_side
from policy.models.family import open_visual_inputs, unsampled_token_ids
from policy.models.loading import load_policy, resolve_model
from policy.weights.full_weights import FullWeights
from rl.config.data import SourceConfig
from rl.config.policy import PolicyConfig
from rl.data.media import families
from rl.data.media.names import MediaFile, Video
from rl.data.media.store import MediaStore
from rl.loop.batching import collate, reference_sample
from rl.loop.stages import Prompt, ReferenceRequest
from rollout.chat import ChatTemplate
from rollout.engines import media as engine_side
from rollout.engines.media import engine_family, serving_arguments
from tests.made_up_family import engine, learner

ROOT = Path(rl.__file__).parent.parent
ROOMS = ("rl/data/media", "policy/models", "policy/builtin", "rollout/engines")
"""Where a family may be called by its name."""


def test_an_engine_that_pairs_frames_is_shown_a_lone_frame_twice():
    lone = Video(np.zeros((1, 4, 4, 3), np.uint8), (0.0,), ((0,),), 2.0, "digest")
    for name, count in (("qwen_vl", 2), ("minicpmv", 1)):
        ((frames, told),) = engine_side.ENGINE_FAMILIES[name].inputs([lone])["multi_modal_data"][
            "video"
        ]
        assert len(frames) == count
    assert told == {"temporal_ids": ((0,),)}


def test_no_other_room_knows_a_family_by_its_name():
    names = re.compile("qwen_?vl|minicpm_?v|qwen2_5_vl|qwen3_vl", re.IGNORECASE)
    files = [
        f for top in ("rl", "policy", "rollout", "rewards") for f in (ROOT / top).rglob("*.py")
    ]
    assert len(files) > 100
    named = {f.relative_to(ROOT).as_posix() for f in files if names.search(f.read_text())}
    assert {name for name in named if not name.startswith(ROOMS)} == set()
    assert all(any(name.startswith(room) for name in named) for room in ROOMS)


def test_every_family_has_an_adapter_on_either_side():
    assert families.FAMILIES.keys() == learner_side.MODEL_FAMILIES.keys()
    assert families.FAMILIES.keys() == engine_side.ENGINE_FAMILIES.keys()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the made-up family, which is registered on both sides."""
    monkeypatch.setitem(families.FAMILIES, "colour", learner.FACTS)
    monkeypatch.setitem(learner_side.MODEL_FAMILIES, "colour", learner.ADAPTER)
    monkeypatch.setitem(engine_side.ENGINE_FAMILIES, "colour", engine.ADAPTER)
    tokenizer = make_tokenizer(64, (learner.MARKER, learner.PICTURE))
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    config = learner.ColourConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=False, pad_token_id=0, **sizes
    )
    model = tmp_path / "model"
    learner.ColourModel(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    stored = load_file(model / "model.safetensors")
    renamed = {learner.ADAPTER.checkpoint_name("", n): t.clone() for n, t in stored.items()}
    # transformers loads its own names, the checks and the engines go by the published ones.
    save_file(stored | renamed, model / "model.safetensors", metadata={"format": "pt"})
    return model


def picture(path: Path, colour: str) -> MediaFile:
    Image.new("RGB", (4, 4), colour).save(path)
    return MediaFile("image", str(path))


def asked(medium: MediaFile) -> Prompt:
    content = [{"type": "image"}, {"type": "text", "text": "Which colour?"}]
    return Prompt("one", ({"role": "user", "content": content},), "red", media=(medium,))


def test_a_new_family_is_two_adapters_and_nothing_else(directory: Path, tmp_path: Path):
    """A prompt with a picture goes through chat, engine inputs, learner inputs and a forward."""
    red, blue = (picture(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue"))
    assert resolve_model(str(directory), untie=True) == directory
    chat = ChatTemplate(str(directory))
    token_ids = chat.prompt_token_ids(asked(red), thinking=False)
    assert chat.raw_text(token_ids).count(learner.MARKER) == 1

    family, store = engine_family(directory), MediaStore(SourceConfig())
    assert family == engine.ADAPTER
    inputs = family.inputs([store.read(red)])
    assert inputs["multi_modal_data"]["image"][0].getpixel((0, 0)) == (255, 0, 0)
    assert serving_arguments(directory) == engine.ADAPTER.serving_arguments

    visual_inputs = open_visual_inputs(directory, SourceConfig())
    assert visual_inputs is not None
    policy = load_policy(directory, PolicyConfig(train=["vision"]))
    assert policy.is_prepared
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == {
        "eye.weight",
        "eye.bias",
    }
    never = unsampled_token_ids(directory)
    assert never == chat.unsampled
    assert len(never) == 2
    model = LogprobModel(policy, chunk_tokens=64, unsampled=never)
    logprobs = {}
    for name, medium in {"red": red, "blue": blue}.items():
        context = visual_inputs.expanded(token_ids, [medium])
        assert len(context) == len(token_ids)
        request = ReferenceRequest("", asked(medium), context, chat.token_ids("red"), 1.0)
        sample = reference_sample(request, context)
        batch = collate([sample])
        visual = visual_inputs([sample], batch.token_ids)
        assert visual is not None
        logprobs[name], _ = model(
            batch.token_ids, batch.loss_mask, batch.temperature, visual.arguments()
        )
    assert logprobs["red"].shape == (3,)
    assert not torch.equal(logprobs["red"], logprobs["blue"])
    logprobs["red"].sum().backward()
    assert policy.eye.weight.grad.abs().sum() > 0
    published = [name for name, _ in FullWeights(policy, torch.float32, False)]
    assert {"published_eye.weight", "lm_head.weight"} <= set(published)


def test_a_made_up_model_is_unknown_until_it_is_registered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(families.FAMILIES, "colour")
    with pytest.raises(ValueError, match=r"colour_vl.*MiniCPM-V 4\.5, Qwen2\.5-VL, Qwen3-VL"):
        resolve_model(str(directory), untie=True)
