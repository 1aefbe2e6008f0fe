import pytest

from policy.learner.learning_rate import learning_rate_at
from rl.config.policy import OptimizerConfig


def rates(schedule: str, warmup_steps: int, num_steps: int) -> list[float]:
    optimizer = OptimizerConfig(
        learning_rate=1.0, warmup_steps=warmup_steps, schedule=schedule, final_fraction=0.2
    )
    return [learning_rate_at(optimizer, step, num_steps) for step in range(1, num_steps + 1)]


def test_constant_stays_at_the_peak_after_the_warmup():
    assert rates("constant", 2, 4) == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_linear_ends_at_the_final_fraction():
    assert rates("linear", 1, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_halfway_in_the_middle():
    assert rates("cosine", 0, 4) == pytest.approx([0.882843, 0.6, 0.317157, 0.2], abs=1e-6)


def test_a_warmup_as_long_as_the_run_never_decays():
    assert rates("linear", 3, 3) == pytest.approx([1 / 3, 2 / 3, 1.0])
