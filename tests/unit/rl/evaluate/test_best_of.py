import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.evaluate import best_of
from rl.evaluate.best_of import ROUNDING, BestOf, Choice, best_of_figures, choices, choose
from rl.evaluate.evaluation import NothingAnswered, Sample

BETA = 0.1
rewards = st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=8)


def sample(prompt, number, tokens=4, accuracy=0.0, mode="long"):
    return Sample(prompt, mode, number, "12", tokens=tokens, accuracy=accuracy)


def reward(policy, reference, tokens, beta):
    response = sample("p", 0, tokens)
    (choice,) = choices([response], {response.key: policy}, {response.key: reference}, beta)
    return choice.rewards[0]


def test_the_reward_by_hand():
    # Two tokens that the policy finds as probable as 1/2 and 1/4, the reference 1/8 and 1/16.
    policy, reference = math.log(1 / 2) + math.log(1 / 4), math.log(1 / 8) + math.log(1 / 16)
    assert reward(policy, reference, 2, 0.1) == pytest.approx(0.1 / 2 * math.log(16))
    assert reward(policy, reference, 2, 0.1) == pytest.approx(0.1386294)
    assert reward(-3.0, -3.0, 5, 0.1) == 0.0
    assert reward(-6.0, -2.0, 8, 0.1) == pytest.approx(-0.05)


def test_without_the_length_another_response_would_be_chosen():
    """A long response gains 4 nats over 16 tokens, a short one 2 over 2: 0.25 and 1 a token."""
    samples = [sample("p", 0, tokens=16), sample("p", 1, tokens=2)]
    policy = {samples[0].key: -6.0, samples[1].key: -3.0}
    reference = {samples[0].key: -10.0, samples[1].key: -5.0}
    (choice,) = choices(samples, policy, reference, BETA)
    assert choice == Choice("p", "long", 1, (pytest.approx(0.025), pytest.approx(0.1)))
    sums = [BETA * (policy[one.key] - reference[one.key]) for one in samples]
    assert choose(sums, BETA) == 0


def test_of_equally_good_responses_the_first_is_chosen():
    assert choose([0.1, 0.3, 0.3], BETA) == 1
    assert choose([0.0, 0.0], BETA) == 0
    rounding = BETA * ROUNDING
    assert choose([0.3 - 0.9 * rounding, 0.3], BETA) == 0
    assert choose([0.3 - 1.1 * rounding, 0.3], BETA) == 1


def test_a_response_without_a_reward_is_never_chosen():
    assert choose([None, -0.5, None], BETA) == 1
    assert choose([None, None], BETA) is None


@given(rewards)
def test_no_response_is_better_than_the_chosen_one_by_more_than_rounding(found):
    place = choose(found, BETA)
    known = [one for one in found if one is not None]
    assert (place is None) == (not known)
    if place is not None:
        best = found[place]
        assert best is not None and best >= max(known) - BETA * ROUNDING


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8), st.floats(0.01, 10))
def test_beta_scales_the_rewards_and_leaves_the_choice(ratios, beta):
    samples = [sample("p", n) for n in range(len(ratios))]
    policy = {one.key: float(ratio) for one, ratio in zip(samples, ratios, strict=True)}
    reference = dict.fromkeys(policy, -1.0)
    ((one,), (other,)) = (choices(samples, policy, reference, b) for b in (1.0, beta))
    assert one.sample == other.sample == ratios.index(max(ratios))
    assert other.rewards == pytest.approx([beta * r for r in one.rewards])


def test_every_prompt_and_mode_has_a_choice_of_its_own():
    samples = [sample(p, n, mode=mode) for mode in ("short", "long") for p in "ab" for n in (0, 1)]
    policy = {one.key: 0.0 for one in samples}
    # The second response of a in short mode and the first of b in long mode gained.
    reference = policy | {("a", "short", 1): -1.0, ("b", "long", 1): 1.0}
    found = choices(samples, policy, reference, BETA)
    chosen = [(choice.mode, choice.prompt_id, choice.sample) for choice in found]
    assert chosen == [("short", "a", 1), ("short", "b", 0), ("long", "a", 0), ("long", "b", 0)]


def test_the_figures_by_hand():
    samples = [
        *(sample("a", n, tokens, right) for n, (tokens, right) in enumerate([(2, 1.0), (6, 0.0)])),
        *(sample("b", n, tokens, right) for n, (tokens, right) in enumerate([(4, 0.0), (8, 1.0)])),
        *(sample("c", n, 4, 1.0) for n in (0, 1)),
        *(sample("d", n, 4, 1.0) for n in (0, 1)),
    ]
    chosen = [
        Choice("a", "long", 0, (0.3, 0.1)),
        Choice("b", "long", 0, (0.2, -0.1)),
        Choice("c", "long", 1, (None, 0.1)),
        Choice("d", "long", None, (None, None)),
    ]
    figures = best_of_figures({one.key: one for one in samples}, chosen)
    # Right, wrong, right, and a prompt with nothing to choose from.
    assert figures == {
        "long": BestOf(
            accuracy=0.5,
            half_width=pytest.approx(1.96 * math.sqrt(0.25 / 4)),
            tokens_mean=pytest.approx(10 / 3),
            reward_mean=pytest.approx(0.2),
            unrewarded=3,
        )
    }


def test_a_mode_with_nothing_to_choose_from_is_an_error():
    with pytest.raises(NothingAnswered, match="no response of mode long has a reward"):
        best_of_figures({}, [Choice("a", "long", None, (None,))])


def test_every_figure_is_defined():
    assert set(best_of.METRICS) == set(BestOf.__dataclass_fields__)
