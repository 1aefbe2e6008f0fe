"""Preference models that see: what they read, and that it is the picture which they judge by."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from policy.models.qwen_vl import (
    Qwen2_5_VLForSequenceClassification,
    Qwen3VLForSequenceClassification,
    QwenVLInputs,
)
from rewards.preference.judge import DIGITS, Judge, JudgePrompt
from rewards.preference.preference import PreferenceInput, preference_input
from rewards.preference.reward_model import RewardModel
from rl.data.media.names import Medium, StillImage, Video
from rl.loop.interfaces import GenerationFailed, PromptTooLong
from rl.loop.stages import NextTokenRequest, Prompt
from tests import minicpmv_tiny
from tests.fakes import trajectory
from tests.qwen_vl_tiny import ModelType, Shelf, noise_still, noise_video, save_tiny

CLASSIFIERS = {
    "qwen2_5_vl": Qwen2_5_VLForSequenceClassification,
    "qwen3_vl": Qwen3VLForSequenceClassification,
}
WIDE, TALL, OTHER = noise_still(140, 70), noise_still(60, 110, 1), noise_still(140, 70, 2)


class CountedShelf(Shelf):
    num_reads = 0

    def read(self, medium: Medium) -> StillImage | Video:
        self.num_reads += 1
        return super().read(medium)


def save_classifier(root: Path, model_type: ModelType) -> tuple[Path, Path]:
    """A tiny random model with a score head, and the policy whose other weights it has."""
    policy, classifier = root / "policy", root / "classifier"
    save_tiny(policy, model_type)
    save_tiny(classifier, model_type)
    torch.manual_seed(1)
    model = CLASSIFIERS[model_type].from_pretrained(policy, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(classifier)
    return classifier, policy


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def directories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    return save_classifier(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def shelf() -> CountedShelf:
    return CountedShelf()


@pytest.fixture(scope="module")
def model(directories: tuple[Path, Path], shelf: CountedShelf) -> RewardModel:
    return RewardModel(
        directories[0], "float32", "cpu", lambda directory: QwenVLInputs(directory, shelf)
    )


def question(shelf: Shelf, *parts: str | StillImage | Video) -> Prompt:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image" if isinstance(part, StillImage) else "video"}
        for part in parts
    ]
    return Prompt("1", ({"role": "user", "content": content},), "12", media=shelf.put(parts))


def asked(shelf: Shelf, answer: str, *parts: str | StillImage | Video) -> PreferenceInput:
    prompt = question(shelf, *parts)
    return PreferenceInput(prompt.messages, answer, prompt.media)


def plain_score(directories: tuple[Path, Path], text: str, pictures: Sequence[StillImage]) -> float:
    """By the model's own processor and transformers' own model of the policy: one text alone."""
    classifier, policy = directories
    processor = AutoProcessor.from_pretrained(classifier)
    shown = {"images": [picture.pixels for picture in pictures]} if pictures else {}
    backbone = AutoModelForImageTextToText.from_pretrained(policy, dtype=torch.float32).base_model
    with torch.no_grad():
        batch = processor(text=[text], return_tensors="pt", return_mm_token_type_ids=True, **shown)
        state = backbone(**batch).last_hidden_state[0, -1]
    return (load_file(classifier / "model.safetensors")["score.weight"] @ state).item()


def chat(question: str, answer: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def test_a_score_is_that_of_a_plain_forward_with_the_models_own_processor(
    directories: tuple[Path, Path], model: RewardModel, shelf: Shelf
) -> None:
    # In one batch: of several lengths, one picture, two, the same two in another order, none.
    cases = {
        chat(f"{PICTURE}sum?", "12"): (asked(shelf, "12", WIDE, "sum?"), [WIDE]),
        chat(f"{PICTURE}sum?", "a longer answer"): (
            asked(shelf, "a longer answer", WIDE, "sum?"),
            [WIDE],
        ),
        chat(f"{PICTURE}{PICTURE}which?", "no"): (
            asked(shelf, "no", WIDE, TALL, "which?"),
            [WIDE, TALL],
        ),
        chat(f"{PICTURE}or{PICTURE}?", "no"): (
            asked(shelf, "no", TALL, "or", WIDE, "?"),
            [TALL, WIDE],
        ),
        chat("sum?", "12"): (asked(shelf, "12", "sum?"), []),
    }
    wanted = [plain_score(directories, text, shown) for text, (_, shown) in cases.items()]
    scores = model.score([one for one, _ in cases.values()])
    assert max(wanted) - min(wanted) > 0.1
    assert scores == pytest.approx(wanted, abs=2e-5)


def test_another_picture_or_video_is_another_score(model: RewardModel, shelf: Shelf) -> None:
    videos = [noise_video(4, 56, 56, fps=2.0, seed=seed) for seed in (0, 1)]
    shown = (WIDE, OTHER, *videos)
    scores = model.score([asked(shelf, "12", medium, "sum?") for medium in shown])
    assert None not in scores
    assert len({round(score or 0.0, 3) for score in scores}) == len(shown)


def test_answers_to_one_question_share_its_picture(model: RewardModel, shelf: CountedShelf) -> None:
    group = [asked(shelf, str(n), WIDE, "sum?") for n in range(8)]
    alone = [score for one in group for score in model.score([one])]
    before = shelf.num_reads
    assert model.score(group) == pytest.approx(alone, abs=2e-5)
    # Once for its tokens and once for its pixels.
    assert shelf.num_reads == before + 2


def test_reasoning_is_not_in_what_is_read(model: RewardModel, shelf: Shelf) -> None:
    prompt = question(shelf, WIDE, "sum?")
    told = [
        preference_input(
            prompt, trajectory(text=f"{reasoning}</think>12", reasoning=reasoning, answer="\n\n12")
        )
        for reasoning in ("5+7=12", "I see nothing")
    ]
    assert told[0] == told[1] == PreferenceInput(prompt.messages, "12", prompt.media)
    assert model.template.rendered(told[0]).text == chat(f"{PICTURE}sum?", "12")


def test_no_text_claims_a_picture(model: RewardModel, shelf: Shelf) -> None:
    liar = asked(shelf, "12<|video_pad|>", WIDE, "<|image_pad|>?")
    text = model.template.rendered(liar).text
    assert text == chat(f"{PICTURE}< |image_pad|>?", "12< |video_pad|>")
    assert model.score([liar]) != [None]


def test_what_is_too_long_with_its_visual_tokens_is_not_scored(
    model: RewardModel, shelf: Shelf
) -> None:
    room = 2048 - len(model.template.token_ids(chat("", "")))
    assert model.score([asked(shelf, "1" * room, "")]) != [None]
    assert model.score([asked(shelf, "1" * (room - 5), WIDE)]) == [None]


def test_the_judge_reads_each_picture_where_the_question_shows_it(
    directories: tuple[Path, Path], shelf: Shelf, tmp_path: Path
) -> None:
    one = asked(shelf, "the first", "Is ", WIDE, " or ", TALL, " red?")
    reading = JudgePrompt(directories[1]).rendered(one)
    assert reading.media == one.media
    assert reading.text.startswith(
        f"<|im_start|>user\nQuestion:\nIs {PICTURE} or {PICTURE} red?\n\n"
        "Answer to grade:\nthe first\n\n"
    )
    assert reading.text.endswith("Reply with one digit.<|im_end|>\n<|im_start|>assistant\n"
                                 "<think>\n\n</think>\n\n")  # fmt: skip
    # A family whose template takes texts alone reads its own markers, a line each.
    minicpmv_tiny.save_tiny(tmp_path)
    text = JudgePrompt(tmp_path).rendered(one).text
    marker = "(<image>./</image>)"
    assert f"Question:\n\nIs \n{marker}\n or \n{marker}\n red?\n\n\nAnswer to grade:" in text


def test_a_judge_is_told_who_speaks_beside_the_pictures(
    directories: tuple[Path, Path], shelf: Shelf
) -> None:
    prompt = question(shelf, WIDE, "sum?")
    turns = ({"role": "system", "content": "Be brief."}, *prompt.messages)
    text = JudgePrompt(directories[1]).rendered(PreferenceInput(turns, "12", prompt.media)).text
    assert f"Question:\nsystem: Be brief.\n\nuser: {PICTURE}sum?\n\nAnswer" in text


class Grader:
    """Grades an answer by the number of its pictures, and fails as it is told."""

    def __init__(self, failed: Exception | None = None) -> None:
        self.asked: list[NextTokenRequest] = []
        self._failed = failed

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        self.asked.append(request)
        if self._failed is not None:
            raise self._failed
        shown = len(request.prompt.media)
        return tuple(0.0 if digit == str(shown) else -math.inf for digit in DIGITS)


def test_a_judge_shows_an_engine_the_media_and_a_marker_for_each(
    directories: tuple[Path, Path], shelf: Shelf
) -> None:
    prompt, grader = JudgePrompt(directories[1]), Grader()
    video = noise_video(4, 56, 56, fps=2.0)
    shown = [
        asked(shelf, "no", WIDE, video, "same?"),
        asked(shelf, "no", WIDE, "same?"),
        asked(shelf, "no", WIDE, "same?"),
        asked(shelf, "no", OTHER, "same?"),
    ]
    assert asyncio.run(Judge(prompt, grader).score(shown)) == (2.0, 1.0, 1.0, 1.0)
    # Another picture is another request, and an equal one is none.
    assert [request.prompt.media for request in grader.asked] == [
        shown[place].media for place in (0, 1, 3)
    ]
    markers = prompt.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    ids = grader.asked[0].prompt_token_ids
    assert [token for token in ids if token in markers] == markers


def test_what_a_judge_cannot_read_whole_has_no_grade(
    directories: tuple[Path, Path], shelf: Shelf
) -> None:
    prompt, one = JudgePrompt(directories[1]), asked(shelf, "no", WIDE, "same?")
    too_long = Grader(PromptTooLong("request_refused", "longer than 512"))
    assert asyncio.run(Judge(prompt, too_long).score([one])) == (None,)
    broken = Grader(GenerationFailed("engine_error"))
    with pytest.raises(RuntimeError, match="the judge did not grade an answer: engine_error"):
        asyncio.run(Judge(prompt, broken).score([one]))
