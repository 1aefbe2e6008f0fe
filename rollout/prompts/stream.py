"""The prompt stream: which prompt each group of each step is asked.

A group is addressed by (step, place, attempt), where place is its number within the step. Prompts
are a function of this address and the seed, and of nothing that depends on timing, so a resumed run
asks exactly what an uninterrupted one would have asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rl.config.run import Config
from rl.loop.stages import PROBABILITY, Prompt
from rollout.prompts.dataset import Quarantined
from rollout.prompts.sources import Source, open_source

# Third words of the generators' keys, so that no two draws of a run share their numbers.
_EPOCH_STREAM, _RESERVE_STREAM = 201, 202
# Replacements of an endless source are numbered from here, beyond any training prompt.
_RESERVE_START = 2**40
_MAX_ATTEMPTS = 2**10
CHECKED_PROMPTS = 256
"""Training prompts of an endless source that stand for all of them in checks before the run."""


class PromptStream:
    """Every training prompt once per epoch, in an order that depends on the seed and the epoch."""

    def __init__(self, source: Source, seed: int, prompts_per_step: int) -> None:
        self._source = source
        self._seed = seed
        self._prompts_per_step = prompts_per_step
        # Kept, because shuffling a large data set anew for each prompt would be slow. The previous
        # epoch's order stays too, since groups of an older step may still be asked for.
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)
        self._reserve_order = lru_cache(maxsize=8)(self._make_reserve_order)

    @classmethod
    def open(cls, config: Config) -> PromptStream:
        """Open the configured source; raises ValueError for data that cannot be used."""
        seed = config.seed if config.data.seed is None else config.data.seed
        unrewarded = () if config.reward.probability else (PROBABILITY,)
        source = open_source(config.data, seed, config.modes, unrewarded)
        return cls(source, seed, config.rollout.prompts_per_step)

    @property
    def quarantined(self) -> Sequence[Quarantined]:
        """Rows that are left out, because nothing can show their media or score an answer."""
        return self._source.quarantined

    @property
    def num_train(self) -> int | None:
        """Training prompts there are; None where they do not end."""
        return self._source.train_count

    def prompts(self, step: int) -> list[Prompt]:
        """Return the prompts of a step (0-based), one per place."""
        first = step * self._prompts_per_step
        return [self._prompt(first + place) for place in range(self._prompts_per_step)]

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt:
        """Return a prompt for a place whose group was dropped; it may be asked in `mode`.

        attempt: from 1. Every attempt walks the prompts in an order of its own, so that a place
        meets a new prompt each time.
        """
        # The prompts of later steps stay as they are. Taking the next one of the epoch would move
        # them all, and they would depend on when groups are dropped.
        number = step * self._prompts_per_step + place
        if self._source.train_count is None:
            return self._source.train(_RESERVE_START + number * _MAX_ATTEMPTS + attempt)
        order = self._reserve_order(attempt, mode)
        return self._source.train(int(order[number % len(order)]))

    def heldout(self, count: int) -> list[Prompt]:
        """Return the first `count` held-out prompts, or all of them where there are fewer."""
        available = self._source.heldout_count
        shown = count if available is None else min(count, available)
        return [self._source.heldout(index) for index in range(shown)]

    def checked(self) -> Iterator[Prompt]:
        """Yield the training prompts to check before a run: all of them, or a sample if endless."""
        count = self._source.train_count
        for index in range(CHECKED_PROMPTS if count is None else count):
            yield self._source.train(index)

    def _prompt(self, number: int) -> Prompt:
        count = self._source.train_count
        if count is None:
            return self._source.train(number)
        epoch, position = divmod(number, count)
        return self._source.train(int(self._epoch_order(epoch, count)[position]))

    def _make_epoch_order(self, epoch: int, count: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch, _EPOCH_STREAM)).permutation(count)

    def _make_reserve_order(self, attempt: int, mode: str) -> NDArray[np.int64]:
        rows = self._source.rows_for(mode)
        if rows is None:
            rows = range(self._source.train_count or 0)
        if not rows:
            raise ValueError(
                f"no row may replace a dropped group in mode {mode}: all are pinned to other modes"
            )
        rng = np.random.default_rng((self._seed, attempt, _RESERVE_STREAM))
        return rng.permutation(np.asarray(rows))
