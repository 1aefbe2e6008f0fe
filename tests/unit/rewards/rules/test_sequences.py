"""Lists, sets, tuples, intervals and matrices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.rules.verifier import route_of
from tests.unit.rewards.rules.test_rules import verify


@pytest.mark.parametrize(
    ("reference", "question", "route"),
    [
        ("(1,2)", "", "tuple"),
        ("(1,2)", "Solve the inequality.", "interval"),
        ("(1,2]", "", "interval"),
        (r"(-\infty, 3)", "", "interval"),
        ("x >= 2", "", "interval"),
        ("[1,2]", "", "list"),
        ("[[1,2],[3,4]]", "", "matrix"),
        ("{1,2}", "", "set"),
        (r"\pm 2", "", "set"),
        ("x=1 or x=2", "", "set"),
        ("red, green", "", "list"),
        ("red, green", "Name them in any order.", "unordered_list"),
        ("rock and roll", "", "text"),
        ("C++", "", "text"),
        ("1,234", "", "number"),
    ],
)
def test_brackets_and_the_question_decide(reference, question, route):
    assert route_of(reference, question=question) == route


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("(-1,2]", "-1<x<=2"),
        ("(-1,2]", r"x \in (-1, 2]"),
        ("x<5", "5>x"),
        ("1 < x < 5", "x > 1 and x < 5"),
        (r"(-\infty,-1)\cup(1,\infty)", "x>1 or x<-1"),
        ("(-∞, 0) ∪ (0, ∞)", "x ≠ 0"),
        ("[1, sqrt(2)]", r"1\le x\le\sqrt{2}"),
        (r"(-\infty, \infty)", "all real numbers"),
        ("{1,2,3}", "{3,2,1}"),
        ("{1,2}", "{1,1,2}"),
        ("{1,2}", "x=1 or x=2"),
        ("{1,2}", "1 or 2"),
        (r"\pm 2", "2, -2"),
        ("∅", "no solution"),
        ("(1,2)", "x=1, y=2"),
        ("(1/2, 3)", "(0.5, 3)"),
        ("(1,2,3)", r"\langle 1,2,3\rangle"),
        ("(1,2)", "The point is (1, 2)."),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,4]]"),
        ("[[1,0],[0,1]]", "[1 0; 0 1]"),
        (r"\begin{pmatrix}\sqrt{2}\\1\end{pmatrix}", r"A=\begin{bmatrix}\sqrt2\\1\end{bmatrix}"),
        ("apple, banana, cherry", "1. apple\n2. banana\n3. cherry"),
        ("['a', 'b']", "a and b"),
        ("北京、上海", "北京，上海"),
    ],
)
def test_equal_in_another_form(reference, answer):
    assert verify(reference, answer) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("(-1,2]", "(-1,2)"),
        ("(-1,2]", "-1<=x<=2"),
        ("x<5", "x<=5"),
        ("x<5", "y<5"),
        (r"(-\infty,-1)\cup(1,\infty)", "(-1,1)"),
        (r"(-\infty,-1)\cup(1,\infty)", "x<-1 and x>1"),
        ("[1,2]", "(1,2)"),
        ("[0,1]", "{0,1}"),
        ("{1,2,3}", "{1,2}"),
        ("{2,3}", "x=2, y=3"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "x=2, y=1"),
        ("(1,2)", "(1,2) or (2,1)"),
        ("[[1,2],[3,4]]", "[[1,3],[2,4]]"),
        ("[[1],[2]]", "[[1,2]]"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
        ("apple, banana", "banana, apple"),
        ("apple, banana", "apple, banana, cherry"),
        ("1, 2", "12"),
    ],
)
def test_near_misses(reference, answer):
    assert verify(reference, answer) == 0.0


# The first call loads what the others find loaded.
@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=8, unique=True), st.randoms())
def test_order_matters_in_lists_and_not_in_sets(numbers, random):
    mixed = list(numbers)
    random.shuffle(mixed)
    wanted, given_ = (", ".join(map(str, items)) for items in (numbers, mixed))
    assert verify(wanted, given_, "unordered_list") == 1.0
    assert verify(f"{{{wanted}}}", f"{{{given_}}}") == 1.0
    assert verify(wanted, given_, "list") == float(mixed == numbers)
    assert verify(f"{{{wanted}}}", f"{{{given_}, 100}}") == 0.0


@given(st.integers(-50, 50), st.integers(1, 50), st.sampled_from(["()", "(]", "[)", "[]"]))
def test_an_interval_is_its_inequality_with_the_same_ends(low, length, ends):
    high = low + length
    signs = {"(": "<", "[": "<=", ")": "<", "]": "<="}
    reference = f"{ends[0]}{low}, {high}{ends[1]}"
    inequality = f"{low} {signs[ends[0]]} x {signs[ends[1]]} {high}"
    assert verify(reference, inequality, "interval") == 1.0
    for other in {"()", "(]", "[)", "[]"} - {ends}:
        assert verify(reference, f"{other[0]}{low}, {high}{other[1]}", "interval") == 0.0
