"""From the parts of a group's trajectories to their rewards: pure, and the only place that weighs.

R = sum over parts of weight x part,  the preference part being z over the group
                                                (https://arxiv.org/abs/2509.18154, eq. 1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewards.preference.preference import group_preferences
from rl.config.reward import RewardConfig
from rl.loop.advantages import within_kinds
from rl.loop.stages import Claimed, Failure, Prompt, Route, Score, not_scorable


@dataclass(frozen=True)
class Accuracy:
    """The accuracy part of one trajectory: a number with what it was made of, or a failure."""

    value: float | None
    route: Route | None
    """None where it failed before a route was chosen."""
    failure: Failure | None = None
    made_of: Mapping[str, float] = field(default_factory=dict)
    claimed: Claimed | None = None
    """The answer that the rules read; None where they did not."""


@dataclass(frozen=True)
class TextParts:
    """The parts of one trajectory that its text and its mode alone decide."""

    parts: Mapping[str, float]
    accuracy: Accuracy | None = None
    """By rules; None where it was not asked for."""
    failure: Failure | None = None
    """Why a plug-in of the user's gave no part."""


@dataclass(frozen=True)
class Preference:
    """What the preference model was shown of one trajectory, and its raw score."""

    answer: str | None
    """None where the trajectory has no answer, which the model is not asked about. With
    reward.preference.reads=response, the whole response."""
    raw: float | None


def compose_group(
    config: RewardConfig,
    prompt: Prompt,
    mode: str,
    accuracies: Sequence[Accuracy],
    texts: Sequence[TextParts],
    preferences: Sequence[Preference] | None,
    kinds: Sequence[bool | None] | None = None,
) -> tuple[Score, ...]:
    """One score per trajectory. A part that failed leaves no reward; the other parts are kept.

    preferences: None where no preference model is configured. kinds: of a group in which the policy
    chose (RolloutGroup.kinds), whose preferences are standardised within each kind.
    """
    shown = preferences or [Preference(None, None)] * len(accuracies)
    ranked: Sequence[float | None] = [None] * len(shown)
    if preferences:
        raw = [preference.raw for preference in preferences]
        ranked = within_kinds(kinds or [None] * len(raw), raw, group_preferences)
    scores = []
    for accuracy, text, preference, z in zip(accuracies, texts, shown, ranked, strict=True):
        parts = {**text.parts, **accuracy.made_of}
        known = {"accuracy": accuracy.value, "preference": z, "preference_raw": preference.raw}
        parts |= {part: value for part, value in known.items() if value is not None}
        route = accuracy.route.name if accuracy.route else ""
        weights = config.weights_for(route, prompt.task, mode)
        # A part without a weight cannot change the reward, so its failure costs no trajectory.
        failure = accuracy.failure if weights["accuracy"] else None
        if failure is None and any(weights[plugin] for plugin in config.plugins):
            failure = text.failure
        # A response without an answer is no failure: it gets the lowest preference of its group.
        unread = preference.answer is not None and preference.raw is None
        if failure is None and weights["preference"] and unread:
            failure = not_scorable("question and answer are longer than the preference model reads")
        # No reward and not 0: a zero would be a verdict, and would pull the group's baseline down.
        reward = None
        if failure is None:
            reward = sum(weight * parts.get(part, 0.0) for part, weight in weights.items())
        scores.append(
            Score(reward, parts, accuracy.route, failure, preference.answer, accuracy.claimed)
        )
    return tuple(scores)
