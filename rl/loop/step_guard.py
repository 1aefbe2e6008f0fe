"""Numbers gone wrong: which update is not taken, and why, in words.

    rewards, advantages -> before the learner is asked             (rl/loop/loop.py)
    loss, mismatch      -> before the optimizer step, over all ranks
    gradient norm       -> at the optimizer step                   (policy/learner/rank.py)

A step that is skipped is a step all the same: its groups are counted as dropped, the weights are
published as they were and the learning rate moves on. So nothing else has to know of it.
"""

import math
from collections.abc import Sequence

from rl.config.policy import GuardConfig
from rl.loop.stages import ScoredGroup


class RunStopped(RuntimeError):
    """The run ended itself; the message says why, from where it goes on, and what to do."""


def wrong_credit(
    groups: Sequence[ScoredGroup], advantages: Sequence[Sequence[float | None]]
) -> str | None:
    """Which reward or advantage is not a finite number; None where all are."""
    for scored, of_group in zip(groups, advantages, strict=True):
        rewards = [score.reward for score in scored.scores]
        for name, values in (("reward", rewards), ("advantage", of_group)):
            for place, value in enumerate(values):
                if value is not None and not math.isfinite(value):
                    return f"{name} {value} of {scored.group.request.group_id}/{place}"
    return None


def wrong_loss(loss: float, mismatch_kl: float, guard: GuardConfig) -> str | None:
    """What is wrong with an update before its step; both figures are over all ranks.

    loss: of the whole update. mismatch_kl: `rollout/mismatch_kl`, per loss token.
    """
    # Of an infinite loss the gradient may be finite, and of a finite one not a number.
    if not math.isfinite(loss):
        return f"loss {loss}"
    limit = guard.mismatch_kl
    if not math.isfinite(mismatch_kl) or (limit is not None and mismatch_kl > limit):
        return f"mismatch KL {mismatch_kl:.3g}" + (f", limit {limit:g}" if limit else "")
    return None


def wrong_norm(norm: float, guard: GuardConfig) -> str | None:
    """What is wrong with the norm of the whole gradient, before clipping."""
    limit = guard.grad_norm
    if not math.isfinite(norm) or (limit is not None and norm > limit):
        return f"gradient norm {norm:.3g}" + (f", limit {limit:g}" if limit else "")
    return None
