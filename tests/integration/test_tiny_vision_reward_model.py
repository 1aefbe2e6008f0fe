"""The built-in reward model that sees: how it is made, and that a run shows it what it learned."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from policy.builtin.labeller import MISTAKES, wrong_answer
from policy.builtin.sight.picture_task import PictureTask, one_picture
from policy.builtin.sight.vision_policy import VisionWarmupRecipe, ensure_tiny_vision_policy
from policy.builtin.sight.vision_reward_model import (
    RECIPE,
    answer_rows,
    ensure_tiny_vision_reward_model,
)
from policy.builtin.warmup import Question
from policy.models.family import open_visual_inputs
from rewards.preference.preference import PreferenceInput
from rewards.preference.reward_model import RewardModel
from rollout.prompts.stream import PromptStream
from tests.fakes import config

DATA = one_picture()
HELDOUT = 40
BRIEF = replace(RECIPE, min_steps=2, max_steps=2, examples_per_step=4, heldout_questions=HELDOUT)


@pytest.fixture(scope="module")
def brief_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    brief = VisionWarmupRecipe(min_steps=1, max_steps=1, examples_per_step=4, heldout_questions=1)
    return ensure_tiny_vision_policy("tiny_qwen_vl", tmp_path_factory.mktemp("cache"), 0, brief)


@pytest.fixture(scope="module")
def brief_model(brief_policy: Path) -> Path:
    return ensure_tiny_vision_reward_model(brief_policy.parent, brief_policy, BRIEF)


@pytest.fixture(scope="module")
def task(brief_policy: Path) -> PictureTask:
    return PictureTask.open(brief_policy, AutoTokenizer.from_pretrained(brief_policy), DATA)


@pytest.fixture(scope="module")
def scorer(brief_model: Path) -> RewardModel:
    return RewardModel(brief_model, "float32", "cpu", partial(open_visual_inputs, data=DATA))


def shown(question: Question, answer: str) -> PreferenceInput:
    assert question.media
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    return PreferenceInput(({"role": "user", "content": content},), answer, question.media)


def test_it_starts_from_the_policy_and_learns_a_score(brief_policy: Path, scorer) -> None:
    model = scorer._model
    policy = AutoModelForImageTextToText.from_pretrained(brief_policy, dtype=torch.float32)
    moved = [
        (one - other).abs().max().item()
        for one, other in zip(
            model.base_model.parameters(), policy.base_model.parameters(), strict=True
        )
    ]
    # Two steps of Adam move no weight further than twice the learning rate, and decay.
    assert 0 < max(moved) < 2.1 * BRIEF.learning_rate
    assert model.score.weight.shape == (1, 64)


def test_a_run_shows_it_what_it_was_trained_on(task: PictureTask, scorer: RewardModel) -> None:
    """The tokens and the picture of a prompt of the task, as a run asks it."""
    settings = config(data=DATA.model_dump(exclude_unset=True))
    (prompt, *_) = PromptStream.open(settings).heldout(1)
    (question, *_) = task.questions(0, 1, heldout=True)
    assert prompt.media == question.media
    reading = scorer.template.rendered(PreferenceInput(prompt.messages, "12", prompt.media))
    (ids,) = scorer._token_ids([reading]).values()
    assert [list(ids)] == answer_rows(task, [question], ["12"])


def test_its_report_is_the_order_in_which_a_run_scores_held_out_pairs(
    brief_model: Path, task: PictureTask, scorer: RewardModel
) -> None:
    report = json.loads((brief_model / "warmup.json").read_text())
    assert list(report["accuracy"]) == list(MISTAKES)
    mean = sum(
        share * accuracy
        for share, accuracy in zip(BRIEF.shares, report["accuracy"].values(), strict=True)
    )
    assert report["ordered"] == pytest.approx(mean, abs=1e-4)
    assert (report["steps"], report["is_ready"]) == (2, False)
    questions, rng = task.questions(0, HELDOUT, heldout=True), np.random.default_rng(0)
    right = scorer.score([shown(question, question.answer) for question in questions])
    for mistake in MISTAKES:
        wrong = [wrong_answer(rng, int(q.answer), q.addends, mistake) for q in questions]
        other = scorer.score([shown(q, answer) for q, answer in zip(questions, wrong, strict=True)])
        ordered = np.mean(np.array(right) > np.array(other))
        # A pair that is all but equal may go either way by rounding.
        assert report["accuracy"][mistake] == pytest.approx(ordered, abs=1.5 / HELDOUT)


def test_the_cache_holds_the_model_and_what_shows_it_pictures(brief_model: Path) -> None:
    assert {file.name for file in brief_model.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "warmup.json",
    }
