import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.align.claims import rules
from rl.align.claims.language_model import (
    DIVIDER,
    MAX_CLAIMS,
    Unreadable,
    divide,
    parse_claims,
    parse_questions,
)
from rl.align.claims.types import Claim, Response
from rl.loop.stages import Prompt

TWO = ["The cup is red.", "There are 2 dogs."]
ASK = " Please answer yes or no."


@pytest.mark.parametrize(
    "reply",
    [
        "1. The cup is red.\n2. There are 2 dogs.",
        "Here are the facts:\n\n1) The cup is **red**.\n2) There are  2 dogs.\n",
        "- The cup is red.\n- There are 2 dogs.\n- the cup is red.",
        '["The cup is red.", "There are 2 dogs."]',
        '```json\n{"claims": ["The cup is red.", "There are 2 dogs."]}\n```',
        '[{"claim": "The cup is red."}, {"claim": "There are 2 dogs."}]',
        "<think>\n1. What?\n</think>\n\n1. The cup is red.\n2. There are 2 dogs.",
    ],
)
def test_lists_of_claims_in_their_forms(reply):
    assert parse_claims(reply) == TWO


@pytest.mark.parametrize("reply", ["NONE", "None.", "No factual claims.", "[]", '{"claims": []}'])
def test_a_reply_may_say_that_there_are_no_claims(reply):
    assert parse_claims(reply) == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "truncated"),
        ("<think>\nlet me see", "truncated"),
        ("", "empty"),
        ("```\n\n```", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("The cup is red.", "no_list"),
        ("1. The cup is red.\nI hope this helps.", "no_list"),
        ("1. The cup is red.\n3. There are 2 dogs.", "numbering"),
        ("1. The cup is red.\n- There are 2 dogs.", "numbering"),
        ("2. The cup is red.", "numbering"),
        ('["The cup is red.", "There', "json"),
        ("[" * 100_000, "json"),
        ('{"facts": ["The cup is red."]}', "json"),
        ("[1, 2]", "json"),
        ("1. Is the cup red?", "not_a_claim"),
        ("1. ...", "not_a_claim"),
        (f"1. The cup is {'very ' * 200}red.", "not_a_claim"),
        ("\n".join(f"- Cup {i} is red." for i in range(MAX_CLAIMS + 1)), "too_many"),
    ],
)
def test_what_cannot_be_read_says_why(reply, reason):
    with pytest.raises(Unreadable) as caught:
        parse_claims(reply)
    assert caught.value.failure.reason == reason


def test_questions_end_with_the_request_once():
    reply = "1. Is the cup red?\n2. Are there 2 dogs? Please answer with yes or no."
    assert parse_questions(reply, 2) == [f"Is the cup red?{ASK}", f"Are there 2 dogs?{ASK}"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("1. Is the cup red?", "count"), ("1. Is it?\n2. It is.", "not_a_question"), ("", "empty")],
)
def test_questions_that_cannot_be_taken(reply, reason):
    with pytest.raises(Unreadable) as caught:
        parse_questions(reply, 2)
    assert caught.value.failure.reason == reason


def divided(replies, answer="A red cup."):
    asked = []

    async def ask(messages):
        asked.append(messages)
        return replies[len(asked) - 1]

    prompt = Prompt("a", ({"role": "user", "content": "What is seen?"},), "")
    result = asyncio.run(divide(Response(prompt, "short", 0, (1,), "text", answer), ask))
    return result, asked


def test_a_response_is_divided_by_two_requests():
    result, asked = divided(["1. The cup is red.", "1. Is the cup red?"])
    assert result.claims == (Claim("The cup is red.", f"Is the cup red?{ASK}"),)
    assert (result.divider, result.fallback) == (DIVIDER, None)
    for messages, shown in zip(
        asked,
        (
            "Question:\nWhat is seen?\n\nAnswer:\nA red cup.\n\nFacts that the answer states:",
            "Statements:\n1. The cup is red.\n\nQuestions:",
        ),
        strict=True,
    ):
        assert [message["role"] for message in messages] == ["system", "user"]
        assert messages[1]["content"] == shown


def test_an_unreadable_reply_leaves_it_to_the_rules():
    result, asked = divided(["I cannot do that."])
    assert [claim.text for claim in result.claims] == [
        'The answer to "What is seen?" is A red cup.'
    ]
    assert (result.divider, result.fallback, len(asked)) == (rules.DIVIDER, "claims/refusal", 1)


def test_unreadable_questions_leave_the_claims():
    result, _ = divided(["1. The cup is red.", None])
    assert result.claims == (Claim("The cup is red.", f"Is it correct that the cup is red?{ASK}"),)
    assert (result.divider, result.fallback) == (DIVIDER, "questions/truncated")


def test_without_answer_or_claims_nothing_more_is_asked():
    assert divided([], answer=None)[0].claims == ()
    assert divided([], answer=" \n")[1] == []
    result, asked = divided(["NONE"])
    assert (result.claims, result.fallback, len(asked)) == ((), None, 1)


@given(st.text(max_size=80))
def test_any_reply_is_read_or_refused_with_a_reason(reply):
    try:
        claims = parse_claims(reply)
    except Unreadable as error:
        assert error.failure.reason.replace("_", "").isalpha()
    else:
        assert all(claim == " ".join(claim.split()) and claim for claim in claims)
