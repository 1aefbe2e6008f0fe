"""Dates as people write them, compared by what they leave open.

A date written in digits alone is only read where one reading is possible: 25/12/2024, or
2024-01-05, which always starts with the year. 01/05/2024 equals nothing but itself.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from rewards.rules.reading.notation import plain

MAX_DATE_CHARS = 60

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_WEEKDAY = re.compile(
    r"(?:on\s)?(?:(?P<weekday>mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?\.?,?\s)?(?P<rest>.+)"
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
    text = plain(text[: 2 * MAX_DATE_CHARS]).casefold() if len(text) <= MAX_DATE_CHARS else ""
    match = _WEEKDAY.fullmatch(_REMARK.sub(r"\2 \1", " ".join(text.split())))
    if not match:
        return None
    date = _digits_only(match["rest"]) or _in_words(match["rest"])
    if date and match["weekday"] and not _falls_on(date, match["weekday"]):
        return None
    return date


def is_date(reference: str) -> bool:
    return read_date(reference) is not None


def quick_date(reference: str, answer: str) -> bool:
    given = read_date(answer)
    return given is not None and given == read_date(reference)


def _in_words(text: str) -> Date | None:
    for form in _FORMS:
        if match := form.fullmatch(text):
            parts = match.groupdict()
            name = parts.get("month")
            month = int(parts["digits"]) if not name else _month_number(name)
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


def _month_number(name: str) -> int:
    return next(place for place, month in enumerate(_MONTHS, 1) if month.startswith(name[:3]))


def _exists(year: int | None, month: int, day: int | None) -> bool:
    try:
        # 2000 was a leap year: the 29th of February exists where no year is given.
        datetime.date(2000 if year is None else year, month, 1 if day is None else day)
    except ValueError:
        return False
    return True


def _falls_on(date: Date, weekday: str) -> bool:
    if date.year is None or date.month is None or date.day is None:
        return True
    number = datetime.date(date.year, date.month, date.day).weekday()
    return _WEEKDAYS[number].startswith(weekday[:3])
