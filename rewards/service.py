"""The reward service: from a group to its scores.

    group -> text rewards (rules, format, repetition, ...)  \\
          -> probability reward, for natural language         -> compose_group -> scores
          -> preference model, question and answer only     /

The three sources work side by side; rewards/composition.py alone weighs what they give. In a run
they are models and worker processes; rl.rescore puts the scores of a ledger in their place, and an
evaluation over an endpoint a probability that cannot be had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewards.composition import Accuracy, Preference, TextParts, compose_group
from rewards.preference.preference import PreferenceModel, preference_input
from rewards.probability import ProbabilityReward
from rewards.rules.routes import NATURAL, ROUTES
from rewards.rules.verifier import NotScorable, route_of
from rewards.text.text_rewards import question_text
from rl.config.reward import RewardConfig
from rl.config.rollout import ModeConfig
from rl.loop.stages import PROBABILITY, Failure, Prompt, RolloutGroup, Route, Score, not_scorable


class TextSource(Protocol):
    """rewards/text/text_rewards.py, in place or behind its actor."""

    async def parts(self, group: RolloutGroup, by_rules: bool) -> Sequence[TextParts]: ...


class ProbabilitySource(Protocol):
    async def accuracies(self, group: RolloutGroup, thinking: bool) -> Sequence[Accuracy]:
        """One accuracy per trajectory; thinking: whether the group's mode reasons."""
        ...


class PreferenceSource(Protocol):
    async def preferences(self, group: RolloutGroup) -> Sequence[Preference]:
        """What the preference model was shown of each trajectory, and its raw score."""
        ...


class PreferredAnswers:
    """Implements PreferenceSource: shows a model the final answers of a group."""

    def __init__(self, model: PreferenceModel) -> None:
        self._model = model

    async def preferences(self, group: RolloutGroup) -> Sequence[Preference]:
        prompt = group.request.prompt
        shown = [preference_input(prompt, trajectory) for trajectory in group.trajectories]
        scores = iter(await self._model.score([one for one in shown if one is not None]))
        return [
            Preference(None, None) if one is None else Preference(one.answer, next(scores))
            for one in shown
        ]


class RewardService:
    """Implements rl.loop.interfaces.Scorer."""

    def __init__(
        self,
        config: RewardConfig,
        modes: Mapping[str, ModeConfig],
        text: TextSource,
        probability: ProbabilitySource | None = None,
        preference: PreferenceSource | None = None,
    ) -> None:
        self._config = config
        self._modes = dict(modes)
        self._text = text
        self._probability = probability
        self._preference = preference

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """One score per trajectory, in order; raises only for a source that is gone."""
        request = group.request
        by_rules = self._probability is None or not takes_probability(request.prompt)
        # Side by side, because they wait for different things: worker processes, engines and a
        # model.
        texts, probabilities, preferences = await asyncio.gather(
            self._text.parts(group, by_rules),
            self._probabilities(group, by_rules),
            self._preferences(group),
        )
        accuracies = probabilities
        if accuracies is None:
            accuracies = [text.accuracy for text in texts if text.accuracy is not None]
        return compose_group(
            self._config, request.prompt, request.mode, accuracies, texts, preferences
        )

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must know, for a checkpoint: only a probability reward has any."""
        if not isinstance(self._probability, ProbabilityReward):
            return {}
        return {"probability": self._probability.state}

    def load(self, state: Mapping[str, Any]) -> None:
        if isinstance(self._probability, ProbabilityReward) and "probability" in state:
            self._probability.load(state["probability"])

    async def _probabilities(
        self, group: RolloutGroup, by_rules: bool
    ) -> Sequence[Accuracy] | None:
        if by_rules or self._probability is None:
            return None
        thinking = self._modes[group.request.mode].thinking
        return await self._probability.accuracies(group, thinking)

    async def _preferences(self, group: RolloutGroup) -> Sequence[Preference] | None:
        # One response has no group to be preferred in.
        if self._preference is None or len(group.trajectories) == 1:
            return None
        return await self._preference.preferences(group)


def takes_probability(prompt: Prompt) -> bool:
    """Whether the probability reward decides the accuracy: asked for, or no rule could."""
    # A prompt that asks for it by name gets it, also where a rule could read its reference.
    if prompt.task == PROBABILITY:
        return True
    try:
        return route_of(prompt.reference, prompt.task, question_text(prompt)) == NATURAL
    except NotScorable:
        return False


def accuracy_route(prompt: Prompt, has_probability: bool) -> Route | Failure:
    """Which reward will decide the accuracy of responses to a prompt, or why none can.

    has_probability: whether the probability reward is configured.
    """
    if has_probability and takes_probability(prompt):
        return Route(PROBABILITY)
    try:
        name = route_of(prompt.reference, prompt.task, question_text(prompt))
    except NotScorable as error:
        return not_scorable(error)
    return Route(name, ROUTES[name].version)
