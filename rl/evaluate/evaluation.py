"""Held-out accuracy, length and leaks of every mode, from responses to the same prompts.

    prompts x modes x samples -> responses (engines, or an endpoint) -> samples -> ModeResult
    samples, two models -> ResponseLogprob -> rl/evaluate/best_of.py

Training and `rl.evaluate` both call `evaluate`. What is computed from samples is a pure function.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean as mean
from typing import Literal, TypeVar

from rl.config.run import Config
from rl.data.fingerprint import digest
from rl.loop.interfaces import GenerationFailed, ReferenceScorer, Sampler, Scorer
from rl.loop.loop import sampling_seed
from rl.loop.stages import (
    PROBABILITY,
    Prompt,
    ReferenceRequest,
    RolloutRequest,
    Route,
)

Item = TypeVar("Item")
By = Literal["policy", "reference"]
"""Which of two models finds a response probable."""
Encode = Callable[[Prompt, str], tuple[int, ...]]
Key = tuple[str, str, int]
"""Prompt id, mode and number of a sample."""

METRICS = {
    "accuracy": "avg@k: mean over prompts of the mean accuracy of their k responses; what has no "
    "score counts as wrong",
    "half_width": "half of the 95 % interval of the accuracy, over prompts (normal approximation)",
    "tokens_mean": "mean tokens of a response",
    "truncated": "share of responses that ran into their budget",
    "leak": "share of responses that do what the other mode does",
    "reasons": "share of responses that reason, in a mode that leaves the policy to choose",
    "unscored": "responses that failed, or whose verification failed",
    "count": "prompts",
    "samples": "responses per prompt (k)",
    "pass_at": "chance that one of k responses is right, by k (arXiv 2107.03374, eq. 1), over the "
    "prompts that rules verify",
    "by_source": "the same by source of the prompts, where `data.mix` has several",
}
"""What each field of ModeResult is."""


class NothingAnswered(RuntimeError):
    """Not one response came in a mode: something is wrong that is not the policy's."""


@dataclass(frozen=True)
class _Keyed:
    """What tells a response from the others of an evaluation."""

    prompt_id: str
    mode: str
    sample: int
    """Its number among the responses to this prompt in this mode, from 0."""

    @property
    def key(self) -> Key:
        return self.prompt_id, self.mode, self.sample


@dataclass(frozen=True)
class Sample(_Keyed):
    """One scored response: a row of samples.jsonl. A response that failed has no text."""

    text: str | None = None
    reasoning: str | None = None
    answer: str | None = None
    tokens: int = 0
    finish_reason: str | None = None
    accuracy: float | None = None
    """None where it has none."""
    route: str = ""
    """Which accuracy reward applied, with its version."""
    failure: str | None = None
    """Why there is no score; None where there is one."""
    leak: float | None = None
    asked: str = ""
    """Digest of the prompt and its reference: a row of the data may have been edited since."""
    token_ids: tuple[int, ...] | None = None
    """The sampled tokens, end of sequence included; only where they are asked for."""
    reasons: bool | None = None
    """Whether it reasons, in a mode that leaves the policy to choose; None in other modes."""

    @property
    def is_answered(self) -> bool:
        return self.text is not None

    @property
    def digest(self) -> str:
        """Of what was asked and sampled."""
        return digest(json.dumps([self.asked, self.token_ids]))


@dataclass(frozen=True)
class ResponseLogprob(_Keyed):
    """How probable one model finds a response: a row of logprobs.jsonl."""

    by: By
    response: str
    """Digest of the sample: it may have been asked for again since."""
    logprob: float | None = None
    """Sum over its tokens at temperature 1; None where it could not be scored."""
    failure: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class ModeResult:
    """Figures of one mode; METRICS says what each of them is."""

    accuracy: float
    half_width: float
    tokens_mean: float
    truncated: float
    unscored: int
    count: int
    leak: float = 0.0
    samples: int = 1
    pass_at: Mapping[int, float] = field(default_factory=dict)
    """Empty where rules verify no prompt."""
    reasons: float | None = None
    """None in a mode that leaves no choice."""
    by_source: Mapping[str, ModeResult] = field(default_factory=dict)
    """Of the prompts of each source of a mixture; empty where there is none."""

    def as_metrics(self, mode: str) -> dict[str, float]:
        names = (
            "accuracy",
            "half_width",
            "tokens_mean",
            "truncated",
            "leak",
            "unscored",
            "reasons",
        )
        values = {name: getattr(self, name) for name in names}
        for source, of_source in self.by_source.items():
            values[f"accuracy_of_{source}"] = of_source.accuracy
            values[f"half_width_of_{source}"] = of_source.half_width
        return {f"eval/{mode}/{name}": float(v) for name, v in values.items() if v is not None}


