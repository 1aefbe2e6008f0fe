"""Compares the elements of lists, tuples, intervals and matrices, whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rewards.rules.kinds.dates import quick_date, read_date
from rewards.rules.kinds.expressions import is_expression, quick_expression, same_expression
from rewards.rules.kinds.quantities import convert_quantity, quick_quantity, read_quantity
from rewards.rules.reading.notation import plain_words, settle
from rewards.rules.reading.number_literals import number_literal, same_number

T = TypeVar("T")
Equal = Callable[[str, str], bool | None]
"""Reference element and answer element to a verdict; None if it takes sympy or pint."""

_PAIRS = {")": "(", "]": "[", "}": "{"}


def quick_element(reference: str, answer: str) -> bool | None:
    """Compare two elements by string work; None where `slow_element` has to be asked."""
    wanted = number_literal(reference)
    if wanted is not None:
        given = number_literal(answer)
        return given is not None and same_number(wanted, given)
    if is_expression(reference):
        return quick_expression(reference, answer)
    if read_date(reference) is not None:
        return quick_date(reference, answer)
    if read_quantity(reference) is not None:
        return quick_quantity(reference, answer, "")
    return bool(plain_words(answer)) and plain_words(reference) == plain_words(answer)


def slow_element(reference: str, answer: str) -> bool:
    """Decide what `quick_element` leaves open. For workers only."""
    verdict = quick_element(reference, answer)
    if verdict is not None:
        return verdict
    if is_expression(reference):
        return same_expression(reference, answer)
    return convert_quantity(reference, answer)


def all_equal(wanted: list[str], given: list[str], equal: Equal) -> bool | None:
    """Compare place by place."""
    if len(wanted) != len(given):
        return False
    return settle([equal(one, other) for one, other in zip(wanted, given, strict=True)])


def all_matched(
    wanted: Sequence[T], given: Sequence[T], equal: Callable[[T, T], bool | None]
) -> bool | None:
    """Compare in any order: every element has its own partner."""
    if len(wanted) != len(given):
        return False
    rest = list(given)
    verdicts: list[bool | None] = []
    for one in wanted:
        found = [equal(one, other) for other in rest]
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
