import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rl.config.policy import AlgorithmConfig
from rl.loop.losses import (
    MAX_KEY,
    GlobalCounts,
    LossInputs,
    loss_metrics,
    mean_log_ratios,
    policy_loss,
    reduce_sums,
    token_weights,
)


def log(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def inputs(
    policy: list[float],
    old: list[float],
    rollout: list[float],
    advantages: list[float],
    weights: list[float] | None = None,
) -> LossInputs:
    """From probabilities, so that ratios can be read off."""
    count = len(policy)
    weights = [1 / count] * count if weights is None else weights
    return LossInputs(
        policy_logprobs=log(policy).requires_grad_(),
        old_logprobs=log(old),
        rollout_logprobs=log(rollout),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        weights=torch.tensor(weights, dtype=torch.float64),
        entropies=torch.full((count,), 0.25, dtype=torch.float64),
    )


def test_on_policy_loss_is_minus_the_mean_advantage_and_its_gradient_too():
    case = inputs([0.5, 0.2], [0.5, 0.2], [0.5, 0.2], [1.0, -3.0])
    loss, sums = policy_loss(case, AlgorithmConfig())
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([-0.5, 1.5])
    assert reduce_sums([sums]) == pytest.approx(
        {
            "loss": 1.0,
            "num_loss_tokens": 2.0,
            "clipped": 0.0,
            "mismatch_kl": 0.0,
            "rollout_weight": 2.0,
            "truncated": 0.0,
            "entropy": 0.5,
            MAX_KEY: 0.0,
        }
    )


def test_the_clip_stops_gains_and_never_losses():
    """Ratios 1.5, 1.5, 0.5, 0.5 against bounds 0.8 and 1.27."""
    case = inputs([0.6, 0.6, 0.2, 0.2], [0.4] * 4, [0.4] * 4, [1.0, -1.0, 1.0, -1.0], [1.0] * 4)
    loss, sums = policy_loss(case, AlgorithmConfig(clip_low=0.2, clip_high=0.27))
    assert loss.item() == pytest.approx(-(1.27 - 1.5 + 0.5 - 0.8))
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert float(sums["clipped"]) == 2


def test_the_rollout_weight_is_truncated_above_only_and_carries_no_gradient():
    """old / rollout is 3 (cut to 2) and 0.25."""
    case = inputs([0.6, 0.1], [0.6, 0.1], [0.2, 0.4], [1.0, 1.0], [1.0, 1.0])
    loss, sums = policy_loss(case, AlgorithmConfig(rollout_weight_cap=2.0))
    assert loss.item() == pytest.approx(-2.25)
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([-2.0, -0.25])
    assert float(sums["truncated"]) == 1
    assert float(sums["rollout_weight"]) == pytest.approx(2.25)
    assert float(sums["mismatch_kl"]) == pytest.approx(
        (3 - math.log(3) - 1) + (0.25 + math.log(4) - 1)
    )
    assert float(sums[MAX_KEY]) == pytest.approx(math.log(4))


def test_without_a_cap_there_is_no_rollout_weight():
    case = inputs([0.6], [0.6], [0.2], [1.0])
    loss, sums = policy_loss(case, AlgorithmConfig(rollout_weight_cap=None))
    assert loss.item() == pytest.approx(-1.0)
    assert float(sums["rollout_weight"]) == 1.0
    assert float(sums["truncated"]) == 0.0


MASK = torch.tensor([[False, True, True, True], [False, False, True, False]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [1 / 40] * 4),
        ("sequence", [1 / 30, 1 / 30, 1 / 30, 1 / 10]),
        ("constant", [1 / 1000] * 4),
    ],
)
def test_aggregation_divides_by_global_counts(aggregation: str, expected: list[float]):
    algorithm = AlgorithmConfig(aggregation=aggregation, constant_length=100)
    weights = token_weights(MASK, GlobalCounts(num_loss_tokens=40, num_sequences=10), algorithm)
    assert weights.tolist() == pytest.approx(expected)


def test_a_micro_batch_without_loss_tokens_adds_nothing():
    loss, sums = policy_loss(inputs([], [], [], [], []), AlgorithmConfig())
    assert loss.item() == 0
    assert loss.requires_grad
    assert set(reduce_sums([sums]).values()) == {0.0}


def test_sums_add_up_and_the_maximum_stays_one():
    first = {"loss": 1.0, MAX_KEY: 0.5}
    second = {"loss": torch.tensor(2.0), MAX_KEY: torch.tensor(0.1)}
    assert reduce_sums([first, second]) == {"loss": 3.0, MAX_KEY: 0.5}
    assert reduce_sums([]) == {}


def test_metrics_are_means_per_loss_token():
    sums = dict.fromkeys(
        ("clipped", "mismatch_kl", "rollout_weight", "truncated", "entropy"), 2.0
    ) | {"loss": 3.0, "num_loss_tokens": 8.0, MAX_KEY: 0.7}
    assert loss_metrics(sums, num_updates=2) == {
        "loss/policy": 1.5,
        "policy/entropy": 0.25,
        "policy/clip_fraction": 0.25,
        "rollout/mismatch_kl": 0.25,
        "rollout/importance_weight": 0.25,
        "rollout/truncated_weights": 0.25,
        "rollout/max_abs_log_ratio": 0.7,
    }


def looped_loss(
    table: list[list[tuple[float, float, float]]], advantages: list[float], aggregation: str
) -> float:
    """Token by token with the standard library; table[row][token] = (policy, old, rollout)."""
    total_tokens = sum(len(row) for row in table)
    loss = 0.0
    for row, advantage in zip(table, advantages, strict=True):
        divisor = {
            "token": total_tokens,
            "sequence": len(table) * len(row),
            "constant": len(table) * 7,
        }[aggregation]
        for policy, old, rollout in row:
            ratio = policy / old
            bounded = min(max(ratio, 0.8), 1.3)
            gain = min(ratio * advantage, bounded * advantage)
            loss -= min(old / rollout, 2.0) * gain / divisor
    return loss


probability = st.floats(0.05, 1.0)
row = st.lists(st.tuples(probability, probability, probability), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(row, st.floats(-2, 2)), min_size=1, max_size=6),
    aggregation=st.sampled_from(["token", "sequence", "constant"]),
    num_parts=st.integers(1, 3),
)
def test_micro_batches_add_up_to_the_looped_loss(rows: list, aggregation: str, num_parts: int):
    algorithm = AlgorithmConfig(
        aggregation=aggregation,
        constant_length=7,
        clip_low=0.2,
        clip_high=0.3,
        rollout_weight_cap=2.0,
    )
    counts = GlobalCounts(sum(len(tokens) for tokens, _ in rows), len(rows))
    total = 0.0
    for part in range(num_parts):
        chosen = rows[part::num_parts]
        flat = [token for tokens, _ in chosen for token in tokens]
        mask = torch.zeros(len(chosen), 5, dtype=torch.bool)
        for place, (tokens, _) in enumerate(chosen):
            mask[place, : len(tokens)] = True
        case = inputs(
            *([token[kind] for token in flat] for kind in range(3)),
            [advantage for tokens, advantage in chosen for _ in tokens],
            token_weights(mask, counts, algorithm).tolist(),
        )
        total += policy_loss(case, algorithm)[0].item()
    expected = looped_loss([tokens for tokens, _ in rows], [a for _, a in rows], aggregation)
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_mismatch_of_a_sample_is_its_mean_log_ratio():
    old, rollout = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -4.0])
    assert mean_log_ratios(old, rollout, [2, 1]) == [0.25, 1.0]
    assert mean_log_ratios(old[:0], rollout[:0], []) == []
