import asyncio
import math

import numpy as np
import pytest

from rl.loop.publish import CanaryCheck, UnprovenWeights, check_proofs, publish
from tests.fakes import FakeEngine, FakeLearner, config, proof


def exact() -> CanaryCheck:
    return CanaryCheck.of(config())


def bfloat16() -> CanaryCheck:
    return CanaryCheck.of(config(policy={"dtype": "bfloat16"}))


def test_equal_proofs_give_the_largest_canary_difference():
    received = [proof(3), proof(3, canary_logprobs=(-1.0, -2.00005))]
    assert check_proofs(proof(3), received, exact()) == pytest.approx((2.5e-5, 5e-5))


def test_a_tensor_that_was_not_sent_is_named():
    with pytest.raises(UnprovenWeights, match=r"process 1 did not receive b\.weight"):
        check_proofs(proof(3), [proof(3), proof(3, digests={"a.weight": "1"})], exact())


def test_a_stale_tensor_is_named_and_the_intact_one_is_not():
    stale = proof(3, digests={"a.weight": "1", "b.weight": "old"})
    with pytest.raises(UnprovenWeights, match=r"b\.weight: stale") as error:
        check_proofs(proof(3), [stale], exact())
    assert "a.weight" not in str(error.value)


def test_a_tensor_that_the_learner_does_not_hold_is_named():
    extra = {"a.weight": "1", "b.weight": "2", "c.weight": "3"}
    with pytest.raises(UnprovenWeights, match=r"received c\.weight"):
        check_proofs(proof(3), [proof(3, digests=extra)], exact())


def test_an_engine_of_another_version_is_refused():
    with pytest.raises(UnprovenWeights, match="answers version 2, sent 3"):
        check_proofs(proof(3), [proof(2)], exact())


@pytest.mark.parametrize("logprob", [-2.1, math.nan])
def test_a_canary_token_beyond_the_tolerance_is_named(logprob):
    with pytest.raises(UnprovenWeights, match="canary token 2"):
        check_proofs(proof(3), [proof(3, canary_logprobs=(-1.0, logprob))], exact())


def test_an_engine_that_dies_while_weights_are_sent_ends_the_publish_and_is_named():
    """A collective of the learner would go on waiting for it for many minutes."""
    engine, learner = FakeEngine(), FakeLearner()
    ended = []

    async def wait_in_a_collective(version):
        engine.death.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(version)

    learner.send_weights = wait_in_a_collective
    with pytest.raises(RuntimeError, match="engine 0 died"):
        asyncio.run(asyncio.wait_for(publish(learner, engine, 7, exact()), timeout=60))
    assert ended == [7], "nothing goes on sending"


def test_publish_freezes_the_engine_while_weights_move():
    engine, learner = FakeEngine(), FakeLearner()
    seen = []

    async def send_weights(version):
        seen.append(engine.paused)
        return proof(version)

    learner.send_weights = send_weights
    metrics = asyncio.run(publish(learner, engine, 7, exact()))
    assert seen == [True]
    assert not engine.paused
    assert engine.version == 7
    assert metrics["sync/canary_max_abs_diff"] == 0.0


NOISE = 0.04
"""Root mean square of what two bfloat16 programs differ by, as reported; the tails are heavy."""


def noisy(rng: np.random.Generator, scale: float) -> tuple[float, ...]:
    # A Student distribution of three degrees of freedom has a variance of 3.
    return tuple((-1.0 + scale * rng.standard_t(3, 64) / math.sqrt(3)).tolist())


def test_a_thousand_publishes_with_the_noise_of_bfloat16_give_no_false_alarm():
    """Also where the policy unlearns the canary's tokens, which makes it noisier by and by."""
    sent = proof(3, canary_logprobs=(-1.0,) * 64)
    for seed in range(5):
        rng, canary, largest = np.random.default_rng(seed), bfloat16(), 0.0
        for publishes in range(1000):
            scale = NOISE * (1 + publishes / 1000)
            received = proof(3, canary_logprobs=noisy(rng, scale))
            largest = max(largest, check_proofs(sent, [received], canary)[1])
        assert largest > 0.35, "what a bound on single tokens would have stopped the run for"


def test_in_bfloat16_the_noise_of_the_first_publish_bounds_the_later_ones():
    sent, canary = proof(3, canary_logprobs=(-1.0,) * 64), bfloat16()
    check_proofs(sent, [proof(3, canary_logprobs=(-1.01,) * 64)], canary)
    check_proofs(sent, [proof(3, canary_logprobs=(-1.07,) * 64)], canary)
    with pytest.raises(UnprovenWeights, match=r"mean difference on the canary is 0\.1, accepted"):
        check_proofs(sent, [proof(3, canary_logprobs=(-1.1,) * 64)], canary)


@pytest.mark.parametrize("changes", [{"mean": 0.3}, {"single": 11.0}, {"single": math.nan}])
def test_in_bfloat16_wrong_weights_are_refused_at_the_first_publish(changes):
    logprobs = [-1.0 - changes.get("mean", 0.0)] * 64
    logprobs[5] -= changes.get("single", 0.0)
    sent = proof(3, canary_logprobs=(-1.0,) * 64)
    with pytest.raises(UnprovenWeights, match="computes other log-probabilities"):
        check_proofs(sent, [proof(3, canary_logprobs=tuple(logprobs))], bfloat16())


def test_a_tensor_that_arrived_and_was_not_applied_is_named():
    with pytest.raises(UnprovenWeights, match=r"b\.weight and goes on computing with what it had"):
        check_proofs(proof(3), [proof(3, unapplied=("b.weight",))], exact())


def test_a_tensor_of_the_engine_that_changed_by_itself_is_named():
    with pytest.raises(UnprovenWeights, match=r"holds lm_head\.weight, which changed"):
        check_proofs(proof(3), [proof(3, unexplained=("lm_head.weight",))], exact())
