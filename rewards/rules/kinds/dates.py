"""Dates, times of day, weekdays and centuries as people write them, compared by what they leave
open.

A date written in digits alone is only read where one reading is possible: 25/12/2024, or
2024-01-05, which always starts with the year. 01/05/2024 equals nothing but itself.
"""

import datetime
import re
from dataclasses import dataclass

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import opened
from rewards.rules.reading.numbers import ORDINALS, ROMAN, words_to_number
from rewards.rules.reading.wording import any_of

_MONTHS: tuple[str, ...] = tuple("jan feb mar apr may jun jul aug sep oct nov dec".split())
_MONTH = re.compile(rf"{any_of('months')}|{'|'.join(_MONTHS)}|sept")
_WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAY_NAME = r"(?:mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?"
_WEEKDAY = re.compile(rf"(?:on\s)?(?:(?P<weekday>{_DAY_NAME})\.?,?\s)?(?P<rest>.+)")
_WEEKDAY_ALONE = re.compile(
    rf"(?:on\s)?(?:an?\s)?({_DAY_NAME})s?|(?:周|星期|礼拜)([一二三四五六日天])"
)
# "15 June 2022 (a Wednesday)"
_REMARK = re.compile(r"(.{4,30}?),? \(?(?:(?:a|it (?:is|was) a) )?([a-z]{3,6}day)\)?")
_NUMERIC = (
    re.compile(r"(?P<year>[0-9]{4})[-/.](?P<month>[0-9]{1,2})[-/.](?P<day>[0-9]{1,2})"),
    re.compile(r"(?P<year>[0-9]{4})-(?P<month>0[1-9]|1[0-2])"),
    re.compile(
        r"(?P<year>[0-9]{4})\s?年\s?(?P<month>[0-9]{1,2})\s?月(?:\s?(?P<day>[0-9]{1,2})\s?[日号])?"
    ),
    re.compile(r"(?P<month>[0-9]{1,2})\s?月\s?(?P<day>[0-9]{1,2})\s?[日号]"),
)
# What says nothing of a date in words: 5th, of, the, marks.
_EMPTY = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b|\b(?:the|of)\b|[,.-]")
_DIGITS_ONLY = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})")
_CLOCK = re.compile(
    r"(?:at\s)?(?P<hour>[0-9]{1,2})(?:\s?[:.h]\s?(?P<minute>[0-5][0-9])(?::[0-5][0-9])?)?"
    r"(?:\s?(?P<half>[ap])\.?\s?m\.?|\s?(?P<oclock>o'?clock|hours|h))?"
)
_SPOKEN = re.compile(
    r"(?:at\s)?(?:(?P<part>[a-z-]{3,12}|[0-9]{1,2})(?: minutes?)? (?P<side>past|to|after) )?"
    r"(?P<hour>[a-z]{3,6}|[0-9]{1,2})(?: o'?clock)?"
    r"(?P<day> in the (?:morning|afternoon|evening)| at night)?"
)
_PARTS = {"half": 30, "quarter": 15}
_CENTURY = re.compile(
    r"(?:the )?(?:([0-9]{1,2})(?:st|nd|rd|th)|([a-z-]{1,14}))( century)?|([0-9]{1,2}) ?世纪"
)


@dataclass(frozen=True)
class Date:
    """None where the text leaves the part open. `order` holds the two numbers of a date that can
    be read in two ways, in place of month and day."""

    year: int | None
    month: int | None
    day: int | None
    order: tuple[int, int] | None = None


def read_date(text: str) -> Date | None:
    """Return the date that the text is, or None; a day that does not exist is none."""
    match = _WEEKDAY.fullmatch(_REMARK.sub(r"\2 \1", _lower(text)))
    if not match:
        return None
    if digits := _DIGITS_ONLY.fullmatch(match["rest"]):
        first, second, year = int(digits[1]), int(digits[3]), int(digits[4])
        readings = {_existing(year, first, second), _existing(year, second, first)} - {None}
        ambiguous = Date(year, None, None, (first, second))
        date = ambiguous if len(readings) == 2 else next(iter(readings), None)
    else:
        date = _in_words(match["rest"])
    if not date or not match["weekday"] or None in (date.year, date.month, date.day):
        return date
    # A weekday that does not fit makes the date a wrong one.
    number = datetime.date(date.year or 1, date.month or 1, date.day or 1).weekday()
    return date if match["weekday"].startswith(_WEEKDAYS[number]) else None


