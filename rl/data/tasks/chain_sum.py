"""The built-in task: add labelled one-digit numbers, such as `a2b9c8d8?` with the answer `27`.

Short answers must add in one go; long ones can carry a running sum from line to line. The task is
procedural, so any number of questions exists without a data set, and importing it needs no torch.

Where most addends are 0, such as in `a0b7c0d0e6f0?`, a sum is added in one go as well, while its
reasoning is as many lines as that of a hard one: how hard a question is then does not show in how
long it takes to reason about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rl.data.fingerprint import stable_hash

# Labels tell the addends of a question apart: a reasoning step names the one that it adds.
LABELS = "abcdefgh"
LENGTHS = (3, 4, 5, 6)
HELDOUT_ONE_IN = 8
"""One question in so many is held out; of length 3, the rarest, that leaves about 80."""


class ChainSumQuestion(NamedTuple):
    """Example: ChainSumQuestion("a2b9c8d8?", "27", (2, 9, 8, 8))"""

    text: str
    answer: str
    """The sum, in two digits always: `27`, `07`."""
    numbers: tuple[int, ...]
    """The addends, each 1 to 9 or, where it is asked for, 0, in the order of the text."""


@dataclass(frozen=True)
class Slips:
    """Errors of worked examples, so that a policy taught by them has something to unlearn."""

    rng: np.random.Generator
    reasoning: float
    """Probability of an error in each step of the reasoning, which goes on from it."""
    answer: float
    """Probability that an answer without reasoning is off by one or two."""

    def maybe(self, value: int, rate: float, furthest: int) -> int:
        """Return `value`, or with probability `rate` a number at most `furthest` away from it."""
        if self.rng.random() >= rate:
            return value
        # Never 0: a slip that changes nothing would lower the rate.
        offsets = [offset for offset in range(-furthest, furthest + 1) if offset]
        return max(0, value + int(self.rng.choice(offsets)))


def question(
    seed: int,
    index: int,
    heldout: bool,
    lengths: tuple[int, ...] = LENGTHS,
    nonzero: tuple[int, ...] = (),
) -> ChainSumQuestion:
    """Return question `index` of a split: the same for the same arguments in every process.

    Whether a question is held out depends on the question alone, so no choice of seeds lets the
    splits overlap. Held-out questions cycle over `lengths` and `nonzero`; the others draw from
    them. nonzero: how many addends are not 0; without any, none is 0.
    """
    if not lengths or not all(2 <= length <= len(LABELS) for length in lengths):
        raise ValueError(
            f"chain_sum lengths must be between 2 and {len(LABELS)} numbers, got {lengths}"
        )
    if not all(1 <= count <= min(lengths) for count in nonzero):
        raise ValueError(
            f"chain_sum nonzero must be between 1 and the shortest of lengths {lengths}, got "
            f"{nonzero}"
        )
    # A generator of its own for every question, so that any can be asked without the ones before.
    rng = np.random.default_rng((seed, index, int(heldout)))
    # Held-out questions cycle, so that a small evaluation has as many of every length.
    length = lengths[index % len(lengths)] if heldout else int(rng.choice(lengths))
    count = length
    if nonzero:
        # Every length with every count, in turn.
        turn = index // len(lengths) % len(nonzero)
        count = nonzero[turn] if heldout else int(rng.choice(nonzero))
    while True:
        numbers = tuple(rng.integers(1, 10, size=length).tolist())
        if count < length:
            kept = {*rng.permutation(length)[:count].tolist()}
            numbers = tuple(n if place in kept else 0 for place, n in enumerate(numbers))
        labelled = (f"{label}{number}" for label, number in zip(LABELS, numbers, strict=False))
        text = "".join(labelled) + "?"
        # Two digits always: an answer's length then says nothing about it. Sums of one digit are
        # left out unless zeros are asked for, with which a single addend makes one.
        if (nonzero or sum(numbers) >= 10) and is_heldout(text) == heldout:
            return ChainSumQuestion(text, f"{sum(numbers):02d}", numbers)


def is_heldout(text: str) -> bool:
    """Whether a question belongs to the held-out split."""
    return stable_hash(text) % HELDOUT_ONE_IN == 0


def worked_example(addends: Sequence[int], thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, each line adds one number to the running sum, zero-padded so that the copied
    number and the sum so far stand side by side: `c8+11=19`. The lines close with `</think>`, a
    blank line and the answer. Without thinking the response is the answer.
    """
    if not thinking:
        total = sum(addends)
        if slips:
            total = slips.maybe(total, slips.answer, 2)
        return f"{total:02d}"
    lines, total = [], 0
    for label, number in zip(LABELS, addends, strict=False):
        after = total + number
        if slips:
            # The chain goes on from the slipped sum, as a policy's own would.
            after = slips.maybe(after, slips.reasoning, 1)
        lines.append(f"{label}{number}+{total:02d}={after:02d}\n")
        total = after
    return f"{''.join(lines)}</think>\n\n{total:02d}"
