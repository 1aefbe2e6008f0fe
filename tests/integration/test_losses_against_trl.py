"""The loss against TRL's own GRPO loss code, fed with the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from rl.config.policy import AlgorithmConfig
from rl.loop.losses import GlobalCounts, LossInputs, policy_loss, token_weights


class FixedLogprobs(GRPOTrainer):
    """TRL's loss over given log-probabilities; nothing else of a trainer is set up."""

    def __init__(self, loss_type: str, logprobs: torch.Tensor, directory: str) -> None:
        self.args = GRPOConfig(directory, use_cpu=True, bf16=False, steps_per_generation=1)
        self.loss_type = loss_type
        self.logprobs = logprobs
        self.model = SimpleNamespace(training=True)
        # One process: every collective gives back what it is given.
        self.accelerator = SimpleNamespace(
            num_processes=1,
            gather=lambda tensor: tensor,
            gather_for_metrics=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        )
        self.current_gradient_accumulation_steps = 1
        self.max_completion_length = 100
        self.importance_sampling_level = "token"
        self.epsilon_low, self.epsilon_high = 0.2, 0.27
        self.beta = 0.0
        self.top_entropy_quantile = 1.0
        self.off_policy_mask_threshold = None
        self.use_vllm = self.vllm_importance_sampling_correction = True
        self.aux_loss_enabled = self._entropy_bonus_enabled = False
        self._metrics = defaultdict(lambda: defaultdict(list))

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.logprobs, torch.zeros_like(self.logprobs), None


@pytest.mark.parametrize(
    ("aggregation", "loss_type"),
    [("token", "dapo"), ("sequence", "grpo"), ("constant", "dr_grpo")],
)
def test_loss_and_gradient_equal_those_of_trl(aggregation: str, loss_type: str, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 9)
    lengths = torch.tensor([9, 3, 6, 1])
    mask = torch.arange(shape[1]) < lengths[:, None]
    old = -torch.rand(shape, generator=generator) * 3
    policy = (old + torch.randn(shape, generator=generator) * 0.4).requires_grad_()
    rollout = old + torch.randn(shape, generator=generator) * 0.8
    advantages = torch.tensor([1.0, -0.5, 0.3, -2.0])

    theirs = FixedLogprobs(loss_type, policy, str(tmp_path))._compute_loss(
        None,
        {
            "prompt_ids": torch.zeros(4, 1, dtype=torch.int64),
            "prompt_mask": torch.ones(4, 1, dtype=torch.int64),
            "completion_ids": torch.zeros(shape, dtype=torch.int64),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "importance_sampling_ratio": (old - rollout).exp().clamp(max=2.0),
            "num_items_in_batch": mask.sum(),
        },
    )
    algorithm = AlgorithmConfig(aggregation=aggregation, constant_length=100)
    inputs = LossInputs(
        policy_logprobs=policy[mask],
        old_logprobs=old[mask],
        rollout_logprobs=rollout[mask],
        advantages=advantages[:, None].expand(shape)[mask],
        weights=token_weights(mask, GlobalCounts(int(mask.sum()), len(mask)), algorithm),
        entropies=torch.zeros(int(mask.sum())),
    )
    ours, sums = policy_loss(inputs, algorithm)
    assert float(sums["clipped"]) > 0
    assert float(sums["truncated"]) > 0
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, policy)[0], torch.autograd.grad(theirs, policy)[0]
    )
