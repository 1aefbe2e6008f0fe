"""What ranks forward and what the learner makes of their reports; no rank is started."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from policy.learner.learner import RayLearner
from policy.learner.rank import LearnerRank, RankUpdate
from policy.learner.usage import ModelFlops, RankUsage
from rl.config.run import Config
from rl.loop.losses import MAX_KEY, GlobalCounts
from rl.loop.stages import TrainBatch, TrainSample
from tests.fakes import config, trajectory

SUMS = ("loss", "num_loss_tokens", "clipped", "mismatch_kl", "rollout_weight", "truncated")


def batch(*truncated: bool) -> TrainBatch:
    """A sample for each; truncated ones have eight tokens and others five, after three."""
    reasons = ["length" if cut else "stop" for cut in truncated]
    trajectories = [trajectory(3, 8 if r == "length" else 5, finish_reason=r) for r in reasons]
    return TrainBatch(1, tuple(TrainSample(t, 1.0, 1.0) for t in trajectories))


def test_truncated_answers_are_counted_and_not_forwarded():
    settings = config(algorithm__mask_truncated=True, policy__ranks=2)
    samples = batch(False, True, False, True).samples
    plans = [LearnerRank(settings, Path(), rank).plan(samples) for rank in range(2)]
    assert [update.counts for plan in plans for update in plan] == [GlobalCounts(10, 4)] * 2
    forwarded = [rows for (update,) in plans for rows in update.micro_batches]
    assert sorted(index for rows in forwarded for index in rows) == [0, 2]
    for rows in forwarded:
        assert all(samples[index] is sample for index, sample in rows.items())

    (update,) = LearnerRank(config(), Path(), 0).plan(samples)
    assert update.counts == GlobalCounts(26, 4)
    assert sorted(index for rows in update.micro_batches for index in rows) == [0, 1, 2, 3]


def test_every_rank_keeps_in_step_where_an_update_is_left_without_tokens():
    settings = config(
        algorithm__mask_truncated=True, algorithm__updates_per_batch=2, policy__ranks=2
    )
    for rank in range(2):
        first, second = LearnerRank(settings, Path(), rank).plan(
            batch(False, False, True, True).samples
        )
        assert [len(rows) for rows in first.micro_batches] == [1]
        assert second.micro_batches == [{}]
        assert second.counts == GlobalCounts(0, 2)


class OneRank(RayLearner):
    """Its rank reports a mismatch for every sample that `mismatches` has."""

    def __init__(self, settings: Config, mismatches: dict[int, float]) -> None:
        self._config = settings
        sums = dict.fromkeys((*SUMS, "entropy", MAX_KEY), 1.0)
        usage = RankUsage(ModelFlops(1, 1, 1), peak_bytes=1, resident_bytes=1, device=None)
        self._report = RankUpdate(
            sums, mismatches, 1.0, 1e-6, 1, seconds=2.0, usage=usage, skipped=None
        )

    async def _call(self, method: str, deadline_s: float, *arguments: Any) -> list[Any]:
        return [self._report]


def test_truncated_answers_have_no_mismatch_and_their_share_is_a_metric(monkeypatch):
    monkeypatch.setattr("ray.put", lambda value: value)
    learner = OneRank(config(algorithm__mask_truncated=True), {0: 0.5, 2: 0.25})
    update = asyncio.run(learner.update(batch(False, True, False, True)))
    assert update.mismatches == (0.5, None, 0.25, None)
    assert update.metrics["rollout/left_out_truncated"] == 0.5
    # Of the two samples that were forwarded, in two seconds.
    assert update.metrics["perf/learner_tokens_per_second"] == 8.0

    all_in = OneRank(config(), dict.fromkeys(range(4), 0.5))
    assert (
        "rollout/left_out_truncated" not in asyncio.run(all_in.update(batch(*[True] * 4))).metrics
    )
    with pytest.raises(KeyError):
        asyncio.run(OneRank(config(), {}).update(batch(True)))
