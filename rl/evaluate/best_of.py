"""Best-of-N with self-feedback: which of N responses did training raise most, length aside?

    r(y) = (beta / T) (log pi_theta(y|x) - log pi_ref(y|x))        (arXiv 2405.17220, appendix)

pi_theta is the policy, pi_ref the reference that it was trained from, T the tokens of y. Without
1 / T the choice would drift with length. `rl.evaluate` has both models score the responses
(rl/evaluate/evaluation.py); from there on everything is a pure function.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from rl.evaluate.evaluation import Key, NothingAnswered, Sample, half_width

# Nats per token within which two responses are equally good: in float32 an engine scores the same
# tokens up to a tenth of this apart, as other requests share its batch.
ROUNDING = 1e-5

METRICS = {
    "accuracy": "mean over prompts of the accuracy of the chosen response; a prompt without one "
    "counts as wrong",
    "half_width": "half of the 95 % interval of that accuracy, over prompts (normal approximation)",
    "tokens_mean": "mean tokens of a chosen response",
    "reward_mean": "mean r of a chosen response",
    "unrewarded": "responses that failed, or that one of the models could not score; never chosen",
}
"""What each field of BestOf is."""


@dataclass(frozen=True)
class Choice:
    """The answer to one prompt in one mode: a row of best_of.jsonl."""

    prompt_id: str
    mode: str
    sample: int | None
    """Number of the chosen response; None where no response has a reward."""
    rewards: tuple[float | None, ...]
    """r of every response, by its number; None where it has none."""


@dataclass(frozen=True)
class BestOf:
    """Figures of the chosen responses of one mode; METRICS says what each of them is."""

    accuracy: float
    half_width: float
    tokens_mean: float
    reward_mean: float
    unrewarded: int


def choose(rewards: Sequence[float | None], beta: float) -> int | None:
    """The number of the response with the highest reward, of equally good ones the lowest.

    None where no response has a reward.

    Example: choose([None, 0.1, 0.3, 0.3], beta=0.1) == 2
    """
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return None
    # Batching changes an engine's figures in the last digits. Without this margin two runs of the
    # same command could choose different responses among equals.
    enough = max(known) - beta * ROUNDING
    return next(n for n, reward in enumerate(rewards) if reward is not None and reward >= enough)


def choices(
    samples: Iterable[Sample],
    by_policy: Mapping[Key, float],
    by_reference: Mapping[Key, float],
    beta: float,
) -> list[Choice]:
    """One for every prompt and mode, in the order of the samples.

    samples: those of a prompt and mode by their number. by_policy, by_reference: log-probabilities
    of those that have one, summed over the tokens of the response.
    """
    rewards: defaultdict[tuple[str, str], list[float | None]] = defaultdict(list)
    for sample in samples:
        key, reward = sample.key, None
        if key in by_policy and key in by_reference:
            reward = beta * (by_policy[key] - by_reference[key]) / sample.tokens
        rewards[sample.prompt_id, sample.mode].append(reward)
    return [
        Choice(prompt_id, mode, choose(of_prompt, beta), tuple(of_prompt))
        for (prompt_id, mode), of_prompt in rewards.items()
    ]


def best_of_figures(samples: Mapping[Key, Sample], chosen: Sequence[Choice]) -> dict[str, BestOf]:
    """The figures of every mode; raises NothingAnswered for one where nothing has a reward."""
    figures = {}
    for mode in dict.fromkeys(choice.mode for choice in chosen):
        of_mode = [choice for choice in chosen if choice.mode == mode]
        best = [
            (samples[choice.prompt_id, mode, choice.sample], choice.rewards[choice.sample])
            for choice in of_mode
            if choice.sample is not None
        ]
        if not best:
            raise NothingAnswered(f"no response of mode {mode} has a reward to be chosen by")
        # A prompt without any choice counts as wrong, as one without an answer does: leaving it
        # out would let a policy look better by failing on what is hard.
        without_choice = [0.0] * (len(of_mode) - len(best))
        accuracies = [sample.accuracy or 0.0 for sample, _ in best] + without_choice
        figures[mode] = BestOf(
            accuracy=mean(accuracies),
            half_width=half_width(accuracies),
            tokens_mean=mean([sample.tokens for sample, _ in best]),
            reward_mean=mean([reward for _, reward in best if reward is not None]),
            unrewarded=sum(reward is None for choice in of_mode for reward in choice.rewards),
        )
    return figures
