"""Qwen2.5-VL and Qwen3-VL in learner and engine: the same tokens, the same log-probabilities, also
after a publish. One vLLM engine of each, started as the rollout workers start theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from policy.models.qwen_vl import QwenVLInputs, checkpoint_name, see_once
from rl.data.media.names import Medium, StillImage, Video
from rl.loop.stages import TrainSample
from rl.loop.weight_digest import tensor_digest
from rollout.engines.media import ENGINE_FAMILIES
from rollout.engines.worker import RolloutWorker
from tests.engine_parity import engine_logprobs, open_worker, publish
from tests.qwen_vl_tiny import (
    VISION_TOKENS,
    Shelf,
    noise_still,
    noise_video,
    prompt_token_ids,
    save_tiny,
    tiny_model,
    tiny_sample,
    tiny_tokenizer,
)

SAMPLED = 12
# Measured: 5e-6 at most over these cases, in float32.
TOLERANCE = 5e-5
UNSAMPLED = tiny_tokenizer().convert_tokens_to_ids(VISION_TOKENS)

Case = Sequence[str | StillImage | Video]
CASES: Mapping[str, Case] = {
    "text only": ["abba?"],
    "one image": [noise_still(60, 88), "what?"],
    "a larger image": [noise_still(190, 100, 1), "what?"],
    "an image scaled down": ["look: ", noise_still(900, 300, 2)],
    "two images": [noise_still(100, 70, 3), " or ", noise_still(44, 150, 4), "?"],
    "a video": [noise_video(6, 90, 60, fps=2.0), "what?"],
    # Times go further than rows and columns do, so text after it follows on the times.
    "a slow video of odd length": [noise_video(7, 64, 64, fps=0.7, seed=5), "when?"],
    "images and videos": [
        noise_still(70, 130, 6),
        noise_video(4, 70, 70, fps=1.0, seed=7),
        "then",
        noise_video(3, 120, 60, fps=3.0, seed=8),
        noise_still(60, 60, 9),
        "what?",
    ],
}
FAMILY = ENGINE_FAMILIES["qwen_vl"]


@dataclass
class Policies:
    """The learner's model and an engine on the same checkpoint."""

    model: PreTrainedModel
    shelf: Shelf
    inputs: QwenVLInputs
    worker: RolloutWorker
    runner: asyncio.Runner
    asked: int = 0

    def ask(self, case: Case, appended: Sequence[int] = ()) -> Any:
        """The engine's final output, prompt log-probabilities included."""
        prompt = {"prompt_token_ids": [*prompt_token_ids(case), *appended], **inputs_of(case)}
        with self.worker._failures():
            return self.runner.run(self._ask(prompt))

    async def _ask(self, prompt: dict[str, Any]) -> Any:
        from vllm import SamplingParams

        self.asked += 1
        sampling = SamplingParams(
            max_tokens=SAMPLED,
            logprobs=0,
            prompt_logprobs=0,
            ignore_eos=True,
            logit_bias=dict.fromkeys(UNSAMPLED, -100.0),
        )
        stream = self.worker._engine.generate(prompt, sampling, f"case/{self.asked}")
        return [output async for output in stream][-1]

    def expanded(self, case: Case) -> list[int]:
        return [*self.inputs.expanded(prompt_token_ids(case), self.shelf.put(case))]

    @torch.inference_mode()
    def learner_logprobs(self, samples: Sequence[TrainSample]) -> list[np.ndarray]:
        """[T - 1] of each sample; all in one micro-batch, padded on the right."""
        rows = [torch.from_numpy(sample.trajectory.token_ids).long() for sample in samples]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [B, T]
        visual = self.inputs(samples, ids)
        arguments = {} if visual is None else visual.arguments()
        hidden = self.model.base_model(input_ids=ids, use_cache=False, **arguments)
        logits = self.model.get_output_embeddings()(hidden.last_hidden_state[:, :-1])
        for row, sample in zip(logits, samples, strict=True):
            row[len(sample.trajectory.token_ids) - SAMPLED - 1 :, UNSAMPLED] = -torch.inf
        table = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0]  # [B, T - 1]
        return [row[: len(own) - 1].numpy() for row, own in zip(table, rows, strict=True)]

    def differences(
        self, cases: Mapping[str, Case], seen: Mapping[str, Case] | None = None
    ) -> dict[str, float]:
        """Largest of each case; the learner may be shown other media."""
        outputs = {name: self.ask(case) for name, case in cases.items()}
        for name, output in outputs.items():
            assert output.prompt_token_ids == self.expanded(cases[name]), name
        samples = [
            sample_of(name, outputs[name], self.shelf.put(case))
            for name, case in (seen or cases).items()
        ]
        learner = self.learner_logprobs(samples)
        return {
            name: float(np.abs(engine_logprobs(output) - own).max())
            for (name, output), own in zip(outputs.items(), learner, strict=True)
        }


def inputs_of(case: Case) -> dict[str, Any]:
    return FAMILY.inputs([part for part in case if not isinstance(part, str)])


