"""Numbers as people write them, compared exactly and without sympy.

Only literals count: an answer that leaves a sum, a power or a division undone is not the number,
or a policy would be paid for repeating the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import factorial

from rewards.rules.reading.notation import INNER_TEXT, plain_value
from rewards.rules.reading.number_words import CHINESE_SCALES, SCALES, words_to_number

MAX_NUMBER_CHARS = 200
MIN_ROUNDED_DIGITS = 3
"""A reference with fewer significant digits is exact: 0.5 is not 0.52."""
ENOUGH_DIGITS = 6
"""An answer rounded to so many significant digits is precise, however long the reference is."""

# 1,234 and 1 234 and 12,34,567, or digits alone.
_DIGITS = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]+)"
)
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_EXPONENT = (
    r"(?:[eE](?P<e>[+-]?[0-9]{1,3})"
    r"|\s?(?:\\times|\\cdot|\*|x)\s{0,2}10\s?\^\s?(?:\{\s?(?P<braced>[+-]?[0-9]{1,3})\s?\}"
    r"|(?P<bare>[+-]?[0-9]{1,3})))"
)
_SCALE = r"(?P<scale>万亿|万|亿|(?i:hundred|thousand|million|billion|trillion)\b)"
_DECIMAL_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s?(?P<decimal>{_DECIMAL}){_EXPONENT}?\s?{_SCALE}?"
    r"\s?(?P<percent>%|(?i:percent|per cent|pct)\b\.?)?"
)
# Both signs, or two points: only then is a point surely a separator of thousands.
_EUROPEAN = re.compile(
    r"(?P<sign>[+-]?)\s?(?:(?P<whole>[0-9]{1,3}(?:\.[0-9]{3})+),(?P<part>[0-9]{1,2}|[0-9]{4,})"
    r"|(?P<points>[0-9]{1,3}(?:\.[0-9]{3}){2,}))"
)
_FRACTION = re.compile(
    rf"(?P<sign>[+-]?)\s?(?:(?P<whole>[0-9]+)(?:\s{{1,2}}(?:and\s)?|(?=\\)))?(?:"
    rf"(?P<over>{_DECIMAL})\s?/\s?(?P<under>-?{_DECIMAL})"
    rf"|\\[dt]?frac\s?\{{\s?(?P<top>-?{_DECIMAL})\s?\}}\s?\{{\s?(?P<bottom>-?{_DECIMAL})\s?\}}"
    r"|\\[dt]?frac\s?(?P<one>[0-9])\s?(?P<two>[0-9]))"
)
_CHANCE = re.compile(r"([0-9]{1,9}) (?:in|out of) ([0-9]{1,9})")
_PERCENT_WORDS = re.compile(r"百分之(.{1,24})|(.{1,60}?)\s?(?:percent|per cent)", re.IGNORECASE)
_UNIT = re.compile(
    r"(?: of them|\s?(?:\^\s?\{?\\circ\}?|°|\\(?:text|mathrm)\s?\{\s?[A-Za-z ]{1,20}\}))$"
)
"""A unit set apart as text, or degrees: the number in front of it is the answer."""
_APPROXIMATELY = re.compile(r"(?:\\approx|≈|~|approximately|approx\.?|约)\s{0,3}(?=[0-9.$-])", re.I)
_YEAR = re.compile(
    r"(?:(?:in\s)?(?:(?:the\s)?year\s)?|公元)([12][0-9]{3})(?:\s?年)?", re.IGNORECASE
)
_POWER_OF_TEN = re.compile(r"10\s?\^\s?\{?([+-]?[0-9]{1,3})\}?")
_SHORT_SCALE = re.compile(r"(-?[0-9][0-9.,]{0,20})\s?(K|k|M|B|T|mn|bn|tn)")
_SHORT_SCALES = {"k": "thousand", "m": "million", "b": "billion", "t": "trillion"}
_SHORT_SCALES |= {"mn": "million", "bn": "billion", "tn": "trillion"}
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]{1,9}),([0-9]{1,2}|[0-9]{4,12})")
_ASKS_ROUNDING = re.compile(
    r"\brounded\b|\bround (?:off|up|down|(?:\S{1,20} ){0,4}?to)\b"
    r"|\bnearest (?:ten|hundred|thousand|integer|whole|cent)"
    r"|decimal places?\b|\b(?:two|three|four|[1-9]) decimals\b|significant (?:digits|figures)"
    r"|保留|四舍五入|精确到",
    re.IGNORECASE,
)
_HALF_UNIT = Fraction(5, 10**7)
_SCALE_VALUES = {**SCALES, **CHINESE_SCALES, "hundred": 100, "万亿": 10**12}


@dataclass(frozen=True)
class NumberLiteral:
    value: Fraction
    is_fraction: bool
    """Written as numerator over denominator."""
    step: Fraction = Fraction(0)
    """The value of one unit in the last place of a decimal with a point, else 0: exact."""
    num_digits: int = 0
    """Significant digits of a decimal."""
    is_percent: bool = False
    is_reduced: bool = True
    """No integer divides both numerator and denominator."""


@lru_cache(maxsize=2048)
def number_literal(text: str) -> NumberLiteral | None:
    """Return the one number the text is, or None if it is anything else.

    Signs, leading zeros, thousands (1,234, 1 234 and, where nothing else can be meant,
    1.234,56), decimals, powers of ten, thousand to trillion and 万 and 亿, percentages (50% is
    1/2), common fractions, mixed numbers and numbers in words. Cost is linear in at most
    MAX_NUMBER_CHARS characters.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = plain_value(text)
    if text.endswith("}"):
        text = INNER_TEXT.sub(lambda inner: inner[1] if "percent" in inner[1] else inner[0], text)
    # 101! is a cry: nobody means so large a factorial. 5! is one.
    text = re.sub(r"(?<=[0-9]{3})!$", "", _UNIT.sub("", text).strip())
    if match := re.fullmatch(r"([0-9]{1,2})\s?!", text):
        return NumberLiteral(Fraction(factorial(int(match[1]))), is_fraction=False)
    if approximate := _APPROXIMATELY.match(text):
        found = _literal(text[approximate.end() :])
        # "About 12" leaves open which integer; a rounded decimal is what it is.
        return found if found and found.step else None
    return _literal(text)


