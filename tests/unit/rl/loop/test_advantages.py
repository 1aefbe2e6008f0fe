import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.loop.advantages import STD_FLOOR, group_advantages, has_zero_variance


def test_centred_advantages_by_hand():
    assert group_advantages([1.0, 0.0, 0.0, 0.0], False) == (0.75, -0.25, -0.25, -0.25)


def test_normalised_advantages_by_hand():
    # Sample deviation of (1, 0, 0, 0): sqrt((0.75^2 + 3 * 0.25^2) / 3) = 0.5.
    first, *rest = group_advantages([1.0, 0.0, 0.0, 0.0], True)
    assert first == pytest.approx(0.75 / (0.5 + STD_FLOOR))
    assert rest == pytest.approx([-0.25 / (0.5 + STD_FLOOR)] * 3)


def test_a_missing_reward_leaves_the_baseline():
    assert group_advantages([1.0, None, 0.0], False) == (0.5, None, -0.5)


def test_one_known_reward_has_no_baseline():
    assert group_advantages([1.0, None], True) == (0.0, None)


def test_zero_variance():
    assert has_zero_variance([1.0, 1.0, None])
    assert not has_zero_variance([1.0, 0.0])


rewards = st.lists(st.floats(-2, 2), min_size=2, max_size=16)


@given(rewards, st.booleans())
def test_advantages_sum_to_zero_and_keep_the_order(values, normalize):
    advantages = group_advantages(values, normalize)
    scale = max(1.0, *map(abs, advantages))
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-9 * scale * len(values))
    assert advantages[values.index(max(values))] == max(advantages)


@given(rewards, st.floats(-1, 1))
def test_a_constant_added_to_all_rewards_changes_nothing(values, shift):
    plain = group_advantages(values, False)
    shifted = group_advantages([v + shift for v in values], False)
    assert shifted == pytest.approx(plain, abs=1e-9)


def test_equals_trl():
    """TRL's GRPO: (r - mean) / (std + 1e-4) over the group, with torch's sample deviation."""
    torch = pytest.importorskip("torch")
    values = [1.1, 0.1, 0.0, 1.0, 1.1]
    r = torch.tensor(values)
    expected = (r - r.mean()) / (r.std() + 1e-4)
    assert group_advantages(values, True) == pytest.approx(expected.tolist(), abs=1e-6)