def sample_of(name: str, output: Any, media: tuple[Medium, ...]) -> TrainSample:
    return tiny_sample(name, output.prompt_token_ids, output.outputs[0].token_ids, media)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policies(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    directory = tmp_path_factory.mktemp(request.param) / "policy"
    save_tiny(directory, request.param)
    model = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="sdpa")
    see_once(model)
    shelf = Shelf()
    with open_worker(directory) as (worker, runner):
        yield Policies(model, shelf, QwenVLInputs(directory, shelf), worker, runner)


def test_learner_and_engine_agree_on_rows_of_every_kind_in_one_batch(policies: Policies):
    differences = policies.differences(CASES)
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("name", ["text only", "one image", "a video"])
def test_learner_and_engine_agree_on_one_row(policies: Policies, name: str):
    (difference,) = policies.differences({name: CASES[name]}).values()
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", ["one image", "a video"])
def test_other_pixels_show(policies: Policies, name: str):
    others = {
        "one image": [noise_still(60, 88, seed=20), "what?"],
        "a video": [noise_video(6, 90, 60, fps=2.0, seed=20), "what?"],
    }
    (difference,) = policies.differences({name: CASES[name]}, {name: others[name]}).values()
    assert difference > 1e-2


def test_the_same_frames_at_another_pace_are_another_video(policies: Policies):
    """vLLM keeps what it made of media; here only the time between the frames differs."""
    for fps in (2.0, 0.5, 2.0):
        case = {"paced": [noise_video(6, 64, 64, fps=fps, seed=11), "when?"]}
        assert policies.differences(case)["paced"] < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_pixels_and_positions_are_the_engines_own(model_type: str, dtype: str, tmp_path: Path):
    """Bit for bit, in bfloat16 too, where vLLM rounds the times of a video with its pixels."""
    save_tiny(tmp_path, model_type)
    case = [*CASES["images and videos"], noise_video(50, 28, 28, fps=0.7), "when?"]
    shelf = Shelf()
    inputs = QwenVLInputs(tmp_path, shelf)
    media = shelf.put(case)
    sample = tiny_sample("both", inputs.expanded(prompt_token_ids(case), media), [], media)
    ids = torch.from_numpy(sample.trajectory.token_ids)[None].long()
    visual = inputs([sample], ids)
    assert visual is not None
    learner = visual.arguments("cpu", getattr(torch, dtype))

    processed = vllm_inputs(tmp_path, dtype, case)
    assert processed["prompt_token_ids"] == ids[0].tolist()
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        items = processed["mm_kwargs"][kind]
        assert torch.equal(torch.cat([item[name].data for item in items]), learner[name])
    positions = vllm_positions(tmp_path, processed)
    assert torch.equal(positions, learner["position_ids"][:, 0])


def vllm_inputs(directory: Path, dtype: Any, case: Case) -> Any:
    """What vLLM's processor makes of a prompt."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs
    from vllm.multimodal.processing.context import TimingContext

    config = ModelConfig(model=str(directory), dtype=dtype, **FAMILY.training_arguments)
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    media = processor.info.parse_mm_data(inputs_of(case)["multi_modal_data"])
    return processor.apply(
        ProcessorInputs(prompt=prompt_token_ids(case), mm_data_items=media),
        TimingContext(enabled=False),
    )


def vllm_positions(directory: Path, processed: Any) -> torch.Tensor:
    """[3, T] as vLLM's model class counts them."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    config = AutoConfig.from_pretrained(directory)
    classes = {
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": Qwen3VLForConditionalGeneration,
    }
    model: Any = object.__new__(classes[config.model_type])
    torch.nn.Module.__init__(model)
    model.config = config
    features = [
        MultiModalFeatureSpec(item, kind, "", place)
        for kind, places in processed["mm_placeholders"].items()
        for item, place in zip(processed["mm_kwargs"][kind], places, strict=True)
    ]
    return model.get_mrope_input_positions(processed["prompt_token_ids"], features)[0]


def test_tokens_a_policy_wrote_apart_stay_apart(policies: Policies):
    """`a` and `b`, two tokens here, are one when their text is tokenised."""
    tokenizer, case = tiny_tokenizer(), CASES["images and videos"]
    apart = [tokenizer.encode(letter)[0] for letter in "ab"]
    assert tokenizer.encode(tokenizer.decode(apart)) != apart
    output = policies.ask(case, apart)
    assert output.prompt_token_ids == policies.expanded(case) + apart
    sample = sample_of("apart", output, policies.shelf.put(case))
    (learner,) = policies.learner_logprobs([sample])
    assert np.abs(engine_logprobs(output) - learner).max() < TOLERANCE


@pytest.mark.parametrize("names", ["transformers'", "published"])
def test_a_publish_keeps_them_in_step(policies: Policies, names: str, tmp_path: Path):
    model_type = policies.model.config.model_type
    policies.model = tiny_model(model_type, seed=len(names))
    see_once(policies.model)
    tensors = {
        name if names == "transformers'" else checkpoint_name(model_type, name): tensor.detach()
        for name, tensor in policies.model.named_parameters()
    }
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    assert policies.runner.run(publish(policies.worker, tensors, tmp_path)) == digests
    cases = {name: CASES[name] for name in ("text only", "two images", "images and videos")}
    differences = policies.differences(cases)
    assert max(differences.values()) < TOLERANCE, differences
