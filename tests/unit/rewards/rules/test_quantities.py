"""Numbers in all notations, and numbers with units."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.rules.kinds.quantities import read_quantity
from rewards.rules.reading.numbers import number_literal
from rewards.rules.verifier import route_of
from tests.unit.rewards.rules.test_rules import verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 234 567", 1234567),
        ("1.234,56", Fraction(123456, 100)),
        ("1.234.567", 1234567),
        ("１２", 12),
        ("½", Fraction(1, 2)),
        ("3½", Fraction(7, 2)),
        ("twenty-one", 21),
        ("one hundred and five", 105),
        ("two thirds", Fraction(2, 3)),
        ("one and a half", Fraction(3, 2)),
        ("minus five", -5),
        ("3 million", 3_000_000),
        ("3万", 30_000),
        ("1.2亿", 120_000_000),
        ("三百二十", 320),
        ("一万二千", 12_000),
        ("负五", -5),
        ("三分之二", Fraction(2, 3)),
        ("百分之五十", Fraction(1, 2)),
        ("10^{-3}", Fraction(1, 1000)),
        (r"0.\overline{27}", Fraction(3, 11)),
        (r"-2.1\overline{6}", Fraction(-13, 6)),
        (r"0.\dot{6}", Fraction(2, 3)),
        (r"0.\dot{2}8571\dot{4}", Fraction(2, 7)),
        (r"0.\overline{9}", 1),
        (r"22,\! 333", 22333),
        ("≈ 3.14", Fraction(314, 100)),
    ],
)
def test_numbers_in_many_notations(text, value):
    literal = number_literal(text)
    assert literal is not None
    assert literal.value == value


@pytest.mark.parametrize(
    "text", ["1,23", "1 23", "5²", "12 13", "about 12", "third", "one two", ""]
)
def test_what_is_no_number(text):
    assert number_literal(text) is None


@pytest.mark.parametrize(
    ("reference", "answer", "accuracy"),
    [
        # an answer may have more decimals than the reference, never fewer
        ("3.14", "3.14159", 1.0),
        ("3.14159", "3.14", 0.0),
        ("3.14", "3.15", 0.0),
        ("0.5", "0.52", 0.0),
        ("2.718281828459045", "2.71828", 1.0),
        ("12", "12.1", 0.0),
    ],
)
def test_tolerance_is_the_reference_s_own_precision(reference, answer, accuracy):
    assert verify(reference, answer) == accuracy


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1.5 km", "1500 m"),
        ("1.5 km", "1.5 kilometers"),
        ("20 °C", "68 °F"),
        ("100 km/h", "27.78 m/s"),
        ("9.8 m/s^2", r"$9.8\ \mathrm{m/s^2}$"),
        ("100 cm^2", "100 square centimetres"),
        ("6平方米", "6 m²"),
        ("3千克", "3 kg"),
        ("2.5 hours", "2 hours 30 minutes"),
        ("$12", "12 dollars"),
        ("$12", "12"),
        ("$0.50", "50 cents"),
        ("12元", "￥12"),
        ("$5 million", "$5,000,000"),
        ("45°", "45"),
        ("20 cm", "The length is 20 cm."),
        ("5 apples", "5 apples"),
    ],
)
def test_equal_quantities(reference, answer):
    assert verify(reference, answer) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1.5 km", "1.5 m"),
        ("1.5 km", "1501 m"),
        ("1.5 km", "1.5"),
        ("20 °C", "20 °F"),
        ("20 m/s", "20 m/s^2"),
        ("100 cm^2", "1 m^2"),
        ("$12", "€12"),
        ("$12", "12 cents"),
        ("12元", "12美元"),
        ("45°", "45 radians"),
        ("5 mW", "5 MW"),
        ("50%", "50"),
        ("50", "50%"),
        ("5 apples", "5 oranges"),
        ("1 mile", "1.6 km"),
    ],
)
def test_wrong_or_missing_units(reference, answer):
    assert verify(reference, answer) == 0.0


@pytest.mark.parametrize(
    ("reference", "answer", "question", "accuracy"),
    [
        ("5 m", "5", "How long is the rope in meters?", 1.0),
        ("5 m", "5", "How long is the rope?", 0.0),
        ("8 kg", "8", "What is the mass in grams?", 0.0),
        ("8 kg", "8", "求质量（单位：kg）", 1.0),
        ("50%", "50", "What percentage passed?", 1.0),
        ("5 apples", "5", "How many apples are left?", 1.0),
        ("12", "12 apples", "How many apples are left?", 1.0),
        ("60", "60 km/h", "What is the speed in km/h?", 1.0),
        ("40", r"\boxed{40\%}", "What percentage of 5 is 2?", 1.0),
        ("40", r"\boxed{4000\%}", "What percentage of 5 is 2?", 0.0),
        ("0.14", r"\boxed{14\%}", "What percentage of 50 is 7?", 1.0),
        ("40", "4000%", "占百分之几？", 0.0),
        ("0.4", "40%", "What is 20 percent of 2?", 1.0),
        ("60", "60 m/s", "What is the speed in km/h?", 0.0),
    ],
)
def test_the_question_may_state_the_unit(reference, answer, question, accuracy):
    assert verify(reference, answer, question=question) == accuracy


@pytest.mark.parametrize(
    ("reference", "answer", "question", "accuracy"),
    [
        ("3000", r"3\text{ thousand}", "", 1.0),
        ("8", r"8\text{ ducks}", "", 1.0),
        ("8", r"8\text{ pairs}", "", 1.0),
        ("8", r"8\ \text{(units)}", "", 1.0),
        ("8", r"8\text{ sq. units}", "Find the area.", 1.0),
        ("8", r"8\text{ pairs}", "How many shoes are there?", 0.0),
        ("8", r"8\text{ m}", "How many kilometers long is it?", 0.0),
        *(
            ("8", rf"8\text{{{words}}}", "", 0.0)
            for words in (" thousand", " dozen", " squared", " factorial", " ninths", " is wrong")
        ),
        ("8", r"8\mathrm{x}", "", 0.0),
        ("8", r"8\mathrm{k}", "", 0.0),
    ],
)
def test_words_set_as_text_say_what_they_say_elsewhere(reference, answer, question, accuracy):
    assert verify(reference, rf"\boxed{{{answer}}}", question=question) == accuracy


def test_percentages_stay_numbers_and_units_make_quantities():
    assert route_of("50%") == "number"
    assert route_of("50 km") == "quantity"
    assert read_quantity("3 kg·m/s²").unit == (("kilogram", 1), ("meter", 1), ("second", -2))


@given(
    st.integers(1, 10**6), st.sampled_from([("km", "m", 1000), ("kg", "g", 1000), ("h", "s", 3600)])
)
def test_conversion_is_exact(number, units):
    large, small, factor = units
    assert verify(f"{number} {large}", f"{number * factor} {small}") == 1.0
    assert verify(f"{number} {large}", f"{number * factor + 1} {small}") == 0.0
