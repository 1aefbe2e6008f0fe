"""Compares the members of lists, tuples, intervals and matrices, whatever kind they are of."""

from __future__ import annotations

import re

from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.dates import equal_dates, is_date, read_date
from rewards.rules.kinds.expressions import equal_expressions, is_expression
from rewards.rules.kinds.quantities import equal_counts, equal_quantities, read_quantity
from rewards.rules.kinds.texts import ASKS_RATIO, equal_texts
from rewards.rules.reading.notation import plain, plain_words, value_name
from rewards.rules.reading.numbers import decimal_comma, number_literal, same_number, spelled_scale

MAX_BASED_CHARS = 80
MAX_CELL_CHARS = 200
_IN_BRACKETS = re.compile(r"\(\s?([$€£¥]?\s?[0-9][0-9,.]*)\s?\)\s?(%?)")
_REDUCED = re.compile(
    r"lowest terms|simplest form|simplif|reduce|irreducible|common fraction|relatively prime"
    r"|最简|约分",
    re.IGNORECASE,
)
_RATIO = re.compile(r"^([0-9]{1,9})\s?(?::|\bto\b)\s?([0-9]{1,9})$")
_BASED = re.compile(
    r"(?:0[bB](?P<binary>[01]{1,64})|(?P<digits>[0-9A-Fa-f]{1,64})\s?_\s?\{?(?P<base>[0-9]{1,2})\}?|0[xX](?P<hexa>[0-9A-Fa-f]{1,32}))"
)
_BASE_WORDS = {"binary": 2, "二进制": 2, "octal": 8, "八进制": 8, "hexadecimal": 16, "十六进制": 16}


def equal_members(reference: str, answer: str, ask: Ask) -> bool | None:
    """Compare two members by the kind of the reference; None where it takes sympy or pint."""
    if names_differ(reference, answer):
        return False
    if number_literal(reference) is not None:
        return equal_numbers(reference, answer, ask)
    # Expressions before dates and quantities: 5m is 5 times m until a question names a unit.
    if is_expression(reference):
        return equal_expressions(reference, answer, ask)
    if is_date(reference):
        return equal_dates(reference, answer, ask)
    if read_quantity(reference) is not None:
        return equal_quantities(reference, answer, ask)
    return equal_texts(reference, answer, ask)


def equal_numbers(reference: str, answer: str, ask: Ask) -> bool:
    """Compare a number with a number, in its base, or with what it counts or measures."""
    wanted, given = number_literal(reference), number_literal(answer)
    if wanted is None:
        return False
    # 3:2 is 3/2 to a question for a ratio.
    if wanted.is_fraction and given is None and ASKS_RATIO.search(ask.question):
        given = number_literal(_RATIO.sub(r"\1/\2", plain(answer)))
    if wanted.is_percent:
        return equal_quantities(reference, answer, ask) is True
    # A decimal comma is read only where a decimal is wanted: else it parts members of a list.
    if given is None and wanted.step:
        given = decimal_comma(answer)
    if given is not None and same_number(wanted, given, ask.question):
        # 2/4 is 1/2, unless to reduce it was the task.
        return given.is_reduced or not _REDUCED.search(ask.question[:4000])
    return equal_counts(reference, answer, ask.question) or _in_base(
        reference, answer, ask.question
    )


def names_differ(reference: str, answer: str) -> bool:
    """Whether both are set equal to a letter, and to different ones."""
    names = value_name(reference), value_name(answer)
    return all(names) and names[0] != names[1]


def _in_base(reference: str, answer: str, question: str) -> bool:
    """1101_2 and 0b1101 are 1101 where the question wants base 2."""
    match = _BASED.fullmatch(plain(answer)) if len(answer) <= MAX_BASED_CHARS else None
    if not match:
        return False
    base = int(match["base"] or (2 if match["binary"] else 16))
    is_asked = re.search(rf"base[- ]?_?\{{?{base}\b", question) or any(
        _BASE_WORDS[word] == base for word in _BASE_WORDS if f" {word}" in f" {question.casefold()}"
    )
    digits = match["binary"] or match["digits"] or match["hexa"]
    return bool(is_asked) and digits.casefold() == plain(reference).casefold()


def is_cell(reference: str, question: str = "") -> bool:
    return 0 < len(reference) <= MAX_CELL_CHARS


def equal_cells(reference: str, answer: str, ask: Ask) -> bool | None:
    """Cells of a table. Accountants write -5 as (5), and a cell says in which unit it is."""
    wanted, given = (
        number_literal(
            f"-{match[1]}{match[2]}"
            if (match := _IN_BRACKETS.fullmatch(plain(text)))
            else spelled_scale(plain(text))
        )
        if len(text) <= MAX_CELL_CHARS
        else None
        for text in (reference, answer)
    )
    if wanted and given:
        return same_number(wanted, given)
    if wanted is None and read_quantity(reference):
        return equal_quantities(reference, answer, ask)
    if read_date(reference):
        return equal_dates(reference, answer, ask)
    return bool(plain_words(answer)) and plain_words(reference) == plain_words(answer)
