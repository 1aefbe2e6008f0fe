"""What a reward is made of: how two scorings of the same trajectories differ, what explains one.

A reward that its length, or one part beside accuracy, explains nearly alone is a reward that the
policy can win without answering well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from rich.table import Table

from rl.run.ledger import LedgerRow

EXPLAINED_BY_PART = 0.8
EXPLAINED_BY_LENGTH = 0.5
"""Share of the within-group variance of the reward, from which an alarm is raised."""
LEAST_ROWS = 32
"""Fewer trajectories with variance than this prove nothing."""
SAME = 1e-9
"""Two scorings of one trajectory that differ by less are equal up to rounding."""

_NOT_PARTS = ("mode", "group_id", "num_tokens", "advantage", "reward")


def scores_of(rows: Sequence[LedgerRow]) -> pd.DataFrame:
    """The numbers of each trajectory, but not its texts: those of a run may fill the memory.

    Columns: mode, group_id, num_tokens, advantage, reward, and one per reward part; NaN for none.
    """
    return pd.DataFrame(
        {name: getattr(row, name) for name in _NOT_PARTS} | dict(row.parts) for row in rows
    ).astype({"reward": float, "advantage": float})


def changes(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """How reward and parts differ, indexed by (mode, name); the rows are the same trajectories.

    Columns: the means `was` and `would be`, and `differs`, the share of trajectories where the
    value is another one, appears or disappears.
    """
    names = ["reward", *sorted({*old.columns, *new.columns} - {*_NOT_PARTS})]
    tables = {}
    for mode, rows in old.groupby("mode", sort=False).groups.items():
        was, would = (frame.loc[rows].reindex(columns=names) for frame in (old, new))
        is_same = ((was - would).abs() <= SAME) | (was.isna() & would.isna())
        means = {"was": was.mean(), "would be": would.mean(), "differs": 1 - is_same.mean()}
        # A part of other modes alone is no part of this one.
        is_part = was.notna().any() | would.notna().any() | (was.columns == "reward")
        tables[mode] = pd.DataFrame(means)[is_part]
    return pd.concat(tables)


def sign_flips(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, float]:
    """Share of each mode's trajectories that one scoring pushes up and the other down."""
    products = (old["advantage"] * new["advantage"]).dropna()
    return (products < 0).groupby(old["mode"], sort=False).mean().to_dict()


def alarms(rows: pd.DataFrame, weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sentences that name what alone explains a mode's reward within its groups.

    weights: of the parts, by mode.
    """
    sentences = []
    for mode, of_mode in rows.dropna(subset="reward").groupby("mode", sort=False):
        parts = weights[str(mode)]
        names = ["reward", "num_tokens", *parts]
        columns = of_mode.reindex(columns=names).fillna(0.0)
        # An advantage sees only how a trajectory differs from the mean of its group.
        centred = columns - columns.groupby(of_mode["group_id"]).transform("mean")
        # Rounding leaves a trace where a whole group has the same value.
        centred[centred.abs() < 1e-12] = 0.0
        if np.count_nonzero(centred["reward"]) < LEAST_ROWS:
            continue
        # The squared correlation of each column with the reward; 0 where one is constant.
        explained = centred.corrwith(centred["reward"]).pow(2).fillna(0.0)
        # Accuracy is what a reward should be made of: where it explains the reward, a part that
        # agrees with it raises no alarm.
        if explained["accuracy"] < EXPLAINED_BY_PART:
            sentences += [
                f"{mode}: {part} alone explains {explained[part]:.0%} of the reward within "
                f"groups; lower reward.weights.{part}, or see why accuracy does not vary"
                for part, weight in parts.items()
                if part != "accuracy" and weight != 0 and explained[part] >= EXPLAINED_BY_PART
            ]
        if explained["num_tokens"] >= EXPLAINED_BY_LENGTH:
            sentences.append(
                f"{mode}: the length alone explains {explained['num_tokens']:.0%} of the reward "
                "within groups; look at what long and short responses of the ledger have in common"
            )
    return sentences


def as_table(changed: pd.DataFrame) -> Table:
    table = Table(title="mean over the ledger, as it was and as it would be")
    for column in ("mode", "part", "was", "would be", "differs"):
        table.add_column(column, justify="left" if column in ("mode", "part") else "right")
    for (mode, name), *means, differs in changed.itertuples(name=None):
        shown = ("-" if math.isnan(mean) else f"{mean:.4f}" for mean in means)
        table.add_row(mode, name, *shown, f"{differs:.1%}")
    return table
