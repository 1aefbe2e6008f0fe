"""The trajectories of a ledger as a page: a card for each group, an item for each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from rl.data.media.names import from_json
from rl.run.ledger import PART_PREFIX, LedgerRow, read_rows
from rl.show.page import (
    Card,
    Page,
    PicturesOf,
    as_mean,
    as_ranges,
    first_that_fit,
    messages_as_text,
)

_FIGURES = "step group_id mode failure finish_reason num_tokens reward mismatch".split()
_HEADER = ("mode", "groups", "trajectories", "failed", "truncated", "tokens", "reward")


def ledger_steps(ledger: Path) -> dict[int, Path]:
    """The file of every step in order; raises ValueError if there is none."""
    paths = sorted(ledger.glob("step_*.parquet"))
    if not paths:
        raise ValueError(
            f"{ledger} holds no step_*.parquet; a run has samples to show after its first step, "
            "and with log.ledger=true"
        )
    return {int(path.stem.removeprefix("step_")): path for path in paths}


def page_of_ledger(
    name: str, paths: Mapping[int, Path], limit: int, pictures_of: PicturesOf
) -> Page:
    """Read steps, whole groups as long as they fit into `limit` trajectories, and at least one.

    name: of the run. paths: by step.
    """
    cards = [_card(group, pictures_of) for group in first_that_fit(_groups(paths), limit)]
    # Counts and means are of every trajectory. Texts, which are most of a ledger, stay on disk.
    figures = pd.concat([_figures(path) for path in paths.values()])
    parts = sorted(name for name in figures.columns if name.startswith(PART_PREFIX))
    lines: list[tuple[str, ...]] = []
    for mode, of_mode in figures.groupby("mode"):
        num_groups = _num_groups(of_mode)
        line = (
            str(mode),
            f"{num_groups:,}",
            f"{len(of_mode):,}",
            f"{of_mode.failure.notna().sum():,}",
            f"{(of_mode.finish_reason == 'length').mean():.1%}",
            f"{of_mode.num_tokens.mean():,.1f}",
            as_mean(of_mode.reward),
            *(as_mean(of_mode[part]) for part in parts),
            as_mean(of_mode.mismatch, ".2g"),
        )
        lines.append(line)
    return Page(
        name=name,
        extent=f"step {as_ranges(list(paths))}",
        items="trajectories",
        modes=tuple(line[0] for line in lines),
        header=(*_HEADER, *(part.removeprefix(PART_PREFIX) for part in parts), "mismatch"),
        lines=tuple(lines),
        num_groups=_num_groups(figures),
        num_items=len(figures),
        cards=tuple(cards),
    )


def _groups(paths: Mapping[int, Path]) -> Iterator[tuple[LedgerRow, ...]]:
    """Yield the groups of all steps in the order of the ledger."""
    for path in paths.values():
        # The ledger stores the trajectories of a group one after the other.
        for _, members in groupby(read_rows(path), key=lambda row: row.group_id):
            yield tuple(members)


def _num_groups(figures: pd.DataFrame) -> int:
    return len(figures[["step", "group_id"]].drop_duplicates())


def _figures(path: Path) -> pd.DataFrame:
    # Which parts a reward has depends on the run, and may change from step to step.
    parts = [name for name in pq.read_schema(path).names if name.startswith(PART_PREFIX)]
    return pq.read_table(path, columns=[*_FIGURES, *parts]).to_pandas()


def _card(rows: tuple[LedgerRow, ...], pictures_of: PicturesOf) -> Card:
    first = rows[0]
    versions = {version for row in rows for version in (row.first_version, row.last_version)}
    oldest, newest = min(versions), max(versions)
    media = () if first.media is None else from_json(first.media)
    return Card(
        prompt_id=first.prompt_id,
        mode=first.mode,
        facts=(
            f"group {first.group_id}",
            f"step {first.step}",
            f"task {first.task}",
            f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}",
            f"{len(rows)} trajectories",
            f"mean reward {as_mean(pd.Series([row.reward for row in rows], dtype=float))}",
        ),
        messages=messages_as_text(json.loads(first.messages)),
        reference=first.reference,
        # Once for the group: all its trajectories are of one prompt.
        pictures=pictures_of(media, first.media_digests),
        items=rows,
    )
