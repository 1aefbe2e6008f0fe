"""The gate: whether the aligned policy may take the place of the one before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl.align.claims.types import HallucinationRate
from rl.config.run import GateConfig
from rl.evaluate.evaluation import ModeResult, mean


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
