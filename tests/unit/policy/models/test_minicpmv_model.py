"""MiniCPM-V in the learner: names and shapes, positions, the resampler, gradients, round trips."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig, MiniCPMVInputs, VisualBatch
from policy.models.minicpmv.resampler import Resampler, plane_positions, sin_cos
from policy.models.minicpmv.vision import position_ids
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import StillImage, Video
from rl.loop.stages import TrainSample
from tests.minicpmv_tiny import (
    noise_frames,
    noise_image,
    save_tiny,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from tests.qwen_vl_tiny import Shelf, tiny_sample

# As the published file, with the fields of an older transformers.
PUBLISHED: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMVConfig"},
    "batch_3d_resampler": True,
    "bos_token_id": 151643,
    "drop_vision_last_layer": False,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 4096,
    "image_size": 448,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "model_type": "minicpmv",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "patch_size": 14,
    "query_num": 64,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "slice_config": {"max_slice_nums": 9, "model_type": "minicpmv", "patch_size": 14},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "version": 4.5,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "siglip",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "vocab_size": 151748,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minicpmv")
    save_tiny(directory)
    return directory


@pytest.fixture(scope="module")
def model() -> MiniCPMV:
    return tiny_model()


@pytest.fixture(scope="module")
def inputs(directory: Path) -> MiniCPMVInputs:
    return MiniCPMVInputs(directory, SHELF)


SHELF = Shelf()


def sample(inputs: MiniCPMVInputs, *parts: str | StillImage | Video) -> TrainSample:
    """A prompt of text and media, as the learner would train on it."""
    media = SHELF.put(parts)
    markers = {StillImage: IMAGE_MARKER, Video: VIDEO_MARKER}
    pieces = [part if isinstance(part, str) else markers[type(part)] for part in parts]
    ids = [token for piece in pieces for token in tiny_tokenizer().encode(piece)]
    return tiny_sample("0", inputs.expanded(ids, media), [], media)


def batch_of(
    inputs: MiniCPMVInputs, samples: list[TrainSample]
) -> tuple[Tensor, VisualBatch | None]:
    """Right-padded token ids [B, T] and the visual batch."""
    rows = [torch.from_numpy(sample.trajectory.token_ids).long() for sample in samples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    return ids, inputs(samples, ids)


def logprobs(model: MiniCPMV, ids: Tensor, visual: VisualBatch | None) -> Tensor:
    with torch.inference_mode():
        return model(ids, visual=visual).logits.log_softmax(-1)


def still(width: int, height: int) -> StillImage:
    return StillImage(noise_image(width, height), f"{width}x{height}")


def packed(*groups: tuple[int, ...]) -> Video:
    frames = noise_frames(sum(map(len, groups)), 60, 44, seed=1)
    return Video(frames, (), groups, fps=1.0, digest=str(groups))


def test_the_published_configuration_gives_the_published_weights(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(config, MiniCPMVConfig)
    assert config.rope_parameters["rope_theta"] == 1_000_000
    assert config.dtype == torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert len(shapes) == len(model.state_dict()) == 849
    assert sum(map(math.prod, shapes.values())) == 8_695_895_280
    expected = {
        "llm.model.embed_tokens.weight": (151748, 4096),
        "llm.model.layers.35.self_attn.k_norm.weight": (128,),
        "llm.model.norm.weight": (4096,),
        "llm.lm_head.weight": (151748, 4096),
        "vpm.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "vpm.embeddings.patch_embedding.bias": (1152,),
        "vpm.embeddings.position_embedding.weight": (4900, 1152),
        "vpm.encoder.layers.26.layer_norm1.bias": (1152,),
        "vpm.encoder.layers.26.self_attn.out_proj.weight": (1152, 1152),
        "vpm.encoder.layers.26.mlp.fc1.weight": (4304, 1152),
        "vpm.encoder.layers.26.mlp.fc2.bias": (1152,),
        "vpm.post_layernorm.weight": (1152,),
        "resampler.query": (64, 4096),
        "resampler.proj": (4096, 4096),
        "resampler.kv_proj.weight": (4096, 1152),
        "resampler.attn.in_proj_weight": (12288, 4096),
        "resampler.attn.in_proj_bias": (12288,),
        "resampler.attn.out_proj.weight": (4096, 4096),
        "resampler.attn.out_proj.bias": (4096,),
        "resampler.ln_q.weight": (4096,),
        "resampler.ln_kv.bias": (4096,),
        "resampler.ln_post.weight": (4096,),
    }
    assert {name: shapes[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2.6}, "MiniCPM-V 2.6 has other parts"),
        ({"drop_vision_last_layer": True}, "must be false"),
        ({"tie_word_embeddings": True}, "must be false"),
        ({"hidden_size": 192}, "multiple of 128"),
    ],
)
def test_relatives_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MiniCPMV(tiny_config(**changes))


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_a_round_trip_changes_no_bit_and_no_name(directory: Path, tmp_path: Path, auto: type):
    loaded = auto.from_pretrained(directory)
    assert type(loaded) is MiniCPMV
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MiniCPMV"]
    weights = tiny_model().state_dict()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as stored:
        assert set(stored.keys()) == set(weights)
        for name, weight in weights.items():
            assert torch.equal(stored.get_tensor(name), weight)


def test_new_weights_are_all_initialised():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MiniCPMV(tiny_config())
    for name in ("query", "attn.in_proj_weight", "kv_proj.weight"):
        weight = model.resampler.get_parameter(name).detach()
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.resampler.proj.detach().std()) == pytest.approx(256**-0.5, rel=0.1)
    assert not model.resampler.attn.in_proj_bias.any()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_patches_spread_over_the_position_table():
    """Row i of 25 has place floor(70 i / 25); row 5 is at 14 exactly, which floats may miss."""
    rows, columns = 25, 41
    ids = position_ids([(rows, columns)], rows * columns + 3, 70, torch.device("cpu"))[0]
    expected = [
        (i * 70 // rows) * 70 + j * 70 // columns for i in range(rows) for j in range(columns)
    ]
    assert ids.tolist() == [*expected, 0, 0, 0]
    assert int(ids[5 * columns]) == 14 * 70


def test_sines_and_cosines_by_hand():
    """Width 4 has frequencies 1 and 10000^(-1/2) = 0.01."""
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    assert sin_cos([0, 2], 4)[1].tolist() == pytest.approx(expected, abs=1e-7)
    assert sin_cos([0], 4)[0].tolist() == [0, 0, 1, 1]


def test_the_column_comes_first_in_a_plane_position():
    table = plane_positions([(1, 1), (2, 3)], 8, torch.zeros(()))  # [1 + 6, 8]
    across, down = table[1:, :4].view(2, 3, 4), table[1:, 4:].view(2, 3, 4)
    rows = torch.from_numpy(sin_cos(range(3), 4))
    assert torch.equal(across, rows[None].expand(2, -1, -1))
    assert torch.equal(down, rows[:2, None].expand(-1, 3, -1))


def reference_resampler(resampler: Resampler, frames: list, sizes: list, times: list) -> np.ndarray:
    """Visual tokens [Q, D] of one group in plain float64 loops over heads. frames: [n, C] each."""
    weights = {k: v.detach().double().numpy() for k, v in resampler.named_parameters()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    keys, values = [], []
    for frame, (rows, columns), time in zip(frames, sizes, times, strict=True):
        value = norm("ln_kv", frame.double().numpy() @ weights["kv_proj.weight"].T)
        width = value.shape[-1]
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            position = np.concatenate([sin_cos([at], width // 2)[0] for at in (column, row)])
            if time >= 0:
                position = position + sin_cos([time], width)[0]
            keys.append(value[place] + position)
            values.append(value[place])
    inputs = (norm("ln_q", weights["query"]), np.array(keys), np.array(values))
    matrices = np.split(weights["attn.in_proj_weight"], 3)
    offsets = np.split(weights["attn.in_proj_bias"], 3)
    q, k, v = (x @ m.T + b for x, m, b in zip(inputs, matrices, offsets, strict=True))
    heads = []
    for start in range(0, q.shape[-1], 128):
        head = slice(start, start + 128)
        scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(128))
        heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, head])
    out = np.concatenate(heads, -1) @ weights["attn.out_proj.weight"].T
    return norm("ln_post", out + weights["attn.out_proj.bias"]) @ weights["proj"]


def test_a_group_is_read_at_once(model: MiniCPMV):
    """Groups of two frames, of one, and a still, of different sizes, against plain loops."""
    sizes = [(4, 4), (3, 5), (2, 6), (4, 3)]
    groups = ((0, 35_999), (7,), (-1,))
    features = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = model.resampler(features, sizes, groups)  # [3, Q, D]
    first = 0
    for group, seen in zip(groups, tokens, strict=True):
        span = range(first, first + len(group))
        frames = [features[at, : math.prod(sizes[at])] for at in span]
        expected = reference_resampler(
            model.resampler, frames, [sizes[at] for at in span], list(group)
        )
        assert np.abs(seen.numpy() - expected).max() < 2e-5
        first += len(group)


def test_six_large_frames_become_64_tokens():
    resampler = Resampler(64, 256, 32)
    for weight in resampler.parameters():
        nn.init.normal_(weight, std=0.1)
    with torch.inference_mode():
        tokens = resampler(torch.randn(6, 1024, 32), [(32, 32)] * 6, [(0, 1, 2, 3, 4, 5)])
    assert tokens.shape == (1, 64, 256)


def test_one_temporal_id_changes_the_answer(model: MiniCPMV, inputs: MiniCPMVInputs):
    seen = []
    for groups in (((0, 3, 7), (10, 13, 17)), ((0, 3, 7), (10, 14, 17))):
        shown = sample(inputs, packed(*groups), "\nwhat?")
        seen.append(logprobs(model, *batch_of(inputs, [shown])))
    assert (seen[0] - seen[1]).abs().max() > 1e-2


def test_a_batch_answers_as_its_prompts_alone(model: MiniCPMV, inputs: MiniCPMVInputs):
    samples = [
        sample(inputs, still(90, 61), "\nwhat is this?"),
        sample(inputs, "no picture"),
        sample(inputs, packed((0, 2), (5,)), still(30, 44), "?"),
    ]
    together = logprobs(model, *batch_of(inputs, samples))
    for one, row in zip(samples, together, strict=True):
        alone = logprobs(model, *batch_of(inputs, [one]))[0]
        assert (row[: len(alone)] - alone).abs().max() < 2e-5


def test_text_alone_is_the_decoder_alone(model: MiniCPMV):
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, model.llm(ids).logits)
        kept = model(ids, logits_to_keep=3).logits
        assert torch.allclose(kept, model(ids).logits[:, -3:], atol=1e-5)


def gradients(model: MiniCPMV, ids: Tensor, visual: VisualBatch | None) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(ids, visual=visual).logits.logsumexp(-1).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_gradients_reach_every_part(inputs: MiniCPMVInputs):
    model = tiny_model().train()
    shown = sample(inputs, still(90, 61), "?")
    found = gradients(model, *batch_of(inputs, [shown]))
    for name, gradient in found.items():
        assert gradient is not None, name
        # A key's bias moves all scores of a query alike, so the softmax removes it.
        if not name.endswith("k_proj.bias"):
            assert gradient.abs().max() > 1e-6, name


def test_text_alone_gives_vision_a_gradient_of_zero():
    found = gradients(tiny_model().train(), torch.arange(10)[None], None)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert bool(gradient.any()) == name.startswith("llm."), name


def test_checkpointing_changes_no_gradient(inputs: MiniCPMVInputs):
    model = tiny_model().train()
    ids, visual = batch_of(inputs, [sample(inputs, still(90, 61), "?")])
    plain = gradients(model, ids, visual)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.vpm.encoder.layers[0].gradient_checkpointing
    assert model.llm.model.layers[0].gradient_checkpointing
    again = gradients(model, ids, visual)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-5), name


def test_bfloat16_stays_near_float32(directory: Path, inputs: MiniCPMVInputs):
    """The spread of a tiny random model; what matters is that no part fails or overflows."""
    model = MiniCPMV.from_pretrained(directory, dtype=torch.bfloat16)
    ids, visual = batch_of(inputs, [sample(inputs, packed((0, 3), (5,)), "?")])
    assert visual is not None
    rounded = logprobs(model, ids, visual.arguments("cpu", torch.bfloat16)["visual"])
    assert (rounded.float() - logprobs(tiny_model(), ids, visual)).abs().mean() < 0.05
