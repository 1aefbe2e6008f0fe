"""Credit: from the rewards of a group to an advantage per trajectory."""

import math
from collections.abc import Sequence

# Keeps a group with a tiny spread from blowing up; the value TRL and the GRPO reference use.
STD_FLOOR = 1e-4


def group_advantages(
    rewards: Sequence[float | None], normalize_by_std: bool
) -> tuple[float | None, ...]:
    """Centre each reward on its group, and divide by the group's sample deviation if asked.

    Trajectories without a reward stay out of the baseline and get None. GRPO
    (https://arxiv.org/abs/2402.03300, eq. 3) divides, Dr. GRPO (https://arxiv.org/abs/2503.20783)
    does not. A group of fewer than two rewards has no baseline, so its advantages are 0.

    Example: group_advantages([1.0, 0.0, None], False) == (0.5, -0.5, None)
    """
    known = [reward for reward in rewards if reward is not None]
    # One reward has nothing to be compared with. A zero keeps the trajectory in the batch and out
    # of the gradient.
    if len(known) < 2:
        return tuple(None if reward is None else 0.0 for reward in rewards)
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if normalize_by_std:
        variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
        scale = math.sqrt(variance) + STD_FLOOR
    return tuple(None if reward is None else (reward - mean) / scale for reward in rewards)


def has_zero_variance(rewards: Sequence[float | None]) -> bool:
    """Whether the group carries no signal: all known rewards are equal."""
    return len({reward for reward in rewards if reward is not None}) < 2
