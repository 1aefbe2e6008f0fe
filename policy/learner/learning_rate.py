"""The learning rate as a pure function of the step, so that a resumed run continues exactly."""

import math

from rl.config.policy import OptimizerConfig


def learning_rate_at(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step (1-based) of a run of `num_steps`.

    It rises linearly over the warm-up, is at its peak on its last step, and ends at
    `final_fraction` of the peak on the last step of the run (unless it is constant).
    """
    if step <= optimizer.warmup_steps:
        return optimizer.learning_rate * step / optimizer.warmup_steps
    progress = (step - optimizer.warmup_steps) / max(num_steps - optimizer.warmup_steps, 1)
    # A run that is resumed with fewer steps= may be past its end.
    progress = min(progress, 1.0)
    if optimizer.schedule == "constant":
        remaining = 1.0
    elif optimizer.schedule == "linear":
        remaining = 1.0 - progress
    else:
        remaining = (1.0 + math.cos(math.pi * progress)) / 2
    final = optimizer.final_fraction
    return optimizer.learning_rate * (final + (1.0 - final) * remaining)
