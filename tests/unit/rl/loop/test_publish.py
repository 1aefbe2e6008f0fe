import asyncio
import math

import pytest

from rl.loop.publish import UnprovenWeights, check_proofs, publish
from tests.fakes import FakeEngine, FakeLearner, proof


def test_equal_proofs_give_the_largest_canary_difference():
    received = [proof(3), proof(3, canary_logprobs=(-1.0, -2.00005))]
    assert check_proofs(proof(3), received, 1e-4) == pytest.approx(5e-5)


def test_a_tensor_that_was_not_sent_is_named():
    with pytest.raises(UnprovenWeights, match=r"process 1 did not receive b\.weight"):
        check_proofs(proof(3), [proof(3), proof(3, digests={"a.weight": "1"})], 1e-4)


def test_a_stale_tensor_is_named_and_the_intact_one_is_not():
    stale = proof(3, digests={"a.weight": "1", "b.weight": "old"})
    with pytest.raises(UnprovenWeights, match=r"b\.weight: stale") as error:
        check_proofs(proof(3), [stale], 1e-4)
    assert "a.weight" not in str(error.value)


def test_a_tensor_that_the_learner_does_not_hold_is_named():
    extra = {"a.weight": "1", "b.weight": "2", "c.weight": "3"}
    with pytest.raises(UnprovenWeights, match=r"received c\.weight"):
        check_proofs(proof(3), [proof(3, digests=extra)], 1e-4)


def test_an_engine_of_another_version_is_refused():
    with pytest.raises(UnprovenWeights, match="answers version 2, sent 3"):
        check_proofs(proof(3), [proof(2)], 1e-4)


@pytest.mark.parametrize("logprob", [-2.1, math.nan])
def test_a_canary_token_beyond_the_tolerance_is_named(logprob):
    with pytest.raises(UnprovenWeights, match="canary token 2"):
        check_proofs(proof(3), [proof(3, canary_logprobs=(-1.0, logprob))], 1e-4)


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
        asyncio.run(asyncio.wait_for(publish(learner, engine, 7, 1e-4), timeout=60))
    assert ended == [7], "nothing goes on sending"


def test_publish_freezes_the_engine_while_weights_move():
    engine, learner = FakeEngine(), FakeLearner()
    seen = []

    async def send_weights(version):
        seen.append(engine.paused)
        return proof(version)

    learner.send_weights = send_weights
    metrics = asyncio.run(publish(learner, engine, 7, 1e-4))
    assert seen == [True]
    assert not engine.paused
    assert engine.version == 7
    assert metrics["sync/canary_max_abs_diff"] == 0.0
