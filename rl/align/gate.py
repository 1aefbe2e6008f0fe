"""The gate: whether the aligned policy may take the place of the one before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rl.align.claims.types import JudgedResponse
from rl.config.align import GateConfig
from rl.evaluate.evaluation import ModeResult, half_width, mean


@dataclass(frozen=True)
class HallucinationRate:
    """How often a mode says what is wrong, over responses whose every claim has a label.

    The intervals are over prompts, because responses to one prompt are not independent.
    """

    wrong_claims: float
    """Mean over prompts of the rejected claims per response."""
    wrong_claims_half_width: float
    """Half of its 95 % interval."""
    wrong_responses: float
    """Mean over prompts of the share of responses with any rejected claim."""
    wrong_responses_half_width: float
    claims: float
    """Claims per response, so that a rate that fell by saying less shows."""
    silent: float
    """Share of responses without a single claim; they count as not wrong."""
    count: int
    """Prompts."""
    incomplete: int
    """Responses left out because a claim has no label."""

    def as_metrics(self, mode: str) -> dict[str, float]:
        return {f"eval/{mode}/{name}": float(value) for name, value in vars(self).items()}


def hallucination_rates(judged: Sequence[JudgedResponse]) -> dict[str, HallucinationRate]:
    """The rate of each mode; a mode of which no response is complete has none.

    In the manner of CHAIR (share of responses with an error) and MMHal (errors per response).
    """
    of_mode: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for one in judged:
        of_mode[one.response.mode].append(one)
    return {
        mode: _rate(complete, incomplete=len(of_mode[mode]) - len(complete))
        for mode in sorted(of_mode)
        if (complete := [one for one in of_mode[mode] if one.is_complete])
    }


def _rate(judged: Sequence[JudgedResponse], incomplete: int) -> HallucinationRate:
    of_prompt: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for one in judged:
        of_prompt[one.response.prompt.id].append(one)

    def means(value: Callable[[JudgedResponse], float]) -> list[float]:
        return [mean([value(one) for one in group]) for group in of_prompt.values()]

    wrong = means(lambda one: one.num_wrong)
    any_wrong = means(lambda one: one.num_wrong > 0)
    return HallucinationRate(
        wrong_claims=mean(wrong),
        wrong_claims_half_width=half_width(wrong),
        wrong_responses=mean(any_wrong),
        wrong_responses_half_width=half_width(any_wrong),
        claims=mean(means(lambda one: len(one.claims))),
        silent=mean(means(lambda one: not one.claims)),
        count=len(of_prompt),
        incomplete=incomplete,
    )


@dataclass(frozen=True)
class Measurement:
    """One policy on the held-out prompts, by mode."""

    modes: Mapping[str, ModeResult]
    hallucination: Mapping[str, HallucinationRate]

    def wrong_claims(self, modes: Iterable[str]) -> float:
        """Rejected claims per response, each of these modes with the same weight."""
        return mean([self.hallucination[mode].wrong_claims for mode in modes])

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "modes": {mode: asdict(result) for mode, result in self.modes.items()},
            "hallucination": {mode: asdict(rate) for mode, rate in self.hallucination.items()},
        }

    def as_metrics(self) -> dict[str, float]:
        figures = [*self.modes.items(), *self.hallucination.items()]
        return {k: v for mode, found in figures for k, v in found.as_metrics(mode).items()}


def as_modes(record: Mapping[str, Any]) -> dict[str, ModeResult]:
    """The figures by mode from plain values; JSON makes texts of the numbers in `pass_at`."""
    return {
        mode: ModeResult(**found | {"pass_at": {int(k): v for k, v in found["pass_at"].items()}})
        for mode, found in record.items()
    }


def as_measurement(record: Mapping[str, Any]) -> Measurement:
    """What Measurement.as_record made a record of."""
    modes = as_modes(record["modes"])
    rates = {mode: HallucinationRate(**found) for mode, found in record["hallucination"].items()}
    return Measurement(modes, rates)


def refusals(before: Measurement, after: Measurement, gate: GateConfig) -> list[str]:
    """Why the aligned policy is not accepted; nothing where it is.

    It must not lose more than `max_accuracy_drop` of accuracy in any mode, and must not state more
    that is wrong than before.
    """
    found = []
    for mode, result in before.modes.items():
        drop = result.accuracy - after.modes[mode].accuracy
        if drop > gate.max_accuracy_drop:
            found.append(
                f"{mode} loses {100 * drop:.1f} points of accuracy ({result.accuracy:.1%} to "
                f"{after.modes[mode].accuracy:.1%}), of at most {100 * gate.max_accuracy_drop:g} "
                "(align.gate.max_accuracy_drop)"
            )
    judged = set(before.modes)
    if lost := sorted(judged - (before.hallucination.keys() & after.hallucination.keys())):
        found.append(f"no response in {', '.join(lost)} has claims that could be judged")
        return found
    was, now = before.wrong_claims(judged), after.wrong_claims(judged)
    if now > was:
        found.append(f"wrong claims per response rise from {was:.3f} to {now:.3f}")
    return found
