import pytest

from rl.data.references import accepted_answers, reference_text


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("Paris", ["Paris"]),
        (12, ["12"]),
        (0.5, ["0.5"]),
        (["UK", "Britain"], ["UK", "Britain"]),
        ((7,), ["7"]),
        ('{"a": 1}', ['{"a": 1}']),
    ],
)
def test_a_reference_comes_back_as_the_answers_it_accepts(value, accepted):
    assert accepted_answers(reference_text(value)) == accepted


@pytest.mark.parametrize("value", [None, {"answer": "12"}, [], [["a"]]])
def test_other_references_are_refused_with_words(value):
    with pytest.raises(ValueError, match="must be text, a number or a list of accepted answers"):
        reference_text(value)
