"""The probability reward of RLPR: how probable is the reference after the sampled reasoning?

    r  = mean probability of the reference's tokens in place of the sampled answer
    r' = the same without reasoning, once per prompt
    accuracy = clip(r - r', 0, 1)            (https://arxiv.org/abs/2506.18254, 2.2 and 2.3)

In a mode without reasoning r' would be the same context again, so r stands alone there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewards.answers import answer_start
from rewards.composition import Accuracy
from rewards.format import format_reward
from rewards.rules import NotScorable, reference_answer
from rl.config import ProbabilityConfig
from rl.interfaces import GenerationFailed, ReferenceScorer
from rl.stages import Prompt, ReferenceRequest, RolloutGroup, Trajectory

ROUTE = "probability"
VERSION = 1


class Splice(Protocol):
    """Puts a reference in an answer's place (rollout/splice.py); None where it does not fit."""

    def after_reasoning(
        self, group: RolloutGroup, place: int, kept_text: str, reference: str
    ) -> ReferenceRequest | None: ...

    def without_reasoning(
        self, prompt: Prompt, reference: str, temperature: float
    ) -> ReferenceRequest | None: ...


class ProbabilityReward:
    """Scores references; keeps the baseline of every prompt it has seen."""

    def __init__(self, config: ProbabilityConfig, scorer: ReferenceScorer, splice: Splice) -> None:
        self._config = config
        self._scorer = scorer
        self._splice = splice
        self._baselines: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[float | str]] = {}

    async def accuracies(self, group: RolloutGroup, thinking: bool) -> list[Accuracy]:
        """One result per trajectory, in order; raises only for a scorer that is gone."""
        try:
            reference = reference_answer(group.request.prompt.reference)
        except NotScorable as error:
            failed = Accuracy(None, _LABEL, f"not_scorable: {error}")
            return [failed] * len(group.trajectories)
        asked = [
            self._request(group, place, reference, thinking)
            for place in range(len(group.trajectories))
        ]
        means = await self._means([request for request in asked if request])
        is_debiased = thinking and self._config.debias
        baseline: float | str | None = None
        if is_debiased and means:
            baseline = await self._baseline(group, reference)
        return [
            self._accuracy(means[_key(request)], baseline) if request else self._invalid()
            for request in asked
        ]

    @property
    def state(self) -> dict[str, Any]:
        """Baselines by prompt id, for a checkpoint."""
        return {"baselines": dict(self._baselines)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._baselines = dict(state["baselines"])

    def _request(
        self, group: RolloutGroup, place: int, reference: str, thinking: bool
    ) -> ReferenceRequest | None:
        """The splice of one trajectory; None where it has no well-formed answer to replace."""
        trajectory = group.trajectories[place]
        if not format_reward(trajectory, thinking):
            return None
        kept = _text_before_answer(trajectory)
        return None if kept is None else self._splice.after_reasoning(group, place, kept, reference)

    async def _means(
        self, requests: Sequence[ReferenceRequest]
    ) -> dict[tuple[int, ...], float | str]:
        """Mean probability of each context, asked once; or why it has none."""
        distinct = {_key(request): request for request in requests}
        means = await asyncio.gather(*(self._mean(request) for request in distinct.values()))
        return dict(zip(distinct, means, strict=True))

    async def _mean(self, request: ReferenceRequest) -> float | str:
        try:
            return mean_probability(await self._scorer.reference_logprobs(request))
        except GenerationFailed as failure:
            return f"probability: {failure}"

    async def _baseline(self, group: RolloutGroup, reference: str) -> float | str:
        """r' of a prompt, asked once in a run, or why it has none."""
        prompt = group.request.prompt
        if prompt.id in self._baselines:
            return self._baselines[prompt.id]
        request = self._splice.without_reasoning(prompt, reference, group.request.temperature)
        if request is None:
            return "not_scorable: prompt and reference are longer than the engine takes"
        if prompt.id not in self._asking:
            self._asking[prompt.id] = asyncio.create_task(self._mean(request))
        # Another group of this prompt may wait for it too, and this one may be cancelled.
        mean = await asyncio.shield(self._asking[prompt.id])
        self._asking.pop(prompt.id, None)
        if isinstance(mean, float):
            self._baselines[prompt.id] = mean
        return mean

    def _accuracy(self, mean: float | str, baseline: float | str | None) -> Accuracy:
        for one in (mean, baseline):
            if isinstance(one, str):
                return Accuracy(None, _LABEL, one)
        assert isinstance(mean, float)
        made_of = {"probability": mean}
        if isinstance(baseline, float):
            made_of["baseline"] = baseline
        return Accuracy(debiased(**made_of), _LABEL, made_of=made_of)

    def _invalid(self) -> Accuracy:
        if self._config.invalid == "zero":
            return Accuracy(0.0, _LABEL)
        return Accuracy(None, _LABEL, "not_scorable: no well-formed answer to put it in place of")


def mean_probability(logprobs: Sequence[float]) -> float:
    """Mean of the tokens' probabilities, which RLPR prefers to their product (eq. 2)."""
    return math.fsum(math.exp(logprob) for logprob in logprobs) / len(logprobs)


def debiased(probability: float, baseline: float = 0.0) -> float:
    """clip(r - r', 0, 1).

    Example: debiased(0.75, 0.25) == 0.5
    """
    return min(1.0, max(0.0, probability - baseline))


_LABEL = f"{ROUTE}/{VERSION}"


def _key(request: ReferenceRequest) -> tuple[int, ...]:
    """Short answers of a group share their context, which need be asked for only once."""
    return request.context_token_ids


def _text_before_answer(trajectory: Trajectory) -> str | None:
    """The sampled text up to where its final answer begins."""
    answer = trajectory.answer or ""
    start = answer_start(answer)
    if start is None:
        return None
    return trajectory.text[: len(trajectory.text) - len(answer) + start]
