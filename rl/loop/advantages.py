"""Credit: from the rewards of a group to an advantage per trajectory, and per choice.

Where the policy chooses whether to reason, its choice is one token before hundreds, and the two are
credited apart: the choice by what its kind has over the other, the response by what it has over
others of its kind. One credit for both would teach every token of a long response that responses
should have been short (HGPO, https://arxiv.org/abs/2505.14631, and DeGRPO,
https://arxiv.org/abs/2505.13379, part them too).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from rl.loop.stages import ScoredGroup

# Keeps a group with a tiny spread from blowing up; the value TRL and the GRPO reference use.
STD_FLOOR = 1e-4
MOST_PAID = 0.2
"""The largest share of its accuracy that a response pays for its length. A right answer, however
long, stays worth more than a wrong one."""

T = TypeVar("T")


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


def within_kinds(
    kinds: Sequence[bool | None],
    values: Sequence[T],
    compare: Callable[[Sequence[T]], Sequence[T]],
) -> list[T]:
    """Compare the values of each kind (RolloutGroup.kinds) with one another alone.

    Example: within_kinds([True, False, True], [3, 9, 1], sorted) == [1, 9, 3]
    """
    compared = list(values)
    for kind in dict.fromkeys(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        results = compare([values[place] for place in places])
        for place, result in zip(places, results, strict=True):
            compared[place] = result
    return compared


def priced(accuracy: float, num_tokens: int, price: float) -> float:
    """What a response is worth where kinds are compared, R (1 - min(MOST_PAID, price T / 1000)).

    A share of the accuracy and not an amount: where both kinds fail they are worth the same, and
    the cheaper failure is not preferred. num_tokens: all of the response, so that reasoning which
    hides in the answer pays too. price: per 1,000 tokens.

    Example: priced(1.0, 100, 0.5) == 0.95
    """
    return accuracy * (1 - min(MOST_PAID, price * num_tokens / 1000))


def utilities(scored: ScoredGroup, price: float) -> list[float | None]:
    """What each trajectory is worth where kinds are compared; None without a score, or a kind.

    Accuracy alone, because the other parts of a reward do not mean the same in both kinds. Of the
    probability reward it is the probability itself: its baseline is what a response without
    reasoning scores, which would leave those nothing. A response that was cut off is wrong.
    """
    worth: list[float | None] = []
    for trajectory, score in zip(scored.group.trajectories, scored.scores, strict=True):
        accuracy = score.parts.get("probability", score.parts.get("accuracy"))
        is_kind = trajectory.choice is not None and trajectory.choice.num_tokens > 0
        if score.reward is None or accuracy is None or not is_kind:
            worth.append(None)
        else:
            accuracy *= trajectory.finish_reason != "length"
            worth.append(priced(accuracy, trajectory.num_response_tokens, price))
    return worth


def choice_advantages(
    kinds: Sequence[bool | None], worth: Sequence[float | None]
) -> tuple[float, ...]:
    """Credit each choice with the mean worth of its kind minus that of the group.

    Neither is divided by a deviation: where all are right the deviation is the price itself, which
    would then weigh as much as being right. With p = pi(short), z its logit and Q the mean worth of
    a kind, the mean gradient over

        a pair (n/2 of each, forced)     d/dz = (Q_short - Q_long) / 4
        n free choices                   d/dz = (Q_short - Q_long) p (1 - p) (n - 1) / n

    The second is that of the expected worth, but for a factor that n choices share with their own
    baseline; it vanishes where a kind is never chosen. The first does not, which is what pairs are
    for. It is biased: a prompt weighs 1 / (p (1 - p)) times as much as in the expected worth. Its
    sign is right at every p, so its optimum is the same for each prompt by itself (the balanced
    surrogate of paired prompts; exact weights p / q would cure variance and not a cold start).

    Example: choice_advantages([True, True, False], [1.0, 0.5, 0.0]) == (0.25, 0.25, -0.5)
    """
    known = [value for value in worth if value is not None]
    credit = []
    for kind, value in zip(kinds, worth, strict=True):
        same = [v for k, v in zip(kinds, worth, strict=True) if k == kind and v is not None]
        is_credited = value is not None and len(same) < len(known)
        credit.append(
            math.fsum(same) / len(same) - math.fsum(known) / len(known) if is_credited else 0.0
        )
    return tuple(credit)
