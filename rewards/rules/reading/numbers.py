"""Numbers as people write them, compared exactly and without sympy: in digits, and in English and
Chinese words (`twenty-one`, `三百二十`, `1.5亿`).

Only literals count: an answer that leaves a sum, a power or a division undone is not the number,
or a policy would be paid for repeating the question.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import factorial

from rewards.rules.reading.notation import INNER_TEXT, plain_value
from rewards.rules.reading.wording import pattern_of, words

MAX_WORDS = 16


def _numbered(name: str, first: int = 0) -> dict[str, int]:
    """The words of a list with their numbers, from `first` on."""
    return {word: number for number, word in enumerate(words(name), first)}


SMALL, ORDINALS, ROMAN = _numbered("numbers"), _numbered("ordinals", 1), _numbered("roman", 1)
_TENS = {word: 10 * number for word, number in _numbered("tens", 2).items()}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALE = r"(?:万亿|万|亿|(?i:hundred|thousand|million|billion|trillion)(?![a-zA-Z]))"
"""A pattern for any of the words that multiply the number in front of them."""
_PARTS = {word: number for word, number in ORDINALS.items() if 3 <= number <= 10}
_PARTS |= {"half": 2, "halve": 2, "quarter": 4}

_CHINESE_DIGITS = _numbered("chinese_numbers") | {"〇": 0, "两": 2}
_CHINESE_TENS = {"十": 10, "百": 100, "千": 1000}
CHINESE_SCALES = {"万": 10**4, "亿": 10**8}
CHINESE_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
_NUMERAL = rf"[{CHINESE_NUMERAL}]{{1,24}}"
_CHINESE = re.compile(rf"(负?)({_NUMERAL})(?:点([零〇一二三四五六七八九]{{1,12}}))?")
_CHINESE_FRACTION = re.compile(rf"(负?)({_NUMERAL})分之({_NUMERAL}|[0-9]{{1,12}})")

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
TIMES_TEN = r"\s?(?:\\times|\\cdot|×|\*|x)\s{0,2}10\s?\^\s?\{?\s?[+-]?[0-9]{1,3}\s?\}?"
"""A pattern for a power of ten behind a number."""
_DECIMAL_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s?(?P<decimal>{_DECIMAL})(?P<power>[eE][+-]?[0-9]{{1,3}}|{TIMES_TEN})?"
    rf"\s?(?P<scale>{SCALE})?"
    r"\s?(?P<percent>%|(?i:percent|per cent|pct)\b\.?)?"
)
# Both signs, or two points: only then is a point surely a separator of thousands.
_EUROPEAN = re.compile(
    r"(?P<sign>[+-]?)\s?(?:(?P<whole>[0-9]{1,3}(?:\.[0-9]{3})+),(?P<part>[0-9]{1,2}|[0-9]{4,})"
    r"|(?P<points>[0-9]{1,3}(?:\.[0-9]{3}){2,}))"
)
_LATEX_FRACTION = re.compile(
    rf"\\[dt]?frac\s?(?:\{{\s?(-?{_DECIMAL})\s?\}}\s?\{{\s?(-?{_DECIMAL})\s?\}}|([0-9])\s?([0-9]))"
)
_FRACTION = re.compile(
    rf"(?P<sign>[+-]?)\s{{0,2}}(?:(?P<whole>[0-9]+)\s{{1,2}}(?:and\s)?)?"
    rf"(?P<over>-?{_DECIMAL})\s?/\s?(?P<under>-?{_DECIMAL})"
)
_CHANCE = re.compile(r"([0-9]{1,9}) (?:in|out of) ([0-9]{1,9})")
_PERCENT_WORDS = re.compile(r"(?i)百分之(.{1,24})|(.{1,60}?)\s?(?:percent|per cent)")
# 0.1\overline{6} and 0.\dot{1}4285\dot{7}: what is marked repeats for ever.
_REPEATING = re.compile(
    r"^(?P<sign>[+-]?)\s?(?P<whole>[0-9]{0,9})\.(?P<first>[0-9]{0,9}?)"
    r"(?:\\(?:overline|bar)\s?\{(?P<over>[0-9]{1,12})\}|\\dot\s?\{?(?P<one>[0-9])\}?"
    r"(?:(?P<mid>[0-9]{0,10})\\dot\s?\{?(?P<last>[0-9])\}?)?)$"
)
_UNIT = re.compile(r"(?: of them|\s?(?:\^\s?\{?\\circ\}?|°))$")
"""What says nothing of the number in front of it."""
_APPROXIMATELY = re.compile(r"(?i)(?:\\approx|≈|~|approximately|approx\.?|约)\s{0,3}(?=[0-9.$-])")
_YEAR = re.compile(r"(?i)(?:(?:in\s)?(?:(?:the\s)?year\s)?|公元)([12][0-9]{3})(?:\s?年)?")
_POWER_OF_TEN = re.compile(r"10\s?\^\s?\{?([+-]?[0-9]{1,3})\}?")
_SHORT_SCALE = re.compile(r"(-?[0-9][0-9.,]{0,20})\s?(K|k|M|B|T|mn|bn|tn)")
_SHORT_SCALES = {"k": "thousand", "m": "million", "b": "billion", "t": "trillion"}
_SHORT_SCALES |= {"mn": "million", "bn": "billion", "tn": "trillion"}
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]{1,9}),([0-9]{1,2}|[0-9]{4,12})")
_ASKS_ROUNDING = pattern_of("asks_rounding")
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

    Also with separators of thousands (1.234,56 where nothing else can be meant), powers of ten,
    million or 万, percentages (50% is 1/2), fractions, mixed numbers and numbers in words.
    """
    text = plain_value(text)
    if text.endswith("}"):
        # 3\text{ thousand} is 3000, and 3\text{ squared} is no number.
        text = " ".join(INNER_TEXT.sub(r" \1", text).split())
    text = _REPEATING.sub(_as_fraction, _UNIT.sub("", text).strip())
    if match := re.fullmatch(r"([0-9]{1,2})\s?!", text):
        return NumberLiteral(Fraction(factorial(int(match[1]))), is_fraction=False)
    if approximate := _APPROXIMATELY.match(text):
        found = _literal(text[approximate.end() :])
        # "About 12" leaves open which integer; a rounded decimal is what it is.
        return found if found and found.step else None
    return _literal(text)


