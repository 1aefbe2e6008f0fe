from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.align.claims.types import (
    Claim,
    JudgedResponse,
    Label,
    PreferencePair,
    Response,
    RewardedResponse,
)
from rl.align.pairing import balanced, mine_pairs, select_pairs
from rl.loop.stages import Prompt
from rl.run.ledger import LedgerRow

YES, NO = Label(0.75, 0.25), Label(0.25, 0.75)


def judged(prompt_id, place, wrong, text=None, mode="short", right=1):
    text = f"answer {place}" if text is None else text
    labels = (NO,) * wrong + (YES,) * right
    claims = tuple(Claim(f"c{i}", f"q{i}?") for i in range(len(labels)))
    response = Response(Prompt(prompt_id, (), ""), mode, place, (place,), text, text)
    return JudgedResponse(response, claims, labels)


def ids(selection):
    return [pair.id for pair in selection.pairs]


def test_the_pairs_of_a_worked_example():
    # Scores of prompt a: 0, -1, -1, -2; the two with -1 make no pair, and 0 is better than each.
    one = judged("a", 4, 0)
    responses = [
        judged("a", 0, 0),
        judged("a", 1, 1),
        judged("a", 2, 1),
        judged("a", 3, 2),
        # The same words as number 0, by another reading worse.
        judged("a", 9, 1, text="answer 0"),
        # No answer, no claims, no label.
        JudgedResponse(replace(one.response, answer=None), (), ()),
        judged("a", 5, 0, right=0),
        JudgedResponse(judged("a", 6, 0).response, one.claims, (None,)),
        # Other modes and prompts are never mixed.
        judged("a", 0, 3, mode="long"),
        judged("b", 0, 5),
    ]
    selection = select_pairs(responses, seed=0, per_prompt=99)
    assert ids(selection) == [
        "a/short/0>1",
        "a/short/0>2",
        "a/short/0>3",
        "a/short/1>3",
        "a/short/2>3",
        "a/short/9>3",
    ]
    assert selection.counts == {
        "responses/used": 7,
        "responses/no_answer": 1,
        "responses/no_claims": 1,
        "responses/no_label": 1,
        "pairs/identical_text": 1,
        "pairs/gap_too_small": 3,
        "pairs/kept": 6,
    }
    two = select_pairs(responses, seed=0)
    assert len(two.pairs) == 2 and set(ids(two)) < set(ids(selection))
    assert two.counts["pairs/over_limit"] == 4
    assert ids(select_pairs(responses, seed=0, gap=2, per_prompt=99)) == ["a/short/0>3"]


def test_other_seeds_draw_other_pairs_and_other_prompts_change_none():
    responses = [judged("a", place, wrong=place) for place in range(8)]
    drawn = {tuple(ids(select_pairs(responses, seed))) for seed in range(20)}
    assert len(drawn) > 10
    more = [*responses, *(judged("0", place, wrong=place) for place in range(8))]
    assert ids(select_pairs(more, 3))[2:] == ids(select_pairs(responses, 3))


def test_nothing_to_pair_gives_nothing():
    empty = select_pairs([], seed=0)
    assert (empty.pairs, empty.counts, empty.balance) == ((), {}, None)
    alike = select_pairs([judged("a", 0, 1), judged("a", 1, 1)], seed=0)
    assert (alike.pairs, alike.balance) == ((), None)


def with_words(prompt_id, chosen, rejected):
    words = [
        " ".join(["w"] * (count - 1) + [end]) for count, end in ((chosen, "c"), (rejected, "r"))
    ]
    return [judged(prompt_id, 0, 0, words[0]), judged(prompt_id, 1, 1, words[1])]


def test_length_balance_of_a_worked_example():
    # Words of chosen and rejected: 10/10, 4/10, 12/10, 9/10. With ratios up to 0.08 the first and
    # third stay: 11 to 10, 0.1 apart. From 0.10 the fourth as well: 31 to 30, 0.033. From 0.60 all:
    # 35 to 40, 0.125. So 0.10 to 0.58 are best, of which the largest is taken.
    lengths = {"a": (10, 10), "b": (4, 10), "c": (12, 10), "d": (9, 10)}
    responses = [one for name, (c, r) in lengths.items() for one in with_words(name, c, r)]
    selection = select_pairs(responses, seed=0)
    assert ids(selection) == ["a/short/0>1", "c/short/0>1", "d/short/0>1"]
    assert selection.counts["pairs/chosen_too_short"] == 1
    balance = selection.balance
    before = {"ratio": 0.58, "chosen_before": 8.75, "rejected_before": 10.0}
    assert balance == before | {"chosen": pytest.approx(31 / 3), "rejected": 10.0}


