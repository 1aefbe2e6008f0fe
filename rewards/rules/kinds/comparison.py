"""What every kind of answer is compared with: the question, and how much work may be done here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rewards.rules.reading.notation import settle

T = TypeVar("T")
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Ask:
    """The circumstances of a comparison."""

    question: str = ""
    may_load: bool = False
    """Whether sympy and pint may be asked, which is slow and only safe in a killable worker.
    Without them a comparison gives None where they would have to decide."""


Equal = Callable[[str, str, Ask], bool | None]
"""Reference, answer and circumstances to a verdict; None if it takes sympy or pint."""


def all_matched(
    wanted: Sequence[T], given: Sequence[T], equal: Callable[[T, T], bool | None], ordered: bool
) -> bool | None:
    """Compare members index by index, or in any order, where every member has its own partner."""
    if len(wanted) != len(given):
        return False
    if ordered:
        return settle([equal(left, right) for left, right in zip(wanted, given, strict=True)])
    rest = list(given)
    verdicts: list[bool | None] = []
    for left in wanted:
        found = [equal(left, right) for right in rest]
        if True in found:
            del rest[found.index(True)]
            verdicts.append(True)
        else:
            verdicts.append(None if None in found else False)
    return settle(verdicts)


def split_outside_brackets(text: str, separators: str) -> list[str] | None:
    """Split where no bracket is open; None for brackets that do not match.

    A comma between digits that groups thousands (1,234) splits too: a list has no such commas.
    """
    pieces = [""]
    opened: list[str] = []
    for sign in text:
        if sign in "([{":
            opened.append(sign)
        elif sign in _PAIRS and (not opened or opened.pop() != _PAIRS[sign]):
            return None
        if sign in separators and not opened:
            pieces.append("")
        else:
            pieces[-1] += sign
    return None if opened else [piece.strip() for piece in pieces]
