"""The settings of preference optimisation."""

from __future__ import annotations

from pydantic import Field

from rl.config import OptimizerConfig, Section


class DpoConfig(Section):
    """MiniCPM-V 4.5's settings (arXiv 2509.18154, appendix A); its schedule is not published."""

    beta: float = Field(default=0.1, gt=0)
    """Weight of the log-ratio against the reference: the larger, the closer the policy stays."""
    batch_size: int = Field(default=256, gt=0)
    """Pairs per optimizer step, over all ranks."""
    steps: int = Field(default=400, gt=0)
    """Optimizer steps; pairs are taken again, in another order, where they run out."""
    micro_batch_pairs: int = Field(default=1, gt=0)
    """Pairs a rank forwards at once, each as two rows."""
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between checkpoints to resume from."""

    def accumulation(self, ranks: int) -> int:
        """Micro-batches of a rank per step; raises ValueError if the batch is not whole ones."""
        at_once = self.micro_batch_pairs * ranks
        if self.batch_size % at_once:
            raise ValueError(
                f"dpo.batch_size={self.batch_size} must be a multiple of the {at_once} pairs that "
                f"{ranks} ranks (policy.ranks) with dpo.micro_batch_pairs={self.micro_batch_pairs} "
                "forward at once; change one of the three"
            )
        return self.batch_size // at_once