def _as_fraction(match: re.Match[str]) -> str:
    period = match["over"] or "".join(match[name] or "" for name in ("one", "mid", "last"))
    digits = match["whole"] + match["first"]
    # Its multiples by these powers of ten differ by a whole number.
    whole = int(digits + period) - int(digits or 0)
    value = Fraction(whole, (10 ** len(period) - 1) * 10 ** len(match["first"]))
    return match["sign"] + str(value)


def _literal(text: str) -> NumberLiteral | None:
    # The commonest form first: this runs for every member of every reading.
    if match := _DECIMAL_NUMBER.fullmatch(text):
        return _decimal_literal(match)
    if match := _FRACTION.fullmatch(_LATEX_FRACTION.sub(r" \1\3/\2\4", text).strip()):
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
    value = words_to_number((match[1] or match[2]).strip() if match else text)
    scale = 100 if match else 1
    return None if value is None else NumberLiteral(value / scale, False, is_percent=scale > 1)


def decimal_comma(text: str) -> NumberLiteral | None:
    """Return 3.25 for "3,25": read so only beside a reference that has decimals."""
    match = _DECIMAL_COMMA.fullmatch(plain_value(text))
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
    A fraction without a finite decimal form equals a decimal that agrees to six places.
    """
    # 24/2 for 12 repeats the question.
    if answer.is_fraction and answer.value.denominator == 1 and not reference.is_fraction:
        return False
    if reference.value == answer.value:
        return True
    # Whoever gives more decimals than were asked for has not rounded.
    if reference.step and _ASKS_ROUNDING.search(question):
        return False
    if reference.is_fraction == answer.is_fraction:
        if not (reference.step and answer.step) or reference.step == answer.step:
            return False
        # Only decimals are rounded, and the coarser one shows how far.
        coarser = max(reference, answer, key=lambda literal: literal.step)
        enough = MIN_ROUNDED_DIGITS if coarser is reference else ENOUGH_DIGITS
        is_near = abs(reference.value - answer.value) <= coarser.step / 2
        return is_near and coarser.num_digits >= enough
    denominator = (reference if reference.is_fraction else answer).value.denominator
    # The decimal form of a fraction ends where its denominator divides a power of ten.
    is_endless = pow(10, denominator.bit_length(), denominator) != 0
    return is_endless and abs(reference.value - answer.value) <= _HALF_UNIT


def _decimal_literal(match: re.Match[str]) -> NumberLiteral:
    digits = match["decimal"].replace(",", "").replace(" ", "")
    value = Fraction(digits)
    power = int(re.findall("[+-]?[0-9]+", match["power"] or "0")[-1])
    scale = _SCALE_VALUES[match["scale"].lower()] if match["scale"] else 1
    unit = Fraction(10) ** power * scale / (100 if match["percent"] else 1)
    _, point, decimals = digits.partition(".")
    return NumberLiteral(
        (-value if match["sign"] == "-" else value) * unit,
        is_fraction=False,
        step=unit / 10 ** len(decimals) if point else Fraction(0),
        num_digits=len(digits.replace(".", "").lstrip("0")),
        is_percent=bool(match["percent"]),
    )


def _fraction_literal(match: re.Match[str]) -> NumberLiteral | None:
    over, under = (Fraction(re.sub("[, ]", "", match[part])) for part in ("over", "under"))
    value = over / under if under else None
    if value is None or (match["whole"] and not 0 <= value < 1):
        return None
    is_reduced = value.denominator == abs(under)
    value += int(match["whole"] or 0)
    return NumberLiteral(-value if match["sign"] == "-" else value, True, is_reduced=is_reduced)


@lru_cache(maxsize=4096)
def words_to_number(text: str) -> Fraction | None:
    """Return the number that the text spells out and nothing else, or None."""
    if match := _CHINESE_FRACTION.fullmatch(text):
        # 三分之二 names the denominator first.
        under, over = _chinese_integer(match[2]), _chinese_integer(match[3])
        return Fraction(-over if match[1] else over, under) if under and over is not None else None
    if match := _CHINESE.fullmatch(text):
        whole = _chinese_integer(match[2])
        decimals = "".join(str(_CHINESE_DIGITS[sign]) for sign in match[3] or "")
        sign = "-" if match[1] else ""
        return None if whole is None else Fraction(f"{sign}{whole}.{decimals}")
    spelled = text.casefold().replace("-", " ").split()
    is_negative = spelled[:1] in (["minus"], ["negative"])
    value = _english_number(spelled[is_negative:])
    return -value if value is not None and is_negative else value


def _english_number(spelled: list[str]) -> Fraction | None:
    if not 0 < len(spelled) <= MAX_WORDS:
        return None
    *counted, last = spelled
    part = _PARTS.get(last.removesuffix("s"))
    if last == "dozen" and counted in ([], ["a"], ["one"]):
        return Fraction(12)
    # "third" alone is a place in an order; "half" is a number.
    if part and (counted in ([], ["a"]) or counted[-2:] == ["and", "a"]):
        whole = _cardinal(counted[:-2]) if len(counted) > 1 else 0
        is_number = whole is not None and (counted or last == "half")
        return (whole or 0) + Fraction(1, part) if is_number else None
    above = _cardinal(counted if part else spelled)
    return None if above is None else Fraction(above, part or 1)


def _cardinal(spelled: list[str]) -> int | None:
    """The value of `three hundred and five`; None for anything that is not well formed."""
    total, current, last = 0, 0, ""
    for place, word in enumerate(spelled):
        if word in SMALL:
            if last in SMALL or (last in _TENS and not 0 < SMALL[word] < 10):
                return None
            current += SMALL[word]
        elif word in _TENS:
            if last in SMALL or last in _TENS:
                return None
            current += _TENS[word]
        elif word == "hundred" and (last in SMALL or (last == "a" and place == 1)):
            current = max(1, current) * 100
        elif word in SCALES and last and (total == 0 or total % (1000 * SCALES[word]) == 0):
            total += max(1, current) * SCALES[word]
            current = 0
        elif word == "and" and last in ("hundred", *SCALES) and place + 1 < len(spelled):
            pass
        elif word != "a" or place:
            return None
        last = word
    return None if last == "a" else total + current


def _chinese_integer(text: str) -> int | None:
    if all(sign in _CHINESE_DIGITS or sign.isdecimal() for sign in text):
        # Read digit by digit, as years are: 二〇二四. A single one is itself.
        return int("".join(str(_CHINESE_DIGITS.get(sign, sign)) for sign in text))
    total, section, digit = 0, 0, None
    for sign in text:
        if sign in _CHINESE_DIGITS:
            if digit:
                return None
            digit = _CHINESE_DIGITS[sign]
        elif sign in _CHINESE_TENS:
            if digit is None and (sign != "十" or section % 100):
                return None
            section += (1 if digit is None else digit) * _CHINESE_TENS[sign]
            digit = None
        elif sign in CHINESE_SCALES:
            total = (total + section + (digit or 0)) * CHINESE_SCALES[sign]
            section, digit = 0, None
            if not total:
                return None
        else:
            return None
    return total + section + (digit or 0)