@dataclass(frozen=True)
class Question:
    """One response to ask for."""

    index: int
    """The prompt's, in the list of prompts."""
    prompt: Prompt
    mode: str
    sample: int

    @property
    def key(self) -> Key:
        return self.prompt.id, self.mode, self.sample

    @property
    def digest(self) -> str:
        """See Sample.asked."""
        messages = [dict(message) for message in self.prompt.messages]
        asked = [messages, self.prompt.reference, self.prompt.task]
        return digest(json.dumps(asked, default=str))


async def evaluate(
    config: Config,
    encode: Encode,
    sampler: Sampler,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    known: Iterable[Sample] = (),
    keep: Callable[[Sample], None] = lambda sample: None,
    token_ids: bool = False,
) -> dict[str, ModeResult]:
    """Ask every prompt `eval.samples` times in every mode; the same seeds at every call, if any.

    known: samples that are there and, where they fit, not asked for again. keep: given each new one
    as it comes, with its token_ids if so asked. Raises NothingAnswered where all of a mode's
    responses failed.
    """
    wanted = questions(config, prompts)
    samples = answered_before(wanted, known)

    async def ask(question: Question) -> None:
        mode, number = question.mode, question.sample
        # It decides the seed. The first sample's has no number, so that the first response to a
        # prompt is the same as in training's own evaluation, whatever eval.samples is.
        group_id = f"eval/{mode}/{question.index}" + (f"/{number}" if number else "")
        request = RolloutRequest(
            group_id=group_id,
            prompt=question.prompt,
            mode=mode,
            prompt_token_ids=encode(question.prompt, mode),
            # One request per response rather than one of n: a killed evaluation then goes on at the
            # response it stopped at, and each response has a seed of its own.
            n=1,
            max_tokens=config.modes[mode].max_tokens,
            temperature=config.eval.temperature,
            top_p=config.eval.top_p,
            seed=sampling_seed(config.seed, group_id) if config.rollout.seed_requests else None,
        )
        try:
            group = await sampler.generate(request)
        except GenerationFailed as failed:
            # It counts as a wrong answer to this prompt, and the other prompts are asked all the
            # same.
            sample = Sample(*question.key, failure=str(failed), asked=question.digest)
        else:
            (trajectory,), (score,) = group.trajectories, await scorer.score(group)
            sampled = tuple(trajectory.response_token_ids.tolist())
            sample = Sample(
                *question.key,
                text=trajectory.text,
                reasoning=trajectory.reasoning,
                answer=trajectory.answer,
                tokens=trajectory.num_response_tokens,
                finish_reason=trajectory.finish_reason,
                accuracy=score.parts.get("accuracy"),
                route=str(score.route or ""),
                failure=str(score.failure) if score.failure else None,
                leak=score.parts.get("leak"),
                asked=question.digest,
                token_ids=sampled if token_ids else None,
                reasons=trajectory.choice and trajectory.choice.thinking,
            )
        samples[question.key] = sample
        keep(sample)

    await for_each(config, [q for q in wanted if q.key not in samples], ask)
    return figures(config, wanted, samples)


async def score_responses(
    config: Config,
    encode: Encode,
    scorer: ReferenceScorer,
    by: By,
    responses: Iterable[tuple[Question, Sample]],
    keep: Callable[[ResponseLogprob], None],
) -> None:
    """Have a model say how probable it finds each response, at temperature 1.

    responses: with their token_ids. keep: given each result as it comes, failures too.
    """

    async def score(response: tuple[Question, Sample]) -> None:
        question, sample = response
        assert sample.token_ids, f"{sample.key} was asked for without its token ids"
        request = ReferenceRequest(
            id=f"eval/{question.mode}/{question.index}/{question.sample}/logprobs",
            prompt=question.prompt,
            context_token_ids=encode(question.prompt, question.mode),
            # The very tokens that were sampled: the text, encoded again, may give other ones.
            reference_token_ids=sample.token_ids,
            temperature=1.0,
        )
        # A response that one model cannot score is no error of the evaluation: it is never chosen.
        logprob = None
        try:
            total = math.fsum(await scorer.reference_logprobs(request))
            failure = None if math.isfinite(total) else f"its logprob is {total}"
            logprob = None if failure else total
        except GenerationFailed as error:
            failure = str(error)
        keep(ResponseLogprob(*sample.key, by, sample.digest, logprob, failure))

    await for_each(config, responses, score)


