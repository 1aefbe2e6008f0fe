"""The prompt stream: which prompt each group of each step is asked.

A group is addressed by (step, place, attempt), where place is its number within the step. Prompts
are a function of this address and the seed, and of nothing that depends on timing, so a resumed run
asks exactly what an uninterrupted one would have asked.

Prompts are numbered through the run. Of a mixture, every block of BLOCK numbers holds each source
as often as its weight says, in an order that is drawn anew for each block; so the prompt of a
number is known without those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count as count_from

import numpy as np
from numpy.typing import NDArray

from rl.config.run import Config
from rl.loop.stages import PROBABILITY, Prompt
from rollout.prompts.dataset import Quarantined
from rollout.prompts.sources import Source, open_source

# Third words of the generators' keys, so that no two draws of a run share their numbers.
_EPOCH_STREAM, _RESERVE_STREAM, _MIX_STREAM = 201, 202, 203
# Replacements of an endless source are numbered from here, beyond any training prompt.
_RESERVE_START = 2**40
_MAX_ATTEMPTS = 2**10
BLOCK = 1000
"""Numbers within which a mixture has its weights exactly; a source has one of them at least."""
CHECKED_PROMPTS = 256
"""Training prompts of an endless source that stand for all of them in checks before the run."""


class PromptStream:
    """Every training prompt once per epoch, in an order that depends on the seed and the epoch."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        seed: int,
        prompts_per_step: int,
        weights: Sequence[float] = (1.0,),
        heldout_weights: Sequence[float] | None = None,
    ) -> None:
        """sources: by their names, which are part of their prompts' ids; one alone has an empty
        name. weights: one for each source; of held-out prompts the same unless given."""
        self._names = list(sources)
        self._sources = list(sources.values())
        self._seed = seed
        self._prompts_per_step = prompts_per_step
        self._shares = _shares(weights)
        self._heldout_shares = _shares(heldout_weights or weights)
        # Kept, because shuffling a large data set anew for each prompt would be slow. The previous
        # epoch's order stays too, since groups of an older step may still be asked for.
        self._epoch_order = lru_cache(maxsize=2 * len(sources))(self._make_epoch_order)
        self._reserve_order = lru_cache(maxsize=8 * len(sources))(self._make_reserve_order)
        self._block = lru_cache(maxsize=8)(self._make_block)

    @classmethod
    def open(cls, config: Config) -> PromptStream:
        """Open the configured sources; raises ValueError for data that cannot be used."""
        data = config.data
        seed = config.seed if data.seed is None else data.seed
        unrewarded = () if config.reward.probability else (PROBABILITY,)
        sources = {
            name: open_source(source, seed, config.modes, unrewarded, name)
            for name, source in data.sources.items()
        }
        weights = data.weights, data.heldout_weights
        return cls(sources, seed, config.rollout.prompts_per_step, *weights)

    @property
    def quarantined(self) -> list[Quarantined]:
        """Rows that are left out: they cannot be shown, asked or scored."""
        return [
            replace(row, id=self._prefix(k) + row.id)
            for k, source in enumerate(self._sources)
            for row in source.quarantined
        ]

    @property
    def num_train(self) -> int | None:
        """Training prompts before one comes again; None where they do not end."""
        counts = [
            source.train_count * BLOCK // share
            for source, share in zip(self._sources, self._shares, strict=True)
            if source.train_count is not None and share
        ]
        return min(counts, default=None)

    @property
    def shows_media(self) -> bool:
        """Whether some prompts have images or videos."""
        return any(source.shows_media for source in self._sources)

    def prompts(self, step: int) -> list[Prompt]:
        """Return the prompts of a step (0-based), one per place."""
        first = step * self._prompts_per_step
        return [self._prompt(first + place) for place in range(self._prompts_per_step)]

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt:
        """Return a prompt for a place whose group was dropped; it may be asked in `mode`.

        attempt: from 1. Every attempt walks the prompts in an order of its own, so that a place
        meets a new prompt each time. It comes from the same source of a mixture.
        """
        # The prompts of later steps stay as they are. Taking the next one of the epoch would move
        # them all, and they would depend on when groups are dropped.
        number = step * self._prompts_per_step + place
        k, number = self._locate(number, self._seed, self._shares)
        if self._sources[k].train_count is None:
            return self._train(k, _RESERVE_START + number * _MAX_ATTEMPTS + attempt)
        order = self._reserve_order(k, attempt, mode)
        return self._train(k, int(order[number % len(order)]))

    def heldout(self, count: int) -> list[Prompt]:
        """Return the first `count` held-out prompts, or all of them where there are fewer.

        Of a mixture they are the same whatever the run's seed, so that runs can be compared.
        """
        shares = self._heldout_shares
        left = {k: s.heldout_count for k, s in enumerate(self._sources) if shares[k]}
        prompts: list[Prompt] = []
        for number in count_from():
            if len(prompts) == count or not left:
                return prompts
            k, index = self._locate(number, 0, shares)
            if k not in left:
                continue
            available = left[k]
            if available is not None and index >= available:
                del left[k]
                continue
            prompt = self._sources[k].heldout(index)
            prompts.append(replace(prompt, id=self._prefix(k) + prompt.id))
        raise AssertionError("numbers never end")

    def checked(self) -> Iterator[Prompt]:
        """Yield the training prompts to check before a run: all of them, or a sample if endless."""
        for k, source in enumerate(self._sources):
            count = source.train_count
            for index in range(CHECKED_PROMPTS if count is None else count):
                yield self._train(k, index)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Quarantine prompts by id, each with its reason; raises ValueError if none are left."""
        for k, source in enumerate(self._sources):
            prefix = self._prefix(k)
            own = {i.removeprefix(prefix): w for i, w in reasons.items() if i.startswith(prefix)}
            if own:
                source.leave_out(own)
        for cache in (self._epoch_order, self._reserve_order):
            cache.cache_clear()

    def _prompt(self, number: int) -> Prompt:
        k, number = self._locate(number, self._seed, self._shares)
        count = self._sources[k].train_count
        if count is None:
            return self._train(k, number)
        epoch, position = divmod(number, count)
        return self._train(k, int(self._epoch_order(k, epoch, count)[position]))

    def _train(self, k: int, index: int) -> Prompt:
        prompt = self._sources[k].train(index)
        return replace(prompt, id=self._prefix(k) + prompt.id) if self._names[k] else prompt

    def _prefix(self, k: int) -> str:
        return f"{self._names[k]}/" if self._names[k] else ""

    def _locate(self, number: int, seed: int, shares: tuple[int, ...]) -> tuple[int, int]:
        """The source of a prompt by its number in the run, and its number in the source."""
        block, position = divmod(number, BLOCK)
        order, ranks = self._block(block, seed, shares)
        k = int(order[position])
        return k, block * shares[k] + int(ranks[position])

    def _make_block(
        self, block: int, seed: int, shares: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source each number of a block is of, and how many of it come before: [BLOCK]."""
        order = np.repeat(np.arange(len(shares)), shares)
        order = np.random.default_rng((seed, block, _MIX_STREAM)).permutation(order)
        ranks = np.empty(BLOCK, dtype=np.int64)
        for k, share in enumerate(shares):
            ranks[order == k] = np.arange(share)
        return order, ranks

    # A last number of 0 does not change a seed, so one source alone draws as it did before there
    # were mixtures.
    def _make_epoch_order(self, k: int, epoch: int, count: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch, _EPOCH_STREAM, k)).permutation(count)

    def _make_reserve_order(self, k: int, attempt: int, mode: str) -> NDArray[np.int64]:
        rows = self._sources[k].rows_for(mode)
        if rows is None:
            rows = range(self._sources[k].train_count or 0)
        if not rows:
            raise ValueError(
                f"no row may replace a dropped group in mode {mode}: all are pinned to other modes"
            )
        rng = np.random.default_rng((self._seed, attempt, _RESERVE_STREAM, k))
        return rng.permutation(np.asarray(rows))


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """How many numbers of a block each source has; the largest remainders are rounded up."""
    exact = np.array(weights) / sum(weights) * BLOCK
    # A tiny weight still gives one number, and none gives none.
    shares = np.maximum(np.floor(exact), exact > 0).astype(int)
    # A source of a tiny weight has taken one that is another's: the largest gives it.
    while shares.sum() > BLOCK:
        shares[shares.argmax()] -= 1
    for k in np.argsort(-(exact - shares), kind="stable")[: BLOCK - shares.sum()]:
        shares[k] += 1
    return tuple(shares.tolist())
