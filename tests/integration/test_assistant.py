"""A model in an engine as labeller and divider: what it says is what transformers says alone.

One tiny Qwen2.5-VL whose tokenizer has some spellings of yes and no, in one engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from math import exp, fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rl.align.assistants import ASK, EngineAssistant
from rl.align.claims.types import Label
from rl.config.data import SourceConfig
from rl.data.media.names import MediaFile
from rl.export.transformers_answers import score_responses
from rl.loop.interfaces import GenerationFailed, PromptTooLong
from rl.loop.stages import Prompt, ReferenceRequest, RolloutRequest
from rollout.chat import ChatTemplate
from rollout.engines.worker import RolloutWorker
from tests.engine_parity import open_worker
from tests.minicpmv_tiny import noise_image
from tests.qwen_vl_tiny import VISION_TOKENS, save_tiny

YES, NO = ("yes", "Yes", " yes"), ("no", "NO")
QUESTION = "Is the cup red? Please answer yes or no."
DIVIDED = [{"role": "system", "content": "Divide."}, {"role": "user", "content": "A red cup."}]
MAX_LENGTH = 512
# Measured: 2e-8 at most, where probabilities are 0.01 to 0.08.
TOLERANCE = 1e-5


@dataclass
class Served:
    directory: Path
    chat: ChatTemplate
    engine: RolloutWorker
    assistant: EngineAssistant
    reply: Sequence[int]
    """The likeliest reply to DIVIDED by transformers; its last token ends a sequence."""
    runner: asyncio.Runner

    def run(self, answer: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(answer)

    def label(self, question: str, *media: MediaFile) -> Label:
        return self.run(self.assistant.label(question, media))

    def softmax(self, question: str, *media: MediaFile) -> tuple[float, float]:
        """The mass of yes and of no by transformers alone."""
        parts = [*({"type": one.kind} for one in media), {"type": "text", "text": question}]
        prompt = Prompt("p", ({"role": "user", "content": parts},), "", media=media)
        context = self.chat.prompt_token_ids(prompt, thinking=False)
        asked = [
            ReferenceRequest(word, prompt, context, self.chat.token_ids(word), 1.0)
            for word in (*YES, *NO)
        ]
        assert all(len(one.reference_token_ids) == 1 for one in asked)
        scored = score_responses(self.directory, SourceConfig(), "float32", False, asked)
        mass = [exp(one.logprobs[0]) for one in scored]
        return fsum(mass[: len(YES)]), fsum(mass[len(YES) :])


def save_labeller(directory: Path) -> Sequence[int]:
    """Write a tiny policy with tokens for yes and no; returns what it replies to DIVIDED."""
    save_tiny(directory, "qwen2_5_vl")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([*YES, *NO])
    tokenizer.save_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    known = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for rows in (model.get_input_embeddings(), model.get_output_embeddings()):
            torch.manual_seed(1)
            scale = rows.weight[:known].std()
            rows.weight[known:] = scale * torch.randn_like(rows.weight[known:])
    model.save_pretrained(directory)
    return end_of_reply(directory, tokenizer, model.eval())


def end_of_reply(directory: Path, tokenizer: Any, model: Any) -> Sequence[int]:
    """Let the first new token after the fourth end a sequence: a random model ends none."""
    text = tokenizer.apply_chat_template(
        DIVIDED, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    never = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    sampled = model.generate(**ids, max_new_tokens=24, do_sample=False, suppress_tokens=never)
    reply = sampled[0, ids["input_ids"].shape[1] :].tolist()
    last = next(place for place in range(4, 24) if reply[place] not in reply[:place])
    ends = {"eos_token_id": [tokenizer.eos_token_id, reply[last]]}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    return reply[: last + 1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("labeller") / "model"
    reply = save_labeller(directory)
    chat = ChatTemplate(str(directory))
    with open_worker(directory, max_model_length=MAX_LENGTH) as (worker, runner):
        assistant = EngineAssistant("tiny", worker, chat)
        yield Served(directory, chat, worker, assistant, reply, runner)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Sequence[MediaFile]:
    directory = tmp_path_factory.mktemp("images")
    for name, (width, height) in {"a": (60, 88), "b": (120, 70), "c": (60, 88)}.items():
        noise_image(width, height, seed=ord(name)).save(directory / f"{name}.png")
    return [MediaFile("image", str(directory / f"{name}.png")) for name in "abc"]


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_a_label_is_the_softmax_of_transformers(served: Served, images, shown: int):
    found = served.label(QUESTION, *images[:shown])
    expected = served.softmax(QUESTION, *images[:shown])
    assert (found.p_yes, found.p_no) == pytest.approx(expected, abs=TOLERANCE)
    assert min(expected) > 100 * TOLERANCE


def test_a_label_is_of_its_own_question_and_picture(served: Served, images):
    """The engine may not answer from what it kept of another."""
    first = served.label(QUESTION, images[0])
    others = [(QUESTION, images[2]), ("Is the cup blue? Please answer yes or no.", images[0])]
    for question, image in others:
        found = served.label(question, image)
        assert found.p_no == pytest.approx(served.softmax(question, image)[1], abs=TOLERANCE)
        assert abs(found.p_no - first.p_no) > 100 * TOLERANCE
    again = served.label(QUESTION, images[0])
    assert again.p_no == pytest.approx(first.p_no, abs=1e-6)


def sampling(served: Served, n: int) -> RolloutRequest:
    prompt = Prompt("p", ({"role": "user", "content": "abba?"},), "")
    ids = served.chat.prompt_token_ids(prompt, thinking=False)
    return RolloutRequest(f"0/0/{n}", prompt, ASK, ids, n, 24, temperature=0.7, seed=5, top_p=0.9)


def test_labels_and_rollouts_that_share_batches_are_as_they_are_alone(served: Served, images):
    questions = [f"Is it {word}?" for word in ("red", "blue", "a cup", "on the table", "two")]
    asked = [(question, shown) for question in questions for shown in ((), images[:1])]
    alone = [served.label(question, *shown) for question, shown in asked]
    calm = served.run(served.engine.generate(sampling(served, 6)))

    async def together() -> tuple[Any, list[Label]]:
        sampled = asyncio.ensure_future(served.engine.generate(sampling(served, 6)))
        rounds = []
        while not sampled.done():
            labels = (served.assistant.label(question, shown) for question, shown in asked)
            rounds.append(await asyncio.gather(*labels))
        assert len(rounds) > 1
        return await sampled, [label for one in rounds for label in one]

    group, labels = served.run(together())
    for place, label in enumerate(labels):
        expected = alone[place % len(asked)]
        assert (label.p_yes, label.p_no) == pytest.approx((expected.p_yes, expected.p_no), abs=1e-6)
    for ours, theirs in zip(group.trajectories, calm.trajectories, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert np.abs(ours.rollout_logprobs - theirs.rollout_logprobs).max() < TOLERANCE


def test_a_reply_is_the_greedy_one_and_none_if_it_was_cut(served: Served):
    whole = served.run(served.assistant.reply(DIVIDED, len(served.reply)))
    assert whole == served.chat.raw_text(served.reply[:-1])
    assert served.run(served.assistant.reply(DIVIDED, len(served.reply) - 1)) is None


@pytest.mark.parametrize(
    ("question", "media", "kind", "message"),
    [
        (
            "red?",
            (MediaFile("image", "/none.png"),),
            GenerationFailed,
            r"bad_media: missing: /none\.png",
        ),
        ("red? " * MAX_LENGTH, (), PromptTooLong, "request_refused: .*512"),
    ],
    ids=["no image", "too long"],
)
def test_a_request_at_fault_fails_alone(served: Served, question, media, kind, message):
    async def both() -> list[Any]:
        asked = served.assistant.label(question, media), served.assistant.label(QUESTION, ())
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, label = served.run(both())
    assert type(failed) is kind
    with pytest.raises(GenerationFailed, match=message):
        raise failed
    assert isinstance(label, Label)
