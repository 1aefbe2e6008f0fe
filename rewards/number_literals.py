"""Numbers as people write them, compared exactly and without sympy.

Only literals count: an answer that leaves a sum, a power or a division undone is not the number,
or a policy would be paid for repeating the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.notation import plain_value

MAX_NUMBER_CHARS = 200

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_EXPONENT = (
    r"(?:[eE](?P<e>[+-]?[0-9]{1,3})"
    r"|\s?(?:\\times|\\cdot|\*|x)\s{0,2}10\s?\^\s?(?:\{(?P<braced>[+-]?[0-9]{1,3})\}"
    r"|(?P<bare>[+-]?[0-9]{1,3})))"
)
_DECIMAL_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s?(?P<decimal>{_DECIMAL}){_EXPONENT}?\s?(?P<percent>%?)"
)
_FRACTION = re.compile(
    rf"(?P<sign>[+-]?)\s?(?:(?P<whole>[0-9]+)(?:\s|(?=\\)))?(?:"
    rf"(?P<over>{_DECIMAL})\s?/\s?(?P<under>-?{_DECIMAL})"
    rf"|\\[dt]?frac\s?\{{(?P<top>-?{_DECIMAL})\}}\s?\{{(?P<bottom>-?{_DECIMAL})\}}"
    r"|\\[dt]?frac\s?(?P<one>[0-9])\s?(?P<two>[0-9]))"
)
_UNIT = re.compile(r"\s?(?:\^\s?\{?\\circ\}?|\\(?:text|mathrm)\s?\{\s?[A-Za-z ]{1,20}\})$")
"""A unit set apart as text, or degrees: the number in front of it is the answer."""
_HALF_UNIT = Fraction(5, 10**7)


@dataclass(frozen=True)
class NumberLiteral:
    value: Fraction
    is_fraction: bool
    """Written as numerator over denominator."""
    is_reduced: bool = True
    """No integer divides both numerator and denominator."""


def number_literal(text: str) -> NumberLiteral | None:
    """Return the one number the text is, or None if it is anything else.

    Signs, leading zeros, thousands commas, decimals, powers of ten, percentages (50% is 1/2),
    common fractions and mixed numbers. Cost is linear in at most MAX_NUMBER_CHARS characters.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = _UNIT.sub("", plain_value(text))
    if match := _DECIMAL_NUMBER.fullmatch(text):
        return NumberLiteral(_decimal_value(match), is_fraction=False)
    if match := _FRACTION.fullmatch(text):
        return _fraction_literal(match)
    return None


def same_number(reference: NumberLiteral, answer: NumberLiteral) -> bool:
    """Whether both are the same number.

    A fraction without a finite decimal form equals a decimal that agrees to six places. A
    fraction of whole value is a division left undone, unless the reference is written so too, and
    one that is not reduced is no answer where the reference is.
    """
    if answer.is_fraction and answer.value.denominator == 1 and not reference.is_fraction:
        return False
    if reference.is_fraction and answer.is_fraction and reference.is_reduced > answer.is_reduced:
        # Reducing it was the task.
        return False
    if reference.value == answer.value:
        return True
    if reference.is_fraction == answer.is_fraction:
        return False
    fraction = reference.value if reference.is_fraction else answer.value
    return _repeats(fraction) and abs(reference.value - answer.value) <= _HALF_UNIT


def _decimal_value(match: re.Match[str]) -> Fraction:
    value = Fraction(match["decimal"].replace(",", ""))
    exponent = match["e"] or match["braced"] or match["bare"]
    if exponent:
        value *= Fraction(10) ** int(exponent)
    if match["percent"]:
        value /= 100
    return -value if match["sign"] == "-" else value


def _fraction_literal(match: re.Match[str]) -> NumberLiteral | None:
    top = match["over"] or match["top"] or match["one"]
    bottom = match["under"] or match["bottom"] or match["two"]
    numerator, denominator = (Fraction(part.replace(",", "")) for part in (top, bottom))
    if denominator == 0:
        return None
    value = numerator / denominator
    is_reduced = value.denominator == abs(denominator)
    if match["whole"]:
        if not 0 <= value < 1:
            return None
        value += int(match["whole"])
    return NumberLiteral(-value if match["sign"] == "-" else value, True, is_reduced)


def _repeats(value: Fraction) -> bool:
    """Whether the decimal form never ends: the denominator has a prime other than 2 and 5."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1
