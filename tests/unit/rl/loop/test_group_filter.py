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


def warmed_up(beta=0.5, spreads=(0.2, 0.4)):
    """A filter after step 10, each of whose steps 1 to 10 saw groups of the given spreads."""
    group_filter = GroupFilter(config(reward__probability={"filter_beta": beta}))
    for step in range(1, 11):
        for spread in spreads:
            half = spread / statistics.stdev([-1.0, 1.0])
            assert reason(group_filter, group(0.5 - half, 0.5 + half), step) is None
        group_filter.end_step(step)
    return group_filter


def test_nothing_is_filtered_before_the_running_mean_is_known():
    group_filter = GroupFilter(config(reward__probability={}))
    assert group_filter.threshold == 0.0
    assert reason(group_filter, group(0.5, 0.5)) is None


def test_the_threshold_is_beta_times_the_mean_spread_of_steps_six_to_ten():
    assert warmed_up().threshold == pytest.approx(0.5 * 0.3)


def test_a_group_of_too_little_spread_is_dropped_and_still_counted():
    group_filter = warmed_up()
    assert reason(group_filter, group(0.5, 0.5)) == "low_spread"
    assert reason(group_filter, group(0.4, 0.6)) == "low_spread"  # 0.1414 < 0.15
    assert reason(group_filter, group(0.3, 0.6)) is None
    group_filter.end_step(11)
    mean = (0.0 + statistics.stdev([0.4, 0.6]) + statistics.stdev([0.3, 0.6])) / 3
    assert group_filter.threshold == pytest.approx(0.5 * (0.99 * 0.3 + 0.01 * mean))


def test_responses_that_are_all_malformed_are_a_group_without_spread():
    assert reason(warmed_up(), group(0.0, 0.0, 0.0)) == "low_spread"


def test_spreads_count_for_the_step_that_asked_for_them():
    group_filter = warmed_up()
    before = group_filter.threshold
    assert reason(group_filter, group(0.0, 1.0), step=12) is None
    group_filter.end_step(11)
    assert group_filter.threshold == before
    group_filter.end_step(12)
    assert group_filter.threshold > before


def test_groups_scored_by_rules_or_without_reasoning_are_never_filtered():
    assert reason(warmed_up(), group(1.0, 1.0), mode="short") is None
    assert reason(warmed_up(), group(1.0, 1.0, route=Route("number", 2))) is None


def test_the_state_comes_back():
    first = warmed_up()
    second = GroupFilter(config(reward__probability={}))
    second.load(first.state)
    assert second.threshold == first.threshold > 0


def test_an_unscored_group_is_dropped_before_anything_else():
    group_filter = warmed_up()
    failed = Score(None, failure=Failure("timeout"))
    assert reason(group_filter, [failed, failed, *group(0.5)]) == "unscored"
    assert reason(group_filter, [failed, *group(0.0, 1.0)]) is None


def test_without_the_probability_reward_there_is_no_filter():
    group_filter = GroupFilter(config())
    for step in range(1, 20):
        assert reason(group_filter, group(0.5, 0.5)) is None
        group_filter.end_step(step)


def test_a_constant_group_is_dropped_where_the_recipe_says_so():
    group_filter = GroupFilter(config(algorithm__drop_zero_variance=True))
    assert reason(group_filter, group(1.0, 1.0, route=Route("number", 2))) == "zero_variance"
    assert reason(group_filter, group(1.0, 0.0, route=Route("number", 2))) is None
