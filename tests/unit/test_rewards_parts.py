import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.format import format_reward, mode_leak
from rewards.repetition import repetition_penalty
from rewards.service import compose
from rl.config import RewardConfig, RewardWeights
from tests.fakes import trajectory


def said(text, thinking, **changes):
    """A trajectory whose reasoning and answer are cut out of its text."""
    before, tag, after = text.partition("</think>")
    reasoning, answer = (before, after if tag else None) if thinking else (None, text)
    return trajectory(text=text, reasoning=reasoning, answer=answer, **changes)


@pytest.mark.parametrize(
    ("text", "thinking", "reward", "leak"),
    [
        ("a2+00=02\n</think>\n\n2", True, 1.0, False),
        ("so\n</think>2", True, 1.0, False),
        ("</think>\n\n2", True, 0.0, True),
        ("\n\n</think>\n\n2", True, 0.0, True),
        ("so</think>", True, 0.0, True),
        ("so</think> \n", True, 0.0, True),
        ("it never ends", True, 0.0, True),
        ("so</think>2</think>3", True, 0.0, False),
        ("<think>so</think>2", True, 0.0, False),
        ("<think></think>2", True, 0.0, False),
        ("2", False, 1.0, False),
        ("", False, 0.0, False),
        (" \n", False, 0.0, False),
        ("so</think>2", False, 0.0, True),
        ("<think>2", False, 0.0, True),
    ],
)
def test_form_and_leak(text, thinking, reward, leak):
    one = said(text, thinking)
    assert format_reward(one, thinking) == reward
    assert mode_leak(one, thinking) is leak


@pytest.mark.parametrize("reason", ["length", "abort"])
def test_a_text_that_did_not_stop_has_no_form(reason):
    assert format_reward(said("2", False, finish_reason=reason), False) == 0.0
    assert format_reward(said("so</think>2", True, finish_reason=reason), True) == 0.0


@given(st.lists(st.sampled_from(["<think>", "</think>", "so", " ", "\n", "2"]), max_size=8))
def test_no_text_has_the_form_of_both_modes_and_good_form_never_leaks(pieces):
    text = "".join(pieces)
    rewards = [format_reward(said(text, thinking), thinking) for thinking in (True, False)]
    assert rewards in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    for thinking, reward in zip((True, False), rewards, strict=True):
        assert not (reward and mode_leak(said(text, thinking), thinking))


def test_repetition_by_hand():
    assert repetition_penalty("a b a b a", 2) == -0.5  # ab ba ab ba: 2 of 4 distinct
    assert repetition_penalty("so SO so", 1) == pytest.approx(-2 / 3)
    assert repetition_penalty("a b c d", 2) == 0.0
    assert repetition_penalty("a b", 3) == 0.0
    assert repetition_penalty("", 2) == 0.0


def test_clean_long_reasoning_is_free_and_a_loop_is_not():
    # 99 partial sums of a2+b9+...: short lines of a small alphabet, many of them alike.
    lines = [f"a{i % 10}+{i * 7 % 100:02d}={(i * 7 + i % 10) % 100:02d}" for i in range(99)]
    clean = "\n".join(lines) + "\n</think>\n\n11"
    assert repetition_penalty(clean, 20) == 0.0
    assert repetition_penalty("a2+00=02\n" * 119, 20) == pytest.approx(1 / 100 - 1)


@given(st.lists(st.sampled_from("ab"), max_size=60), st.integers(2, 5))
def test_repetition_lies_between_minus_one_and_zero(words, ngram):
    assert -1.0 < repetition_penalty(" ".join(words), ngram) <= 0.0


def test_the_reward_is_the_weighted_sum():
    weights = RewardWeights(accuracy=1.0, format=0.1, repetition=2.0)
    parts = {"accuracy": 1.0, "format": 1.0, "repetition": -0.25, "leak": 0.0}
    score = compose(RewardConfig(weights=weights), parts, "number/1")
    assert score.reward == pytest.approx(0.6)
    assert (score.parts, score.route, score.failure) == (parts, "number/1", None)


def test_rules_and_service_load_without_torch_ray_or_sympy():
    code = (
        "import sys, rewards.rules, rewards.service\n"
        "print(sorted({'torch', 'ray', 'vllm', 'sympy', 'transformers'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout.decode().strip() == "[]"
