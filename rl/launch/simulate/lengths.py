"""How long responses are: those of a ledger, or drawn where there is no run to take them from."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config.run import Config
from rl.data.fingerprint import stable_hash
from rl.loop.stages import RolloutRequest
from rl.run.ledger import read_lengths

DRAWN_GROUPS = 4096
MEDIAN_SHARE = 1 / 3
"""Of a mode's budget: the median length of responses."""
SPREAD = 0.5
"""Of the logarithm of lengths, once between groups and once within each, since a hard prompt makes
all its responses long. In all 6 % pass the budget and are cut."""


@dataclass(frozen=True)
class Lengths:
    """Response tokens of groups, by mode."""

    groups: Mapping[str, Sequence[Sequence[int]]]
    origin: str
    """Where they are from, for people."""

    def __call__(self, request: RolloutRequest) -> list[int]:
        """The lengths of a request's responses: the same ones in every simulation."""
        known = self.groups[request.mode]
        lengths = known[stable_hash(request.group_id, 4) % len(known)]
        # The ledger may be of a run with smaller groups, or larger budgets.
        return [min(lengths[i % len(lengths)], request.max_tokens) for i in range(request.n)]


def drawn_lengths(config: Config) -> Lengths:
    """Log-normal lengths that a mode's budget cuts off."""
    rng = random.Random(config.seed)
    groups = {}
    for name, mode in config.modes.items():
        median = MEDIAN_SHARE * mode.max_tokens
        groups[name] = [
            [
                max(1, min(mode.max_tokens, round(of_group * rng.lognormvariate(0, SPREAD))))
                for _ in range(config.rollout.group_size)
            ]
            for of_group in (median * rng.lognormvariate(0, SPREAD) for _ in range(DRAWN_GROUPS))
        ]
    return Lengths(groups, "drawn, with a third of the mode's budget as their median")


def ledger_lengths(config: Config, ledger: Path) -> Lengths | None:
    """Those of all steps that a ledger has; None if it lacks a mode."""
    groups: defaultdict[str, list[list[int]]] = defaultdict(list)
    files = sorted(ledger.glob("step_*.parquet"))
    for file in files:
        for mode, lengths in read_lengths(file):
            groups[mode].append(lengths)
    if set(config.modes) - set(groups):
        return None
    return Lengths(groups, f"{len(files)} steps of {ledger}")