def is_date(reference: str, question: str = "") -> bool:
    if read_date(reference):
        return True
    # 4:30 is a ratio to a question about ratios.
    is_ratio = "ratio" in question or "比" in question
    return not is_ratio and bool(_clock(reference) or _special(reference, needs_name=True))


def equal_dates(reference: str, answer: str, ask: Ask) -> bool:
    if (wanted := read_date(reference)) is not None:
        return wanted == read_date(answer)
    if (clock := _clock(reference)) is not None:
        given = _clock(answer) or _spoken(answer)
        # Without a.m. or p.m. in the reference an hour may be of either half of the day.
        hours = {clock[0]} if clock[2] or clock[0] > 12 else {clock[0], (clock[0] + 12) % 24}
        return given is not None and given[0] in hours and given[1] == clock[1]
    return _special(reference, needs_name=True) == _special(answer, needs_name=False)


def _lower(text: str) -> str:
    return " ".join(opened(text).casefold().split())


def _clock(text: str) -> tuple[int, int, bool] | None:
    """Hour of the day, minute, and whether no other hour can be meant: 3.30pm, 15:30, 3 p.m."""
    match = _CLOCK.fullmatch(_lower(text))
    # A decimal point parts hours from minutes only in front of a.m. and p.m.
    if not match or not (match["half"] or ":" in match[0] or match["oclock"] == "o'clock"):
        return None
    hour, half = int(match["hour"]), match["half"]
    if not (1 <= hour <= 12 if half else hour <= 24):
        return None
    # 12 a.m. is midnight.
    hour = hour % 12 + 12 * (half == "p") if half else hour
    return hour, int(match["minute"] or 0), bool(half)


def _spoken(text: str) -> tuple[int, int, bool] | None:
    """Half past three in the afternoon."""
    match = _SPOKEN.fullmatch(_lower(text))
    if not match or not (match["side"] or match["day"]):
        return None
    minute, hour = (
        _PARTS.get(part) or (int(part) if part.isdigit() else words_to_number(part))
        for part in (match["part"] or "zero", match["hour"])
    )
    if hour is None or minute is None or not 1 <= hour <= 12:
        return None
    day = match["day"] or ""
    whole = int(hour) % 12 + 12 * any(part in day for part in ("after", "even", "night"))
    # Quarter to nine is in the hour before.
    if match["side"] == "to":
        whole, minute = (whole - 1) % 24, 60 - minute
    return whole, int(minute), bool(day)


def _special(text: str, needs_name: bool) -> tuple[str, int] | None:
    """A weekday or a century; the answer `17th` may leave out the word."""
    text = _lower(text)
    # The sun is a star, Sunday a day.
    if (match := _WEEKDAY_ALONE.fullmatch(text)) and ("day" in text or match[2] or not needs_name):
        chinese = "一二三四五六日".find((match[2] or "").replace("天", "日"))
        return ("weekday", _WEEKDAYS.index(match[1][:3]) if match[1] else chinese)
    if match := re.fullmatch(r"(?:in )?(?:the )?([0-9]{2})00['’]?s", text):
        return ("century", int(match[1]) + 1)
    match = _CENTURY.fullmatch(text)
    if not match or (needs_name and not (match[3] or match[4])):
        return None
    number, word = match[1] or match[4], match[2] or ""
    century = int(number) if number else ORDINALS.get(word) or ROMAN.get(word.removesuffix("th"))
    return ("century", century) if century else None


def _in_words(text: str) -> Date | None:
    if match := next((match for form in _NUMERIC if (match := form.fullmatch(text))), None):
        parts = match.groupdict()
        keys = ("year", "month", "day")
        return _existing(*(int(parts[key]) if parts.get(key) else None for key in keys))
    # Year, month and day in any order, the month by its name.
    words = _EMPTY.sub(" ", text).split()
    months = [_MONTHS.index(word[:3]) + 1 for word in words if _MONTH.fullmatch(word)]
    years = [int(word) for word in words if re.fullmatch("[0-9]{4}", word)] or [None]
    days = [int(word) for word in words if re.fullmatch("[0-9]{1,2}", word)] or [None]
    num_read = len(months) + len([*filter(None, years + days)])
    is_date = len(months) == len(years) == len(days) == 1 < len(words) == num_read
    return _existing(years[0], months[0], days[0]) if is_date else None


def _existing(year: int | None, month: int | None, day: int | None) -> Date | None:
    try:
        # 2000 was a leap year: the 29th of February exists where no year is given.
        datetime.date(2000 if year is None else year, month or 0, 1 if day is None else day)
    except ValueError:
        return None
    return Date(year, month, day)
