"""Which groups are worth training on: one place that says why a scored group is dropped."""

import math
import statistics
from collections import defaultdict
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
    The running mean moves between steps only, so that the order in which the groups of a step are
    finished decides nothing.
    """

    def __init__(self, config: Config) -> None:
        self._algorithm = config.algorithm
        probability = config.reward.probability
        self._beta = probability.filter_beta if probability else None
        self._reasoning = {name for name, mode in config.modes.items() if mode.thinking}
        self._spreads: defaultdict[int, list[float]] = defaultdict(list)
        self._warmup: list[float] = []
        self._ema: float | None = None

    @property
    def threshold(self) -> float:
        """Least standard deviation; 0 as long as the running mean is not known."""
        return 0.0 if self._beta is None or self._ema is None else self._beta * self._ema

    def reason(self, step: int, mode: str, scores: Sequence[Score]) -> DropReason | None:
        """Why a scored group of `step` (1-based) is dropped, or None; must see every group."""
        rewards = [score.reward for score in scores]
        unscored = sum(reward is None for reward in rewards)
        # Before the other filters: a spread or a variance over the few scores that are left means
        # little.
        if unscored > self._algorithm.max_unscored_share * len(rewards):
            return DropReason.UNSCORED
        by_probability = any(s.route and s.route.name == PROBABILITY for s in scores)
        known = [score.parts["accuracy"] for score in scores if score.reward is not None]
        if mode in self._reasoning and by_probability and len(known) > 1:
            spread = statistics.stdev(known)
            # Also of a group that is dropped: a mean over what the filter keeps would only rise.
            self._spreads[step].append(spread)
            if spread < self.threshold:
                return DropReason.LOW_SPREAD
        if self._algorithm.drop_zero_variance and has_zero_variance(rewards):
            return DropReason.ZERO_VARIANCE
        return None

    def end_step(self, step: int) -> None:
        """Take the spreads of a step's groups (1-based) into the running mean."""
        spreads = self._spreads.pop(step, [])
        if not spreads or step < WARMUP_STEPS.start:
            return
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
        """The running mean, for a checkpoint."""
        return {"warmup": list(self._warmup), "ema": self._ema}

    def load(self, state: Mapping[str, Any]) -> None:
        self._warmup, self._ema = list(state["warmup"]), state["ema"]
