"""The gate: what is measured of a policy, and whether the aligned one is accepted.

samples, labels of their claims (judging.py) -> Measurement, before and after -> refusals
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from rl.align.claims.types import JudgedResponse
from rl.align.pairing import num_words
from rl.config.align import GateConfig
from rl.config.rollout import EvalConfig
from rl.config.run import Config
from rl.evaluate.evaluation import ModeResult, half_width, mean, split_by_source


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
    """Claims per response: it shows a rate that fell because less is said."""
    words: float
    """Words per final answer, which show the same."""
    silent: float
    """Share of responses without a single claim; they count as not wrong."""
    count: int
    """Prompts."""
    incomplete: int
    """Responses left out because a claim has no label."""
    by_source: Mapping[str, HallucinationRate] = field(default_factory=dict)
    """Of the prompts of each source of a mixture; empty where there is none."""

    def as_metrics(self, mode: str) -> dict[str, float]:
        values = {name: value for name, value in vars(self).items() if name != "by_source"}
        for source, of_source in self.by_source.items():
            values[f"wrong_claims_of_{source}"] = of_source.wrong_claims
        return {f"eval/{mode}/{name}": float(value) for name, value in values.items()}


@dataclass(frozen=True)
class Measurement:
    """One policy on the held-out prompts, by mode."""

    modes: Mapping[str, ModeResult]
    hallucination: Mapping[str, HallucinationRate]
    """A mode of which no response could be judged is missing here."""

    def as_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for mode, result in self.modes.items():
            metrics |= result.as_metrics(mode)
        for mode, rate in self.hallucination.items():
            metrics |= rate.as_metrics(mode)
        return metrics


as_measurement = TypeAdapter(Measurement).validate_python
"""A Measurement of what JSON has of one (`dataclasses.asdict`)."""


def gate_config(config: Config) -> Config:
    """The run's configuration with the gate's prompts in place of the evaluation's."""
    # Sampled as the run's evaluations are, so that the figures of both can be compared.
    gate, run = config.align.gate, config.eval
    asked = EvalConfig(prompts=gate.prompts, samples=gate.samples)
    settings = asked.model_copy(update={"temperature": run.temperature, "top_p": run.top_p})
    return config.model_copy(update={"eval": settings})


def hallucination_rates(
    judged: Iterable[JudgedResponse], sources: Iterable[str] = ()
) -> dict[str, HallucinationRate]:
    """The rate of each mode; a mode of which no response is complete has none.

    sources: of a mixture, each of which has its own rate within that of a mode.
    """
    by_mode: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for each in judged:
        by_mode[each.response.mode].append(each)
    rates, sources = {}, list(sources)
    for mode, of_mode in sorted(by_mode.items()):
        if not (rate := rate_of(of_mode)):
            continue
        of_sources = split_by_source(of_mode, sources, lambda each: each.response.prompt.id)
        by_source = {name: of for name, answers in of_sources.items() if (of := rate_of(answers))}
        rates[mode] = replace(rate, by_source=by_source)
    return rates


def rate_of(judged: Sequence[JudgedResponse]) -> HallucinationRate | None:
    """The rate over all these responses; None where none of them is complete.

    In the manner of CHAIR (share of responses with an error) and MMHal (errors per response).
    """
    by_prompt: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for each in judged:
        if each.is_complete:
            by_prompt[each.response.prompt.id].append(each)
    if not by_prompt:
        return None
    # First over the responses to a prompt, then over prompts: the prompts are what is drawn.
    groups = by_prompt.values()
    wrong = [mean([each.num_wrong for each in group]) for group in groups]
    any_wrong = [mean([each.num_wrong > 0 for each in group]) for group in groups]
    return HallucinationRate(
        wrong_claims=mean(wrong),
        wrong_claims_half_width=half_width(wrong),
        wrong_responses=mean(any_wrong),
        wrong_responses_half_width=half_width(any_wrong),
        claims=mean([mean([len(each.claims) for each in group]) for group in groups]),
        words=mean([mean([num_words(each.response.answer or "") for each in g]) for g in groups]),
        silent=mean([mean([not each.claims for each in group]) for group in groups]),
        count=len(by_prompt),
        incomplete=sum(not each.is_complete for each in judged),
    )


def refusals(before: Measurement, after: Measurement, gate: GateConfig) -> list[str]:
    """Why the aligned policy is not accepted; nothing where it is.

    It must not lose more than `max_accuracy_drop` of accuracy in any mode, and must not state more
    that is wrong than before.
    """
    reasons = []
    # In each mode by itself: a gain in one must not pay for a loss in another.
    for mode, result in before.modes.items():
        drop = result.accuracy - after.modes[mode].accuracy
        if drop > gate.max_accuracy_drop:
            reasons.append(
                f"{mode} loses {100 * drop:.1f} points of accuracy ({result.accuracy:.1%} to "
                f"{after.modes[mode].accuracy:.1%}), of at most {100 * gate.max_accuracy_drop:g} "
                "(align.gate.max_accuracy_drop)"
            )
    measured = (before.hallucination, after.hallucination)
    # A mode that cannot be judged would otherwise count as one without wrong claims.
    if lost := sorted(
        mode for mode in before.modes if any(mode not in rates for rates in measured)
    ):
        reasons.append(f"no response in {', '.join(lost)} has claims that could be judged")
        return reasons
    # Each mode has the same weight, however many of its responses could be judged.
    rate, new_rate = (
        mean([rates[mode].wrong_claims for mode in before.modes]) for rates in measured
    )
    if new_rate > rate:
        reasons.append(f"wrong claims per response rise from {rate:.3f} to {new_rate:.3f}")
    return reasons