async def for_each(
    config: Config, items: Iterable[Item], ask: Callable[[Item], Awaitable[None]]
) -> None:
    """Ask for all, as many at a time as training has in flight; an error cancels the others."""
    # rollout.group_timeout_s was chosen for this many requests at a time; more would time out.
    slots = asyncio.Semaphore(config.rollout.prompts_per_step * config.rollout.group_size)

    async def in_slot(item: Item) -> None:
        async with slots:
            await ask(item)

    tasks = [asyncio.create_task(in_slot(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        # gather() raises the first error and leaves the other tasks running. They would go on
        # writing into a directory that is about to be closed.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def questions(config: Config, prompts: Sequence[Prompt]) -> list[Question]:
    """All responses of an evaluation."""
    return [
        Question(index, prompt, mode, sample)
        for mode in config.modes
        for index, prompt in enumerate(prompts)
        for sample in range(config.eval.samples)
    ]


def answered_before(wanted: Sequence[Question], known: Iterable[Sample]) -> dict[Key, Sample]:
    """Those of the known samples that answer these questions as they now stand, by key."""
    # The id of a prompt alone does not do: a row of the data may have been edited since.
    digests = {question.key: question.digest for question in wanted}
    return {sample.key: sample for sample in known if digests.get(sample.key) == sample.asked}


def scored_before(
    samples: Iterable[Sample], known: Iterable[ResponseLogprob], by: By
) -> dict[Key, float]:
    """The log-probabilities of these samples that one of the models has given, by key."""
    # Compared by what was sampled: the response may have been asked for again, and be another one.
    digests = {sample.key: sample.digest for sample in samples if sample.is_answered}
    return {
        row.key: row.logprob
        for row in known
        if row.by == by and row.logprob is not None and digests.get(row.key) == row.response
    }


def figures(
    config: Config, wanted: Sequence[Question], samples: Mapping[Key, Sample]
) -> dict[str, ModeResult]:
    """The figures of every mode from the samples of all questions, of a mixture by source too."""
    results = {}
    for mode in dict.fromkeys(question.mode for question in wanted):
        of_mode = [samples[question.key] for question in wanted if question.mode == mode]
        of_sources = split_by_source(of_mode, config.data.mix, lambda sample: sample.prompt_id)
        # Few prompts may be of a source, and that none of them was answered is no end of all.
        by_source = {
            source: summarize(of)
            for source, of in of_sources.items()
            if any(sample.is_answered for sample in of)
        }
        results[mode] = replace(summarize(of_mode), by_source=by_source)
    return results


def split_by_source(
    answers: Sequence[Item], sources: Iterable[str], prompt_id: Callable[[Item], str]
) -> dict[str, list[Item]]:
    """The answers to the prompts of each source of a mixture; prompt_id: of an answer."""
    # A prompt's id begins with its source, if there are several (rollout/prompts/stream.py).
    return {
        source: [each for each in answers if prompt_id(each).startswith(f"{source}/")]
        for source in sources
    }


def summarize(samples: Sequence[Sample]) -> ModeResult:
    """The figures of samples, as many of every prompt; may raise NothingAnswered."""
    answered = [sample for sample in samples if sample.is_answered]
    if not answered:
        (reason, _), *_ = Counter(sample.failure for sample in samples).most_common(1)
        raise NothingAnswered(f"all {len(samples)} responses of a mode failed, most with: {reason}")
    by_prompt: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_prompt[sample.prompt_id].append(sample)
    # What has no score counts as wrong: leaving it out would reward a policy that never finishes.
    means = [mean([sample.accuracy or 0.0 for sample in group]) for group in by_prompt.values()]
    n = len(samples) // len(means)
    # A probability says how right a response is and not whether, so no k of them can be counted.
    num_right = [
        sum(sample.accuracy == 1.0 for sample in group)
        for group in by_prompt.values()
        if not any(Route.parse(sample.route).name == PROBABILITY for sample in group)
    ]
    # 1, 2, 4, ... and the number of samples itself: the curve of pass@k on a logarithmic scale.
    ks = [2**power for power in range(n.bit_length()) if 2**power < n] + [n]
    # Of n responses c are right. 1 - C(n - c, k) / C(n, k) is the chance that k of them, drawn
    # without replacement, hold a right one: unbiased (https://arxiv.org/abs/2107.03374, eq. 1).
    pass_at = {
        k: mean([1 - math.comb(n - c, k) / math.comb(n, k) for c in num_right])
        for k in ks
        if num_right
    }
    kinds = [sample.reasons for sample in answered if sample.reasons is not None]
    return ModeResult(
        accuracy=mean(means),
        half_width=half_width(means),
        tokens_mean=mean([sample.tokens for sample in answered]),
        truncated=mean([sample.finish_reason == "length" for sample in answered]),
        unscored=sum(sample.failure is not None for sample in samples),
        count=len(means),
        leak=mean([sample.leak or 0.0 for sample in answered]),
        samples=n,
        pass_at=pass_at,
        reasons=mean(kinds) if kinds else None,
    )


def half_width(means: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean over prompts, from the mean accuracy of each prompt.

    Responses to one prompt are not independent, so the prompts are what is drawn. With one
    response each, right or wrong, it is 1.96 sqrt(a (1 - a) / n).
    """
    center = mean(means)
    variance = mean([(value - center) ** 2 for value in means])
    return 1.96 * math.sqrt(variance / len(means))
