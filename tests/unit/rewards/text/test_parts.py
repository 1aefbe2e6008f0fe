"""Format, repetition and length by hand-made texts and hand-computed numbers."""

import dataclasses
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.text.format import format_reward, mode_leak, violations
from rewards.text.repetition import repetition_penalty
from rewards.text.text_rewards import overlong_penalty
from rl.config.policy import ThinkTags
from rl.data.tasks.chain_sum import question, worked_example
from rl.loop.stages import Choice, split_response
from tests.fakes import trajectory


def said(text, thinking, **changes):
    """A trajectory whose reasoning and answer are cut out of its text."""
    before, tag, after = text.partition("</think>")
    reasoning, answer = (before, after if tag else None) if thinking else (None, text)
    return trajectory(text=text, reasoning=reasoning, answer=answer, **changes)


@pytest.mark.parametrize(
    ("text", "thinking", "broken", "leak"),
    [
        ("a2+00=02\n</think>\n\n2", True, (), False),
        ("so\n</think>2", True, (), False),
        ("</think>\n\n2", True, ("empty_reasoning",), True),
        ("\n\n</think>\n\n2", True, ("empty_reasoning",), True),
        ("so</think>", True, ("no_answer",), True),
        ("so</think> \n", True, ("no_answer",), True),
        ("it never ends", True, ("no_answer",), True),
        ("so</think>2</think>3", True, ("several_closings",), False),
        ("<think>so</think>2", True, ("opening_tag",), False),
        ("<think></think>2", True, ("opening_tag",), False),
        ("so</think><think>2", True, ("opening_tag",), False),
        ("so</think>2<|im_end|>\n<|im_start|>user", True, ("special_token",), False),
        ("so<|endoftext|></think>2", True, ("special_token",), False),
        ("so&lt;/think&gt;</think>2", True, ("spelled_tag",), False),
        ("</think>", True, ("no_answer", "empty_reasoning"), True),
        ("2", False, (), False),
        ("", False, ("no_answer",), False),
        (" \n", False, ("no_answer",), False),
        ("so</think>2", False, ("leak",), True),
        ("<think>2", False, ("leak",), True),
        ("2<｜end▁of▁sentence｜>", False, ("special_token",), False),
    ],
)
def test_form_and_leak(text, thinking, broken, leak):
    one = said(text, thinking)
    assert violations(one, thinking) == broken
    assert format_reward(one, thinking) == float(not broken)
    assert mode_leak(one, thinking) is leak


@pytest.mark.parametrize(
    ("text", "thinking", "broken", "leak"),
    [
        ("so<|end_of_thought|>2", True, (), False),
        ("so<|end_of_thought|>2<|eot|>", True, ("special_token",), False),
        ("<|begin_of_thought|>so<|end_of_thought|>2", True, ("opening_tag",), False),
        ("so</think>2<|end_of_thought|>2", True, ("spelled_tag",), False),
        ("so</think>2", False, ("spelled_tag",), True),
        ("so<|end_of_thought|>2", False, ("leak",), True),
        ("so<｜end_of_thought｜>2", False, ("special_token", "spelled_tag"), True),
    ],
)
def test_form_and_leak_of_a_model_with_other_tags(text, thinking, broken, leak):
    tags = ThinkTags(open="<|begin_of_thought|>", close="<|end_of_thought|>")
    reasoning, answer = split_response(text, thinking, tags)
    one = trajectory(text=text, reasoning=reasoning, answer=answer)
    assert violations(one, thinking, tags) == broken
    assert format_reward(one, thinking, tags) == float(not broken)
    assert mode_leak(one, thinking, tags) is leak


@pytest.mark.parametrize(
    "tag",
    [
        "< think >",
        "<THINK>",
        "< / think>",
        "<thinking>",
        "</Thinking>",
        "&lt;think&gt;",
        "[think]",
        "&#60;think&#x3E;",
        "＜think＞",
        "＜／ｔｈｉｎｋ＞",
        "【think】",
        "[/think]",
        "<think/>",
        "<th\u200bink>",
        "<think\u2060>",
        '<think mode="deep">',
    ],
)
def test_a_look_alike_of_a_think_tag_breaks_the_form_of_both_modes(tag):
    assert violations(said(f"{tag}so</think>2", True), True) == ("spelled_tag",)
    assert violations(said(f"{tag}2", False), False) == ("spelled_tag",)
    assert mode_leak(said(f"{tag}2", False), False)


