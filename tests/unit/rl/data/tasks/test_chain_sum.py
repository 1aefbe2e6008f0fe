from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.data.tasks.chain_sum import (
    HELDOUT_ONE_IN,
    LENGTHS,
    Slips,
    is_heldout,
    question,
    worked_example,
)

TWENTY_SEVEN = (2, 9, 8, 8)
PINNED_HELDOUT = ["a9b5c1?", "a1b8c1d3?", "a3b6c7d9e2?", "a4b5c2d7e3f3?"]
PINNED_TRAINING = ["a1b2c8d6e9f5?", "a3b9c9d1e1?", "a1b3c4d3e6f9?"]
seeds = st.integers(0, 2**31)
indices = st.integers(0, 10**9)


def _slips(reasoning: float, answer: float, seed: int = 0) -> Slips:
    return Slips(np.random.default_rng(seed), reasoning, answer)


def _lines(response: str) -> list[tuple[int, int, int]]:
    """Number, sum before and sum after of each line of reasoning."""
    found = re.findall(r"[a-h](\d)\+(\d\d)=(\d\d)\n", response)
    return [(int(number), int(before), int(after)) for number, before, after in found]


@given(seeds, indices, st.booleans())
def test_a_question_asks_for_the_sum_of_its_digits(seed: int, index: int, heldout: bool) -> None:
    asked = question(seed, index, heldout)
    assert re.fullmatch(r"a[1-9]b[1-9]c[1-9](d[1-9](e[1-9](f[1-9])?)?)?\?", asked.text)
    digits = [int(digit) for digit in re.findall(r"\d", asked.text)]
    assert asked.numbers == tuple(digits)
    assert asked.answer == str(sum(digits))
    assert len(asked.answer) == 2


@given(seeds, indices)
def test_a_question_of_one_split_is_never_in_the_other(seed: int, index: int) -> None:
    assert is_heldout(question(seed, index, heldout=True).text)
    assert not is_heldout(question(seed, index, heldout=False).text)


def test_draws_and_split_are_the_same_in_every_process() -> None:
    drawn = [question(0, index, True).text for index in range(4)]
    assert drawn == PINNED_HELDOUT
    assert [question(0, index, True).text for index in (3, 1)] == [drawn[3], drawn[1]]
    assert [question(0, index, False).text for index in range(3)] == PINNED_TRAINING


def test_one_question_in_eight_is_held_out() -> None:
    every = [f"a{a}b{b}c{c}d{d}?" for a, b, c, d in product(range(1, 10), repeat=4)]
    share = sum(map(is_heldout, every)) / len(every)
    assert share == pytest.approx(1 / HELDOUT_ONE_IN, abs=0.015)  # 3.7 standard deviations


def test_heldout_questions_cycle_over_the_lengths() -> None:
    lengths = [len(question(5, index, True).numbers) for index in range(8)]
    assert lengths == [3, 4, 5, 6, 3, 4, 5, 6]


def test_training_questions_draw_their_length_evenly() -> None:
    lengths = [len(question(5, index, False).numbers) for index in range(400)]
    counts = [lengths.count(length) for length in LENGTHS]
    assert min(counts) > 70 and max(counts) < 130


@pytest.mark.parametrize("lengths", [(), (1,), (3, 9)])
def test_lengths_out_of_range_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="between 2 and 8 numbers, got"):
        question(0, 0, False, lengths)


def test_a_worked_example_carries_the_sum_from_line_to_line() -> None:
    assert worked_example(TWENTY_SEVEN, thinking=True) == (
        "a2+00=02\nb9+02=11\nc8+11=19\nd8+19=27\n</think>\n\n27"
    )
    assert worked_example(TWENTY_SEVEN, thinking=False) == "27"


@given(seeds, st.booleans())
def test_slips_at_rate_zero_change_nothing(seed: int, thinking: bool) -> None:
    asked = question(seed, 0, False)
    slipped = worked_example(asked.numbers, thinking, _slips(0, 0, seed))
    assert slipped == worked_example(asked.numbers, thinking)


@given(seeds)
def test_reasoning_goes_on_from_a_slipped_sum(seed: int) -> None:
    asked = question(seed, 0, False)
    response = worked_example(asked.numbers, thinking=True, slips=_slips(1, 0, seed))
    lines = _lines(response)
    assert tuple(number for number, _, _ in lines) == asked.numbers
    assert all(abs(before + number - after) == 1 for number, before, after in lines)
    assert [before for _, before, _ in lines] == [0, *(after for _, _, after in lines[:-1])]
    assert response.endswith(f"</think>\n\n{lines[-1][2]:02d}")


def test_short_answers_slip_by_one_or_two() -> None:
    slips = _slips(0, 1)
    answers = [worked_example(TWENTY_SEVEN, False, slips) for _ in range(100)]
    assert set(answers) == {"25", "26", "28", "29"}


def test_slips_come_at_the_asked_rate() -> None:
    slips = _slips(0.15, 0)
    lines = [line for _ in range(500) for line in _lines(worked_example(TWENTY_SEVEN, True, slips))]
    wrong = sum(before + number != after for number, before, after in lines)
    assert wrong / len(lines) == pytest.approx(0.15, abs=0.03)  # 2000 lines, 3.7 deviations


@given(seeds, indices, st.booleans())
def test_how_many_addends_are_zero_does_not_show_in_the_length(
    seed: int, index: int, heldout: bool
) -> None:
    asked = question(seed, index, heldout, (6,), (1, 5))
    assert sum(number > 0 for number in asked.numbers) in (1, 5)
    assert len(asked.text) == 13
    assert len(asked.answer) == 2 and int(asked.answer) == sum(asked.numbers)
    assert worked_example(asked.numbers, thinking=True).count("\n") == 6 + 2


def test_zeros_come_as_often_as_they_are_listed_and_at_any_place() -> None:
    drawn = [question(5, index, False, (6,), (2, 2, 6)).numbers for index in range(300)]
    easy = [numbers for numbers in drawn if 0 in numbers]
    assert len(easy) / len(drawn) == pytest.approx(2 / 3, abs=0.1)  # 3.7 standard deviations
    at_place = [sum(numbers[place] > 0 for numbers in easy) for place in range(6)]
    assert min(at_place) > 40
    heldout = [question(5, index, True, (6,), (2, 2, 6)).numbers.count(0) for index in range(6)]
    assert heldout == [4, 4, 0, 4, 4, 0]


@pytest.mark.parametrize("nonzero", [(0,), (2, 7)])
def test_numbers_of_addends_out_of_range_are_refused(nonzero: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nonzero must be between 1 and the shortest"):
        question(0, 0, False, (6,), nonzero)
