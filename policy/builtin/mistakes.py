"""Wrong answers to sums, from which the labellers learn what not to accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Mistake = Literal["off_by_one", "off_by_two", "misread", "further", "ill_formed"]
MISTAKES: tuple[Mistake, ...] = get_args(Mistake)
LETTERS = "abcdefgh"


def wrong_answer(
    rng: np.random.Generator, total: int, addends: Sequence[int], mistake: Mistake
) -> str:
    """Return an answer that makes this mistake where `total`, the sum of the addends, is right.

    Ill-formed: too few or too many digits, or a letter beside or in place of one.
    """
    while True:
        if mistake == "ill_formed":
            # All forms are drawn before one is taken, so the numbers drawn do not depend on it.
            letter = LETTERS[rng.integers(len(LETTERS))]
            forms = (
                str(rng.integers(10)),
                str(rng.integers(100, 1000)),
                f"{total:02d}{rng.integers(10)}",
                f"{total // 10}{letter}",
                f"{letter}{total % 10}",
                f"{total:02d}{letter}",
                f"{total // 10}+",
            )
            wrong = forms[rng.integers(len(forms))]
        elif mistake == "misread":
            wrong = f"{total - int(rng.choice(addends)) + int(rng.integers(10)):02d}"
        elif mistake == "further":
            wrong = f"{int(rng.integers(10 * len(addends))):02d}"
        else:
            distance = 1 if mistake == "off_by_one" else 2
            wrong = f"{max(0, total + distance * int(rng.choice((-1, 1)))):02d}"
        # An ill-formed answer may be right as a number, such as 7 for 07, and is then no mistake.
        if not wrong.isdigit() or int(wrong) != total:
            return wrong
