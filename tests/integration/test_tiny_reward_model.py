from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3ForCausalLM

from policy.builtin.reward_model import (
    MISTAKES,
    NOT_DIGITS,
    RewardModelRecipe,
    _encode,
    _pair,
    _training_pairs,
    ensure_tiny_reward_model,
    heldout_accuracy,
    wrong_answer,
)
from policy.builtin.text_policy import WarmupRecipe, ensure_tiny_policy
from rl.data.tasks.chain_sum import is_heldout

BRIEF = RewardModelRecipe(steps=2, pairs_per_step=3, heldout_questions=4)


@pytest.fixture(scope="module")
def brief_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    brief = WarmupRecipe(min_steps=1, max_steps=1, examples_per_step=5, heldout_questions=1)
    return ensure_tiny_policy(tmp_path_factory.mktemp("cache"), 0, brief)


@pytest.fixture(scope="module")
def brief_model(brief_policy: Path) -> Path:
    return ensure_tiny_reward_model(brief_policy.parent, brief_policy, BRIEF)


def draws(mistake: str, total: int) -> set[str]:
    rng = np.random.default_rng(0)
    return {wrong_answer(rng, total, mistake) for _ in range(2000)}


def test_answers_off_by_one_are_the_two_neighbours() -> None:
    assert draws("off_by_one", 27) == {"26", "28"}
    assert draws("off_by_one", 10) == {"11"}


def test_answers_off_by_more_are_two_digits_at_least_two_away() -> None:
    assert draws("off_by_more", 27) == {str(n) for n in range(10, 70) if abs(n - 27) > 1}
    near = [wrong_answer(np.random.default_rng(seed), 27, "off_by_more") for seed in range(2000)]
    # Half are drawn within five; of the others, 8 in 60 fall there by chance.
    share = np.mean([abs(int(answer) - 27) <= 5 for answer in near])
    assert share == pytest.approx(0.57, abs=0.04)


def test_ill_formed_answers_are_no_number_of_two_digits() -> None:
    forms = draws("ill_formed", 27)
    assert {"", "7", "123"} <= forms
    assert {f"2{other}" for other in NOT_DIGITS} <= forms
    assert not any(len(form) == 2 and form.isdigit() for form in forms)


def test_a_pair_asks_the_same_question_and_prefers_its_sum() -> None:
    for heldout in (False, True):
        rng = np.random.default_rng(3)
        for index in range(50):
            chosen, rejected = _pair(rng, 1, index, heldout, "off_by_one")
            assert chosen[0] == rejected[0]
            assert is_heldout(chosen[0]["content"]) == heldout
            total = sum(int(digit) for digit in chosen[0]["content"] if digit.isdigit())
            assert chosen[1]["content"] == str(total)
            assert abs(int(rejected[1]["content"]) - total) == 1


def test_it_starts_from_the_policy_and_learns_a_head(brief_policy: Path, brief_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(brief_model)
    policy = Qwen3ForCausalLM.from_pretrained(brief_policy)
    assert (model.num_labels, model.dtype) == (1, torch.float32)
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(brief_model).pad_token_id == 0
    moved = [
        (one - other).abs().max().item()
        for one, other in zip(model.model.parameters(), policy.model.parameters(), strict=True)
    ]
    # Two steps of Adam move no weight further than twice the learning rate, and decay.
    assert 0 < max(moved) < 2.1 * BRIEF.learning_rate


def test_training_scores_the_chosen_answers_of_its_pairs_above_the_rejected(
    brief_policy: Path, tmp_path: Path
) -> None:
    """On the pairs that it learns, where a form tells them apart; how well it judges sums that it
    has not seen is measured when it is made, and no fact about the code."""
    recipe = replace(BRIEF, steps=30, pairs_per_step=16, shares=(0.0, 0.0, 1.0), rise_steps=5)
    directory = ensure_tiny_reward_model(tmp_path, brief_policy, recipe)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    pairs = _training_pairs(AutoTokenizer.from_pretrained(directory), recipe)
    assert len(pairs) == 30 * 16
    with torch.no_grad():
        chosen, rejected = (
            torch.stack([model(torch.tensor([row])).logits[0, 0] for row in pairs[side][:100]])
            for side in ("chosen_ids", "rejected_ids")
        )
    # The objective of a reward model, log 2 for one that has learned nothing.
    loss = torch.nn.functional.softplus(rejected - chosen).mean().item()
    print(f"loss {loss:.3f}")
    assert loss < 0.5 * math.log(2)


def test_the_cache_holds_the_model_its_report_and_nothing_else(brief_model: Path) -> None:
    report = json.loads((brief_model / "training.json").read_text())
    assert report["steps"] == 2
    assert set(report["accuracy"]) == set(MISTAKES)
    assert {file.name for file in brief_model.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert not list(brief_model.parent.glob(".tiny-*"))


def test_the_training_leaves_the_working_directory_alone(
    brief_policy: Path,
    brief_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch.manual_seed(17)
    state = torch.get_rng_state()
    again = ensure_tiny_reward_model(tmp_path / "cache", brief_policy, BRIEF)
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    assert torch.equal(torch.get_rng_state(), state)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("making the tiny reward model (once)")
    assert len(printed.err.splitlines()) == 1
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (brief_model / weights).read_bytes()
    assert again.name == brief_model.name


def test_a_training_that_fails_leaves_no_model_behind(
    brief_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for recipe in (BRIEF, replace(BRIEF, steps=3)):
        with pytest.raises(RuntimeError, match="ended with status 1"):
            ensure_tiny_reward_model(tmp_path, brief_policy, recipe)
    locks = list(tmp_path.iterdir())
    # One for each recipe, which names the directory.
    assert [file.suffix for file in locks] == [".lock", ".lock"]


def test_pairs_are_put_in_order_by_the_score(brief_model: Path) -> None:
    """Held-out accuracy counts pairs, whatever their lengths and padding."""
    tokenizer = AutoTokenizer.from_pretrained(brief_model)
    model = AutoModelForSequenceClassification.from_pretrained(brief_model)
    rng = np.random.default_rng(0)
    right = 0
    for index in range(40):
        pair = _pair(rng, 0, index, True, "ill_formed")
        chosen, rejected = (torch.tensor(_encode(tokenizer, [side])) for side in pair)
        with torch.no_grad():
            right += int(model(chosen).logits.item() > model(rejected).logits.item())
    assert heldout_accuracy(model, tokenizer, "ill_formed", 40) == right / 40
