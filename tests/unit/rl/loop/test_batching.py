import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from rl.loop.batching import collate, plan_micro_batches, split_updates
from rl.loop.stages import TrainSample, Trajectory


def sample(num_prompt: int, num_response: int, advantage: float = 1.0) -> TrainSample:
    length = num_prompt + num_response
    mask = np.arange(length) >= num_prompt
    return TrainSample(
        Trajectory(
            token_ids=np.arange(1, length + 1, dtype=np.int32),
            loss_mask=mask,
            rollout_logprobs=np.where(mask, -0.5, 0.0).astype(np.float32),
            versions=(0, 0),
            finish_reason="stop",
            text="",
            reasoning=None,
            answer=None,
        ),
        advantage,
        temperature=0.7,
    )


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    num_ranks=st.integers(1, 5),
    budget=st.integers(1, 120),
)
def test_a_plan_holds_every_sample_once_within_the_budget(
    lengths: list[int], num_ranks: int, budget: int
):
    plan = plan_micro_batches(lengths, num_ranks, budget)
    rows = [index for rank in plan for micro_batch in rank for index in micro_batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    for rank in plan:
        for micro_batch in filter(None, rank):
            padded = max(lengths[i] for i in micro_batch) * len(micro_batch)
            assert padded <= budget or len(micro_batch) == 1


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    num_ranks=st.integers(1, 4),
    budget=st.integers(50, 400),
)
def test_no_round_is_wholly_empty(lengths: list[int], num_ranks: int, budget: int):
    plan = plan_micro_batches(lengths, num_ranks, budget)
    assert all(any(round_) for round_ in zip(*plan, strict=True))


def test_samples_of_like_length_go_together():
    assert plan_micro_batches([10, 1, 9, 2], num_ranks=1, budget_tokens=20) == [[[0, 2], [3, 1]]]


def test_a_batch_that_fits_one_rank_is_still_spread_over_all():
    plan = plan_micro_batches([8] * 8, num_ranks=4, budget_tokens=1000)
    assert [[len(rows) for rows in rank] for rank in plan] == [[2], [2], [2], [2]]


def test_ranks_carry_like_compute_under_mixed_lengths():
    lengths = [4000] * 8 + [200] * 152
    plan = plan_micro_batches(lengths, num_ranks=4, budget_tokens=8000)
    tokens = [sum(lengths[i] for rows in rank for i in rows) for rank in plan]
    assert max(tokens) / min(tokens) < 1.35


def test_fewer_samples_than_ranks_leave_empty_micro_batches():
    assert sorted(plan_micro_batches([5], num_ranks=2, budget_tokens=10)) == [[[]], [[0]]]


def test_without_samples_every_rank_forwards_an_empty_micro_batch():
    assert plan_micro_batches([], num_ranks=2, budget_tokens=10) == [[[]], [[]]]


def test_updates_are_consecutive_parts_of_like_size():
    assert split_updates(7, 3) == [range(0, 2), range(2, 4), range(4, 7)]
    assert split_updates(2, 4) == [range(0, 1), range(1, 2)]
    assert split_updates(0, 2) == []


def test_collate_pads_on_the_right():
    batch = collate([sample(1, 1, advantage=2.0), sample(2, 1)])
    assert batch.token_ids.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert batch.loss_mask.tolist() == [[False, True, False], [False, False, True]]
    assert batch.rollout_logprobs.tolist() == [[0.0, -0.5, 0.0], [0.0, 0.0, -0.5]]
    assert batch.advantages.tolist() == [2.0, 1.0]
    torch.testing.assert_close(batch.temperature, torch.tensor([0.7, 0.7]))


def test_no_samples_collate_to_a_row_without_loss_tokens():
    batch = collate([])
    assert batch.token_ids.shape == (1, 2)
    assert not batch.loss_mask.any()


def test_a_first_token_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="put at least one prompt token in front"):
        collate([sample(0, 2)])
