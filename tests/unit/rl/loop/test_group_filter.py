"""Which groups are dropped, with the thresholds computed by hand."""

import statistics

import pytest

from rl.loop.group_filter import GroupFilter
from rl.loop.stages import Failure, Route, Score
from tests.fakes import config

PROBABILISTIC = Route("probability", 1)


def group(*accuracies, route=PROBABILISTIC):
    return [Score(a, {"accuracy": a}, route) for a in accuracies]


def reason(group_filter, scores, step=11, mode="long"):
    return group_filter.reason(step, mode, scores)


def spreads_of(group_filter, *groups):
    return [group_filter.spread("long", scores) for scores in groups]


def warmed_up(beta=0.5, spreads=(0.2, 0.4)):
    """A filter after step 10, each of whose steps 1 to 10 saw groups of the given spreads."""
    group_filter = GroupFilter(config(reward__probability={"filter_beta": beta}))
    for step in range(1, 11):
        halves = [spread / statistics.stdev([-1.0, 1.0]) for spread in spreads]
        groups = [group(0.5 - half, 0.5 + half) for half in halves]
        assert all(reason(group_filter, scores, step) is None for scores in groups)
        group_filter.end_step(step, spreads_of(group_filter, *groups))
    return group_filter


def test_nothing_is_filtered_before_the_running_mean_is_known():
    group_filter = GroupFilter(config(reward__probability={}))
    assert group_filter.threshold(1) == 0.0
    assert reason(group_filter, group(0.5, 0.5)) is None


def test_the_threshold_is_beta_times_the_mean_spread_of_steps_six_to_ten():
    assert warmed_up().threshold(11) == pytest.approx(0.5 * 0.3)


def test_a_group_of_too_little_spread_is_dropped_and_still_counted():
    group_filter = warmed_up()
    groups = [group(0.5, 0.5), group(0.4, 0.6), group(0.3, 0.6)]
    reasons = [reason(group_filter, scores) for scores in groups]
    assert reasons == ["low_spread", "low_spread", None]  # 0.1414 < 0.15
    group_filter.end_step(11, spreads_of(group_filter, *groups))
    mean = (0.0 + statistics.stdev([0.4, 0.6]) + statistics.stdev([0.3, 0.6])) / 3
    assert group_filter.threshold(12) == pytest.approx(0.5 * (0.99 * 0.3 + 0.01 * mean))


def test_a_reward_without_its_accuracy_is_no_part_of_the_spread():
    """Where accuracy weighs nothing, a response that it failed for is rewarded all the same."""
    group_filter, known = warmed_up(), group(0.3, 0.6)
    unknown = Score(0.0, {"format": 0.0}, PROBABILISTIC)
    assert spreads_of(group_filter, [*known, unknown], known) == [statistics.stdev([0.3, 0.6])] * 2
    assert reason(group_filter, [*known, unknown]) is None
    assert spreads_of(group_filter, [known[0], unknown]) == [None]


def test_responses_that_are_all_malformed_are_a_group_without_spread():
    assert reason(warmed_up(), group(0.0, 0.0, 0.0)) == "low_spread"


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_step_is_judged_by_the_newest_step_that_is_over_whenever_it_is_asked_for(staleness):
    """Whether later steps have ended when its groups are scored depends on timing."""
    cfg = config(reward__probability={"filter_beta": 0.5}, rollout__max_staleness=staleness)
    group_filter, thresholds = GroupFilter(cfg), []
    for step in range(1, 21):
        thresholds.append(group_filter.threshold(step))
        group_filter.end_step(step, [0.1 * step])
        last = step + 1 + staleness
        assert group_filter.threshold(last) == pytest.approx(
            0.5 * (group_filter.state["ema"] or 0.0)
        )
    assert thresholds[: 10 + staleness] == [0.0] * (10 + staleness)
    assert thresholds[10 + staleness] == pytest.approx(0.5 * 0.8)


def test_groups_scored_by_rules_or_without_reasoning_are_never_filtered():
    assert reason(warmed_up(), group(1.0, 1.0), mode="short") is None
    assert reason(warmed_up(), group(1.0, 1.0, route=Route("number", 2))) is None


def test_the_state_comes_back():
    first = warmed_up()
    second = GroupFilter(config(reward__probability={}))
    second.load(first.state)
    assert second.threshold(11) == first.threshold(11) > 0


def test_the_state_of_an_older_version_has_the_newest_mean_alone():
    group_filter = GroupFilter(config(reward__probability={"filter_beta": 0.5}))
    group_filter.load({"warmup": [], "ema": 0.4})
    assert group_filter.threshold(30) == 0.2


def test_an_accuracy_that_is_not_a_number_does_not_enter_the_running_mean():
    assert spreads_of(warmed_up(), group(0.0, float("nan"))) == [None]


def test_an_unscored_group_is_dropped_before_anything_else():
    group_filter = warmed_up()
    failed = Score(None, failure=Failure("timeout"))
    assert reason(group_filter, [failed, failed, *group(0.5)]) == "unscored"
    assert reason(group_filter, [failed, *group(0.0, 1.0)]) is None


def test_without_the_probability_reward_there_is_no_filter():
    group_filter = GroupFilter(config())
    for step in range(1, 20):
        assert reason(group_filter, group(0.5, 0.5)) is None
        group_filter.end_step(step, spreads_of(group_filter, group(0.5, 0.5)))


def test_a_constant_group_is_dropped_where_the_recipe_says_so():
    group_filter = GroupFilter(config(algorithm__drop_zero_variance=True))
    assert reason(group_filter, group(1.0, 1.0, route=Route("number", 2))) == "zero_variance"
    assert reason(group_filter, group(1.0, 0.0, route=Route("number", 2))) is None
