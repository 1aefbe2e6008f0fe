"""Held-out accuracy and length of every mode, asked through the same engines and rewards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.config import Config
from rl.interfaces import Engine, GenerationFailed, Scorer
from rl.loop import sampling_seed
from rl.stages import Prompt, RolloutRequest, ScoredGroup


@dataclass(frozen=True)
class ModeResult:
    """Held-out figures of one mode over `count` prompts, one response each."""

    accuracy: float
    half_width: float
    """Half of the 95 % confidence interval of the accuracy (normal approximation)."""
    tokens_mean: float
    truncated: float
    """Share of responses that ran into their budget."""
    unscored: int
    """Responses that failed, or whose verification failed; they count as wrong."""
    count: int

    def as_metrics(self, mode: str) -> dict[str, float]:
        return {
            f"eval/{mode}/accuracy": self.accuracy,
            f"eval/{mode}/half_width": self.half_width,
            f"eval/{mode}/tokens_mean": self.tokens_mean,
            f"eval/{mode}/truncated": self.truncated,
            f"eval/{mode}/unscored": float(self.unscored),
        }


async def evaluate(
    config: Config,
    encode: Callable[[Prompt, str], tuple[int, ...]],
    engine: Engine,
    scorer: Scorer,
    prompts: Sequence[Prompt],
) -> dict[str, ModeResult]:
    """Ask every held-out prompt once in every mode; the same seeds at every call, if any."""

    async def ask(place: int, prompt: Prompt, mode: str) -> ScoredGroup | None:
        try:
            group = await engine.generate(_request(config, encode, place, prompt, mode))
        except GenerationFailed:
            return None
        return ScoredGroup(group, await scorer.score(group))

    modes = list(config.modes)
    answers = await asyncio.gather(
        *(ask(place, prompt, mode) for mode in modes for place, prompt in enumerate(prompts))
    )
    count = len(prompts)
    return {
        mode: summarize(answers[place * count : (place + 1) * count])
        for place, mode in enumerate(modes)
    }


def summarize(answers: Sequence[ScoredGroup | None]) -> ModeResult:
    """The figures of one mode from its scored groups of one trajectory each; None has failed.

    Raises RuntimeError if every one of them failed.
    """
    answered = [answer for answer in answers if answer is not None]
    if not answered:
        raise RuntimeError(f"all {len(answers)} held-out generations of a mode failed")
    trajectories = [answer.group.trajectories[0] for answer in answered]
    scores = [answer.scores[0] for answer in answered]
    correct = [s.parts.get("accuracy", 0.0) for s in scores]
    count = len(answers)
    accuracy = math.fsum(correct) / count
    return ModeResult(
        accuracy=accuracy,
        half_width=1.96 * math.sqrt(accuracy * (1 - accuracy) / count),
        tokens_mean=sum(t.num_response_tokens for t in trajectories) / len(answered),
        truncated=sum(t.finish_reason == "length" for t in trajectories) / len(answered),
        unscored=count - sum(s.failure is None for s in scores),
        count=count,
    )


def _request(
    config: Config,
    encode: Callable[[Prompt, str], tuple[int, ...]],
    place: int,
    prompt: Prompt,
    mode: str,
) -> RolloutRequest:
    group_id = f"eval/{mode}/{place}"
    return RolloutRequest(
        group_id=group_id,
        prompt=prompt,
        mode=mode,
        prompt_token_ids=encode(prompt, mode),
        n=1,
        max_tokens=config.modes[mode].max_tokens,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        seed=sampling_seed(config.seed, group_id) if config.rollout.seed_requests else None,
    )
