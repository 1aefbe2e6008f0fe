"""The reward service: from a group to its scores.

    group -> text rewards (rules, format, repetition, ...)  \\
          -> probability reward, for natural language         -> compose_group -> scores
          -> preference model, question and answer only     /

The three sources work side by side; rewards/composition.py alone weighs what they give. In a run
they are models and worker processes; rl.rescore puts the scores of a ledger in their place, and an
evaluation over an endpoint a probability that cannot be had.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.composition import Accuracy, Preference, TextParts, compose_group
from rewards.preference.preference import PreferenceModel, preference_input, whole_response
from rewards.probability import ProbabilityReward
from rewards.rules.routes import NATURAL, ROUTES
from rewards.rules.verifier import NotScorable, route_of
from rewards.text.text_rewards import question_text
from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.reward import Reads, RewardConfig
from rl.config.rollout import ModeConfig, Thinking
from rl.loop.stages import (
    PROBABILITY,
    Failure,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    not_scorable,
)


class TextSource(Protocol):
    """rewards/text/text_rewards.py, in place or behind its actor."""

    async def parts(self, group: RolloutGroup, by_rules: bool) -> Sequence[TextParts]: ...


class ProbabilitySource(Protocol):
    async def accuracies(self, group: RolloutGroup, thinking: Thinking) -> Sequence[Accuracy]:
        """One accuracy per trajectory; thinking: that of the group's mode."""
        ...


class PreferenceSource(Protocol):
    async def preferences(self, group: RolloutGroup) -> Sequence[Preference]:
        """What the preference model was shown of each trajectory, and its raw score."""
        ...


@dataclass(frozen=True)
class PreferredAnswers:
    """Implements PreferenceSource: shows a model the final answers of a group.

    reads: "response" shows it all of the responses instead.
    """

    model: PreferenceModel
    tags: ThinkTags = THINK_TAGS
    reads: Reads = "answer"

    async def preferences(self, group: RolloutGroup) -> Sequence[Preference]:
        prompt, tags = group.request.prompt, self.tags
        read = preference_input if self.reads == "answer" else whole_response
        shown = [read(prompt, t, tags) for t in group.trajectories]
        scores = iter(await self.model.score([s for s in shown if s is not None]))
        return [
            Preference(None, None) if s is None else Preference(s.answer, next(scores))
            for s in shown
        ]


@dataclass(frozen=True)
class RewardService:
    """Implements rl.loop.interfaces.Scorer."""

    config: RewardConfig
    modes: Mapping[str, ModeConfig]
    text: TextSource
    probability: ProbabilitySource | None = None
    preference: PreferenceSource | None = None

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """One score per trajectory, in order; raises only for a source that is gone."""
        request, probability, preference = group.request, self.probability, self.preference
        if probability and accuracy_route(request.prompt, True) != Route(PROBABILITY):
            probability = None
        # One response has no group to be preferred in.
        if len(group.trajectories) == 1:
            preference = None
        thinking = self.modes[request.mode].thinking
        # Side by side, because they wait for different things: worker processes, engines and a
        # model.
        texts, accuracies, preferences = await asyncio.gather(
            self.text.parts(group, by_rules=probability is None),
            probability.accuracies(group, thinking) if probability else _nothing(),
            preference.preferences(group) if preference else _nothing(),
        )
        if accuracies is None:
            accuracies = [text.accuracy for text in texts if text.accuracy is not None]
        return compose_group(
            self.config, request.prompt, request.mode, accuracies, texts, preferences, group.kinds
        )

    def learnt(self, request: RolloutRequest) -> Mapping[str, float]:
        """The baseline of the group's prompt; empty where none was asked for."""
        own = self.probability
        return own.learnt(request) if isinstance(own, ProbabilityReward) else {}

    def recall(self, learnt: Mapping[str, float]) -> None:
        if isinstance(self.probability, ProbabilityReward):
            self.probability.recall(learnt)

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must know, for a checkpoint: only a probability reward has any."""
        if not isinstance(self.probability, ProbabilityReward):
            return {}
        return {"probability": self.probability.state}

    def load(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.probability, ProbabilityReward) and "probability" in state:
            self.probability.load(state["probability"])


async def _nothing() -> None:
    """Stands for a source that is not configured, or not asked."""


def accuracy_route(prompt: Prompt, has_probability: bool) -> Route | Failure:
    """Which reward will decide the accuracy of responses to a prompt, or why none can.

    has_probability: whether the probability reward is configured.
    """
    # A prompt that asks for it by name gets it, also where a rule could read its reference.
    if has_probability and prompt.task == PROBABILITY:
        return Route(PROBABILITY)
    try:
        name = route_of(prompt.reference, prompt.task, question_text(prompt))
    except NotScorable as error:
        return not_scorable(error)
    if has_probability and name == NATURAL:
        return Route(PROBABILITY)
    return Route(name, ROUTES[name].version)
