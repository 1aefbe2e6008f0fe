"""Dates, times of day, weekdays and centuries as people write them, compared by what they leave
open.

A date written in digits alone is only read where one reading is possible: 25/12/2024, or
2024-01-05, which always starts with the year. 01/05/2024 equals nothing but itself.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import INNER_TEXT, plain
from rewards.rules.reading.number_words import words_to_number

MAX_DATE_CHARS = 60

_MONTHS: tuple[str, ...] = tuple("jan feb mar apr may jun jul aug sep oct nov dec".split())
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAY_NAME = r"(?:mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?"
_WEEKDAY = re.compile(rf"(?:on\s)?(?:(?P<weekday>{_DAY_NAME})\.?,?\s)?(?P<rest>.+)")
_WEEKDAY_ALONE = re.compile(
    rf"(?:on\s)?(?:an?\s)?({_DAY_NAME})s?|(?:周|星期|礼拜)([一二三四五六日天])"
)
# "15 June 2022 (a Wednesday)"
_REMARK = re.compile(r"(.{4,30}?),? \(?(?:(?:a|it (?:is|was) a) )?([a-z]{3,6}day)\)?")
_FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?P<year>[0-9]{4})[-/.](?P<digits>[0-9]{1,2})[-/.](?P<day>[0-9]{1,2})",
        rf"{_MONTH}\s{_DAY},?\s(?:of\s)?{_YEAR}",
        rf"(?:the\s)?{_DAY}(?:\sof)?[\s-]{_MONTH},?[\s-]{_YEAR}",
        rf"{_YEAR},?\s{_MONTH}\s{_DAY}",
        rf"{_MONTH},?\s(?:of\s)?{_YEAR}",
        rf"{_MONTH}\s(?:the\s)?{_DAY}",
        rf"(?:the\s)?{_DAY}(?:\sof)?\s{_MONTH}",
        r"(?P<year>[0-9]{4})\s?年\s?(?P<digits>[0-9]{1,2})\s?月(?:\s?(?P<day>[0-9]{1,2})\s?[日号])?",
        r"(?P<digits>[0-9]{1,2})\s?月\s?(?P<day>[0-9]{1,2})\s?[日号]",
        r"(?P<year>[0-9]{4})-(?P<digits>0[1-9]|1[0-2])",
    )
)
_DIGITS_ONLY = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})")
_HALF = r"\s?(?P<half>[ap])\.?\s?m\.?"
_CLOCK = re.compile(
    rf"(?:at\s)?(?P<hour>[0-9]{{1,2}})(?:\s?[:.h]\s?(?P<minute>[0-5][0-9])(?P<second>:[0-5][0-9])?)?"
    rf"(?:{_HALF}|\s?(?P<oclock>o'?clock|hours|h))?"
)
_SPOKEN = re.compile(
    r"(?:at\s)?(?:(?P<part>half|quarter|[a-z-]{3,12}|[0-9]{1,2})(?: minutes?)? (?P<side>past"
    r"|to|after) )?"
    r"(?P<hour>[a-z]{3,6}|[0-9]{1,2})(?: o'?clock)?(?P<day> in the (?:morning|afternoon"
    r"|evening)| at night)?"
)
_CENTURY = re.compile(
    r"(?:the )?(?:([0-9]{1,2})(?:st|nd|rd|th)|([ivx]{1,5})(?:th)?|([a-z-]{5,14}))( century)?"
    r"|([0-9]{1,2}) ?世纪"
)
_ORDINAL_WORDS = {
    word: number
    for number, word in enumerate(
        """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
        thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth
        twenty-first""".split(),
        start=1,
    )
}
_ROMAN = {"i": 1, "v": 5, "x": 10}


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
    date = _digits_only(match["rest"]) or _in_words(match["rest"])
    if not date or not match["weekday"] or None in (date.year, date.month, date.day):
        return date
    # A weekday that does not fit makes the date a wrong one.
    number = datetime.date(date.year or 1, date.month or 1, date.day or 1).weekday()
    return date if match["weekday"].startswith(_WEEKDAYS[number]) else None


def is_date(reference: str, question: str = "") -> bool:
    # 4:30 is a ratio to a question about ratios.
    is_ratio = "ratio" in question or "比" in question
    return read_date(reference) is not None or (
        not is_ratio
        and (_clock(reference) is not None or _special(reference, needs_name=True) is not None)
    )


def equal_dates(reference: str, answer: str, ask: Ask) -> bool:
    if (wanted := read_date(reference)) is not None:
        return wanted == read_date(answer)
    if (clock := _clock(reference)) is not None:
        given = _clock(answer) or _spoken(answer)
        if given is None:
            return False
        # Without a.m. or p.m. in the reference an hour may be of either half of the day.
        hours = {clock[0]} if clock[2] or clock[0] > 12 else {clock[0], (clock[0] + 12) % 24}
        return given[0] in hours and given[1] == clock[1]
    return _special(reference, needs_name=True) == _special(answer, needs_name=False)


def _lower(text: str) -> str:
    text = plain(INNER_TEXT.sub(r"\1", plain(text))) if len(text) <= MAX_DATE_CHARS else ""
    return " ".join(text.casefold().split())


def _clock(text: str) -> tuple[int, int, bool] | None:
    """Hour of the day, minute, and whether no other hour can be meant: 3.30pm, 15:30, 3 p.m."""
    match = _CLOCK.fullmatch(_lower(text))
    # A decimal point parts hours from minutes only in front of a.m. and p.m.
    is_clock = match and (
        match["half"] or (match["minute"] and ":" in match[0]) or match["oclock"] == "o'clock"
    )
    if not match or not is_clock or int(match["hour"]) > 24:
        return None
    hour, half = int(match["hour"]), match["half"]
    if half and not 1 <= hour <= 12:
        return None
    # 12 a.m. is midnight.
    hour = hour % 12 + 12 * (half == "p") if half else hour
    return hour, int(match["minute"] or 0), bool(half)


def _spoken(text: str) -> tuple[int, int, bool] | None:
    """Half past three in the afternoon."""
    match = _SPOKEN.fullmatch(_lower(text))
    if not match or not (match["side"] or match["day"]):
        return None
    parts = {"half": 30, "quarter": 15, None: 0}
    minute = parts.get(match["part"], words_to_number(match["part"] or "") if match["part"] else 0)
    minute = int(match["part"]) if (match["part"] or "").isdigit() else minute
    hour = int(match["hour"]) if match["hour"].isdigit() else words_to_number(match["hour"])
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
    if not match or (needs_name and not (match[4] or match[5])):
        return None
    if match[2]:
        digits = [_ROMAN[sign] for sign in match[2]]
        pairs = zip(digits, [*digits[1:], 0], strict=True)
        return ("century", sum(-left if left < right else left for left, right in pairs))
    number = match[1] or match[5]
    spelled = int(number) if number else _ORDINAL_WORDS.get(match[3])
    return ("century", spelled) if spelled else None


def _in_words(text: str) -> Date | None:
    for form in _FORMS:
        if match := form.fullmatch(text):
            parts = match.groupdict()
            name = parts.get("month")
            month = int(parts["digits"]) if not name else _MONTHS.index(name[:3]) + 1
            year, day = (int(parts[key]) if parts.get(key) else None for key in ("year", "day"))
            return Date(year, month, day) if _exists(year, month, day) else None
    return None


def _digits_only(text: str) -> Date | None:
    match = _DIGITS_ONLY.fullmatch(text)
    if not match:
        return None
    first, second, year = int(match[1]), int(match[3]), int(match[4])
    readings = {
        (month, day)
        for month, day in ((first, second), (second, first))
        if _exists(year, month, day)
    }
    if len(readings) == 2:
        return Date(year, None, None, (first, second))
    return Date(year, *readings.pop()) if readings else None


def _exists(year: int | None, month: int, day: int | None) -> bool:
    try:
        # 2000 was a leap year: the 29th of February exists where no year is given.
        datetime.date(2000 if year is None else year, month, 1 if day is None else day)
    except ValueError:
        return False
    return True
