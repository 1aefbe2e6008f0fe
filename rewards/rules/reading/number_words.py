"""Numbers in words, English and Chinese, as exact fractions: `twenty-one`, `三百二十`, `1.5亿`."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_WORDS = 16

_SMALL = {
    word: number
    for number, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
        fifteen sixteen seventeen eighteen nineteen""".split()
    )
}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
    )
}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "tenth": 10}
_PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "halve": 2}

_DIGITS = {sign: number for number, sign in enumerate("零一二三四五六七八九")}
_DIGITS |= {"〇": 0, "两": 2, "壹": 1, "贰": 2, "叁": 3, "半": 0}
_CHINESE_TENS = {"十": 10, "百": 100, "千": 1000}
CHINESE_SCALES = {"万": 10**4, "亿": 10**8}
CHINESE_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
_CHINESE = re.compile(
    rf"(负?)([{CHINESE_NUMERAL}]{{1,24}})(?:点([零〇一二三四五六七八九]{{1,12}}))?"
)
_CHINESE_FRACTION = re.compile(
    rf"(负?)([{CHINESE_NUMERAL}]{{1,12}})分之([{CHINESE_NUMERAL}0-9]{{1,12}})"
)


def words_to_number(text: str) -> Fraction | None:
    """Return the number that the text spells out and nothing else, or None."""
    if len(text) > 200:
        return None
    if match := _CHINESE_FRACTION.fullmatch(text):
        # 三分之二 names the denominator first.
        under = _chinese_integer(match[2])
        over = int(match[3]) if match[3].isascii() else _chinese_integer(match[3])
        return Fraction(-over if match[1] else over, under) if under and over is not None else None
    if match := _CHINESE.fullmatch(text):
        return _chinese_number(match)
    return _english_number(text.casefold())


def _english_number(text: str) -> Fraction | None:
    words = text.replace("-", " ").split()
    if not 0 < len(words) <= MAX_WORDS:
        return None
    sign = 1
    if words[0] in ("minus", "negative") and len(words) > 1:
        sign, words = -1, words[1:]
    if words in (["a", "dozen"], ["dozen"], ["one", "dozen"]):
        return Fraction(12 * sign)
    if len(words) > 3 and words[-3:-1] == ["and", "a"] and words[-1] in _PARTS:
        # One and a half.
        whole = _cardinal(words[:-3])
        return None if whole is None else sign * (whole + Fraction(1, _PARTS[words[-1]]))
    part = words[-1].removesuffix("s")
    if part in _PARTS:
        above = 1 if words[:-1] in ([], ["a"]) else _cardinal(words[:-1])
        # "third" alone is a place in an order; "half" is a number.
        is_bare_place = len(words) == 1 and part != "half"
        return None if above is None or is_bare_place else Fraction(sign * above, _PARTS[part])
    whole = _cardinal(words)
    return None if whole is None else Fraction(sign * whole)


def _cardinal(words: list[str]) -> int | None:
    """The value of `three hundred and five`; None for anything that is not well formed."""
    total, current, last = 0, 0, ""
    for place, word in enumerate(words):
        if word in _SMALL:
            if last in _SMALL or (last in _TENS and not 0 < _SMALL[word] < 10):
                return None
            current += _SMALL[word]
        elif word in _TENS:
            if last in _SMALL or last in _TENS:
                return None
            current += _TENS[word]
        elif word == "hundred" and (last in _SMALL or (last == "a" and place == 1)):
            current = max(1, current) * 100
        elif word in SCALES and last and (total == 0 or total % (1000 * SCALES[word]) == 0):
            total += max(1, current) * SCALES[word]
            current = 0
        elif word == "and" and last in ("hundred", *SCALES) and place + 1 < len(words):
            pass
        elif word != "a" or place:
            return None
        last = word
    return None if last == "a" else total + current


def _chinese_number(match: re.Match[str]) -> Fraction | None:
    value = _chinese_integer(match[2])
    if value is None:
        return None
    number = Fraction(value)
    if match[3]:
        decimals = "".join(str(_DIGITS[sign]) for sign in match[3])
        number += Fraction(int(decimals), 10 ** len(decimals))
    return -number if match[1] else number


def _chinese_integer(text: str) -> int | None:
    if not text.isascii() and all(sign in _DIGITS for sign in text):
        # Read digit by digit, as years are: 二〇二四. A single one is itself.
        return int("".join(str(_DIGITS[sign]) for sign in text))
    total, section, digit = 0, 0, None
    for sign in text:
        if sign in _DIGITS:
            if digit:
                return None
            digit = _DIGITS[sign]
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
