"""The gate: how a policy is measured on held-out prompts, and whether the aligned one is accepted.

held-out prompts -> samples -> responses -> claims, labels (judging.py) -> Measurement -> refusals
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.preference.preference import final_answer
from rl.align.claims.types import JudgedResponse, Response
from rl.config.align import GateConfig
from rl.config.rollout import EvalConfig
from rl.config.run import Config
from rl.evaluate.directory import EvaluationDirectory
from rl.evaluate.evaluation import (
    Encode,
    ModeResult,
    Sample,
    Sampler,
    answered_before,
    evaluate,
    half_width,
    mean,
    questions,
)
from rl.loop.interfaces import Scorer
from rl.loop.stages import Prompt


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
    silent: float
    """Share of responses without a single claim; they count as not wrong."""
    count: int
    """Prompts."""
    incomplete: int
    """Responses left out because a claim has no label."""

    def as_metrics(self, mode: str) -> dict[str, float]:
        return {f"eval/{mode}/{name}": float(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Measurement:
    """One policy on the held-out prompts, by mode."""

    modes: Mapping[str, ModeResult]
    hallucination: Mapping[str, HallucinationRate]
    """A mode of which no response could be judged is missing here."""

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
        return {k: v for mode, by_mode in figures for k, v in by_mode.as_metrics(mode).items()}


def gate_config(config: Config) -> Config:
    """The run's configuration with the gate's prompts in place of the evaluation's."""
    gate, run = config.align.gate, config.eval
    # Sampled as the run's evaluations are, so that the figures of both can be compared.
    settings = EvalConfig(
        prompts=gate.prompts,
        samples=gate.samples,
        temperature=run.temperature,
        top_p=run.top_p,
    )
    return config.model_copy(update={"eval": settings})


async def answer_heldout(
    config: Config,
    encode: Encode,
    sampler: Sampler,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    evaluation: EvaluationDirectory,
    advance: Callable[[], None],
) -> dict[str, ModeResult]:
    """Sample and score held-out responses; return the figures of every mode.

    config: with the gate's prompts (gate_config). evaluation: keeps each sample as it comes, and
    what it holds already is not asked for again. `advance` is called for every response.
    """
    # A row of the data may have been edited since; then its old sample does not count.
    known = answered_before(questions(config, prompts), evaluation.samples)
    for _ in known:
        advance()

    def keep(sample: Sample) -> None:
        evaluation.add(sample)
        advance()

    return await evaluate(config, encode, sampler, scorer, prompts, known.values(), keep)


def as_responses(prompts: Iterable[Prompt], samples: Iterable[Sample]) -> list[Response]:
    """Held-out samples as responses. They are judged and not trained on, so they have no tokens."""
    prompt_of = {prompt.id: prompt for prompt in prompts}
    responses = []
    # Samples come in the order in which they were answered, which differs from run to run.
    for sample in sorted(samples, key=lambda sample: sample.key):
        assert sample.text is not None, "an open evaluation holds what was answered"
        answer = final_answer(sample.answer, sample.finish_reason)
        prompt = prompt_of[sample.prompt_id]
        responses.append(Response(prompt, sample.mode, sample.sample, (), sample.text, answer))
    return responses


def as_modes(record: Mapping[str, Any]) -> dict[str, ModeResult]:
    """The figures by mode from plain values; JSON makes texts of the numbers in `pass_at`."""
    return {
        mode: ModeResult(**values | {"pass_at": {int(k): v for k, v in values["pass_at"].items()}})
        for mode, values in record.items()
    }


def as_measurement(record: Mapping[str, Any]) -> Measurement:
    """What Measurement.as_record made a record of."""
    rates = {mode: HallucinationRate(**rate) for mode, rate in record["hallucination"].items()}
    return Measurement(as_modes(record["modes"]), rates)


def hallucination_rates(judged: Iterable[JudgedResponse]) -> dict[str, HallucinationRate]:
    """The rate of each mode; a mode of which no response is complete has none.

    In the manner of CHAIR (share of responses with an error) and MMHal (errors per response).
    """
    by_mode: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for response in judged:
        by_mode[response.response.mode].append(response)
    return {
        mode: _rate(complete, incomplete=len(by_mode[mode]) - len(complete))
        for mode in sorted(by_mode)
        if (complete := [each for each in by_mode[mode] if each.is_complete])
    }


def _rate(judged: Sequence[JudgedResponse], incomplete: int) -> HallucinationRate:
    by_prompt: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for response in judged:
        by_prompt[response.response.prompt.id].append(response)

    # First over the responses to a prompt, then over prompts: the prompts are what is drawn.
    def means(value: Callable[[JudgedResponse], float]) -> list[float]:
        return [mean([value(each) for each in group]) for group in by_prompt.values()]

    wrong = means(lambda response: response.num_wrong)
    any_wrong = means(lambda response: response.num_wrong > 0)
    return HallucinationRate(
        wrong_claims=mean(wrong),
        wrong_claims_half_width=half_width(wrong),
        wrong_responses=mean(any_wrong),
        wrong_responses_half_width=half_width(any_wrong),
        claims=mean(means(lambda response: len(response.claims))),
        silent=mean(means(lambda response: not response.claims)),
        count=len(by_prompt),
        incomplete=incomplete,
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
    modes = set(before.modes)
    # A mode that cannot be judged would otherwise count as one without wrong claims.
    if lost := sorted(modes - (before.hallucination.keys() & after.hallucination.keys())):
        reasons.append(f"no response in {', '.join(lost)} has claims that could be judged")
        return reasons
    rate_before, rate_after = before.wrong_claims(modes), after.wrong_claims(modes)
    if rate_after > rate_before:
        reasons.append(f"wrong claims per response rise from {rate_before:.3f} to {rate_after:.3f}")
    return reasons
