"""What a reward is made of: how two scorings of the same trajectories differ, what explains one.

A reward that its length, or one part beside accuracy, explains nearly alone is a reward that the
policy can win without answering well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.loop.advantages import group_advantages
from rl.run.ledger import LedgerRow

EXPLAINED_BY_PART = 0.8
EXPLAINED_BY_LENGTH = 0.5
"""Share of the within-group variance of the reward, from which an alarm is raised."""
LEAST_ROWS = 32
"""Fewer trajectories with variance than this prove nothing."""


@dataclass(frozen=True)
class Change:
    """One column of the ledger in one mode, under the old and the new scoring."""

    mode: str
    name: str
    """A reward part, or `reward`."""
    old_mean: float | None
    new_mean: float | None
    changed: float
    """Share of trajectories where it differs, appears or disappears."""


def changes(old: Sequence[LedgerRow], new: Sequence[LedgerRow]) -> list[Change]:
    """How the reward and each part differ, by mode; the rows are those of the same trajectories."""
    found = []
    for mode in dict.fromkeys(row.mode for row in old):
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.mode == mode]
        names = sorted({part for pair in pairs for row in pair for part in row.parts})
        for name in ("reward", *names):
            values = [(_value(a, name), _value(b, name)) for a, b in pairs]
            changed = sum(not _same(a, b) for a, b in values) / len(values)
            means = [_mean([pair[side] for pair in values]) for side in (0, 1)]
            found.append(Change(mode, name, means[0], means[1], changed))
    return found


def sign_flips(old: Sequence[LedgerRow], new: Sequence[LedgerRow]) -> dict[str, float]:
    """Share of each mode's trajectories that one scoring pushes up and the other down."""
    flipped: dict[str, list[bool]] = {}
    for a, b in zip(old, new, strict=True):
        if a.advantage is not None and b.advantage is not None:
            flipped.setdefault(a.mode, []).append(a.advantage * b.advantage < 0)
    return {mode: sum(flips) / len(flips) for mode, flips in flipped.items()}


def alarms(rows: Sequence[LedgerRow], weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sentences that name what alone explains a mode's reward within its groups.

    weights: of the parts, by mode. Accuracy is what a reward should be made of: where it explains
    the reward, a part that agrees with it raises no alarm.
    """
    found = []
    for mode in dict.fromkeys(row.mode for row in rows):
        known = [row for row in rows if row.mode == mode and row.reward is not None]
        reward = _centred(known, [row.reward or 0.0 for row in known])
        if np.count_nonzero(reward) < LEAST_ROWS:
            continue
        by_accuracy = _explained(
            reward, _centred(known, [row.parts.get("accuracy", 0.0) for row in known])
        )
        for part, weight in weights[mode].items():
            if part == "accuracy" or weight == 0 or by_accuracy >= EXPLAINED_BY_PART:
                continue
            share = _explained(reward, _centred(known, [row.parts.get(part, 0.0) for row in known]))
            if share >= EXPLAINED_BY_PART:
                found.append(
                    f"{mode}: {part} alone explains {share:.0%} of the reward within groups; lower "
                    f"reward.weights.{part}, or see why accuracy does not vary"
                )
        share = _explained(reward, _centred(known, [row.num_tokens for row in known]))
        if share >= EXPLAINED_BY_LENGTH:
            found.append(
                f"{mode}: the length alone explains {share:.0%} of the reward within groups; look "
                "at what long and short responses of the ledger have in common"
            )
    return found


def with_advantages(rows: Sequence[LedgerRow], normalize_by_std: bool) -> list[float | None]:
    """The advantage of each row within its group, as training would compute it."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.group_id, []).append(place)
    advantages: list[float | None] = [None] * len(rows)
    for group in places.values():
        rewards = [rows[place].reward for place in group]
        for place, value in zip(group, group_advantages(rewards, normalize_by_std), strict=True):
            advantages[place] = value
    return advantages


def _value(row: LedgerRow, name: str) -> float | None:
    return row.reward if name == "reward" else row.parts.get(name)


def _same(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else abs(a - b) <= 1e-9


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _centred(rows: Sequence[LedgerRow], values: Sequence[float]) -> NDArray[np.float64]:
    """Values minus the mean of their group: what an advantage can see of them."""
    groups = {group: place for place, group in enumerate(dict.fromkeys(r.group_id for r in rows))}
    index = np.array([groups[row.group_id] for row in rows], dtype=np.int64)
    array = np.asarray(values, dtype=np.float64)
    counts = np.maximum(np.bincount(index, minlength=len(groups)), 1)
    centred = array - (np.bincount(index, array, len(groups)) / counts)[index]
    return np.where(np.abs(centred) < 1e-12, 0.0, centred)


def _explained(reward: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Squared correlation of two centred columns; 0 where one is constant."""
    scale = float(reward @ reward) * float(other @ other)
    return float(reward @ other) ** 2 / scale if scale else 0.0
