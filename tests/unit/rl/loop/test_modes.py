import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.loop.modes import draw_step, shares_at
from tests.fakes import config

HALF = {"short": 0.5, "long": 0.5}
THREE = {"a": 0.2, "b": 0.3, "c": 0.5}


def test_stratified_halves_are_exact_in_every_step():
    for step in range(50):
        assert Counter(draw_step(0, step, HALF, [None] * 96, "stratified")) == {
            "short": 48,
            "long": 48,
        }


def test_products_that_floats_round_down_stay_exact():
    # 0.29 * 100 is 28.999999999999996.
    shares = {"short": 0.29, "long": 0.71}
    counts = [
        Counter(draw_step(0, step, shares, [None] * 100, "stratified"))["short"]
        for step in range(200)
    ]
    assert counts == [29] * 200


def test_pinned_places_count_towards_their_share():
    pinned = ["short", None, None, "short", None, None, "short", None]
    drawn = draw_step(3, 0, HALF, pinned, "stratified")
    assert [drawn[place] for place in (0, 3, 6)] == ["short"] * 3
    assert Counter(drawn) == {"short": 4, "long": 4}


def test_pins_beyond_their_share_leave_the_rest_in_proportion():
    # 6 of 10 places pinned to c (share 0.5): a and b divide 4 places as 0.2 to 0.3.
    counts = Counter()
    for step in range(1000):
        drawn = draw_step(1, step, THREE, ["c"] * 6 + [None] * 4, "stratified")
        assert drawn[:6] == ["c"] * 6
        counts.update(drawn[6:])
    assert set(counts) == {"a", "b"}
    assert counts["a"] / 4000 == pytest.approx(0.4, abs=0.02)


@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**6),
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    size=st.integers(1, 60),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_counts_are_rounded_shares_and_pins_are_kept(seed, step, weights, size, data):
    names = [f"m{i}" for i in range(len(weights))]
    shares = {name: w / sum(weights) for name, w in zip(names, weights, strict=True)}
    pinned = data.draw(
        st.lists(st.sampled_from([None, None, *names]), min_size=size, max_size=size)
    )
    drawn = draw_step(seed, step, shares, pinned, "stratified")
    assert len(drawn) == size
    assert all(pin in (None, mode) for pin, mode in zip(pinned, drawn, strict=True))
    assert drawn == draw_step(
        seed, step, dict(reversed(shares.items())), list(pinned), "stratified"
    )
    pins = Counter(pinned)
    if all(pins[name] <= shares[name] * size for name in names):
        for name in names:
            exact = round(shares[name] * size, 6)
            assert math.floor(exact) <= Counter(drawn)[name] <= math.ceil(exact)


def test_remainders_are_unbiased_over_steps():
    # 7 places: targets 1.4, 2.1 and 3.5, which no single step can meet.
    steps = 4000
    counts = Counter()
    for step in range(steps):
        counts.update(draw_step(11, step, THREE, [None] * 7, "stratified"))
    for name, share in THREE.items():
        # Standard deviation of a mode's mean count is at most 0.5 / sqrt(4000) = 0.008.
        assert counts[name] / steps == pytest.approx(7 * share, abs=0.035)


def test_every_place_gets_every_mode_equally_often():
    first = Counter(draw_step(5, step, HALF, [None] * 4, "stratified")[0] for step in range(2000))
    assert first["long"] / 2000 == pytest.approx(0.5, abs=0.05)


def test_draws_depend_on_seed_and_step():
    free = [None] * 32
    base = draw_step(0, 0, HALF, free, "stratified")
    assert base != draw_step(1, 0, HALF, free, "stratified")
    assert base != draw_step(0, 1, HALF, free, "stratified")


def test_bernoulli_is_independent_per_place():
    shares = {"short": 0.3, "long": 0.7}
    steps = [draw_step(2, step, shares, [None] * 20, "bernoulli") for step in range(500)]
    counts = [modes.count("short") for modes in steps]
    mean = sum(counts) / 500
    variance = sum((count - mean) ** 2 for count in counts) / 499
    assert mean == pytest.approx(6.0, abs=0.4)  # 20 x 0.3
    assert variance == pytest.approx(4.2, abs=1.0)  # 20 x 0.3 x 0.7
    # A pin moves no other place's draw.
    pinned = draw_step(2, 0, shares, ["long"] + [None] * 19, "bernoulli")
    assert pinned[1:] == steps[0][1:]


def test_a_share_of_zero_is_never_drawn():
    for draw in ("stratified", "bernoulli"):
        drawn = draw_step(0, 0, {"short": 1.0, "long": 0.0}, [None] * 50, draw)
        assert drawn == ["short"] * 50


def test_a_pin_to_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"pinned to \['medium'\], the modes are"):
        draw_step(0, 0, HALF, [None, "medium"], "stratified")


def test_schedule_is_linear_between_its_points_and_constant_outside():
    cfg = config(
        share_schedule=[
            {"step": 10, "shares": {"short": 1.0, "long": 0.0}},
            {"step": 20, "shares": {"short": 0.4, "long": 0.6}},
        ]
    )
    assert shares_at(cfg, 1) == {"short": 1.0, "long": 0.0}
    assert shares_at(cfg, 15) == pytest.approx({"short": 0.7, "long": 0.3})
    assert shares_at(cfg, 99) == {"short": 0.4, "long": 0.6}
    assert shares_at(config(), 3) == HALF
