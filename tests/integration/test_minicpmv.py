"""MiniCPM-V in learner and engine: the same tokens, the same log-probabilities, also after a
publish. One vLLM engine, started as the rollout workers start theirs, serves all cases."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from policy.learner.logprobs import LogprobModel
from policy.models.family import unsampled_token_ids
from policy.models.minicpmv import MiniCPMV, MiniCPMVInputs
from rl.config.data import SourceConfig
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import MediaFile, StillImage, Video
from rl.data.media.store import MediaStore
from rl.loop.batching import collate as collate_samples
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, TrainSample
from rl.loop.weight_digest import tensor_digest
from rollout.chat import ChatTemplate
from rollout.engines.media import ENGINE_FAMILIES
from rollout.engines.worker import RolloutWorker
from tests.engine_parity import engine_logprobs, open_worker, publish
from tests.minicpmv_tiny import (
    noise_frames,
    noise_image,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)
from tests.qwen_vl_tiny import Shelf, tiny_sample

SAMPLED = 24
# Measured: 3e-6 at most over these cases, in float32.
TOLERANCE = 5e-5


@dataclass(frozen=True)
class Case:
    text: str
    images: Sequence[Image.Image] = ()
    videos: Sequence[Video] = ()

    @property
    def token_ids(self) -> list[int]:
        """As a worker is asked: with a marker in each medium's place."""
        pieces = re.split(f"({re.escape(IMAGE_MARKER)}|{re.escape(VIDEO_MARKER)})", self.text)
        return [token for piece in pieces for token in tiny_tokenizer().encode(piece)]

    @property
    def stills(self) -> list[StillImage]:
        return [StillImage(image, str(hash(image.tobytes()))) for image in self.images]


@dataclass
class Policies:
    """The learner's model and an engine on the same checkpoint."""

    model: MiniCPMV
    inputs: MiniCPMVInputs
    shelf: Shelf
    worker: RolloutWorker
    runner: asyncio.Runner
    num_asked: int = 0

    def prompt(self, case: Case) -> TrainSample:
        """The case as the learner lays it out."""
        of_kind = {IMAGE_MARKER: iter(case.stills), VIDEO_MARKER: iter(case.videos)}
        markers = re.findall("|".join(map(re.escape, of_kind)), case.text)
        media = self.shelf.put([next(of_kind[marker]) for marker in markers])
        return tiny_sample("0", self.inputs.expanded(case.token_ids, media), [], media)

    def asked(self, case: Case) -> dict[str, Any]:
        """The case as a worker asks the engine."""
        inputs = ENGINE_FAMILIES["minicpmv"].inputs([*case.stills, *case.videos])
        return {"prompt_token_ids": case.token_ids} | inputs

    def sample(self, prompt: dict[str, Any], **settings: Any) -> Any:
        """The engine's final output, prompt log-probabilities included.

        Raises GenerationFailed as a rollout worker does.
        """
        with self.worker._failures():
            return self.runner.run(self._sample(prompt, settings))

    async def _sample(self, prompt: dict[str, Any], settings: dict[str, Any]) -> Any:
        from vllm import SamplingParams

        self.num_asked += 1
        sampling = SamplingParams(
            max_tokens=SAMPLED, logprobs=0, prompt_logprobs=0, ignore_eos=True, **settings
        )
        stream = self.worker._engine.generate(prompt, sampling, f"case/{self.num_asked}")
        return [output async for output in stream][-1]

    @torch.inference_mode()
    def learner_logprobs(self, prompt: TrainSample, response: Sequence[int]) -> np.ndarray:
        """[T - 1] of prompt and response."""
        ids = torch.tensor([[*prompt.trajectory.token_ids, *response]])  # [1, T]
        visual = self.inputs([prompt], ids)
        logits = self.model(ids, visual=visual).logits[0, :-1]  # [T - 1, V]
        table = torch.log_softmax(logits, dim=-1)
        return table.gather(1, ids[0, 1:, None])[:, 0].numpy()

    def difference(self, case: Case, seen: Case | None = None) -> float:
        """Largest between the engine on `case` and the learner, who may see another case."""
        prompt = self.prompt(case)
        output = self.sample(self.asked(case))
        assert output.prompt_token_ids == prompt.trajectory.token_ids.tolist()
        learner = self.learner_logprobs(self.prompt(seen or case), output.outputs[0].token_ids)
        return float(np.abs(engine_logprobs(output) - learner).max())


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    root = tmp_path_factory.mktemp("minicpmv")
    model = save_tiny(root / "policy")
    shelf = Shelf()
    inputs = MiniCPMVInputs(root / "policy", shelf)
    with open_worker(root / "policy") as (worker, runner):
        yield Policies(model, inputs, shelf, worker, runner)


