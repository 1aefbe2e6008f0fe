"""Multiple choice, and yes or no."""

import pytest

from rewards.rules.kinds.choices import read_options
from rewards.rules.verifier import route_of
from tests.unit.rewards.rules.test_rules import verify

CAPITAL = "What is the capital of France?\nA) London\nB) Paris\nC) Rome\nD) Berlin"
PRIME = "Which is prime? (A) 10 (B) 12 (C) 13 (D) 15"
SEVERAL = "Select all that apply: A) 1 B) 2 C) 3 D) 4"


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (CAPITAL, {"A": "London", "B": "Paris", "C": "Rome", "D": "Berlin"}),
        (PRIME, {"A": "10", "B": "12", "C": "13", "D": "15"}),
        ("选择：A．3 B．4 C．5", {"A": "3", "B": "4", "C": "5"}),
        ("Is vitamin C) good?", {}),
        ("", {}),
    ],
)
def test_options_are_read_from_the_question(question, options):
    assert read_options(question) == options


@pytest.mark.parametrize(
    ("reference", "answer", "question"),
    [
        ("B", "(B)", ""),
        ("B", "b", CAPITAL),
        ("B", "Option B", ""),
        ("B", "B is correct.", ""),
        ("B", "故选：B", ""),
        ("B", "因此答案选B。", CAPITAL),
        ("B", "由题意可知，答案应选B", CAPITAL),
        ("B", "两边相等，故本题选 B", CAPITAL),
        ("B", "两边相等，因此正确选项是 B。", CAPITAL),
        ("B", "Paris", CAPITAL),
        ("B", "B) Paris", CAPITAL),
        ("B", "Paris (B)", CAPITAL),
        ("B", "The answer is B) Paris.", CAPITAL),
        ("Paris", "B", CAPITAL),
        ("13", "(C)", PRIME),
        ("C", "13", PRIME),
        ("C. Rome", "Rome", ""),
        ("ABD", "A, B and D", SEVERAL),
    ],
)
def test_a_choice_by_letter_by_text_or_by_both(reference, answer, question):
    assert verify(reference, answer, question=question) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer", "question"),
    [
        ("B", "C", CAPITAL),
        ("B", "本题不应选B，答案选C", CAPITAL),
        ("B", "正确选项不是B", CAPITAL),
        ("B", "London", CAPITAL),
        ("B", "B) London", CAPITAL),
        ("B", "C) Paris", CAPITAL),
        ("Paris", "A) Paris", CAPITAL),
        ("B", "A or B", ""),
        ("B", "A, B", ""),
        ("B", "not B", ""),
        ("B", "B is wrong.", ""),
        ("A", "a", ""),
        ("ABD", "A, B", SEVERAL),
    ],
)
def test_wrong_contradictory_and_several_choices(reference, answer, question):
    assert verify(reference, answer, question=question) == 0.0


@pytest.mark.parametrize(
    ("reference", "answer", "accuracy"),
    [
        ("yes", "Yes, because 7 is prime.", 1.0),
        ("true", "True.", 1.0),
        ("no", "No, it is not.", 1.0),
        ("false", "The statement is false.", 1.0),
        ("是", "是的", 1.0),
        ("对", "正确", 1.0),
        ("否", "不是", 1.0),
        ("yes", "no", 0.0),
        ("yes", "Yes and no", 0.0),
        ("yes", "It is not true.", 0.0),
        ("yes", "Yes. Actually no.", 0.0),
        ("yes", "It depends.", 0.0),
        ("是", "不是", 0.0),
        ("对", "不对", 0.0),
        ("no", "know", 0.0),
    ],
)
def test_yes_and_no(reference, answer, accuracy):
    assert route_of(reference) == "yes_no"
    assert verify(reference, answer) == accuracy
