"""Qwen VL in the learner: positions, visual tokens found and missed, gradients, names, parts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification

from policy.models.family import open_visual_inputs
from policy.models.qwen_vl import (
    Block,
    QwenVLInputs,
    checkpoint_name,
    mrope_positions,
    parts,
    see_once,
)
from policy.weights.full_weights import FullWeights, write_model_directory
from rl.config.data import SourceConfig
from tests.qwen_vl_tiny import (
    MAX_IMAGE_TOKENS,
    ModelType,
    Shelf,
    noise_still,
    noise_video,
    prompt_token_ids,
    save_tiny,
    tiny_model,
    tiny_sample,
    tiny_tokenizer,
)

BACKBONE: Any = tiny_model("qwen2_5_vl").base_model
MODEL_TYPES: tuple[ModelType, ...] = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen")
    for model_type in MODEL_TYPES:
        save_tiny(root / model_type, model_type)
    return {model_type: root / model_type for model_type in MODEL_TYPES}


def sample_of(inputs: QwenVLInputs, shelf: Shelf, content: list[Any], name: str = "1/2/3"):
    media = shelf.put(content)
    response = tiny_tokenizer().encode("abc?")
    return tiny_sample(name, inputs.expanded(prompt_token_ids(content), media), response, media)


def rows(samples: list[Any]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(sample.trajectory.token_ids).long() for sample in samples], True
    )


# Positions.


def test_text_counts_on_from_the_largest_position_of_a_block():
    blocks = [Block(2, (1, 2, 3)), Block(9, (3, 1, 2), seconds_per_step=2.5)]
    found = mrope_positions(17, blocks, steps_per_second=2)
    # 2 of text; 2 x 3 patches; 1 of text at 2 + 3; times 0, 5 and 10 from 6 on; 2 of text at 17.
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 11, 11, 16, 16, 17, 18],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 6, 6, 17, 18],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 6, 7, 17, 18],
    ]


def test_a_row_of_text_counts_from_zero():
    assert (mrope_positions(5, [], 2) == np.arange(5)).all()


sides = st.integers(1, 6)


@settings(deadline=None, max_examples=50)
@given(
    grids=st.lists(st.tuples(sides, sides), max_size=4),
    gaps=st.lists(st.integers(1, 5), min_size=5),
)
def test_positions_of_images_are_those_of_transformers(
    grids: list[tuple[int, int]], gaps: list[int]
):
    kinds, blocks = [0] * gaps[0], []
    for (height, width), gap in zip(grids, gaps[1:], strict=False):
        blocks.append(Block(len(kinds), (1, height, width)))
        kinds += [1] * height * width + [0] * gap
    theirs, _ = BACKBONE.get_rope_index(
        torch.zeros(1, len(kinds), dtype=torch.long),
        torch.tensor([kinds]),
        image_grid_thw=torch.tensor([(1, 2 * h, 2 * w) for h, w in grids]) if grids else None,
    )
    assert (mrope_positions(len(kinds), blocks, 2) == theirs[:, 0].numpy()).all()


def test_after_a_long_video_transformers_is_behind():
    """6 steps of 2 seconds reach position 20; transformers goes on from the 2 columns."""
    blocks = [Block(1, (6, 1, 2), seconds_per_step=2.0)]
    theirs, _ = BACKBONE.get_rope_index(
        torch.zeros(1, 14, dtype=torch.long),
        torch.tensor([[0] + [2] * 12 + [0]]),
        video_grid_thw=torch.tensor([[6, 2, 4]]),
        second_per_grid_ts=torch.tensor([2.0]),
    )
    ours = mrope_positions(14, blocks, steps_per_second=2)
    assert (ours[:, :13] == theirs[:, 0, :13].numpy()).all()
    assert ours[0, 13] == 1 + 5 * 2 * 2 + 1 and theirs[0, 0, 13] == 1 + 2


def test_times_are_rounded_as_the_engine_rounds_them(directories: dict[str, Path]):
    """Of 0.7 frames a second, 2 / 0.7 s a step, in bfloat16 2.859375, at 2 positions a second."""
    shelf = Shelf()
    inputs = QwenVLInputs(directories["qwen2_5_vl"], shelf)
    sample = sample_of(inputs, shelf, [noise_video(50, 28, 28, fps=0.7)])
    batch = inputs([sample], rows([sample]))
    assert batch is not None
    ids = rows([sample])[0]
    is_video = ids == tiny_tokenizer().convert_tokens_to_ids("<|video_pad|>")
    for dtype, seconds in ((torch.float32, np.float32(2 / 0.7)), (torch.bfloat16, 2.859375)):
        times = batch.arguments("cpu", dtype)["position_ids"][0, 0, is_video]
        steps = (times - times[0]).unique().tolist()
        assert steps == [int(step * float(seconds) * 2) for step in range(25)]


# What a sample shows.


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_media_are_laid_out_row_by_row(directories: dict[str, Path], model_type: ModelType):
    shelf = Shelf()
    inputs = QwenVLInputs(directories[model_type], shelf)
    side = 28 if model_type == "qwen2_5_vl" else 32
    still, other = noise_still(2 * side, 3 * side), noise_still(side, 2 * side, 1)
    video = noise_video(5, 2 * side, side, fps=2.0)
    samples = [
        sample_of(inputs, shelf, ["a", other]),
        sample_of(inputs, shelf, ["text"]),
        sample_of(inputs, shelf, [video, "b", still]),
    ]
    batch = inputs(samples, rows(samples))
    assert batch is not None
    found = batch.arguments("cpu", torch.bfloat16)
    assert found["image_grid_thw"].tolist() == [[1, 4, 2], [1, 6, 4]]
    assert found["video_grid_thw"].tolist() == [[3, 2, 4]]
    assert len(found["pixel_values"]) == 8 + 24 and len(found["pixel_values_videos"]) == 24
    assert found["pixel_values"].dtype == torch.bfloat16
    assert found["position_ids"].shape == (3, 3, rows(samples).shape[1])
    # A patch holds [channel, time, row, column], each value in [-1, 1].
    red = np.asarray(other.pixels)[:14, :14, 0] / 127.5 - 1
    if model_type == "qwen2_5_vl":
        patch = batch.arguments()["pixel_values"][0].view(3, 2, 14, 14)[0, 0]
        assert np.abs(patch.numpy() - red).max() < 1e-6


def test_text_alone_has_no_media(directories: dict[str, Path]):
    shelf = Shelf()
    inputs = QwenVLInputs(directories["qwen3_vl"], shelf)
    sample = sample_of(inputs, shelf, ["text"])
    assert inputs([sample], rows([sample])) is None
    assert inputs([], torch.zeros(1, 4, dtype=torch.long)) is None


def test_an_image_costs_its_merged_patches_and_no_more_than_the_limit(directories: dict[str, Path]):
    shelf = Shelf()
    inputs = QwenVLInputs(directories["qwen2_5_vl"], shelf)
    pad = tiny_tokenizer().convert_tokens_to_ids("<|image_pad|>")
    for size, tokens in (((28, 28), 1), ((90, 60), 6), ((2800, 2800), 36)):
        still = [noise_still(*size)]
        ids = inputs.expanded(prompt_token_ids(still), shelf.put(still))
        assert ids.count(pad) == tokens <= MAX_IMAGE_TOKENS


def test_a_video_of_qwen3_says_when_its_frames_are(directories: dict[str, Path]):
    shelf = Shelf()
    inputs = QwenVLInputs(directories["qwen3_vl"], shelf)
    video = replace(noise_video(4, 32, 32, fps=1.0), times_s=(0.0, 1.0, 2.5, 3.1))
    ids = inputs.expanded(prompt_token_ids([video]), shelf.put([video]))
    frame = "<|vision_start|><|video_pad|><|vision_end|>"
    text = tiny_tokenizer().decode(ids)
    assert f"<0.5 seconds>{frame}<2.8 seconds>{frame}" in text


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("shown", "read", "counts"),
    [
        ([noise_still(90, 60)], [noise_still(120, 60)], "6 (image) in its token ids, 8 (image)"),
        (["text"], [noise_still(90, 60)], "none in its token ids, 6 (image)"),
        ([noise_still(90, 60)], ["text"], None),
    ],
    ids=["another size", "none sent", "none kept"],
)
def test_other_visual_tokens_than_the_media_give_name_the_sample(
    directories: dict[str, Path],
    model_type: ModelType,
    shown: list[Any],
    read: list[Any],
    counts: str | None,
):
    shelf = Shelf()
    inputs = QwenVLInputs(directories[model_type], shelf)
    sample = replace(sample_of(inputs, shelf, shown, "4/1/0"), media=shelf.put(read))
    expected = counts or "6 (image) in its token ids, none"
    with pytest.raises(ValueError, match="sample 4/1/0") as raised:
        inputs([sample], rows([sample]))
    if model_type == "qwen2_5_vl":
        assert expected in str(raised.value)


def test_a_directory_that_does_not_say_how_its_model_sees_is_named(
    directories: dict[str, Path], tmp_path: Path
):
    shutil.copytree(directories["qwen2_5_vl"], tmp_path / "model")
    for file in (tmp_path / "model").glob("*processor*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"/model does not say how .* preprocessor_config\.json"):
        open_visual_inputs(tmp_path / "model", SourceConfig())


def test_a_prompt_needs_a_marker_for_each_medium(directories: dict[str, Path]):
    shelf = Shelf()
    inputs = QwenVLInputs(directories["qwen2_5_vl"], shelf)
    with pytest.raises(ValueError, match="1 markers for its 2 media"):
        inputs.expanded(
            prompt_token_ids([noise_still(60, 60)]),
            shelf.put([noise_still(60, 60), noise_still(80, 60)]),
        )


# The model.


def logits_of(model: Any, inputs: QwenVLInputs, samples: list[Any]) -> torch.Tensor:
    ids = rows(samples)
    visual = inputs(samples, ids)
    arguments = {} if visual is None else visual.arguments()
    output = model.base_model(input_ids=ids, use_cache=False, **arguments)
    return model.get_output_embeddings()(output.last_hidden_state)


CONTENTS: dict[str, list[list[Any]]] = {
    "text": [["a"], ["bcd"]],
    "an image": [["a"], [noise_still(60, 90), "b"]],
    "a video": [[noise_video(3, 60, 60, fps=2.0), "b"], ["a"]],
    "both": [[noise_still(60, 90), noise_video(3, 60, 60, fps=2.0), "b"]],
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shown", CONTENTS)
def test_the_tower_runs_once_and_has_a_gradient(
    directories: dict[str, Path], model_type: ModelType, shown: str
):
    shelf, model = Shelf(), tiny_model(model_type)
    see_once(model)
    runs: list[int] = []
    model.base_model.visual.register_forward_hook(lambda *_: runs.append(1))
    inputs = QwenVLInputs(directories[model_type], shelf)
    samples = [sample_of(inputs, shelf, content) for content in CONTENTS[shown]]
    logits_of(model, inputs, samples).logsumexp(-1).sum().backward()
    assert len(runs) == 1
    gradients = [p.grad for part in parts(model).values() for m in part for p in m.parameters()]
    assert all(grad is not None for grad in gradients)
    seen = [p.grad.norm() for p in model.base_model.visual.parameters()]
    assert (sum(seen) > 0) == (shown != "text")
    assert not torch.stack(seen).isnan().any()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shown", CONTENTS)
def test_one_run_of_the_tower_changes_nothing(
    directories: dict[str, Path], model_type: ModelType, shown: str
):
    shelf, model = Shelf(), tiny_model(model_type)
    inputs = QwenVLInputs(directories[model_type], shelf)
    samples = [sample_of(inputs, shelf, content) for content in CONTENTS[shown]]
    with torch.inference_mode():
        before = logits_of(model, inputs, samples)
        see_once(model)
        assert (logits_of(model, inputs, samples) - before).abs().max() < 1e-5


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_tower_learns_under_gradient_checkpointing(
    directories: dict[str, Path], model_type: ModelType
):
    found = []
    for is_checkpointed in (False, True):
        shelf, model = Shelf(), tiny_model(model_type).train()
        see_once(model)
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = QwenVLInputs(directories[model_type], shelf)
        samples = [sample_of(inputs, shelf, content) for content in CONTENTS["both"]]
        logits_of(model, inputs, samples).logsumexp(-1).sum().backward()
        found.append(model.base_model.visual.patch_embed.proj.weight.grad)
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4 * found[0].abs().max().item())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_weight_is_in_one_part(model_type: ModelType):
    model = tiny_model(model_type)
    found = [p for modules in parts(model).values() for m in modules for p in m.parameters()]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    resampler = {names[id(p)] for m in parts(model)["resampler"] for p in m.parameters()}
    assert resampler and all("merger" in name for name in resampler)
    assert not any("merger" in names[id(p)] for m in parts(model)["vision"] for p in m.parameters())


# Names.


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_checkpoint_names_are_those_of_the_published_layout(
    directories: dict[str, Path], model_type: ModelType
):
    with safe_open(directories[model_type] / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    names = [name for name, _ in tiny_model(model_type).named_parameters()]
    assert {checkpoint_name(model_type, name) for name in names} == stored


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("is_published", [False, True], ids=["transformers'", "published"])
def test_transformers_loads_either_names(
    directories: dict[str, Path], model_type: ModelType, is_published: bool, tmp_path: Path
):
    model = tiny_model(model_type, seed=3)
    weights = FullWeights(model, torch.float32, is_partitioned=False)
    written = tmp_path / "written"
    write_model_directory(weights, directories[model_type], written, is_writer=True)
    if is_published:
        tensors = {checkpoint_name(model_type, name): tensor.clone() for name, tensor in weights}
        save_file(tensors, written / "model.safetensors", {"format": "pt"})
    loaded, report = AutoModelForImageTextToText.from_pretrained(written, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)]
    assert all(same)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_classifier_is_saved_like_its_policy_and_read_under_either_names(
    directories: dict[str, Path], model_type: ModelType, tmp_path: Path
):
    kind = AutoModelForSequenceClassification
    made = kind.from_pretrained(directories[model_type], num_labels=1, dtype=torch.float32)
    made.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    policy, tensors = load_file(directories[model_type] / "model.safetensors"), load_file(file)
    assert set(tensors) ^ set(policy) == {"score.weight", "lm_head.weight"}
    assert all(torch.equal(tensors[name], policy[name]) for name in set(tensors) & set(policy))
    for own in (tensors, dict(made.named_parameters())):
        save_file({name: tensor.detach() for name, tensor in own.items()}, file, {"format": "pt"})
        loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        pairs = zip(loaded.parameters(), made.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
