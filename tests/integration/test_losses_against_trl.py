"""The losses against TRL's own GRPO code, from rewards and log-probabilities to the gradient."""

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from rl.config.policy import AlgorithmConfig
from rl.loop.advantages import group_advantages
from rl.loop.losses import GlobalCounts, LossInputs, is_in_loss, policy_loss, token_weights
from rl.loop.stages import TrainSample, Trajectory

PAD, END, OTHER = 0, 1, 2
LENGTHS = (9, 3, 6, 1, 4)
REWARDS = (1.0, 0.25, 0.5, -1.0, 0.0)
TRUNCATED = (0, 2)
"""Of both signs of the advantage, so that neither loss nor gradient is their sum by chance."""


@dataclass(frozen=True)
class Case:
    """Log-probabilities [sequence, time] of one group; what is beyond a length is padding."""

    policy: torch.Tensor
    old: torch.Tensor
    rollout: torch.Tensor
    mask: torch.Tensor


@pytest.fixture(autouse=True)
def _float64():
    """In float32 the two would differ by rounding, which hides a small mistake."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_case() -> Case:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    old = -torch.rand(shape, generator=generator) * 3
    return Case(
        policy=(old + torch.randn(shape, generator=generator) * 0.4).requires_grad_(),
        old=old,
        rollout=old + torch.randn(shape, generator=generator) * 0.4,
        mask=torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None],
    )


class FixedLogprobs(GRPOTrainer):
    """TRL's scoring and loss over given samples and log-probabilities; nothing else is set up."""

    def __init__(self, case: Case, directory: str, **settings: object) -> None:
        self.case = case
        self.args = GRPOConfig(directory, use_cpu=True, bf16=False, steps_per_generation=1)
        self.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
        # One process: every collective gives back what it is given.
        self.accelerator = SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=torch.device("cpu"),
            gather=lambda tensor: tensor,
            gather_for_metrics=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        )
        self._tokenizer = SimpleNamespace(pad_token_id=PAD)
        self.eos_token_ids = [END]
        self.tools = self.environments = self.environment_factories = None
        self.pad_to_multiple_of = None
        self.num_generations, self.num_iterations = len(LENGTHS), 1
        self.reward_weights, self.reward_func_names = torch.ones(1), ["reward"]
        self.multi_objective_aggregation, self.scale_rewards = "sum_then_normalize", "group"
        self.current_gradient_accumulation_steps = 1
        self.max_completion_length = 100
        self.epsilon_low, self.epsilon_high = 0.2, 0.27
        self.loss_type, self.importance_sampling_level = "dapo", "token"
        self.vllm_importance_sampling_mode = "token_truncate"
        self.vllm_importance_sampling_clip_max = 2.0
        self.vllm_importance_sampling_clip_min = None
        self.off_policy_mask_threshold = None
        self.mask_truncated_completions = False
        self.beta = 0.0
        self.top_entropy_quantile = 1.0
        self.use_vllm = self.vllm_importance_sampling_correction = True
        self.aux_loss_enabled = self._entropy_bonus_enabled = self.log_multimodal = False
        self._metrics = defaultdict(lambda: defaultdict(list))
        self._logs = defaultdict(list) | {"rewards": defaultdict(list), "extra": {}}
        self._pending_extra_logs, self._pending_metrics = {}, {}
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def loss(self) -> torch.Tensor:
        inputs = [{"prompt": "?"} for _ in LENGTHS]
        return self._compute_loss(None, self._generate_and_score_completions(inputs))

    def _generate(self, prompts: list):
        ends = [OTHER if row in TRUNCATED else END for row in range(len(LENGTHS))]
        ids = [[OTHER] * (n - 1) + [end] for n, end in zip(LENGTHS, ends, strict=True)]
        logprobs = [row[:n].tolist() for row, n in zip(self.case.rollout, LENGTHS, strict=True)]
        return (
            [[OTHER] for _ in prompts],
            ids,
            None,
            ["" for _ in prompts],
            logprobs,
            {},
            None,
            None,
        )

    def _calculate_rewards(self, *args):
        return torch.tensor(REWARDS)[:, None]

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        # TRL asks for those of before the step without gradient.
        logprobs = self.case.policy if torch.is_grad_enabled() else self.case.old
        return logprobs, torch.zeros_like(logprobs), None


