"""Credit: from the rewards of a group to an advantage per trajectory, and per choice.

Where the policy chooses whether to reason, its choice is one token before hundreds, and the two are
credited apart: the choice by what its kind has over the other, the response by what it has over
others of its kind. One credit for both would teach every token of a long response that responses
should have been short (HGPO, https://arxiv.org/abs/2505.14631, and DeGRPO,
https://arxiv.org/abs/2505.13379, part them too).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from rl.config.run import Config
from rl.loop.stages import ScoredGroup, reasons

# Keeps a group with a tiny spread from blowing up; the value TRL and the GRPO reference use.
STD_FLOOR = 1e-4
MOST_PAID = 0.2
"""The largest share of its accuracy that a response pays for its length. A right answer, however
long, stays worth more than a wrong one."""
MARGIN = 0.02
"""Accuracy that a price which adapts gives away for fewer tokens."""
PRICE_STEP = 0.005
"""The most that the share which it takes changes in a step: from nothing to MOST_PAID in 40."""
KEPT = 0.95
"""Of what it has seen so far, at every step: a step alone has few pairs."""

T = TypeVar("T")
U = TypeVar("U")


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
    compare: Callable[[Sequence[T]], Sequence[U]],
) -> list[U]:
    """Compare the values of each kind (RolloutGroup.kinds) with one another alone.

    Example: within_kinds([True, False, True], [3, 9, 1], sorted) == [1, 9, 3]
    """
    compared: dict[int, U] = {}
    for kind in dict.fromkeys(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        results = compare([values[place] for place in places])
        compared |= zip(places, results, strict=True)
    return [compared[place] for place in range(len(kinds))]


def priced(accuracy: float, num_tokens: int, price: float) -> float:
    """What a response is worth where kinds are compared, R (1 - min(MOST_PAID, price T / 1000)).

    A share of the accuracy and not an amount: where both kinds fail they are worth the same, and
    the cheaper failure is not preferred. num_tokens: all of the response, so that reasoning which
    hides in the answer pays too. price: per 1,000 tokens.

    Example: priced(1.0, 100, 0.5) == 0.95
    """
    return accuracy * (1 - min(MOST_PAID, price * num_tokens / 1000))


def utilities(scored: ScoredGroup, price: float) -> list[float | None]:
    """What each trajectory is worth where kinds are compared; None without a score.

    Accuracy alone, because the other parts of a reward do not mean the same in both kinds. Of the
    probability reward it is the probability itself: its baseline is what a response without
    reasoning scores, which would leave those nothing. A response that was cut off is wrong.
    """
    worth: list[float | None] = []
    for trajectory, score in zip(scored.group.trajectories, scored.scores, strict=True):
        accuracy = score.parts.get("probability", score.parts.get("accuracy"))
        if score.reward is None or accuracy is None:
            worth.append(None)
        else:
            accuracy *= trajectory.finish_reason != "length"
            worth.append(priced(accuracy, trajectory.num_response_tokens, price))
    return worth


def choice_advantages(
    choices: Sequence[bool | None], worth: Sequence[float | None]
) -> tuple[float, ...]:
    """Credit each choice with the mean worth of its kind minus that of the group.

    choices: RolloutGroup.choices. First tokens that are neither kind's are a third one, so that
    what comes of them is unlearned.

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

    def credit(of_kind: Sequence[float | None]) -> list[float]:
        same = [value for value in of_kind if value is not None]
        if not same or len(same) == len(known):
            return [0.0] * len(of_kind)
        gap = math.fsum(same) / len(same) - math.fsum(known) / len(known)
        return [0.0 if value is None else gap for value in of_kind]

    return tuple(within_kinds(choices, worth, credit))


@dataclass
class TargetPrice:
    """A price that adapts: the fewest tokens at which choosing is as good as reasoning always."""

    share: float = 0.0
    """Of its accuracy, what a response that reasons pays if it is as long as most."""
    seen: dict[str, list[float]] = field(
        default_factory=lambda: {"long": [0.0] * 3, "auto": [0.0] * 3}
    )
    """Responses, their summed accuracy and their tokens, the older the less: `long` of pairs, those
    that reason; `auto` where the policy chose."""

    @property
    def price(self) -> float:
        """Per 1,000 tokens; 0 before the first pair."""
        num_long, _, tokens = self.seen["long"]
        return 1000 * self.share * num_long / tokens if tokens else 0.0

    def learn(self, groups: Sequence[ScoredGroup]) -> None:
        """Take a step of the price after the groups of the mode that were trained in one.

            lag = accuracy of pairs where they reason - accuracy of what was chosen freely
            share <- share + PRICE_STEP clip((MARGIN - lag) / MARGIN, -1, 1),  0 to MOST_PAID
            price = 1000 share / mean tokens of pairs where they reason

        So it rises while nothing is lost, falls where more than MARGIN is, and stands where the lag
        is MARGIN: the multiplier of that constraint, found by dual ascent. In units of a usual
        response it needs no scale of its own. It stands still until both are known.
        """
        if not groups:
            return
        for known in self.seen.values():
            known[:] = [KEPT * total for total in known]
        for scored in groups:
            is_pair, of_group = scored.group.request.is_pair, scored.group.trajectories
            known = self.seen["long" if is_pair else "auto"]
            for trajectory, accuracy in zip(of_group, utilities(scored, price=0.0), strict=True):
                # One that is not finite would stay in the sums for good.
                if accuracy is None or not math.isfinite(accuracy):
                    continue
                if not is_pair or reasons("auto", trajectory):
                    known[0] += 1
                    known[1] += accuracy
                    known[2] += trajectory.num_response_tokens
        (num_long, long, _), (num_auto, auto, _) = self.seen["long"], self.seen["auto"]
        if num_long and num_auto:
            lag = long / num_long - auto / num_auto
            moved = self.share + PRICE_STEP * max(-1.0, min(1.0, (MARGIN - lag) / MARGIN))
            self.share = max(0.0, min(MOST_PAID, moved))


class ChoicePrices:
    """What 1,000 tokens cost in each mode that chooses."""

    def __init__(self, config: Config) -> None:
        choosing = {name: config.modes[name].price for name in config.choosing}
        self._fixed: dict[str, float] = {
            name: price for name, price in choosing.items() if not isinstance(price, str)
        }
        self._adapting = {name: TargetPrice() for name in choosing.keys() - self._fixed.keys()}

    @property
    def now(self) -> dict[str, float]:
        """By mode, for the groups of the step that comes next."""
        return self._fixed | {name: target.price for name, target in self._adapting.items()}

    def end_step(self, groups: Sequence[ScoredGroup]) -> None:
        """Let prices follow a step; it moves between steps only, so that one step has one price."""
        for name, target in self._adapting.items():
            target.learn([scored for scored in groups if scored.group.request.mode == name])

    @property
    def state(self) -> dict[str, Any]:
        """Of the prices that adapt, for a checkpoint."""
        return {name: asdict(target) for name, target in self._adapting.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._adapting = {name: TargetPrice(**target) for name, target in state.items()}
