"""Which mode each prompt of a step is asked in: a pure function of the seed and the step.

The draw holds no state, so it is the same after a resume, for a retried group, and with any
number of workers.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from rl.config.run import Config

# Third words of the generators' keys, so that no two draws of the run share their numbers.
_STREAM, _PAIR_STREAM = 101, 102


def shares_at(config: Config, step: int) -> dict[str, float]:
    """Return the share of every mode at a step (1-based).

    Linear between the points of `share_schedule`, constant before the first and after the last.
    """
    schedule = config.share_schedule
    if not schedule:
        return {name: mode.share for name, mode in config.modes.items()}
    steps = [point.step for point in schedule]
    return {
        name: float(np.interp(step, steps, [point.shares[name] for point in schedule]))
        for name in config.modes
    }


def draw_step(
    seed: int,
    step: int,
    shares: Mapping[str, float],
    pinned: Sequence[str | None],
    draw: Literal["stratified", "bernoulli"],
    stream: int = _STREAM,
) -> list[str]:
    """Return the mode of each place of a step; a pinned place keeps its mode.

    stratified: the count of each mode is its share of all places, rounded up or down at random
    so that its expectation is exact. Pinned places count towards it, the rest is dealt to random
    places; where pins exceed a share, the other modes divide what is left in proportion.
    bernoulli: every unpinned place draws for itself.

    Raises ValueError for a place pinned to a mode that does not exist. stream: tells draws for
    other purposes apart.
    """
    if unknown := sorted({mode for mode in pinned if mode is not None} - set(shares)):
        raise ValueError(f"prompts are pinned to {unknown}, the modes are {sorted(shares)}")
    names = sorted(shares)  # the order in which a file lists its modes must not matter
    # Keyed by seed and step and never advanced: a resumed run, a retry and a run with other workers
    # draw the same modes.
    rng = np.random.default_rng((seed, step, stream))
    modes = list(pinned)
    free = [place for place, mode in enumerate(modes) if mode is None]
    if draw == "bernoulli":
        # One number per place, pinned or not: a pin moves nobody else's draw.
        numbers = rng.random(len(modes))
        bounds = np.cumsum([shares[name] for name in names])
        drawn = np.searchsorted(bounds / bounds[-1], numbers, side="right")
        for place in free:
            modes[place] = names[drawn[place]]
    else:
        counts = _counts([shares[name] for name in names], names, pinned, float(rng.random()))
        dealt = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
        for place, mode in zip(rng.permutation(free), dealt, strict=True):
            modes[place] = mode
    return [mode for mode in modes if mode is not None]


def draw_pairs(config: Config, step: int, modes: Sequence[str]) -> list[bool]:
    """Return for each place of a step (0-based) whether both ways to answer are forced there.

    modes: of the places. That falls by the step alone: what the groups of a step come to must not
    decide how many of each kind there are, or the mean of what was chosen would be off.
    """
    is_pair = [False] * len(modes)
    # One after the other in the order of their names, as for the modes themselves.
    for number, name in enumerate(sorted(set(modes))):
        settings = config.modes[name]
        if settings.thinking == "auto":
            share = settings.pairs.share_at(step + 1, config.steps)
            places = [place for place, mode in enumerate(modes) if mode == name]
            kinds = {"free": 1 - share, "pair": share}
            stream = _PAIR_STREAM + number
            drawn = draw_step(
                config.seed, step, kinds, [None] * len(places), config.rollout.draw, stream
            )
            for place, kind in zip(places, drawn, strict=True):
                is_pair[place] = kind == "pair"
    return is_pair


def _counts(
    shares: Sequence[float], names: Sequence[str], pinned: Sequence[str | None], offset: float
) -> list[int]:
    """Return how many unpinned places each mode gets: systematic sampling of the exact targets.

    The targets lie end to end on a line; a mode gets the whole numbers that fall into its part
    once the line is shifted by `offset`, uniform in [0, 1). So each count is its target rounded
    up or down, and its mean over offsets is the target.
    """
    missing = [
        max(0.0, share * len(pinned) - sum(mode == name for mode in pinned))
        for share, name in zip(shares, names, strict=True)
    ]
    num_free = sum(mode is None for mode in pinned)
    if num_free == 0:
        return [0] * len(names)
    scale = num_free / math.fsum(missing)
    # Rounding keeps 0.29 * 100 = 28.999999999999996 from being 28 now and then.
    ends = [round(float(end) * scale, 9) for end in np.cumsum(missing)]
    marks = [math.floor(end + offset) for end in [0.0, *ends[:-1]]] + [num_free]
    return [end - start for start, end in pairwise(marks)]
