import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.rules.kinds.graded import (
    LEAST,
    MAX_REFERENCE_CHARACTERS,
    normalised,
    similarity,
    transcription_score,
)
from rewards.rules.routes import ROUTES
from rewards.rules.verifier import (
    NotScorable,
    route_of,
    symbolic,
    verify_quickly,
)
from rewards.service import accuracy_route
from rl.data.references import reference_text
from rl.loop.stages import Prompt, Route

LINE = "The library of Velden was opened on 3 May 1887."


@given(st.text(max_size=60), st.text(max_size=60))
def test_similarity_is_symmetric_and_between_0_and_1(left, right):
    alike = similarity(left, right, LEAST)
    assert alike == similarity(right, left, LEAST)
    assert alike == 0 or LEAST <= alike <= 1
    assert (alike == 1) == (left == right)


@given(st.text(max_size=60))
def test_every_text_is_its_own_transcription(text):
    assert similarity(normalised(text), normalised(text), LEAST) == 1


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        (LINE, LINE, 1.0),
        (LINE, LINE.replace("Velden", "Kelden"), 46 / 47),
        (LINE, LINE[:40], 40 / 47),
        ("Velden", "velden", 5 / 6),
        ("1234567890", "123456", 0.6),
        # Below the least that counts: 5 of 10.
        ("1234567890", "12345", 0.0),
        ("1234567890", "12345abcde", 0.0),
        (LINE, "", 0.0),
        (LINE, "I cannot read the region.", 0.0),
        # Two guesses are longer than one text.
        ("Velden", "Velden or Kelso", 0.0),
        # Form, not content.
        ("a b\nc", " a  b c ", 1.0),
        ("50 ﬁelds", "５０ fields", 1.0),
        ("caf\u00e9", "cafe\u0301", 1.0),
        # The marks around the whole answer, and a word before them.
        ("Velden 1887", "<answer>Velden 1887</answer>", 1.0),
        ("Velden 1887", "It said: \\boxed{Velden 1887}", 1.0),
        ("Velden 1887", "```\nVelden 1887\n```", 1.0),
        ("Velden 1887", "Let me see.</think>\n\nVelden 1887", 1.0),
        ("f{x} = {y}", "\\boxed{f{x} = {y}}", 1.0),
    ],
)
def test_score_of_an_answer(reference, answer, score):
    assert transcription_score([reference], answer) == score
    verdict = verify_quickly(reference, answer, "transcription")
    assert (verdict.accuracy, verdict.route) == (score, Route("transcription", 1))
    assert symbolic(reference, answer, "transcription") == score


@pytest.mark.parametrize(
    "reference",
    [
        "The answer is 12. Answer: 13",
        "#### 12",
        "3 or 4",
        "**Bold** and \\boxed{12}",
        "A" * MAX_REFERENCE_CHARACTERS,
    ],
)
def test_a_reference_is_taken_as_it_stands(reference):
    assert verify_quickly(reference, reference, "transcription").accuracy == 1
    assert verify_quickly(reference, "12", "transcription").accuracy == 0


@pytest.mark.parametrize(
    # U+FDFA is one character, and eighteen once normalised.
    "reference",
    ["", " \n ", "A" * (MAX_REFERENCE_CHARACTERS + 1), "\ufdfa" * 223],
)
def test_blank_and_overlong_references_are_refused(reference):
    with pytest.raises(NotScorable):
        verify_quickly(reference, "x", "transcription")


def test_transcription_is_only_ever_asked_for():
    assert all(route_of(text) != "transcription" for text in (LINE, "12", LINE * 20))
    assert "transcription" in ROUTES
    by_rules = accuracy_route(Prompt("a/1", (), LINE * 20, "transcription"), has_probability=True)
    assert by_rules == Route("transcription", 1)


def test_an_overlong_answer_scores_nothing():
    reference = "A" * MAX_REFERENCE_CHARACTERS
    assert transcription_score([reference], "A" * 20_001) == 0
    assert transcription_score([reference], "A" * 6667) == 0
    assert transcription_score([reference], "A" * 6666) == 4000 / 6666


def test_runs_of_combining_marks_are_cut_before_they_are_ordered():
    # In order they would take seconds.
    flood = "a" + "\u0315\u0300" * 9_999
    assert len(normalised(flood)) <= 31
    assert normalised("e\u0301" * 200) == "\u00e9" * 200


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("Acme Ltd", "acme ltd.", 1.0),
        # One letter of eight is wrong.
        ("12 March", "12 Match", 7 / 8),
        # Half of the letters are wrong: the similarity has to be above one half.
        ("abcd", "abxx", 0.0),
        ("abcd", "abcx", 0.75),
        ("abcd", "unrelated words", 0.0),
    ],
)
def test_anls_is_the_similarity_where_it_is_above_one_half(reference, answer, score):
    assert verify_quickly(reference, answer, "anls").accuracy == pytest.approx(score)


def test_anls_takes_the_nearest_of_the_accepted_answers():
    reference = reference_text(["Acme Limited", "Acme"])
    assert verify_quickly(reference, "<answer>acme</answer>", "anls").accuracy == 1.0


@pytest.mark.parametrize(
    ("reference", "answer", "question", "score"),
    [
        ("100", "105", "", 1.0),
        ("100", "95", "", 1.0),
        ("100", "105.1", "", 0.0),
        ("-20", "-20.9", "", 1.0),
        ("0", "0.01", "", 0.0),
        ("12%", "0.12", "", 1.0),
        ("1,000", "1040", "", 1.0),
        ("Light blue", "light blue", "", 1.0),
        ("Asia", "Africa", "", 0.0),
        ("2010", "2008", "In which year was the peak?", 0.0),
        ("2010", "The answer is 2010.", "In which year was the peak?", 1.0),
    ],
)
def test_relaxed_accuracy_allows_five_per_cent(reference, answer, question, score):
    assert verify_quickly(reference, answer, "relaxed", question).accuracy == score


def test_vqa_accuracy_counts_annotators_and_leaves_out_each_in_turn():
    said = reference_text(["red"] * 2 + ["blue"] * 8)
    # red: 2 times one other agrees, 8 times two: (2 * 1/3 + 8 * 2/3) / 10
    assert verify_quickly(said, "Red.", "vqa").accuracy == pytest.approx(0.6)
    assert verify_quickly(said, "the blue", "vqa").accuracy == 1.0
    assert verify_quickly(said, "green", "vqa").accuracy == 0.0
    assert verify_quickly("2", "two", "vqa").accuracy == 1.0
