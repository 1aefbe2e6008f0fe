"""The learner on images, on real DeepSpeed: ranks of which only some have any, against
plain PyTorch, one sample at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policy.models.checks import read_config
from policy.models.family import open_visual_inputs, unsampled_token_ids
from policy.models.loading import auto_class, load_policy
from rl.config.data import SourceConfig
from rl.config.policy import PolicyConfig
from rl.data.media.names import MediaFile
from rl.loop.interfaces import VisualInputs
from rl.loop.stages import Prompt, TrainBatch, TrainSample, Trajectory
from rollout.chat import ChatTemplate
from tests import minicpmv_tiny, qwen_vl_tiny
from tests.integration.ranks import ONE_MICRO_BATCH, ask, close, open_ranks
from tests.integration.test_learner import make_config

FAMILIES = ("minicpmv", "qwen2_5_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "minicpmv":
        minicpmv_tiny.save_tiny(directory)
    else:
        qwen_vl_tiny.save_tiny(directory, request.param)
    for place, (width, height) in enumerate([(44, 60), (120, 70)]):
        minicpmv_tiny.noise_image(width, height, place).save(directory / f"{place}.png")
    return directory


@pytest.fixture(scope="module")
def batch(directory: Path) -> TrainBatch:
    """Text, one image twice, text, two images of other sizes, one of which was there before."""
    inputs = open_visual_inputs(directory, SourceConfig())
    chat = ChatTemplate(str(directory))
    images = [MediaFile("image", str(directory / f"{place}.png")) for place in (0, 1)]
    rng = np.random.default_rng(0)
    samples = []
    for place, media in enumerate([(), images[:1], images[:1], (), images[::-1]]):
        parts = [*[{"type": "image"}] * len(media), {"type": "text", "text": "what?"}]
        prompt = Prompt("p", ({"role": "user", "content": parts},), "1", media=tuple(media))
        ids = inputs.expanded(chat.prompt_token_ids(prompt, thinking=False), media)
        response = rng.integers(10, 80, 7 + place)
        token_ids = np.array([*ids, *response], np.int32)
        mask = np.arange(len(token_ids)) >= len(ids)
        trajectory = Trajectory(
            token_ids=token_ids,
            loss_mask=mask,
            rollout_logprobs=np.where(mask, rng.normal(-4, 1, len(mask)), 0).astype(np.float32),
            versions=(0, 0),
            finish_reason="stop",
            text="",
            reasoning=None,
            answer=None,
        )
        samples.append(TrainSample(trajectory, 1.0 - 0.6 * place, 0.8, str(place), tuple(media)))
    return TrainBatch(1, tuple(samples))


def plain_gradients(directory: Path, batch: TrainBatch) -> dict[str, torch.Tensor]:
    """Of the first update's objective: mean over sequences of -A * w * mean(logprob)."""
    model = auto_class(read_config(directory)).from_pretrained(directory, dtype=torch.float32)
    inputs = open_visual_inputs(directory, SourceConfig())
    assert inputs is not None
    for sample in batch.samples:
        logprobs = plain_logprobs(model, inputs, sample, unsampled_token_ids(directory))
        rollout = torch.tensor(sample.trajectory.rollout_logprobs[sample.trajectory.loss_mask])
        weight = (logprobs.detach() - rollout).exp().clamp(max=2.0)
        ratio = (logprobs - logprobs.detach()).exp()
        loss = -(weight * ratio * sample.advantage).mean() / len(batch.samples)
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain_logprobs(
    model: torch.nn.Module, inputs: VisualInputs, sample: TrainSample, never: tuple[int, ...]
) -> torch.Tensor:
    ids = torch.tensor(sample.trajectory.token_ids, dtype=torch.int64)
    visual = inputs([sample], ids[None])
    seen = {} if visual is None else visual.arguments()
    logits = model(input_ids=ids[None], **seen).logits[0] / sample.temperature
    logits = logits.index_fill(1, torch.tensor(never), -torch.inf)
    mask = torch.tensor(sample.trajectory.loss_mask)
    return torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[1:, None])[:, 0][mask[1:]]


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 3)]
)
def test_ranks_with_and_without_images_hold_the_plain_gradient(
    directory: Path, batch: TrainBatch, num_ranks: int, stage: int
):
    expected = plain_gradients(directory, batch)
    config = make_config(ranks=num_ranks, zero_stage=stage, gradient_checkpointing=stage == 3)
    ranks = open_ranks(config, directory)
    for micro_batch_tokens in (ONE_MICRO_BATCH, 60):
        for gradients in ask(ranks, "gradients", batch, micro_batch_tokens):
            found = {name.partition(".")[2]: gradient for name, gradient in gradients.items()}
            for name, gradient in expected.items():
                own = found[inner_name(name)]
                assert (own - gradient).abs().max() < 1e-5 * max(1.0, gradient.abs().max()), name
            towers = [name for name in found if name.startswith(("vpm.", "visual."))]
            assert max(found[name].abs().max() for name in towers) > 1e-3
    close(ranks)


def inner_name(name: str) -> str:
    """A parameter's name below the rank's `backbone` or `head`."""
    for whole, inner in (("llm.lm_head.", "lm_head."), ("llm.model.", "llm."), ("model.", "")):
        if name.startswith(whole):
            return inner + name.removeprefix(whole)
    return name


def test_adapters_leave_the_vision_alone(directory: Path):
    policy = load_policy(directory, PolicyConfig(lora={"rank": 2}))
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert trained
    assert not any(part in name for name in trained for part in ("vpm", "visual", "resampler"))
