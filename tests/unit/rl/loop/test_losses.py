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
from rl.loop.stages import TrainSample
from tests.fakes import trajectory


def log(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def row_mask(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def inputs(
    policy: list[float],
    old: list[float],
    rollout: list[float],
    advantages: list[float],
    weights: list[float] | None = None,
    lengths: list[int] | None = None,
) -> LossInputs:
    """From probabilities, so that ratios can be read off. lengths: of the rows; one by default."""
    count = len(policy)
    weights = [1 / count] * count if weights is None else weights
    return LossInputs(
        loss_mask=row_mask([count] if lengths is None else lengths),
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


def algorithm_of(loss_name: str, **settings: object) -> AlgorithmConfig:
    return AlgorithmConfig(
        loss=loss_name, aggregation="sequence", updates_per_batch=2, clip_high=0.27, **settings
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


def test_gspo_clips_sequences_by_the_geometric_mean_of_their_ratios():
    """Ratios 4 and 1/4 make 1; 2 and 4.5 make 3, which is clipped; 1.5 is not, on the bad side."""
    case = inputs(
        [0.4, 0.1, 0.2, 0.9, 0.6],
        [0.1, 0.4, 0.1, 0.2, 0.4],
        [0.1, 0.4, 0.1, 0.2, 0.4],
        [1.0, 1.0, 1.0, 1.0, -1.0],
        [0.5, 0.5, 0.5, 0.5, 1.0],
        lengths=[2, 2, 1],
    )
    for loss_name in ("gspo", "gspo_token"):
        loss, sums = policy_loss(case, algorithm_of(loss_name))
        assert loss.item() == pytest.approx(-(1.0 + 1.27 - 1.5))
        (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
        assert gradient.tolist() == pytest.approx([-0.5, -0.5, 0.0, 0.0, 1.5])
        assert float(sums["clipped"]) == 2


def test_gspo_by_token_gives_each_token_its_own_rollout_weight():
    """old / rollout is 2 and 0.5 in one sequence of ratio 1: GSPO's gradient is of their mean."""
    case = inputs([0.4, 0.1], [0.4, 0.1], [0.2, 0.2], [1.0, 1.0], [0.5, 0.5])
    expected = {"gspo": [-0.625, -0.625], "gspo_token": [-1.0, -0.25]}
    for loss_name, of_tokens in expected.items():
        loss, _ = policy_loss(case, algorithm_of(loss_name))
        assert loss.item() == pytest.approx(-1.25)
        (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
        assert gradient.tolist() == pytest.approx(of_tokens)


def test_cispo_cuts_the_weight_above_and_keeps_the_gradient():
    """Ratios 1.5, 1.5 and 0.5; the cap is 1.27, on both signs of the advantage."""
    case = inputs([0.6, 0.6, 0.2], [0.4] * 3, [0.4] * 3, [1.0, -1.0, -1.0], [1.0] * 3)
    loss, sums = policy_loss(case, algorithm_of("cispo"))
    assert loss.item() == pytest.approx(0.5 * math.log(0.2))
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([-1.27, 1.27, 0.5])
    assert float(sums["clipped"]) == 2


@pytest.mark.parametrize(
    ("rollout_weight", "expected", "num_outside"),
    [
        ("token_truncate", [2.0, 0.5, 1.5, 0.5], 3),
        ("token_mask", [0.0, 0.0, 1.5, 0.0], 3),
        ("sequence_truncate", [0.75, 0.75, 1.5, 0.5], 1),
        ("sequence_mask", [0.75, 0.75, 1.5, 0.0], 1),
    ],
)
def test_rollout_weights_are_of_tokens_or_sequences_and_cut_or_masked(
    rollout_weight: str, expected: list[float], num_outside: int
):
    """old / rollout is 3 and 0.25, which make 0.75; 1.5; and 0.1."""
    probabilities = [0.6, 0.1, 0.6, 0.05]
    case = inputs(
        probabilities, probabilities, [0.2, 0.4, 0.4, 0.5], [1.0] * 4, [1.0] * 4, lengths=[2, 1, 1]
    )
    algorithm = AlgorithmConfig(
        rollout_weight=rollout_weight, rollout_weight_cap=2.0, rollout_weight_floor=0.5
    )
    loss, sums = policy_loss(case, algorithm)
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([-weight for weight in expected])
    assert float(sums["rollout_weight"]) == pytest.approx(sum(expected))
    assert float(sums["truncated"]) == num_outside
    assert float(sums["num_loss_tokens"]) == 4
    # A mask of tokens takes out no sequence.
    metrics = loss_metrics(reduce_sums([sums]), 1)
    share = 1 / 3 if rollout_weight == "sequence_mask" else None
    assert metrics.get("rollout/masked_sequences") == (share and pytest.approx(share))


def test_bad_sequences_that_the_policy_left_behind_are_out_of_the_loss():
    """The mean of log(rollout / policy) is log 2, log 2 and 0; only the first is also bad."""
    case = inputs(
        [0.1, 0.4, 0.2, 0.4],
        [0.1, 0.4, 0.2, 0.4],
        [0.4, 0.4, 0.4, 0.4],
        [-1.0, -1.0, 1.0, -1.0],
        [1.0] * 4,
        lengths=[2, 1, 1],
    )
    loss, sums = policy_loss(case, AlgorithmConfig(off_policy_limit=0.5, rollout_weight_cap=None))
    (gradient,) = torch.autograd.grad(loss, case.policy_logprobs)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -1.0, 1.0])
    assert loss.item() == pytest.approx(0.0)
    assert (float(sums["masked_sequences"]), float(sums["num_sequences"])) == (1, 3)


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


@pytest.mark.parametrize("loss_name", ["grpo", "gspo", "gspo_token", "cispo"])
@pytest.mark.parametrize("settings", [{}, {"rollout_weight": "sequence_mask"}])
def test_a_micro_batch_without_loss_tokens_adds_nothing(loss_name: str, settings: dict):
    loss, sums = policy_loss(inputs([], [], [], [], []), algorithm_of(loss_name, **settings))
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


def rows_case(rows: list, counts: GlobalCounts, algorithm: AlgorithmConfig) -> LossInputs:
    """rows: the tokens, each (policy, old, rollout), and the advantage of each sequence."""
    flat = [token for tokens, _ in rows for token in tokens]
    lengths = [len(tokens) for tokens, _ in rows]
    return inputs(
        *([token[kind] for token in flat] for kind in range(3)),
        [advantage for tokens, advantage in rows for _ in tokens],
        token_weights(row_mask(lengths), counts, algorithm).tolist(),
        lengths,
    )


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
        if chosen:
            total += policy_loss(rows_case(chosen, counts, algorithm), algorithm)[0].item()
    expected = looped_loss([tokens for tokens, _ in rows], [a for _, a in rows], aggregation)
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_mismatch_of_a_sample_is_its_mean_log_ratio():
    old, rollout = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -4.0])
    assert mean_log_ratios(old, rollout, [2, 1]) == [0.25, 1.0]
    assert mean_log_ratios(old[:0], rollout[:0], []) == []


sequences = st.lists(st.tuples(row, st.floats(-2, 2)), min_size=1, max_size=6)


def loss_and_gradient(rows: list, algorithm: AlgorithmConfig) -> tuple[float, list[float]]:
    counts = GlobalCounts(sum(len(tokens) for tokens, _ in rows), len(rows))
    case = rows_case(rows, counts, algorithm)
    loss, _ = policy_loss(case, algorithm)
    return loss.item(), torch.autograd.grad(loss, case.policy_logprobs)[0].tolist()


@settings(max_examples=50, deadline=None)
@given(
    rows=sequences,
    loss_name=st.sampled_from(["gspo", "gspo_token", "cispo"]),
    rollout_weight=st.sampled_from(["token_mask", "sequence_truncate", "sequence_mask"]),
    num_parts=st.integers(2, 3),
)
def test_what_is_taken_over_sequences_does_not_depend_on_the_cut(
    rows: list, loss_name: str, rollout_weight: str, num_parts: int
):
    # Bounds that no ratio of the probabilities that hypothesis likes falls on by rounding.
    algorithm = algorithm_of(
        loss_name,
        clip_low=0.2123,
        rollout_weight=rollout_weight,
        rollout_weight_cap=1.9876,
        rollout_weight_floor=0.4321,
        off_policy_limit=0.3,
    )
    counts = GlobalCounts(sum(len(tokens) for tokens, _ in rows), len(rows))
    parts = [rows[part::num_parts] for part in range(num_parts)]
    cut = [policy_loss(rows_case(p, counts, algorithm), algorithm)[1] for p in parts if p]
    _, whole = policy_loss(rows_case(rows, counts, algorithm), algorithm)
    assert reduce_sums(cut) == pytest.approx(reduce_sums([whole]), rel=1e-5, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.tuples(st.tuples(*[probability] * 3)), st.floats(-2, 2)),
        min_size=1,
        max_size=6,
    ),
    loss_name=st.sampled_from(["gspo", "gspo_token"]),
)
def test_sequences_of_one_token_are_grpo(rows: list, loss_name: str):
    expected = loss_and_gradient(rows, algorithm_of("grpo"))
    assert loss_and_gradient(rows, algorithm_of(loss_name)) == (
        pytest.approx(expected[0]),
        pytest.approx(expected[1]),
    )


@settings(max_examples=50, deadline=None)
@given(rows=sequences)
def test_cispo_without_a_cap_has_the_gradient_of_the_unclipped_objective(rows: list):
    # Ratios are between 0.05 and 20.
    unbounded = {"clip_low": 0.99, "clip_high": 100.0, "updates_per_batch": 2}
    _, expected = loss_and_gradient(rows, AlgorithmConfig(**unbounded))
    _, gradient = loss_and_gradient(rows, AlgorithmConfig(loss="cispo", **unbounded))
    assert gradient == pytest.approx(expected)


def test_truncated_answers_count_as_sequences_without_tokens():
    trajectories = [
        trajectory(num_response=5, finish_reason="length"),
        trajectory(num_response=3),
    ]
    samples = [TrainSample(each, 0.0, 1.0) for each in trajectories]
    counts = [
        GlobalCounts.of(samples, AlgorithmConfig(mask_truncated=mask_truncated))
        for mask_truncated in (False, True)
    ]
    assert counts == [GlobalCounts(8, 2), GlobalCounts(3, 2)]
