"""The probability reward of RLPR: how probable is the reference after the sampled reasoning?

    r  = mean probability of the reference's tokens in place of the sampled answer
    r' = the same without reasoning, once per prompt
    accuracy = clip(r - r', 0, 1)            (https://arxiv.org/abs/2506.18254, 2.2 and 2.3)

In a mode without reasoning r' would be the same context again, so r stands alone there; where the
policy chooses, so it does for responses that answer at once.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from rewards.composition import Accuracy
from rewards.rules.reading.candidates import answer_start
from rewards.rules.verifier import NotScorable, reference_answer
from rewards.text.format import format_reward
from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.reward import ProbabilityConfig
from rl.config.rollout import Thinking
from rl.data.references import accepted_answers
from rl.loop.interfaces import GenerationFailed, ReferenceScorer
from rl.loop.stages import (
    PROBABILITY,
    Failure,
    Prompt,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    Route,
    Trajectory,
    not_scorable,
    reasons,
)

ROUTE = Route(PROBABILITY, version=1)


class Splice(Protocol):
    """Puts a reference in an answer's place (rollout/splice.py); None where it does not fit."""

    def after_reasoning(
        self, group: RolloutGroup, index: int, kept_text: str, reference: str
    ) -> ReferenceRequest | None: ...

    def without_reasoning(
        self, prompt: Prompt, reference: str, temperature: float
    ) -> ReferenceRequest | None: ...


class ProbabilityReward:
    """Scores references; keeps the baseline of every prompt it has seen."""

    def __init__(
        self,
        config: ProbabilityConfig,
        scorer: ReferenceScorer,
        splice: Splice,
        tags: ThinkTags = THINK_TAGS,
    ) -> None:
        self._config = config
        self._tags = tags
        self._scorer = scorer
        self._splice = splice
        self._baselines: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def accuracies(self, group: RolloutGroup, thinking: Thinking) -> list[Accuracy]:
        """One result per trajectory, in order; raises only for a scorer that is gone."""
        try:
            reference = reference_answer(accepted_answers(group.request.prompt.reference)[0])
        except NotScorable as error:
            return [Accuracy(None, ROUTE, not_scorable(error))] * len(group.trajectories)
        indices = range(len(group.trajectories))
        requests = [self._request(group, index, reference, thinking) for index in indices]
        # Short answers of a group share their context, which is scored once.
        distinct = {r.context_token_ids: r for r in requests if isinstance(r, ReferenceRequest)}
        scored = await asyncio.gather(*map(self._mean, distinct.values()))
        means = dict(zip(distinct, scored, strict=True))
        reasoned = [reasons(thinking, trajectory) for trajectory in group.trajectories]
        baseline: float | Failure | None = None
        if any(reasoned) and self._config.debias and means:
            baseline = await self._baseline(group, reference)
        return [
            r
            if isinstance(r, Accuracy)
            else probability_accuracy(
                means[r.context_token_ids], baseline if has_reasoned else None
            )
            for r, has_reasoned in zip(requests, reasoned, strict=True)
        ]

    @property
    def state(self) -> dict[str, Any]:
        """Baselines by prompt and temperature, for a checkpoint."""
        return {"baselines": dict(self._baselines)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._baselines = dict(state["baselines"])

    def learnt(self, request: RolloutRequest) -> Mapping[str, float]:
        """The baseline of a group's prompt, if it was asked."""
        name = _baseline_name(request)
        return {name: self._baselines[name]} if name in self._baselines else {}

    def recall(self, learnt: Mapping[str, float]) -> None:
        """Take over baselines that an earlier process asked for."""
        self._baselines |= learnt

    def _request(
        self, group: RolloutGroup, index: int, reference: str, thinking: Thinking
    ) -> ReferenceRequest | Accuracy:
        """The splice of one trajectory, or what it gets where there is no answer to replace."""
        trajectory = group.trajectories[index]
        if invalid := unanswered(self._config, trajectory, thinking, self._tags):
            return invalid
        answer = trajectory.answer or ""
        start = answer_start(answer)
        if start is None:
            return Accuracy(None, ROUTE, not_scorable("no final answer is found in the answer"))
        # The reference stands in the place of the final answer alone: what the policy wrote
        # before it is the context that RLPR scores.
        kept = trajectory.text[: len(trajectory.text) - len(answer) + start]
        too_long = not_scorable("response and reference are longer than the engine takes")
        spliced = self._splice.after_reasoning(group, index, kept, reference)
        return spliced or Accuracy(None, ROUTE, too_long)

    async def _mean(self, request: ReferenceRequest) -> float | Failure:
        """The mean of the tokens' probabilities, which RLPR prefers to their product (eq. 2)."""
        try:
            logprobs = await self._scorer.reference_logprobs(request)
        except GenerationFailed as failure:
            return Failure(PROBABILITY, str(failure))
        mean = math.fsum(map(math.exp, logprobs)) / len(logprobs)
        if not math.isfinite(mean):
            return Failure(PROBABILITY, f"the mean probability is {mean}")
        return mean

    async def _baseline(self, group: RolloutGroup, reference: str) -> float | Failure:
        """r' of a prompt, asked once in a run, or why it has none."""
        prompt, temperature = group.request.prompt, group.request.temperature
        name = _baseline_name(group.request)
        # Groups of one prompt ask at the same time: the first asks the engine, and all wait for it.
        async with self._locks[name]:
            if name not in self._baselines:
                request = self._splice.without_reasoning(prompt, reference, temperature)
                if request is None:
                    return not_scorable("prompt and reference are longer than the engine takes")
                mean = await self._mean(request)
                if isinstance(mean, Failure):
                    return mean
                self._baselines[name] = mean
            return self._baselines[name]


def _baseline_name(request: RolloutRequest) -> str:
    # By temperature too, because it divides the logits that the probabilities come from.
    return f"{request.prompt.id}@{request.temperature:g}"


def unanswered(
    config: ProbabilityConfig,
    trajectory: Trajectory,
    thinking: Thinking,
    tags: ThinkTags = THINK_TAGS,
) -> Accuracy | None:
    """What a trajectory gets that has no well-formed answer to replace; None where it has one."""
    if format_reward(trajectory, thinking, tags):
        return None
    if config.invalid == "zero":
        return Accuracy(0.0, ROUTE)
    return Accuracy(None, ROUTE, not_scorable("no well-formed answer to replace"))


def probability_accuracy(
    probability: float | Failure, baseline: float | Failure | None
) -> Accuracy:
    """The accuracy clip(r - r', 0, 1) from r and r'; baseline: None leaves r as it is.

    Example: probability_accuracy(0.75, 0.25).value == 0.5
    """
    if isinstance(probability, Failure):
        return Accuracy(None, ROUTE, probability)
    if isinstance(baseline, Failure):
        return Accuracy(None, ROUTE, baseline)
    made_of = {"probability": probability}
    if baseline is not None:
        made_of["baseline"] = baseline
    gain = probability - (baseline or 0.0)
    return Accuracy(min(1.0, max(0.0, gain)), ROUTE, made_of=made_of)
