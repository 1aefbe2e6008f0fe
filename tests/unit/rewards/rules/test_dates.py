"""Dates and table cells."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.rules.kinds.dates import Date, read_date
from tests.unit.rewards.rules.test_rules import verify


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-05",
        "2024/1/5",
        "January 5, 2024",
        "Jan 5th, 2024",
        "5 Jan 2024",
        "the 5th of January, 2024",
        "Friday, January 5, 2024",
        "2024年1月5日",
        "2024年１月５日",
    ],
)
def test_one_day_in_many_forms(text):
    assert read_date(text) == Date(2024, 1, 5)


@pytest.mark.parametrize(
    "text", ["2024-13-01", "Feb 30 2024", "Monday, January 5, 2024", "may", "0000-01-01", "12"]
)
def test_days_that_do_not_exist(text):
    assert read_date(text) is None


@pytest.mark.parametrize(
    ("reference", "answer", "accuracy"),
    [
        ("2024-12-25", "25/12/2024", 1.0),
        ("01/05/2024", "1/5/2024", 1.0),
        ("2024-01-05", "01/05/2024", 0.0),
        ("01/05/2024", "05/01/2024", 0.0),
        ("2024-01-05", "January 2024", 0.0),
        ("2024-01-05", "January 5", 0.0),
        ("January 2024", "2024年1月", 1.0),
        ("July 4, 1776", "It was signed on July 4, 1776.", 1.0),
        ("1969", "in 1969", 1.0),
    ],
)
def test_what_a_date_leaves_open_must_agree(reference, answer, accuracy):
    assert verify(reference, answer) == accuracy


@given(st.dates(datetime.date(1000, 1, 1), datetime.date(2999, 12, 1)))
def test_a_day_equals_itself_and_not_the_next(day):
    reference = day.isoformat()
    assert verify(reference, f"{day.day} {day:%B} {day.year}") == 1.0
    later = day + datetime.timedelta(days=1)
    assert verify(reference, f"{later:%B} {later.day}, {later.year}") == 0.0


@pytest.mark.parametrize(
    ("reference", "answer", "accuracy"),
    [
        ("1,234", "1234", 1.0),
        ("$1,234", "1,234", 1.0),
        ("$1.2 billion", "$1.2B", 1.0),
        ("(500)", "-500", 1.0),
        ("N/A", "n/a", 1.0),
        ("500", "(500)", 0.0),
        ("12%", "12", 0.0),
        ("New York", "York", 0.0),
    ],
)
def test_cells(reference, answer, accuracy):
    assert verify(reference, answer, "cell") == accuracy
