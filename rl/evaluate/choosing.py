"""What a policy chose that may choose whether to reason, beside what it could have chosen.

An evaluation asks all modes the same prompts, so it is known of each prompt what reasoning about it
gains. An oracle that knows this can let those prompts reason that gain most; nothing that chooses
by the prompt alone can do better, for the accuracy of these very responses.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean as mean
from typing import Any, TypeVar

from rl.config.rollout import ModeConfig
from rl.evaluate.evaluation import Key, Question, Sample

THIRDS = ("easy", "middle", "hard")
"""Of prompts, by the difficulty that their task tells."""
FRONTIER_POINTS = 21

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One prompt in one mode: means over its responses."""

    accuracy: float
    tokens: float
    reasons: float
    """Share of its responses that reason."""


def choosing_figures(
    modes: Mapping[str, ModeConfig], wanted: Sequence[Question], samples: Mapping[Key, Sample]
) -> dict[str, Any]:
    """What each mode that chooses chose by difficulty, and the oracle's frontier, as JSON.

    Empty where no mode chooses. `by_difficulty`: figures of a third of the prompts each, by how
    hard the task says that they are or else by how often the mode that answers at once is wrong.
    `frontier`: `share` that reasons, `tokens` and `accuracy`, where there is a mode of each kind.
    """
    choosing = [name for name, mode in modes.items() if mode.thinking == "auto"]
    if not choosing:
        return {}
    table = _by_mode(wanted, samples)
    direct = next((table[name] for name, mode in modes.items() if mode.thinking is False), None)
    thinking = next((table[name] for name, mode in modes.items() if mode.thinking is True), None)
    told = {q.prompt.id: q.prompt.difficulty for q in wanted if q.prompt.difficulty is not None}
    # Where the task says nothing, hard is what is answered wrong at once.
    hardness = told or {prompt: -each.accuracy for prompt, each in (direct or {}).items()}
    by_difficulty: dict[str, dict[str, dict[str, float]]] = {}
    for name in choosing:
        known = {prompt: each for prompt, each in table[name].items() if prompt in hardness}
        by_difficulty[name] = {
            third: {
                figure: mean([getattr(known[prompt], figure) for prompt in part])
                for figure in ("reasons", "accuracy", "tokens")
            }
            for third, part in thirds(known, hardness.__getitem__).items()
            if part
        }
    figures: dict[str, Any] = {"by_difficulty": by_difficulty}
    if direct and thinking:
        figures["frontier"] = frontier(direct, thinking)
    return figures


def thirds(items: Iterable[T], hardness: Callable[[T], float]) -> dict[str, list[T]]:
    """The items by how hard they are, as many in each of THIRDS as can be."""
    in_order = sorted(items, key=hardness)
    edges = [len(in_order) * end // len(THIRDS) for end in range(len(THIRDS) + 1)]
    return {
        name: in_order[first:last]
        for name, (first, last) in zip(THIRDS, pairwise(edges), strict=True)
    }


def frontier(direct: Mapping[str, Asked], thinking: Mapping[str, Asked]) -> list[dict[str, float]]:
    """What an oracle reaches that lets those prompts reason, x %, that gain most accuracy by it.

    direct, thinking: by prompt id. The same responses tell who gains and what is gained, so with
    few of them a part of the gain is luck: this is a bound, and no aim.

    Of two prompts with the gains 1 and 0, half of them reasoning gives the accuracy of both.
    """
    prompts = sorted(direct.keys() & thinking.keys())
    gain = {p: thinking[p].accuracy - direct[p].accuracy for p in prompts}
    in_order = sorted(prompts, key=lambda p: (-gain[p], thinking[p].tokens))
    points = []
    for number in range(FRONTIER_POINTS):
        share = number / (FRONTIER_POINTS - 1)
        count = round(share * len(prompts))
        asked = [thinking[p] for p in in_order[:count]] + [direct[p] for p in in_order[count:]]
        tokens, accuracy = mean([a.tokens for a in asked]), mean([a.accuracy for a in asked])
        points.append({"share": share, "tokens": tokens, "accuracy": accuracy})
    return points


def _by_mode(
    wanted: Sequence[Question], samples: Mapping[Key, Sample]
) -> dict[str, dict[str, Asked]]:
    """By mode and prompt id; responses that failed count as wrong and have no length."""
    grouped: defaultdict[str, defaultdict[str, list[Sample]]]
    grouped = defaultdict(lambda: defaultdict(list))
    for question in wanted:
        grouped[question.mode][question.prompt.id].append(samples[question.key])
    return {
        mode: {
            prompt: Asked(
                mean([sample.accuracy or 0.0 for sample in group]),
                mean([sample.tokens for sample in group]),
                mean([float(sample.reasons or False) for sample in group]),
            )
            for prompt, group in of_mode.items()
        }
        for mode, of_mode in grouped.items()
    }
