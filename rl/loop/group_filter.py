"""Which groups are worth training on: one place that says why a scored group is dropped."""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from rl.config.run import Config
from rl.loop.advantages import has_zero_variance
from rl.loop.stages import PROBABILITY, Score

EMA_DECAY = 0.99
WARMUP_STEPS = range(6, 11)
"""Steps (1-based) whose mean spread starts the running mean; the filter works after them."""


class DropReason(StrEnum):
    """Why a scored group is not trained on; the values are metric keys."""

    UNSCORED = "unscored"
    """Too many of its trajectories have no score."""
    LOW_SPREAD = "low_spread"
    ZERO_VARIANCE = "zero_variance"


class GroupFilter:
    """Drops groups without scores, without variance, or of too little spread.

    The last is the filter of RLPR (https://arxiv.org/abs/2506.18254, 2.4): a group scored by the
    probability reward whose standard deviation is below beta x the running mean of such deviations,
    in modes that reason; elsewhere all responses of a group may share one context and one score.
    The running mean moves between steps only, and a step is judged by the mean of the newest step
    that is over whenever its groups are asked for. So the order in which groups are finished
    decides nothing, whatever the staleness.
    """

    def __init__(self, config: Config) -> None:
        self._algorithm = config.algorithm
        probability = config.reward.probability
        self._beta = probability.filter_beta if probability else None
        self._reasoning = {name for name, m in config.modes.items() if m.thinking is True}
        # Rewards that are equal say nothing of a choice, which tokens and the other kind decide.
        self._choosing = config.choosing
        # Groups of step k may be asked for once step k - 1 - max_staleness is over.
        self._lag = 1 + config.rollout.max_staleness
        self._warmup: list[float] = []
        self._ema: float | None = None
        self._ema_after: dict[int, float | None] = {}
        self._ema_before: float | None = None

    def threshold(self, step: int) -> float:
        """Least standard deviation in `step` (1-based); 0 while no running mean is known."""
        ema = self._ema_after.get(step - self._lag, self._ema_before)
        return 0.0 if self._beta is None or ema is None else self._beta * ema

    def spread(self, mode: str, scores: Sequence[Score]) -> float | None:
        """The standard deviation that the filter of RLPR goes by; None where it does not apply."""
        by_probability = any(s.route and s.route.name == PROBABILITY for s in scores)
        applies = mode in self._reasoning and by_probability and not self._is_unscored(scores)
        # A reward may stand without its accuracy: where that failed and weighs nothing.
        rewarded = (score.parts for score in scores if score.reward is not None)
        known = [parts["accuracy"] for parts in rewarded if "accuracy" in parts]
        # One that is not finite would stay in the running mean for good.
        if not applies or len(known) < 2 or not all(map(math.isfinite, known)):
            return None
        return statistics.stdev(known)

    def reason(self, step: int, mode: str, scores: Sequence[Score]) -> DropReason | None:
        """Why a scored group of `step` (1-based) is dropped, or None."""
        # Before the other filters: a spread or a variance over the few scores that are left means
        # little.
        if self._is_unscored(scores):
            return DropReason.UNSCORED
        spread = self.spread(mode, scores)
        if spread is not None and spread < self.threshold(step):
            return DropReason.LOW_SPREAD
        rewards = [score.reward for score in scores]
        is_judged = self._algorithm.drop_zero_variance and mode not in self._choosing
        if is_judged and has_zero_variance(rewards):
            return DropReason.ZERO_VARIANCE
        return None

    def end_step(self, step: int, spreads: Sequence[float]) -> None:
        """Take the spreads of a step (1-based) into the running mean.

        spreads: also those of groups that were dropped, since a mean over what the filter keeps
        would only rise.
        """
        if spreads and step >= WARMUP_STEPS.start:
            self._learn(step, spreads)
        self._ema_after[step] = self._ema
        self._ema_after.pop(step - self._lag, None)

    def _is_unscored(self, scores: Sequence[Score]) -> bool:
        unscored = sum(score.reward is None for score in scores)
        return unscored > self._algorithm.max_unscored_share * len(scores)

    def _learn(self, step: int, spreads: Sequence[float]) -> None:
        # fsum: the same mean in whatever order the groups were finished.
        mean = math.fsum(spreads) / len(spreads)
        # The first steps start the mean and filter nothing: a single step's spread is too noisy a
        # bar.
        if self._ema is not None:
            self._ema = EMA_DECAY * self._ema + (1 - EMA_DECAY) * mean
            return
        self._warmup.append(mean)
        if step >= WARMUP_STEPS[-1]:
            self._ema = math.fsum(self._warmup) / len(self._warmup)

    @property
    def state(self) -> dict[str, Any]:
        """The running mean and those that coming steps are judged by, for a checkpoint."""
        recent = [[step, ema] for step, ema in self._ema_after.items()]
        return {"warmup": list(self._warmup), "ema": self._ema, "recent": recent}

    def load(self, state: Mapping[str, Any]) -> None:
        self._warmup, self._ema = list(state["warmup"]), state["ema"]
        self._ema_after = dict(state.get("recent", []))
        # Older versions kept the newest mean alone.
        self._ema_before = None if "recent" in state else self._ema
