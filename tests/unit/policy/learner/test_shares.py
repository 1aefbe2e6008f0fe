"""How a batch is divided among the ranks."""

from __future__ import annotations

import pytest

from policy.learner import shares
from policy.learner.shares import divide, share_batch
from rl.loop.stages import TrainBatch, TrainSample
from tests.fakes import config, trajectory


def batch(*lengths: int) -> TrainBatch:
    of = [trajectory(num_response=length, text="long text") for length in lengths]
    return TrainBatch(7, tuple(TrainSample(t, 1.0, 1.0, f"{i}") for i, t in enumerate(of)))


@pytest.mark.parametrize(("ranks", "updates"), [(1, 1), (3, 1), (2, 2)])
def test_ranks_forward_every_sample_once_and_take_the_same_steps(ranks: int, updates: int):
    cfg = config(policy__ranks=ranks, algorithm__updates_per_batch=updates)
    whole = batch(4, 9, 2, 30, 7, 7, 1, 5)
    by_rank = divide(whole.samples, cfg)
    assert [len(of_rank) for of_rank in by_rank] == [updates] * ranks
    forwarded = {
        index: sample
        for of_rank in by_rank
        for update in of_rank
        for rows in update.micro_batches
        for index, sample in rows.items()
    }
    assert forwarded == dict(enumerate(whole.samples))
    for step in zip(*by_rank, strict=True):
        # The counts are those of all ranks, and each rank has as many rounds of collectives.
        assert len({(u.counts, len(u.micro_batches)) for u in step}) == 1
    assert sum(u.counts.num_loss_tokens for u in by_rank[0]) == 65


def test_a_share_holds_the_rows_of_its_rank_and_no_texts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shares.ray, "put", lambda share: share)
    monkeypatch.setattr(shares.ray, "get", lambda share: share)
    cfg, whole = config(policy__ranks=2), batch(4, 9, 2, 30)
    shared = share_batch(whole, cfg)
    assert shared.step == 7
    rows = [
        [dict(rows) for update in shared.of_rank(rank) for rows in update.micro_batches]
        for rank in range(2)
    ]
    assert sorted(i for of_rank in rows for micro_batch in of_rank for i in micro_batch) == [
        *range(4)
    ]
    samples = [s for of_rank in rows for micro_batch in of_rank for s in micro_batch.values()]
    assert {s.trajectory.text for s in samples} == {""}
    assert sorted(s.trajectory.num_tokens for s in samples) == [5, 7, 12, 33]


def test_ranks_that_share_sequences_fetch_the_same_share(monkeypatch: pytest.MonkeyPatch):
    put = []
    monkeypatch.setattr(shares.ray, "put", lambda share: put.append(share) or len(put))
    cfg = config(policy__ranks=4, policy__sequence_parallel=2)
    assert share_batch(batch(4, 9, 2, 30), cfg).shares == (1, 1, 2, 2)
    assert put[0] != put[1]