def test_no_ratio_keeps_a_chosen_response_of_next_to_nothing():
    selection = select_pairs(with_words("a", 1, 100), seed=0)
    assert (selection.pairs, selection.balance) == ((), None)
    assert selection.counts["pairs/chosen_too_short"] == 1


def test_words_of_scripts_without_spaces_are_characters():
    chosen, rejected = judged("a", 0, 0, "a red 杯子 on  it\n"), judged("a", 1, 1, "天空是蓝色 \n")
    _, balance = balanced([PreferencePair(chosen, rejected)])
    assert (balance["chosen"], balance["rejected"]) == (6, 5)


RESPONSES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["short", "long"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 12),
    ),
    max_size=24,
)


@settings(max_examples=60)
@given(RESPONSES, st.integers(0, 9), st.randoms(use_true_random=False))
def test_what_holds_for_all_pairs(items, seed, shuffler):
    responses = [
        judged(prompt_id, place, wrong, " ".join([f"w{wrong}"] * words), mode, right)
        for place, (prompt_id, mode, wrong, right, words) in enumerate(items)
    ]
    selection = select_pairs(responses, seed)
    for pair in selection.pairs:
        assert pair.chosen.score >= pair.rejected.score + 1
        assert pair.chosen.response.key[:2] == pair.rejected.response.key[:2]
        assert pair.chosen.response.answer != pair.rejected.response.answer
    for prompt_id in "abc":
        assert sum(pair.prompt.id == prompt_id for pair in selection.pairs) <= 2
    before = selection.counts.get("pairs/chosen_too_short", 0) + len(selection.pairs)
    if selection.balance is not None:
        kept, _ = balanced(selection.pairs)
        assert before >= len(kept) > 0
    shuffled = responses[:]
    shuffler.shuffle(shuffled)
    assert select_pairs(shuffled, seed) == selection


def row(group_id, text, reward, accuracy=None, prompt_id="p", finish_reason="stop"):
    return LedgerRow(
        step=1,
        group_id=group_id,
        prompt_id=prompt_id,
        task="auto",
        messages='[{"role": "user", "content": "q?"}]',
        mode="long",
        first_version=0,
        last_version=0,
        text=text,
        reasoning=None,
        answer=text,
        reference="27",
        finish_reason=finish_reason,
        num_tokens=3,
        reward=reward,
        parts={} if accuracy is None else {"accuracy": accuracy},
        route="",
        failure=None,
        preference_answer=None,
        advantage=None,
        mismatch=None,
        media='[{"form": "file", "kind": "image", "path": "/a.png"}]',
    )


def encode(row):
    return tuple(map(ord, row.text)) + ((0,) if row.finish_reason == "stop" else ())


LEDGER = [
    row("1/0/0", "27", 1.1, 1.0),
    row("1/0/0", "28", 0.1, 0.0, finish_reason="length"),
    row("1/0/0", "29", 0.3, 0.0),
    row("1/0/0", "30", None),
    row("1/0/0", "27", 0.9, 1.0),
    # Another group of the prompt: never paired with the first.
    row("2/0/0", "31", -1.0, 0.0),
]


def test_pairs_of_a_ledger_are_of_one_group_with_a_gap():
    selection = mine_pairs(LEDGER, encode, seed=0, gap=0.5, per_prompt=9)
    assert ids(selection) == [
        "p/1/0/0/long/0>1",
        "p/1/0/0/long/0>2",
        "p/1/0/0/long/4>1",
        "p/1/0/0/long/4>2",
    ]
    assert selection.counts == {
        "responses/used": 5,
        "responses/no_score": 1,
        "pairs/gap_too_small": 1,
        "pairs/identical_text": 1,
        "pairs/kept": 4,
    }
    first = selection.pairs[0]
    assert isinstance(first.chosen, RewardedResponse)
    assert (first.chosen.score, first.rejected.score) == (1.1, 0.1)
    assert first.chosen.response.token_ids == (50, 55, 0)
    assert first.rejected.response.token_ids == (50, 56)
    assert first.prompt.messages == ({"role": "user", "content": "q?"},)
    assert first.prompt.media[0].kind == "image"
    assert len(mine_pairs(LEDGER, encode, seed=0, gap=0.5).pairs) == 2


def test_pairs_of_a_ledger_by_accuracy():
    selection = mine_pairs(LEDGER, encode, 0, gap=1.0, by="accuracy", per_prompt=9)
    assert [pair.chosen.score - pair.rejected.score for pair in selection.pairs] == [1.0] * 4


def test_a_reward_that_does_not_differ_makes_no_pair():
    rows = [row("1/0/0", "27", 1.0), row("1/0/0", "28", 1.0)]
    assert mine_pairs(rows, encode, 0, gap=0.0).counts["pairs/gap_too_small"] == 1
