import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.align.claims.rules import DIVIDER, claims, divide, last_question, question
from rl.align.claims.types import Response
from rl.data.media.names import MediaFile
from rl.loop.stages import Prompt


@pytest.mark.parametrize(
    ("answer", "stated"),
    [
        ("27", "27"),
        (" 27.\n", "27"),
        ("**Paris**", "Paris"),
        ("3, 7, 2", "3, 7, 2"),
        ("first, second, third", "first, second, third"),
        ("red; green", "red; green"),
        ("(B) Paris", "(B) Paris"),
        ("I and II", None),
        ("B", "B"),
        ("Yes!", "yes"),
        ("so 27", "27"),
        ("The answer is \\boxed{27}.", "27"),
        ("So, the final answer is $\\frac{1}{2}$.", "$\\frac{1}{2}$"),
        ("Answer: 27", "27"),
        ("It is 27.", "27"),
        ("答案是27。", "27"),
        ("```\nx = 1\n```\n27", "27"),
        ("x = 5", "x = 5"),
    ],
)
def test_a_bare_answer_becomes_a_claim_with_its_question(answer, stated):
    expected = [] if stated is None else [f'The answer to "a2b9?" is {stated}.']
    assert claims("a2b9?", answer) == expected


def test_a_question_is_quoted_and_may_be_missing():
    assert claims('Say "hi"?', "27") == ["The answer to \"Say 'hi'?\" is 27."]
    assert claims("", "27") == ["The answer is 27."]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # Sentences.
        ("The cat is red. The dog is blue!", ["The cat is red.", "The dog is blue!"]),
        ("It weighs 3.5 kg, e.g. No. 5 does.", ["It weighs 3.5 kg, e.g. No. 5 does."]),
        ("Mr. J. K. Smith of St. Louis runs.", ["Mr. J. K. Smith of St. Louis runs."]),
        ("The U.S. Army is big. It is old.", ["The U.S. Army is big.", "It is old."]),
        ("It started at 5 p.m. The sun is low.", ["It started at 5 p.m.", "The sun is low."]),
        ("The sum is 27.The dog is red.", ["The sum is 27.", "The dog is red."]),
        ("www.site.com is a page.", ["www.site.com is a page."]),
        ("天空是蓝色的。地面是湿的！", ["天空是蓝色的。", "地面是湿的！"]),
        # A sentence is one claim, whatever it is joined of, and a pronoun stays as it is.
        ("天空是蓝色的，但是地面是湿的。", ["天空是蓝色的，但是地面是湿的。"]),
        ("The cat is red, and the dog is not.", ["The cat is red, and the dog is not."]),
        ("There is a black cat. It is old.", ["There is a black cat.", "It is old."]),
        ("The dog barks. It is old.", ['The answer to "q?" is The dog barks.', "It is old."]),
        ("The cat and the dog are red.", ["The cat and the dog are red."]),
        ("He said that a is b, and c is d.", ["He said that a is b, and c is d."]),
        ("If it is wet, and it is cold, it is bad.", ["If it is wet, and it is cold, it is bad."]),
        # What states no fact.
        ("Hello! Is it red? I think it is. Perhaps it was.", []),
        ("What a beautiful day it is! The man seems to be sad. She may be tired.", []),
        ("I'm sorry, but I cannot help with that.", []),
        ("I hope this helps! Let me know if it is wrong.", []),
        ("可能是白天。你好！", []),
        ("", []),
        ("...\n---\n", []),
        ("The digit 7 appears twice in May.", ["The digit 7 appears twice in May."]),
        # What leads a sentence in.
        ("Yes, there is a dog.", ["There is a dog."]),
        ("However, in total, the cups are red.", ["The cups are red."]),
        ("First, the cup is red.", ["The cup is red."]),
        ("I see a cat. We can see that it is red.", ["One can see a cat.", "It is red."]),
        # Lists and tables.
        (
            "The picture shows:\n\n- a cat\n2. **two dogs**\n* The sky is blue.",
            ["The picture shows a cat.", "The picture shows two dogs.", "The sky is blue."],
        ),
        (
            "Sure, here is what I see:\n- a cat",
            ['The answer to "q?" is a cat.'],
        ),
        ("# Title\nThe cat is red.", ["The cat is red."]),
        ("| City | Size |\n|---|---|\n| Paris | 2 |", ['The answer to "q?" is Paris, 2.']),
        ("2+9=11\n11+8=19", ["2+9=11.", "11+8=19."]),
        ("- a cat\n- a dog", [f'The answer to "q?" includes "a {one}".' for one in ("cat", "dog")]),
        # Each once.
        ("A cat is red. A dog is red. A cat is red.", ["A cat is red.", "A dog is red."]),
        ("The cat is red. THE CAT IS RED.", ["The cat is red."]),
    ],
)
def test_answers_and_their_claims(answer, expected):
    assert claims("q?", answer) == expected


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The cup was not red.", "the cup was not red"),
        ("Paris is a city.", "Paris is a city"),
        ('The answer to "a?" is 27.', 'the answer to "a?" is 27'),
        ("天空是蓝色的。", "“天空是蓝色的”"),
    ],
)
def test_a_question_keeps_tense_and_denial(claim, expected):
    assert question(claim) == f"Is it correct that {expected}? Please answer yes or no."


def test_a_response_is_divided_by_its_answer_and_last_question():
    content = [{"type": "image"}, {"type": "text", "text": "How\nmany?"}]
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": content},
    )
    prompt = Prompt("a", messages, "", media=(MediaFile("image", "/a.png"),))
    assert last_question(prompt) == "How many?"
    divided = divide(Response(prompt, "long", 0, (1,), "<think>8</think>7", "7"), "claims/empty")
    (claim,) = divided.claims
    assert claim.text == 'The answer to "How many?" is 7.'
    assert claim.question == (
        'Is it correct that the answer to "How many?" is 7? Please answer yes or no.'
    )
    assert (divided.divider, divided.fallback) == (DIVIDER, "claims/empty")
    assert divide(Response(prompt, "long", 0, (1,), "<think>8", None)).claims == ()
    assert last_question(Prompt("a", (), "")) == ""


ALPHABET = st.text(st.sampled_from("aT .,:;!?\n-*|#`\"'()是。1=[]{}\\it and"), max_size=60)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=60), ALPHABET))
def test_any_text_gives_distinct_claims_and_questions(answer):
    found = claims("q?", answer)
    assert len({claim.casefold() for claim in found}) == len(found)
    assert all(
        claim.strip() and question(claim).endswith(" Please answer yes or no.") for claim in found
    )
    assert claims("q?", answer) == found


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "unit", ["a.", "the cat ", ", and the cat is red", ";", "\\boxed{", "[", ".", "so, ", "It is. "]
)
def test_long_texts_are_divided_in_linear_time(unit):
    # A second or less; work that grows as the square would take minutes.
    assert len(claims("q?", unit * (100_000 // len(unit)))) <= 1