@pytest.mark.parametrize(
    "text",
    [
        "I think 3 < 4 > 2",
        "a < b, think of c > d",
        "x <- 2 |> f",
        "<|x|> is a mean",
        "rethink [1]",
        "{think}",
        "&lt;b&gt; is bold",
        "think>",
        "the thinking",
    ],
)
def test_plain_writing_is_no_tag(text):
    assert violations(said(text, False), False) == ()
    assert violations(said(f"{text}</think>{text}", True), True) == ()


@pytest.mark.parametrize("reason", ["length", "abort"])
def test_a_text_that_did_not_stop_has_no_form(reason):
    cut = said("2", False, finish_reason=reason)
    assert violations(cut, False) == ("truncated",)
    assert format_reward(cut, False) == 0.0
    cut = said("so", True, finish_reason=reason)
    assert violations(cut, True) == ("truncated", "no_answer")
    assert not mode_leak(cut, True)


@given(st.lists(st.sampled_from(["<think>", "</think>", "so", " ", "\n", "2"]), max_size=8))
def test_no_text_has_the_form_of_both_modes_and_good_form_never_leaks(pieces):
    text = "".join(pieces)
    rewards = [format_reward(said(text, thinking), thinking) for thinking in (True, False)]
    assert rewards in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    for thinking, reward in zip((True, False), rewards, strict=True):
        assert not (reward and mode_leak(said(text, thinking), thinking))


def ngram(text, words):
    return repetition_penalty(text, "ngram", words, 10)


def window(text, words=10, times=10):
    return repetition_penalty(text, "window", words, times)


def test_repetition_by_hand():
    assert ngram("a b a b a", 2) == -0.5  # ab ba ab ba: 2 of 4 distinct
    assert ngram("so SO so", 1) == pytest.approx(-2 / 3)
    assert ngram("a b c d", 2) == 0.0
    assert ngram("a b", 3) == 0.0
    assert ngram("", 2) == 0.0
    # 我想 想我 我想: 2 of 3 distinct; ideographs count one by one, words beside them whole.
    assert ngram("我想我想", 2) == pytest.approx(-1 / 3)
    assert ngram("x我 想x", 2) == 0.0


def test_the_window_form_is_all_or_nothing():
    phrase = "so we add the next number to the sum again "  # 10 words
    unlike = [f"{phrase}{place} " for place in range(10)]
    assert window("".join(unlike)) == -1.0
    assert window("".join(unlike[:9])) == 0.0
    assert window("".join(unlike), words=11) == 0.0
    assert window("".join(unlike[:3]), times=3) == -1.0


@pytest.mark.parametrize(
    "loop",
    [
        "a" * 2000,
        "ha" * 1000,
        "哈" * 600,
        "哈哈，" * 200,
        "wait, " * 300,
        "-=" * 500,
        "😂" * 900,
        "so the answer is twelve. " * 60,
        "所以答案是十二。" * 40,
        "a_b_c_" * 200,
        "กา" * 700,
    ],
)
def test_loops_are_punished_with_and_without_spaces(loop):
    assert ngram(loop, 20) < -0.8
    assert window(loop) == -1.0
    assert ngram(f"{loop}</think>\n\n12", 20) < -0.7


def test_clean_long_reasoning_is_free_and_a_loop_is_not():
    # 99 partial sums of a2+b9+...: short lines of a small alphabet, many of them alike.
    lines = [f"a{i % 10}+{i * 7 % 100:02d}={(i * 7 + i % 10) % 100:02d}" for i in range(99)]
    clean = "\n".join(lines) + "\n</think>\n\n11"
    assert ngram(clean, 20) == window(clean) == 0.0
    assert ngram("a2+00=02\n" * 119, 20) == pytest.approx(1 / 100 - 1)
    examples = [worked_example(question(0, index, False).numbers, True) for index in range(200)]
    assert {ngram(one, 20) for one in examples} == {window(one) for one in examples} == {0.0}


