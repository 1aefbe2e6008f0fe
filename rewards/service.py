"""The reward service: from the trajectories of a group to their scores.

Parts are kept apart from first to last; each is one function of one trajectory. A new part is
added in `_score` and given its weight in rl/config.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from rewards.format import format_reward, mode_leak
from rewards.repetition import repetition_penalty
from rewards.rules import NotScorable, symbolic, verify_quickly
from rewards.workers import SampleFailed, WorkerPool
from rl.config import RewardConfig
from rl.stages import Prompt, RolloutGroup, Score, Trajectory


class RewardService:
    """Scores groups; what needs sympy goes to killable workers, the rest is done in place."""

    def __init__(self, config: RewardConfig, thinking: Mapping[str, bool]) -> None:
        """thinking: whether each mode reasons."""
        self._config = config
        self._thinking = dict(thinking)
        self._workers = WorkerPool(config.workers, config.timeout_s, config.memory_mib)
        self.counts: Counter[str] = Counter()
        """Scores by `route/NAME`, and failures by `failure/REASON`."""

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """One score per trajectory, in order; never raises for a bad trajectory."""
        thinking = self._thinking[group.request.mode]
        scores = await asyncio.gather(
            *(self._score(group.request.prompt, t, thinking) for t in group.trajectories)
        )
        for score in scores:
            reason = f"failure/{score.failure.split(':')[0]}" if score.failure else ""
            self.counts[reason or f"route/{score.route}"] += 1
        return tuple(scores)

    async def _score(self, prompt: Prompt, trajectory: Trajectory, thinking: bool) -> Score:
        parts = {
            "format": format_reward(trajectory, thinking),
            "repetition": repetition_penalty(trajectory.text, self._config.repetition_ngram),
            # Not part of the reward: the format reward already punishes it.
            "leak": float(mode_leak(trajectory, thinking)),
        }
        try:
            accuracy, route = await self._accuracy(prompt, trajectory)
        except NotScorable as error:
            return Score(None, parts, failure=f"not_scorable: {error}")
        except SampleFailed as error:
            return Score(None, parts, failure=str(error))
        return compose(self._config, {"accuracy": accuracy} | parts, route)

    async def _accuracy(self, prompt: Prompt, trajectory: Trajectory) -> tuple[float, str]:
        """Rule accuracy with the route that decided it; an unfinished answer is wrong."""
        is_finished = trajectory.finish_reason == "stop"
        answer = (trajectory.answer or "") if is_finished else ""
        verdict = verify_quickly(prompt.reference, answer, prompt.task)
        if verdict.accuracy is not None:
            return verdict.accuracy, verdict.route
        accuracy = await self._workers.run(symbolic, prompt.reference, answer)
        return accuracy, verdict.route

    def close(self) -> None:
        self._workers.close()


def compose(config: RewardConfig, parts: Mapping[str, float], route: str) -> Score:
    """Weigh the parts into one reward (https://arxiv.org/abs/2509.18154, eq. 1)."""
    weights = config.weights.model_dump()
    reward = sum(weights[part] * parts[part] for part in weights)
    return Score(reward, parts, route)