def chat(*parts: str) -> str:
    body = "\n".join(parts)
    return f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def video(*groups: tuple[int, ...], seed: int = 1) -> Video:
    frames = noise_frames(sum(map(len, groups)), 60, 44, seed)
    return Video(frames, (), groups, 1.0, f"{groups} {seed}")


CASES = {
    "text only": Case(chat("abba?")),
    "one image": Case(chat(IMAGE_MARKER, "what?"), [noise_image(30, 44)]),
    "three images": Case(
        chat(IMAGE_MARKER, "and", IMAGE_MARKER, "or", IMAGE_MARKER),
        [noise_image(56, 56), noise_image(100, 70, 1), noise_image(44, 90, 2)],
    ),
    "a large image in slices": Case(chat(IMAGE_MARKER, "what?"), [noise_image(300, 130)]),
    "six frames in one group": Case(chat(VIDEO_MARKER, "what?"), (), [video((0, 1, 3, 4, 6, 7))]),
    "groups of 2, 2 and 1": Case(
        chat(VIDEO_MARKER, "what?"), (), [video((0, 3), (7, 10), (13,), seed=2)]
    ),
    "image and video": Case(
        chat("<unk> ab", IMAGE_MARKER, VIDEO_MARKER, "what?", IMAGE_MARKER),
        [noise_image(70, 100, 3), noise_image(40, 40, 4)],
        [video((0, 3, 7), (35_990, 35_995, 35_999))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_learner_and_engine_agree(policies: Policies, name: str):
    assert policies.difference(CASES[name]) < TOLERANCE


def test_one_temporal_id_off_by_one_shows(policies: Policies):
    right = Case(chat(VIDEO_MARKER, "what?"), (), [video((0, 3, 7), (10, 13, 17))])
    wrong = Case(chat(VIDEO_MARKER, "what?"), (), [video((0, 3, 7), (10, 14, 17))])
    assert policies.difference(right) < TOLERANCE
    assert policies.difference(right, seen=wrong) > 1e-2
    # The engine may not answer from what it kept of the same frames under the other ids.
    assert policies.difference(wrong) < TOLERANCE


def test_an_image_seen_before_may_have_another_number(policies: Policies):
    """vLLM keeps views and placeholders of images; the number in them is the prompt's own."""
    first, second = noise_image(64, 48, 7), noise_image(90, 60, 8)
    for images in ([first, second], [second, first], [second, second, first]):
        text = chat(*[IMAGE_MARKER] * len(images), "which?")
        assert policies.difference(Case(text, images)) < TOLERANCE


def test_tokens_a_policy_wrote_apart_stay_apart(policies: Policies):
    """`a` and `b`, two tokens here, are one when their text is tokenised."""
    case = CASES["one image"]
    prompt, media = policies.prompt(case), policies.asked(case)
    apart = [tiny_tokenizer().encode(letter)[0] for letter in "ab"]
    media["prompt_token_ids"] += apart
    output = policies.sample(media)
    assert output.prompt_token_ids == [*prompt.trajectory.token_ids, *apart]
    learner = policies.learner_logprobs(prompt, [*apart, *output.outputs[0].token_ids])
    assert np.abs(engine_logprobs(output) - learner).max() < TOLERANCE


def request(directory: Path, parts: list[dict[str, str]], *media: MediaFile) -> RolloutRequest:
    prompt = Prompt("p", ({"role": "user", "content": parts},), "1", media=media)
    ids = ChatTemplate(str(directory)).prompt_token_ids(prompt, thinking=False)
    return RolloutRequest("0/0/0", prompt, "short", ids, 2, SAMPLED, temperature=1.3, seed=1)


def learner_logprobs(
    policies: Policies, directory: Path, groups: Sequence[RolloutGroup]
) -> Sequence[float]:
    """Of all response tokens, in one padded micro-batch, as a learner rank forwards it."""
    samples = [
        TrainSample(t, 1.0, group.request.temperature, "0", group.request.prompt.media)
        for group in groups
        for t in group.trajectories
    ]
    batch = collate_samples(samples)
    visual = MiniCPMVInputs(directory, MediaStore(SourceConfig()))(samples, batch.token_ids)
    model = LogprobModel(policies.model, 64, unsampled_token_ids(directory))
    with torch.inference_mode():
        logprobs, _ = model(
            batch.token_ids, batch.loss_mask, batch.temperature, visual and visual.arguments()
        )
    return logprobs.tolist()


def test_groups_of_a_worker_are_what_the_learner_forwards(policies: Policies, tmp_path: Path):
    """From files to token log-probabilities: images of two sizes, and text alone, in one batch.

    A random policy would sample the placeholder, which neither side may count with.
    """
    files = [tmp_path / "small.png", tmp_path / "large.png"]
    noise_image(44, 30).save(files[0])
    noise_image(300, 130).save(files[1])
    media = [MediaFile("image", str(file)) for file in files]
    image, question = {"type": "image"}, {"type": "text", "text": "what?"}
    directory = Path(policies.worker._settings.model)
    groups = [
        policies.runner.run(policies.worker.generate(request(directory, parts, *shown)))
        for parts, shown in (
            ([image, question], media[:1]),
            ([image, question, image], media[::-1]),
            ([question], []),
        )
    ]
    assert [len(group.media_digests) for group in groups] == [1, 2, 0]
    engine = [
        float(logprob)
        for group in groups
        for t in group.trajectories
        for logprob in t.rollout_logprobs[t.loss_mask]
    ]
    learner = learner_logprobs(policies, directory, groups)
    assert len(engine) > 100
    assert np.abs(np.array(engine) - learner).max() < TOLERANCE
    never = set(unsampled_token_ids(directory))
    assert len(never) == 7
    assert not any(
        never & set(t.response_token_ids.tolist()) for g in groups for t in g.trajectories
    )


def test_a_missing_image_fails_its_group_and_says_which(policies: Policies):
    directory = Path(policies.worker._settings.model)
    asked = request(directory, [{"type": "image"}], MediaFile("image", "/none/a.png"))
    with pytest.raises(GenerationFailed, match=r"bad_media: missing: /none/a.png"):
        policies.runner.run(policies.worker.generate(asked))


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ({"video": [(noise_frames(2, 40, 40), {"temporal_ids": [[0, 36_000]]})]}, "36000"),
        ({"video": [noise_frames(2, 40, 40)]}, "temporal_ids"),
        ({"image": [Image.new("RGB", (2010, 10))]}, "aspect ratio"),
    ],
    ids=["time", "groups", "shape"],
)
def test_media_out_of_bounds_are_refused_and_the_engine_lives(
    policies: Policies, media: dict[str, Any], message: str
):
    ids = Case(chat(IMAGE_MARKER if "image" in media else VIDEO_MARKER)).token_ids
    with pytest.raises(GenerationFailed, match=message):
        policies.sample({"prompt_token_ids": ids, "multi_modal_data": media})
    assert policies.difference(CASES["one image"]) < TOLERANCE


def test_a_publish_keeps_them_in_step(policies: Policies, tmp_path: Path):
    """All weights through the workers' own receiver, then the frozen vision's decoder alone."""
    policies.model = tiny_model(seed=1)
    every = policies.model.state_dict()
    assert policies.runner.run(publish(policies.worker, every, tmp_path)) == digests(every)
    for name in ("image and video", "a large image in slices"):
        assert policies.difference(CASES[name]) < TOLERANCE

    policies.model.llm.load_state_dict(tiny_model(seed=2).llm.state_dict())
    decoder = {k: v for k, v in policies.model.state_dict().items() if k.startswith("llm.")}
    assert policies.runner.run(publish(policies.worker, decoder, tmp_path)) == digests(decoder)
    assert policies.difference(CASES["image and video"]) < TOLERANCE


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: tensor_digest(tensor) for name, tensor in tensors.items()}