@pytest.mark.parametrize("between", [" ", " & ", ", "])
def test_matrices_and_tables_are_free_and_a_loop_of_rows_is_not(between):
    def rows(count, cell):
        return "\n".join(between.join(str(cell(i, j)) for j in range(6)) for i in range(count))

    identity = rows(6, lambda i, j: int(i == j))
    zeros = rows(6, lambda i, j: 0)
    assert ngram(identity, 20) == window(identity) == ngram(zeros, 20) == window(zeros) == 0.0
    assert ngram(rows(300, lambda i, j: 0), 20) < -0.8


def test_writing_with_long_words_is_free():
    rng = random.Random(0)
    steps = [
        rf"\frac{{{rng.randrange(99)}}}{{{rng.randrange(99)}}}\cdot\left({rng.randrange(99)}+x\right)"
        for _ in range(200)
    ]
    assert ngram("=".join(steps), 20) == window("=".join(steps)) == 0.0


@given(st.lists(st.sampled_from("ab想"), max_size=60), st.integers(1, 5))
def test_repetition_is_that_of_the_windows_themselves(words, size):
    windows = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    expected = len(set(windows)) / len(windows) - 1 if windows else 0.0
    assert ngram(" ".join(words), size) == pytest.approx(expected, abs=1e-12)
    most = max(map(windows.count, windows), default=0)
    assert window(" ".join(words), size, 4) == (-1.0 if most >= 4 else 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "a " * 500_000,
        "a" * 10**6,
        "<" * 10**6,
        "< think" * 150_000,
        "&#" + "0" * 10**6 + "60;",
        "<|aaaa" * 170_000,
        "\x00\ud800" * 500_000,
        "e\u0315\u0300" * 330_000,
        "".join(map(chr, range(0x4E00, 0x9FFF))) * 40,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_time_is_linear_in_a_megabyte(text):
    one = said(text, False)
    started = time.process_time()
    violations(one, False)
    mode_leak(one, False)
    repetition_penalty(text, "ngram", 40, 10)
    # Some tenths of a second, or seconds on a slow machine; what is quadratic takes minutes.
    assert time.process_time() - started < 20.0


def test_overlong_by_hand():
    # eq. 13 with a budget of 100 and a window of 20.
    lengths = [0, 80, 81, 90, 100, 101, 10_000]
    penalties = [overlong_penalty(length, 100, 20) for length in lengths]
    assert penalties == pytest.approx([0, 0, -0.05, -0.5, -1, -1, -1])
    assert overlong_penalty(50, 100, 100) == -0.5


@pytest.mark.parametrize("window", [0, -1, 101])
def test_an_overlong_window_lies_within_the_budget(window):
    with pytest.raises(ValueError, match=f"between 1 and max_tokens 100, got {window}"):
        overlong_penalty(5, 100, window)


@given(st.integers(0, 300), st.integers(1, 200))
def test_more_tokens_never_cost_less(length, size):
    here, further = (overlong_penalty(n, 200, size) for n in (length, length + 1))
    assert -1.0 <= further <= here <= 0.0


def test_rules_and_text_parts_load_without_torch_ray_or_sympy():
    modules = (
        "rules, rewards.text.format, rewards.text.repetition, rewards.text.plugins, rewards.audit"
    )
    code = (
        f"import sys, rewards.{modules}\n"
        "print(sorted({'torch', 'ray', 'vllm', 'sympy', 'transformers'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("text", "choice", "broken", "leak"),
    [
        ("so\n</think>2", Choice(True, 1), (), False),
        ("2", Choice(False, 3), (), False),
        ("</think>2", Choice(True, 1), ("empty_reasoning",), True),
        ("so</think>2", Choice(False, 3), ("leak",), True),
        # A blank line, and then reasoning all the same; or neither kind's token.
        ("so</think>2", Choice(False, 1, is_kept=False), ("strayed", "leak"), True),
        ("so, 2", Choice(False, 1, is_kept=False), ("strayed",), True),
        ("so</think>2", Choice(True, 0, is_kept=False), ("strayed",), True),
    ],
)
def test_a_response_is_held_to_the_form_of_what_it_chose(text, choice, broken, leak):
    one = dataclasses.replace(said(text, choice.thinking), choice=choice)
    assert violations(one, "auto") == broken
    assert mode_leak(one, "auto") is leak
