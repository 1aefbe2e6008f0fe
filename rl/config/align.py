"""The section `align`: the RLAIF-V pass, which removes hallucination after RL."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rl.config.policy import OptimizerConfig
from rl.config.section import Address, Section, Share


class DpoConfig(Section):
    """Direct preference optimisation; MiniCPM-V 4.5's settings (arXiv 2509.18154, appendix A)."""

    # The log-ratio is a sum over tokens, so answers of a few tokens need a far larger beta.
    beta: float = Field(default=0.1, gt=0)
    """Weight of the log-ratio against the reference: the larger, the closer the policy stays."""
    batch_size: int = Field(default=256, gt=0)
    """Pairs per optimizer step, over all ranks."""
    steps: int = Field(default=400, gt=0)
    """Optimizer steps; where the pairs run out, they are taken again in another order."""
    micro_batch_pairs: int = Field(default=1, gt=0)
    """Pairs that a rank forwards at once, each as two rows."""
    # The paper does not publish its schedule; the optimizer's default is constant.
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between the checkpoints that a killed pass goes on from."""

    def accumulation(self, ranks: int) -> int:
        """Micro-batches of a rank per step; raises ValueError if the batch is not whole ones."""
        at_once = self.micro_batch_pairs * ranks
        if self.batch_size % at_once:
            raise ValueError(
                f"align.dpo.batch_size={self.batch_size} must be a multiple of the {at_once} pairs "
                f"that {ranks} ranks (policy.ranks) with align.dpo.micro_batch_pairs="
                f"{self.micro_batch_pairs} forward at once; change one of the three"
            )
        return self.batch_size // at_once


class AssistantConfig(Section):
    """A language model that divides answers into claims, or labels the claims."""

    model: str | None = None
    """Model directory, Hugging Face name or built-in model; null is the policy that is aligned."""
    endpoint: Address | None = None
    """Address of an OpenAI-compatible server, which is asked in place of a model here."""
    served_name: str | None = None
    """Which of the endpoint's models is asked, where it serves several."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type of its engines; by default the policy's."""
    max_model_length: int | None = Field(default=None, gt=0)
    """Tokens that its engines accept; by default rollout.max_model_length."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments, over those of rollout.engine. It runs where the run's engines do."""

    @model_validator(mode="after")
    def _is_one_model(self) -> AssistantConfig:
        # Neither is fine: the policy that is aligned then does the work itself.
        if self.model is not None and self.endpoint is not None:
            raise ValueError(
                f"model={self.model} and endpoint={self.endpoint} are two models; name one"
            )
        if self.served_name is not None and self.endpoint is None:
            raise ValueError("served_name belongs to an endpoint; name that too")
        return self


class GateConfig(Section):
    """What decides whether the aligned policy takes the place of the one before it."""

    prompts: int = Field(default=512, gt=0)
    """Held-out prompts, each asked in every mode before and after."""
    samples: int = Field(default=1, gt=0)
    """Responses per prompt and mode."""
    # Not 0: with the default number of prompts, accuracy varies by about this much by chance.
    max_accuracy_drop: Share = 0.02
    """The most accuracy that any mode may lose."""


class AlignConfig(Section):
    """The RLAIF-V pass (arXiv 2405.17220) that follows RL (arXiv 2509.18154, section 2.4.5)."""

    enabled: bool = False
    """Whether rl.launch goes on with the pass after the last step."""
    iterations: int = Field(default=1, gt=0)
    """Rounds, each with new prompts and with responses of the policy that the last round gave."""
    prompts: int = Field(default=4000, gt=0)
    """Training prompts of an iteration."""
    responses: int = Field(default=10, gt=1)
    """Responses per prompt, all of one mode."""
    # As RLAIF-V samples. Pairs need responses that differ, but not ones that fall apart.
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature of the responses that pairs are made of."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling of these responses, as `eval.top_p`."""
    mix: dict[str, Share] = {}
    """Share of the prompts that are asked in each mode; empty takes modes.*.share."""
    mine: Literal["reward", "accuracy"] | None = None
    """Take the pairs from the newest steps of the run's ledger, by this score, and sample none;
    null samples and labels."""
    divider: AssistantConfig | None = None
    """The model that divides answers into claims; null divides them by rules."""
    labeller: AssistantConfig = AssistantConfig()
    """The model that says whether a claim is true."""
    gap: float = Field(default=1, gt=0)
    """The least difference between the scores of a pair."""
    # Few, so that a prompt with many wrong claims does not rule the pass.
    pairs_per_prompt: int = Field(default=2, gt=0)
    """The most pairs that are made of one prompt's responses."""
    dpo: DpoConfig = DpoConfig()
    gate: GateConfig = GateConfig()
