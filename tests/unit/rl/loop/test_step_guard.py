"""Numbers gone wrong are named, and a step of theirs counts as skipped."""

import math

import pytest

from rl.config.policy import GuardConfig
from rl.loop.stages import BatchUpdate
from rl.loop.step_guard import wrong_loss, wrong_norm
from tests.fakes import FakeLearner, FakeScorer, config
from tests.unit.rl.loop.test_loop import run

FREE, LIMITED = GuardConfig(), GuardConfig(grad_norm=10.0, mismatch_kl=0.5)


@pytest.mark.parametrize(
    ("loss", "mismatch", "guard", "wrong"),
    [
        (0.1, 0.6, FREE, None),
        (0.1, 0.4, LIMITED, None),
        (0.1, 0.6, LIMITED, "mismatch KL 0.6, limit 0.5"),
        (math.nan, 0.0, FREE, "loss nan"),
        (math.inf, 0.0, FREE, "loss inf"),
        (0.1, math.nan, FREE, "mismatch KL nan"),
    ],
)
def test_a_loss_or_a_mismatch_that_went_wrong_is_named(loss, mismatch, guard, wrong):
    assert wrong_loss(loss, mismatch, guard) == wrong


@pytest.mark.parametrize(
    ("norm", "guard", "wrong"),
    [
        (1e6, FREE, None),
        (9.0, LIMITED, None),
        (11.0, LIMITED, "gradient norm 11, limit 10"),
        (math.nan, FREE, "gradient norm nan"),
        (math.inf, LIMITED, "gradient norm inf, limit 10"),
    ],
)
def test_a_gradient_norm_that_went_wrong_is_named(norm, guard, wrong):
    assert wrong_norm(norm, guard) == wrong


def test_a_reward_that_is_not_a_number_never_reaches_the_learner():
    """It is in the second step alone; the others train as if it had not been."""

    def rewards(group):
        return [math.nan if group.request.group_id == "1/2/0" else 1.0, 0.0]

    results, learner, engine = run(config(), scorer=FakeScorer(rewards))
    assert [result.skipped for result in results] == [None, "reward nan of 1/2/0/0", None, None]
    assert [batch.step for batch in learner.batches] == [1, 3, 4]
    # Its weights are published all the same, so versions and steps stay the same numbers.
    assert engine.version == 4


def test_the_groups_of_a_step_that_the_learner_skipped_are_dropped_and_not_trained():
    class Exploding(FakeLearner):
        async def update(self, batch):
            update = await super().update(batch)
            wrong = "gradient norm inf" if batch.step == 2 else None
            return BatchUpdate(update.metrics, update.mismatches, wrong)

    results, *_ = run(config(), learner=Exploding())
    assert [result.skipped for result in results] == [None, "gradient norm inf", None, None]
