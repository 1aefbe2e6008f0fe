"""Table cells: text, a number or a date with little around it."""

from __future__ import annotations

import re

from rewards.rules.kinds.dates import quick_date, read_date
from rewards.rules.kinds.quantities import quick_quantity, read_quantity
from rewards.rules.reading.notation import plain, plain_words
from rewards.rules.reading.number_literals import (
    NumberLiteral,
    number_literal,
    same_number,
    spelled_scale,
)

MAX_CELL_CHARS = 200

_IN_BRACKETS = re.compile(r"\(\s?([$€£¥]?\s?[0-9][0-9,.]*)\s?\)\s?(%?)")


def is_cell(reference: str) -> bool:
    return 0 < len(reference) <= MAX_CELL_CHARS


def quick_cell(reference: str, answer: str, question: str) -> bool | None:
    """Accountants write -5 as (5); everything else is a number, an amount, a date or a text."""
    if len(answer) > MAX_CELL_CHARS:
        return False
    wanted, given = _number(reference), _number(answer)
    if wanted and given:
        return same_number(wanted, given)
    if wanted is None and read_quantity(reference):
        return quick_quantity(reference, answer, question)
    if read_date(reference):
        return quick_date(reference, answer)
    return bool(plain_words(answer)) and plain_words(reference) == plain_words(answer)


def _number(text: str) -> NumberLiteral | None:
    if match := _IN_BRACKETS.fullmatch(plain(text)):
        return number_literal(f"-{match[1]}{match[2]}")
    return number_literal(spelled_scale(plain(text)))