def _literal(text: str) -> NumberLiteral | None:
    # The commonest form first: this runs for every member of every reading.
    if match := _DECIMAL_NUMBER.fullmatch(text):
        return _decimal_literal(match)
    if match := _FRACTION.fullmatch(text):
        return _fraction_literal(match)
    if match := _POWER_OF_TEN.fullmatch(text) or _YEAR.fullmatch(text):
        value = Fraction(10) ** int(match[1]) if "^" in text else Fraction(match[1])
        return NumberLiteral(value, is_fraction=False)
    if match := _EUROPEAN.fullmatch(text):
        whole = (match["whole"] or match["points"]).replace(".", "")
        return NumberLiteral(Fraction(f"{match['sign']}{whole}.{match['part'] or 0}"), False)
    if (match := _CHANCE.fullmatch(text)) and int(match[2]):
        return NumberLiteral(Fraction(int(match[1]), int(match[2])), is_fraction=True)
    match = _PERCENT_WORDS.fullmatch(text)
    spelled = words_to_number((match[1] or match[2]).strip() if match else text)
    is_percent = match is not None
    value = None if spelled is None else spelled / 100 if is_percent else spelled
    return None if value is None else NumberLiteral(value, False, is_percent=is_percent)


def decimal_comma(text: str) -> NumberLiteral | None:
    """Return 3.25 for "3,25": read so only beside a reference that has decimals."""
    match = _DECIMAL_COMMA.fullmatch(plain_value(text)) if len(text) <= MAX_NUMBER_CHARS else None
    return number_literal(f"{match[1]}.{match[2]}") if match else None


def spelled_scale(text: str) -> str:
    """Spell out the letter of an amount of money or of a table: 3.2M is 3.2 million."""
    match = _SHORT_SCALE.fullmatch(text)
    return f"{match[1]} {_SHORT_SCALES[match[2].casefold()]}" if match else text


def same_number(reference: NumberLiteral, answer: NumberLiteral, question: str = "") -> bool:
    """Whether both are the same number; to the last digit where the question asks to round.

    Integers and short decimals are exact. An answer with more decimals than a reference of at
    least MIN_ROUNDED_DIGITS significant digits may round to it (3.14159 for 3.14); one with fewer
    must be the reference rounded, to at least ENOUGH_DIGITS digits (3.14 is not 3.14159).

    A fraction without a finite decimal form equals a decimal that agrees to six places. A
    fraction of whole value is a division left undone, unless the reference is written so too.
    """
    # 24/2 for 12 repeats the question.
    if answer.is_fraction and answer.value.denominator == 1 and not reference.is_fraction:
        return False
    if reference.value == answer.value:
        return True
    # Whoever gives more decimals than were asked for has not rounded.
    if reference.step and _ASKS_ROUNDING.search(question[:4000]):
        return False
    if reference.is_fraction == answer.is_fraction:
        if not (reference.step and answer.step) or reference.step == answer.step:
            return False
        # Only decimals are rounded, and the coarser one shows how far.
        coarser = max(reference, answer, key=lambda literal: literal.step)
        enough = MIN_ROUNDED_DIGITS if coarser is reference else ENOUGH_DIGITS
        is_near = abs(reference.value - answer.value) <= coarser.step / 2
        return is_near and coarser.num_digits >= enough
    fraction = reference.value if reference.is_fraction else answer.value
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    # The decimal form never ends where the denominator has another prime than 2 and 5.
    return rest != 1 and abs(reference.value - answer.value) <= _HALF_UNIT


def _decimal_literal(match: re.Match[str]) -> NumberLiteral:
    digits = match["decimal"].replace(",", "").replace(" ", "")
    value = Fraction(digits)
    unit = Fraction(1)
    exponent = match["e"] or match["braced"] or match["bare"]
    if exponent:
        unit *= Fraction(10) ** int(exponent)
    if match["scale"]:
        unit *= _SCALE_VALUES[match["scale"].lower()]
    if match["percent"]:
        unit /= 100
    _, point, decimals = digits.partition(".")
    return NumberLiteral(
        (-value if match["sign"] == "-" else value) * unit,
        is_fraction=False,
        step=unit / 10 ** len(decimals) if point else Fraction(0),
        num_digits=len(digits.replace(".", "").lstrip("0")),
        is_percent=bool(match["percent"]),
    )


def _fraction_literal(match: re.Match[str]) -> NumberLiteral | None:
    top = match["over"] or match["top"] or match["one"]
    bottom = match["under"] or match["bottom"] or match["two"]
    numerator, denominator = (
        Fraction(part.replace(",", "").replace(" ", "")) for part in (top, bottom)
    )
    if denominator == 0:
        return None
    value = numerator / denominator
    is_reduced = value.denominator == abs(denominator)
    if match["whole"]:
        if not 0 <= value < 1:
            return None
        value += int(match["whole"])
    return NumberLiteral(-value if match["sign"] == "-" else value, True, is_reduced=is_reduced)