def our_loss(
    case: Case, algorithm: AlgorithmConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trajectories = [
        Trajectory(
            token_ids=np.full(length, OTHER, np.int32),
            loss_mask=np.ones(length, np.bool_),
            rollout_logprobs=np.zeros(length, np.float32),
            versions=(0, 0),
            finish_reason="length" if row in TRUNCATED else "stop",
            text="",
            reasoning=None,
            answer=None,
        )
        for row, length in enumerate(LENGTHS)
    ]
    advantages = torch.tensor(group_advantages(REWARDS, normalize_by_std=True))
    mask = case.mask & torch.tensor([is_in_loss(t, algorithm) for t in trajectories])[:, None]
    counts = GlobalCounts.of([TrainSample(t, 0.0, 1.0) for t in trajectories], algorithm)
    inputs = LossInputs(
        loss_mask=mask,
        policy_logprobs=case.policy[mask],
        old_logprobs=case.old[mask],
        rollout_logprobs=case.rollout[mask],
        advantages=advantages[:, None].expand(mask.shape)[mask],
        weights=token_weights(mask, counts, algorithm),
        entropies=torch.zeros(int(mask.sum())),
    )
    return policy_loss(inputs, algorithm)


def check(case: Case, algorithm: AlgorithmConfig, theirs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss and gradient are equal; returns the metric sums."""
    ours, sums = our_loss(case, algorithm)
    assert abs(theirs.item()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    gradients = [torch.autograd.grad(loss, case.policy)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)
    return sums


AGGREGATIONS = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}
LOSSES = {
    "grpo": ({}, {}),
    "gspo": (
        {"loss": "gspo", "aggregation": "sequence", "clip_low": 0.1, "clip_high": 0.05},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 0.1,
            "epsilon_high": 0.05,
        },
    ),
    # TRL's setting is the cap itself.
    "cispo": ({"loss": "cispo", "clip_high": 0.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),
}
WEIGHTS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_equals_that_of_trl(aggregation: str, mask_truncated: bool, tmp_path):
    case = make_case()
    trainer = FixedLogprobs(
        case,
        str(tmp_path),
        loss_type=AGGREGATIONS[aggregation],
        mask_truncated_completions=mask_truncated,
    )
    algorithm = AlgorithmConfig(
        aggregation=aggregation, constant_length=100, mask_truncated=mask_truncated
    )
    sums = check(case, algorithm, trainer.loss())
    assert float(sums["clipped"]) > 0
    assert float(sums["truncated"]) > 0
    left_out = sum(LENGTHS[row] for row in TRUNCATED) * mask_truncated
    assert float(sums["num_loss_tokens"]) == sum(LENGTHS) - left_out


@pytest.mark.parametrize("rollout_weight", WEIGHTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_equals_that_of_trl_under_every_rollout_weight(
    loss: str, rollout_weight: str, tmp_path
):
    case, (ours, theirs) = make_case(), LOSSES[loss]
    trainer = FixedLogprobs(
        case,
        str(tmp_path),
        vllm_importance_sampling_mode=rollout_weight,
        vllm_importance_sampling_clip_min=0.6,
        **theirs,
    )
    algorithm = AlgorithmConfig(
        rollout_weight=rollout_weight, rollout_weight_floor=0.6, updates_per_batch=2, **ours
    )
    sums = check(case, algorithm, trainer.loss())
    assert 0 < float(sums["truncated"]) < sum(LENGTHS)
    assert float(sums["clipped"]) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_of_truncated_and_of_far_sequences_equal_those_of_trl(loss: str, tmp_path):
    case, (ours, theirs) = make_case(), LOSSES[loss]
    trainer = FixedLogprobs(
        case,
        str(tmp_path),
        mask_truncated_completions=True,
        off_policy_mask_threshold=0.01,
        **theirs,
    )
    algorithm = AlgorithmConfig(
        mask_truncated=True, off_policy_limit=0.01, updates_per_batch=2, **ours
    )
    sums = check(case, algorithm, trainer.loss())
    assert float(sums["num_sequences"]) == len(LENGTHS) - len(TRUNCATED)
    assert 0 < float(sums["masked_sequences"]) < float(sums["num_sequences"])


def test_gspo_by_token_equals_gspo_where_tokens_share_their_rollout_weight(tmp_path):
    case, (ours, theirs) = make_case(), LOSSES["gspo"]
    trainer = FixedLogprobs(
        case, str(tmp_path), vllm_importance_sampling_mode="sequence_truncate", **theirs
    )
    settings = {**ours, "loss": "gspo_token", "rollout_weight": "sequence_truncate"}
    check(case, AlgorithmConfig(updates_per_batch=2, **settings), trainer.loss())
