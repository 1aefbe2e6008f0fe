"""The choice whether to reason: which tokens make it, what it is credited with, what it learns."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from policy.builtin.tokenizer import make_tokenizer
from rl.config.policy import AlgorithmConfig
from rl.config.rollout import ModeConfig, PairsConfig
from rl.loop.advantages import (
    KEPT,
    MARGIN,
    MOST_PAID,
    PRICE_STEP,
    ChoicePrices,
    TargetPrice,
    choice_advantages,
    group_advantages,
    priced,
    utilities,
    within_kinds,
)
from rl.loop.batching import collate
from rl.loop.loop import Parts, TrainingLoop
from rl.loop.losses import (
    SETTLED,
    GlobalCounts,
    choice_loss,
    loss_metrics,
    reduce_sums,
)
from rl.loop.modes import draw_pairs
from rl.loop.stages import (
    Choice,
    ChoiceCredit,
    ChoiceTokens,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Score,
    ScoredGroup,
    TrainSample,
    Trajectory,
)
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config

KINDS = ChoiceTokens(long=(7,), short=(8, 9, 8))
LONG, SHORT = Choice(True, 1), Choice(False, 3)
PROMPT = Prompt("p", (), "12")


def test_a_choice_is_read_from_the_first_token_and_held_to_the_others():
    assert KINDS.read([7, 1, 2]) == LONG
    assert KINDS.read([8, 9, 8, 5], is_forced=True) == Choice(False, 3, is_forced=True)
    # Began to answer at once, and then wrote something else: still that choice, and a leak.
    assert KINDS.read([8, 1, 2]) == Choice(False, 1, is_kept=False)
    assert KINDS.read([8, 9]) == Choice(False, 1, is_kept=False)
    # Behind an open tag anything is reasoning; no token of it said so.
    assert KINDS.read([5, 7]) == Choice(True, 0, is_kept=False)


def sampled(response: list[int], choice: Choice | None, finish_reason="stop") -> Trajectory:
    ids = np.array([1, 2, *response], np.int32)
    return Trajectory(
        token_ids=ids,
        loss_mask=np.arange(len(ids)) >= 2,
        rollout_logprobs=np.where(np.arange(len(ids)) >= 2, -1.5, 0.0).astype(np.float32),
        versions=(0, 0),
        finish_reason=finish_reason,
        text="",
        reasoning=None,
        answer=None,
        choice=choice,
    )


def group_of(*of: tuple[Choice | None, int, float | None, str]) -> ScoredGroup:
    """of: choice, tokens, accuracy and how it ended, of each trajectory."""
    request = RolloutRequest("0/0/0", PROMPT, "auto", (1, 2), len(of), 99, 1.0, None)
    trajectories = tuple(sampled([3] * count, choice, end) for choice, count, _, end in of)
    scores = tuple(
        Score(None) if accuracy is None else Score(accuracy + 9, {"accuracy": accuracy})
        for *_, accuracy, _ in of
    )
    return ScoredGroup(RolloutGroup(request, trajectories), scores)


def test_only_accuracy_and_length_are_compared_between_kinds():
    """Not the reward, whose other parts do not mean the same in both kinds."""
    scored = group_of(
        (LONG, 100, 1.0, "stop"),
        (SHORT, 10, 1.0, "stop"),
        (LONG, 4000, 1.0, "stop"),
        (LONG, 100, 1.0, "length"),
        (SHORT, 10, None, "stop"),
        (Choice(True, 0, is_kept=False), 10, 1.0, "stop"),
    )
    assert utilities(scored, price=0.5) == pytest.approx([0.95, 0.995, 0.8, 0.0, None, 0.995])
    # The baseline of the probability reward is what answering at once scores.
    (probable,) = scored.scores[:1]
    probable = dataclasses.replace(probable, parts={"accuracy": 0.1, "probability": 0.7})
    scored = ScoredGroup(scored.group, (probable, *scored.scores[1:]))
    assert utilities(scored, price=0.0)[0] == 0.7


def test_a_price_never_makes_a_wrong_answer_the_better_one():
    assert priced(1.0, 10**6, 5.0) == pytest.approx(0.8)
    assert priced(0.0, 10, 5.0) == priced(0.0, 1000, 5.0) == 0.0


def test_responses_are_compared_within_their_kind_and_choices_between_them():
    kinds, rewards = (True, False, True, False), [1.0, 0.0, 0.0, 0.5]
    means = within_kinds(kinds, rewards, lambda r: group_advantages(r, normalize_by_std=False))
    assert means == [0.5, -0.25, -0.5, 0.25]
    assert choice_advantages(kinds, rewards) == (0.125, -0.125, 0.125, -0.125)
    # Both right, and one of them cheaper: nothing for the responses, something for the choice.
    assert choice_advantages((True, False), (0.95, 1.0)) == pytest.approx((-0.025, 0.025))
    # One kind alone, or one response of it without a score, has nothing to be compared with.
    assert choice_advantages((True, True), (1.0, 0.0)) == (0.0, 0.0)
    assert choice_advantages((True, False), (1.0, None)) == (0.0, 0.0)
    # A first token that is neither kind's is answerable for what comes of it.
    strayed = [SHORT, SHORT, LONG, Choice(True, 0, is_kept=False)]
    choices = group_of(*((choice, 9, 1.0, "stop") for choice in strayed)).group.choices
    assert choices == (False, False, True, None)
    assert choice_advantages(choices, (1.0, 1.0, 1.0, 0.0)) == (0.25, 0.25, 0.25, -0.75)


# A policy of two tokens, 0 to answer at once and 1 to reason, with p = pi(0).


def choice_gradient(
    p: float, kinds: list[bool], worth: list[float], is_forced: bool, weight: float = 1.0
) -> float:
    """Derivative of minus the loss by the logit of token 0, of one group."""
    logit = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(torch.stack([logit, torch.zeros_like(logit)]), dim=0)
    samples = [
        TrainSample(
            sampled([int(kind), 5], Choice(kind, 1, is_forced=is_forced)),
            advantage=0.0,
            temperature=1.0,
            choice=ChoiceCredit(credit, weight, Choice(kind, 1, is_forced=is_forced)),
        )
        for kind, credit in zip(kinds, choice_advantages(kinds, worth), strict=True)
    ]
    micro_batch, chosen = collate(samples), logprobs[[int(kind) for kind in kinds]]
    # What was sampled came from the policy itself; a forced choice has a 0 there, which is no
    # log-probability of any engine.
    own = torch.zeros(micro_batch.loss_mask.shape, dtype=torch.float64)
    if not is_forced:
        own = own.masked_scatter(micro_batch.choice_mask, chosen.detach())
    micro_batch = dataclasses.replace(micro_batch, rollout_logprobs=own)
    algorithm = AlgorithmConfig()
    counts = GlobalCounts.of(samples, algorithm)
    loss, _ = choice_loss(chosen, chosen.detach(), chosen.detach(), micro_batch, counts, algorithm)
    (gradient,) = torch.autograd.grad(-loss, logit)
    return gradient.item()


def test_the_gradient_of_a_choice_is_the_one_computed_by_hand():
    """Two of each: mean worths 1 and 0.5, so credits +-0.25; d log pi(0) = 1 - p, d log pi(1) = -p.

    weight x (0.25 (1 - p) 2 + 0.25 p 2) / 4 = weight x 0.125, whatever p is.
    """
    for p in (0.1, 0.5, 0.9):
        kinds, worth = [False, False, True, True], [1.0, 1.0, 1.0, 0.0]
        assert choice_gradient(p, kinds, worth, True, weight=3.0) == pytest.approx(3 * 0.125)


Q_SHORT, Q_LONG = 0.8, 0.5


def outcomes(count: int):
    """All ways in which `count` responses are right or wrong."""
    return itertools.product((0.0, 1.0), repeat=count)


def chance(worth, kinds) -> float:
    rights = [Q_LONG if kind else Q_SHORT for kind in kinds]
    return math.prod(q if w else 1 - q for q, w in zip(rights, worth, strict=True))


@pytest.mark.parametrize("p", [0.03, 0.3, 0.7])
def test_over_pairs_the_mean_gradient_is_a_quarter_of_the_gap_at_any_probability(p):
    """By enumeration of what 2 + 2 forced responses may be worth."""
    kinds = [True, True, False, False]
    mean = sum(
        chance(worth, kinds) * choice_gradient(p, kinds, list(worth), True) for worth in outcomes(4)
    )
    assert mean == pytest.approx((Q_SHORT - Q_LONG) / 4)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.7])
def test_over_free_choices_the_mean_gradient_is_that_of_the_expected_worth(p):
    """By enumeration of three choices and what they may be worth; but for the factor 2 / 3."""
    mean = 0.0
    for kinds in itertools.product((True, False), repeat=3):
        chosen = math.prod(1 - p if kind else p for kind in kinds)
        for worth in outcomes(3):
            gradient = choice_gradient(p, list(kinds), list(worth), False)
            mean += chosen * chance(worth, kinds) * gradient
    assert mean == pytest.approx((Q_SHORT - Q_LONG) * p * (1 - p) * 2 / 3)


def test_a_settled_choice_is_pushed_no_further_and_may_come_back():
    kinds, better_short = [True, False], [0.0, 1.0]
    sure = SETTLED + 0.01
    assert choice_gradient(sure, kinds, better_short, True) == 0.0
    assert choice_gradient(1 - sure, kinds, better_short[::-1], True) == 0.0
    assert choice_gradient(sure, kinds, better_short[::-1], True) == pytest.approx(-0.25)
    # What the policy chose itself is never left alone.
    assert choice_gradient(sure, kinds, better_short, False) == pytest.approx(0.25)


def test_easy_and_hard_prompts_end_apart_and_stay_there():
    """Pairs on two prompts of a policy of two tokens, without KL and without entropy."""
    logits = {"easy": 0.0, "hard": 0.0}
    right = {"easy": {True: 1.0, False: 1.0}, "hard": {True: 0.9, False: 0.2}}
    for _ in range(200):
        for name, of_kind in right.items():
            p = 1 / (1 + math.exp(-logits[name]))
            worth = [priced(of_kind[kind], 50 if kind else 5, 2.0) for kind in (True, False)]
            logits[name] += 8 * choice_gradient(p, [True, False], worth, True)
    shares = {name: 1 / (1 + math.exp(-logit)) for name, logit in logits.items()}
    assert shares["easy"] > 0.9
    assert shares["hard"] < 0.1
    # Settled, and not saturated: another price could still move it.
    assert shares["easy"] < 0.999
    assert shares["hard"] > 0.001


def test_the_weight_of_a_choice_does_not_depend_on_lengths_or_on_how_the_batch_is_cut():
    def loss_of(lengths: list[int], cuts: list[slice]) -> float:
        algorithm = AlgorithmConfig()
        samples = [
            TrainSample(
                sampled([7] + [3] * length, LONG), 1.0, 1.0, choice=ChoiceCredit(credit, 0.5, LONG)
            )
            for length, credit in zip(lengths, (1.0, 2.0, -0.5), strict=True)
        ]
        counts, total = GlobalCounts.of(samples, algorithm), 0.0
        for cut in cuts:
            micro_batch = collate(samples[cut])
            logprobs = torch.full((len(samples[cut]),), -1.5)
            total += choice_loss(*[logprobs] * 3, micro_batch, counts, algorithm)[0].item()
        return total

    whole = [slice(0, 3)]
    expected = -0.5 * (1.0 + 2.0 - 0.5) / 3
    assert loss_of([1, 2, 3], whole) == pytest.approx(expected)
    assert loss_of([90, 2, 30], whole) == pytest.approx(expected)
    assert loss_of([1, 2, 3], [slice(0, 1), slice(1, 3)]) == pytest.approx(expected)


def test_what_was_set_is_no_loss_token_and_what_was_sampled_behind_a_choice_is_one():
    """A free short choice learns the tokens that follow it; a forced one was given them."""
    response = [8, 9, 8, 5, 6]
    for choice, in_loss in (
        (SHORT, [9, 8, 5, 6]),
        (dataclasses.replace(SHORT, is_forced=True), [5, 6]),
        (Choice(False, 1, is_kept=False), [9, 8, 5, 6]),
        (Choice(True, 0, is_kept=False), [9, 8, 5, 6]),
    ):
        sample = TrainSample(
            sampled(response, choice), 1.0, 1.0, choice=ChoiceCredit(1.0, 1.0, choice)
        )
        micro_batch = collate([sample])
        assert micro_batch.token_ids[micro_batch.loss_mask].tolist() == in_loss
        assert micro_batch.token_ids[micro_batch.choice_mask].tolist() == [8]
        assert sample.num_loss_tokens == len(in_loss)
    # Scored as it stands, as a canary is, the whole response counts.
    plain = collate([TrainSample(sampled(response, SHORT), 1.0, 1.0)])
    assert plain.token_ids[plain.loss_mask].tolist() == response
    assert not plain.choice_mask.any()


def test_loss_tokens_and_choices_of_one_forward_are_told_apart():
    credit = ChoiceCredit(1.0, 1.0, SHORT)
    micro_batch = collate(
        [
            TrainSample(sampled([8, 9, 8, 5], SHORT), 1.0, 1.0, choice=credit),
            TrainSample(sampled([4, 4], None), 1.0, 1.0),
        ]
    )
    tokens = micro_batch.token_ids[micro_batch.scored_mask]
    assert tokens[micro_batch.is_choice].tolist() == [8]
    assert tokens[~micro_batch.is_choice].tolist() == [9, 8, 5, 4, 4]
    assert tokens[~micro_batch.is_choice].tolist() == (
        micro_batch.token_ids[micro_batch.loss_mask].tolist()
    )


def test_the_share_that_reasons_is_a_mean_of_probabilities():
    """Of a choice to reason its own, of one to answer at once the rest."""
    samples = [
        TrainSample(sampled([7], c), 0.0, 1.0, choice=ChoiceCredit(0.0, 1.0, c))
        for c in (LONG, SHORT)
    ]
    micro_batch, logprobs = collate(samples), torch.tensor([0.25, 0.5]).log()
    counts = GlobalCounts.of(samples, AlgorithmConfig())
    _, sums = choice_loss(*[logprobs] * 3, micro_batch, counts, AlgorithmConfig())
    own = {"loss": 0.0, "entropy": 0.0, "clipped": 0.0, "mismatch_kl": 0.0, "rollout_weight": 0.0}
    own |= {"truncated": 0.0, "max_abs_log_ratio": 0.0, "num_loss_tokens": 0.0}
    metrics = loss_metrics(reduce_sums([own | sums]), 1)
    assert metrics["choice/reasons"] == pytest.approx((0.25 + 0.5) / 2)


# A price that adapts.


def pair_of(*of: tuple[Choice | None, int, float | None, str]) -> ScoredGroup:
    scored = group_of(*of)
    request = dataclasses.replace(scored.group.request, is_pair=True)
    return dataclasses.replace(scored, group=dataclasses.replace(scored.group, request=request))


RIGHT, WRONG = 1.0, 0.0


def seen_by(target: TargetPrice, reasoning: float, chosen: float, steps: int = 1) -> TargetPrice:
    """After steps in which 100 responses of a pair and 100 free ones were right so often."""
    for _ in range(steps):
        groups = []
        for make, accuracy in ((pair_of, reasoning), (group_of, chosen)):
            num_right = round(100 * accuracy)
            outcomes = [RIGHT] * num_right + [WRONG] * (100 - num_right)
            groups.append(make(*((LONG, 50, outcome, "stop") for outcome in outcomes)))
        target.learn(groups)
    return target


@pytest.mark.parametrize(
    ("chosen", "by"),
    [(0.9, 1.0), (0.99, 1.0), (0.89, 0.5), (0.88, 0.0), (0.87, -0.5), (0.5, -1.0)],
)
def test_a_price_rises_within_the_margin_and_falls_beyond_it(chosen, by):
    target = seen_by(TargetPrice(share=0.1), reasoning=0.9, chosen=chosen)
    assert MARGIN == 0.02
    assert target.share == pytest.approx(0.1 + by * PRICE_STEP)
    # A usual response that reasons, of 50 tokens, pays just that share of its accuracy.
    assert priced(1.0, 50, target.price) == pytest.approx(1 - target.share)


def test_a_price_takes_no_more_than_responses_ever_pay_and_is_never_a_gift():
    dear = seen_by(TargetPrice(), reasoning=0.9, chosen=0.9, steps=60)
    assert dear.share == MOST_PAID
    assert seen_by(dear, reasoning=0.9, chosen=0.1, steps=60).share == dear.price == 0.0


def test_only_pairs_that_reason_and_free_choices_decide_about_a_price():
    target = TargetPrice(share=0.1)
    target.learn([])
    target.learn([pair_of((LONG, 40, RIGHT, "stop"), (SHORT, 4, WRONG, "stop"))])
    # Nothing was chosen yet, so nothing is known that the price could have done.
    assert target.share == 0.1 and target.seen == {"long": [1.0, 1.0, 40.0], "auto": [0.0] * 3}
    stray = (Choice(True, 0, is_kept=False), 9, RIGHT, "stop")
    free = group_of(
        (LONG, 60, RIGHT, "length"), (SHORT, 6, RIGHT, "stop"), (SHORT, 5, None, "stop"), stray
    )
    target.learn([free])
    # Cut off is wrong; without a score nothing is known.
    assert target.seen["long"] == pytest.approx([KEPT, KEPT, 40 * KEPT])
    assert target.seen["auto"] == [3.0, 2.0, 75.0]
    assert target.share == pytest.approx(0.1 - PRICE_STEP)
    target.learn([group_of((SHORT, 5, math.nan, "stop"))])
    assert math.isfinite(target.price)


def test_prices_are_fixed_or_adapt_by_mode_and_come_back_from_a_checkpoint():
    modes = {
        name: {"share": 0.25, "thinking": thinking, "max_tokens": 9, **of_mode}
        for name, thinking, of_mode in (
            ("short", False, {}),
            ("long", True, {}),
            ("fixed", "auto", {"price": 0.5}),
            ("auto", "auto", {"price": "target"}),
        )
    }
    prices = ChoicePrices(config(modes=modes))
    assert prices.now == {"fixed": 0.5, "auto": 0.0}
    prices.end_step([pair_of((LONG, 40, RIGHT, "stop")), group_of((SHORT, 4, RIGHT, "stop"))])
    assert prices.now == {"fixed": 0.5, "auto": pytest.approx(1000 * PRICE_STEP / 40)}
    again = ChoicePrices(config(modes=modes))
    again.load(json.loads(json.dumps(prices.state)))
    for both in (prices, again):
        both.end_step([pair_of((LONG, 70, RIGHT, "stop"))])
    assert again.now == prices.now
    with pytest.raises(ValueError, match="price"):
        ModeConfig(share=1.0, thinking="auto", max_tokens=9, price="cheap")


def test_a_price_finds_the_fewest_tokens_at_which_choosing_is_as_good_as_reasoning():
    """Prompts of eight kinds, from easy to hard, and a policy of two tokens for each."""
    gains, logits, target = [0.0, 0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7], [0.0] * 8, TargetPrice()
    for _ in range(120):
        price, chosen = target.price, 0.0
        for place, gain in enumerate(gains):
            p = 1 / (1 + math.exp(-logits[place]))
            chosen += (0.9 - gain * p) / len(gains)
            worth = [priced(0.9, 50, price), priced(0.9 - gain, 5, price)]
            logits[place] += 8 * choice_gradient(p, [True, False], worth, True)
        seen_by(target, 0.9, chosen)
    shares = [1 / (1 + math.exp(-logit)) for logit in logits]
    lag = sum(gain * p for gain, p in zip(gains, shares, strict=True)) / len(gains)
    # Without a price it would be 0.004, and all prompts that gain anything would reason.
    assert 0.012 < lag < MARGIN + 0.005
    assert min(shares[:4]) > 0.9 and max(shares[-2:]) < 0.1


# Pairs.


def with_auto(**of_mode: object):
    auto = {"share": 0.5, "thinking": "auto", "max_tokens": 16} | of_mode
    short = {"share": 0.5, "thinking": False, "max_tokens": 4}
    return config(modes={"auto": auto, "short": short}, steps=101)


def test_pairs_fall_on_a_line_to_their_floor():
    pairs = PairsConfig(start=0.9, floor=0.3, until=0.5)
    assert [pairs.share_at(step, 101) for step in (1, 26, 101)] == pytest.approx(
        [0.9, 0.9 - 0.6 * 25 / 50.5, 0.3]
    )
    assert PairsConfig(start=1.0, floor=0.0, until=0.0).share_at(2, 10) == 0.0


def test_pairs_are_drawn_by_seed_and_step_among_the_places_of_their_mode():
    cfg = with_auto(pairs={"start": 0.5, "floor": 0.5})
    modes = ["auto", "short", "auto", "auto", "short", "auto"]
    drawn = [draw_pairs(cfg, step, modes) for step in range(40)]
    assert drawn == [draw_pairs(cfg, step, modes) for step in range(40)]
    assert all(sum(pairs) == 2 and not pairs[1] and not pairs[4] for pairs in drawn)
    assert len({tuple(pairs) for pairs in drawn}) > 3
    assert draw_pairs(with_auto(pairs={"start": 0, "floor": 0}), 0, modes) == [False] * 6


def test_a_price_belongs_to_a_mode_that_chooses():
    with pytest.raises(ValueError, match="price belong to a mode that chooses"):
        ModeConfig(share=1.0, thinking=True, max_tokens=9, price=0.5)
    with pytest.raises(ValueError, match="raise start, or lower floor"):
        PairsConfig(start=0.2)


def test_two_newlines_are_one_token_only_where_they_are_asked_for():
    for has_blank_line, count in ((False, 4), (True, 3)):
        tokenizer = make_tokenizer(64, has_blank_line=has_blank_line)
        assert len(tokenizer("\n\na\n")["input_ids"]) == count
        assert tokenizer.decode(tokenizer("\n\na\n")["input_ids"]) == "\n\na\n"


# The loop.


class ChoosingEngine(FakeEngine):
    """Reasons in the first half of a group."""

    async def generate(self, request):
        group = await super().generate(request)
        half = request.n // 2
        trajectories = tuple(
            dataclasses.replace(t, choice=Choice(place < half, 1, is_forced=request.is_pair))
            if request.mode == "auto"
            else t
            for place, t in enumerate(group.trajectories)
        )
        return dataclasses.replace(group, trajectories=trajectories)


def trained(cfg) -> tuple[list, FakeLearner, FakeEngine]:
    engine, learner, results = ChoosingEngine(), FakeLearner(), []
    scorer = FakeScorer(lambda g: [1.0, 0.0, 1.0, 1.0])

    async def keep(result):
        results.append(result)
        return True

    parts = Parts(FakePrompts(4), lambda prompt, mode: (1, 2, 3), engine, scorer, learner)
    asyncio.run(TrainingLoop(cfg, parts).run(keep))
    return results, learner, engine


def test_a_step_has_its_pairs_and_every_choice_its_credit():
    cfg = with_auto(pairs={"start": 0.5, "floor": 0.5}, choice_weight=0.3)
    cfg = cfg.model_copy(update={"steps": 2})
    cfg = cfg.model_copy(update={"rollout": cfg.rollout.model_copy(update={"group_size": 4})})
    results, learner, _ = trained(cfg)
    for number, result in enumerate(results):
        modes = [g.group.request.mode for g in result.groups]
        pairs = [g.group.request.is_pair for g in result.groups]
        assert pairs == draw_pairs(cfg, number, modes)
        assert sum(pairs) == 1
        for mode, of_group in zip(modes, result.choices, strict=True):
            # Worth 0.5 and 1 by kind; the mean is 0.75.
            by_hand = (-0.25, -0.25, 0.25, 0.25) if mode == "auto" else (None,) * 4
            assert of_group == pytest.approx(by_hand)
    samples = [sample for batch in learner.batches for sample in batch.samples]
    credited = [sample for sample in samples if sample.choice is not None]
    assert len(credited) == len(samples) / 2
    assert {sample.choice.weight for sample in credited} == {0.3}
    # Responses are compared within their kind: the two that answered at once were both right.
    assert [s.advantage for s in credited[:4]][2:] == [0.0, 0.0]
    assert credited[0].advantage == -credited[1].advantage > 0.0


def test_a_run_without_such_a_mode_asks_and_trains_as_if_there_were_none():
    results, learner, engine = trained(config(steps=2, rollout__group_size=4))
    assert not any(request.is_pair for request in engine.requests)
    assert all(sample.choice is None for batch in learner.batches for sample in batch.samples)
    assert {choice for r in results for of_group in r.choices for choice in of_group} == {None}
