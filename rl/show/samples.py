"""What a page shows of a run: the trajectories of a ledger, or the preference pairs of a pass.

A card has what was sampled for one prompt in one mode. On it stand the trajectories of a group; or
the pairs of an RLAIF-V pass, chosen beside rejected, each with its claims and their labels or, for
a pair that was mined from a ledger, with its score.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow.parquet as pq

from rl.align.claims.files import read_stage
from rl.align.claims.types import JudgedResponse, PreferencePair
from rl.data.media.names import Medium, from_json
from rl.run.ledger import PART_PREFIX, LedgerRow, read_rows
from rl.show.page import Card, Page, Picture, as_number, as_ranges

PicturesOf = Callable[[Sequence[Medium], Sequence[str]], tuple[Picture, ...]]
"""The pictures of media, given the digests of the pixels that the policy saw, if known."""
_Group = TypeVar("_Group", bound=Sequence)
_FIGURES = "step group_id mode failure finish_reason num_tokens reward mismatch".split()
_HEADER = ("mode", "groups", "trajectories", "failed", "truncated", "tokens", "reward")
_OF_RESPONSES = {
    "score": lambda response: response.score,
    # A response of a pair that was mined from a ledger has no claims.
    "claims": lambda r: len(r.claims) if isinstance(r, JudgedResponse) else None,
    "tokens": lambda response: len(response.response.token_ids),
}


def page_of_ledger(
    name: str,
    paths: Mapping[int, Path],
    limit: int,
    pictures_of: PicturesOf,
    modes: Sequence[str] = (),
) -> Page:
    """Read steps, whole groups as long as they fit into `limit` trajectories, and at least one.

    modes: in the order of the run's config, if it is known.
    """
    # The ledger stores the trajectories of a group one after the other.
    groups = (
        tuple(members)
        for path in paths.values()
        for _, members in groupby(read_rows(path), key=lambda row: row.group_id)
    )
    cards = tuple(_card_of_group(group, pictures_of) for group in _first_that_fit(groups, limit))
    # Counts and means are of every trajectory. Texts, which are most of a ledger, stay on disk.
    # Which parts a reward has depends on the run, and may change from step to step.
    read = []
    for path in paths.values():
        columns = pq.read_schema(path).names
        of_step = [*_FIGURES, *(name for name in columns if name.startswith(PART_PREFIX))]
        read.append(pq.read_table(path, columns=of_step).to_pandas())
    figures = pd.concat(read)
    parts = sorted(name for name in figures.columns if name.startswith(PART_PREFIX))
    modes, by_mode = _by_mode(figures, modes)
    lines: list[tuple[str, ...]] = []
    for mode, of_mode in by_mode.items():
        line = (
            mode,
            f"{of_mode.groupby(['step', 'group_id']).ngroups:,}",
            f"{len(of_mode):,}",
            f"{of_mode.failure.notna().sum():,}",
            f"{(of_mode.finish_reason == 'length').mean():.1%}",
            f"{of_mode.num_tokens.mean():,.1f}",
            *(_mean(of_mode[column]) for column in ("reward", *parts)),
            _mean(of_mode.mismatch, ".2g"),
        )
        lines.append(line)
    return Page(
        name=name,
        extent=f"step {as_ranges(list(paths))}",
        modes=modes,
        items="trajectories",
        header=(*_HEADER, *(part.removeprefix(PART_PREFIX) for part in parts), "mismatch"),
        lines=tuple(lines),
        num_groups=figures.groupby(["step", "group_id"]).ngroups,
        num_items=len(figures),
        cards=cards,
    )


def _card_of_group(rows: tuple[LedgerRow, ...], pictures_of: PicturesOf) -> Card:
    first = rows[0]
    versions = {version for row in rows for version in (row.first_version, row.last_version)}
    oldest, newest = min(versions), max(versions)
    return Card(
        prompt_id=first.prompt_id,
        mode=first.mode,
        facts=(
            f"group {first.group_id}",
            f"step {first.step}",
            f"task {first.task}",
            f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}",
            f"{len(rows)} trajectories",
            f"mean reward {_mean(pd.Series([row.reward for row in rows], dtype=float))}",
        ),
        messages=_as_text(json.loads(first.messages)),
        reference=first.reference,
        # Once for the group: all its trajectories are of one prompt.
        pictures=pictures_of(from_json(first.media or "[]"), first.media_digests),
        items=rows,
    )


def page_of_pairs(
    name: str,
    paths: Mapping[int, Path],
    limit: int,
    pictures_of: PicturesOf,
    modes: Sequence[str] = (),
) -> Page:
    """Read iterations, all pairs of a prompt and mode as long as they fit into `limit`, and at
    least those of one; raises ValueError for a file that holds no pairs.

    modes: as those of `page_of_ledger`.
    """
    pairs = [(n, pair) for n, path in paths.items() for pair in read_stage(path, PreferencePair)]
    # Pairs are stored by prompt and mode, so equal ones stand together.
    grouped = groupby(pairs, key=lambda pair: (pair[0], pair[1].prompt.id, pair[1].mode))
    groups = [tuple(members) for _, members in grouped]
    measures = {
        f"{name} of {role}": [measure(getattr(pair, role)) for _, pair in pairs]
        for name, measure in _OF_RESPONSES.items()
        for role in ("chosen", "rejected")
    }
    whose = {"mode": [p.mode for _, p in pairs], "prompt": [p.prompt.id for _, p in pairs]}
    modes, by_mode = _by_mode(pd.DataFrame(whose | measures), modes)
    lines: list[tuple[str, ...]] = []
    for mode, of_mode in by_mode.items():
        counts = (f"{of_mode.prompt.nunique():,}", f"{len(of_mode):,}")
        lines.append((mode, *counts, *(_mean(of_mode[name]) for name in measures)))
    cards: list[Card] = []
    for group in _first_that_fit(groups, limit):
        (iteration, first), prompt = group[0], group[0][1].prompt
        card = Card(
            prompt_id=prompt.id,
            mode=first.mode,
            facts=(f"iteration {iteration}", f"task {prompt.task}", f"{len(group)} pairs"),
            messages=_as_text(prompt.messages),
            reference=prompt.reference,
            # Pairs do not store what pixels the policy saw.
            pictures=pictures_of(prompt.media, ()),
            items=tuple(pair for _, pair in group),
        )
        cards.append(card)
    return Page(
        name=name,
        extent=f"iteration {as_ranges(list(paths))}",
        modes=modes,
        items="pairs",
        header=("mode", "prompts", "pairs", *measures),
        lines=tuple(lines),
        num_groups=len(groups),
        num_items=len(pairs),
        cards=tuple(cards),
    )


def _by_mode(
    table: pd.DataFrame, modes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, pd.DataFrame]]:
    """All modes, the config's first and in its order, which is that of their colours, and then
    others; and the rows of those that have any."""
    rows = {str(mode): of_mode for mode, of_mode in table.groupby("mode")}
    every = tuple(dict.fromkeys([*modes, *rows]))
    return every, {mode: rows[mode] for mode in every if mode in rows}


def _first_that_fit(groups: Iterable[_Group], limit: int) -> Iterator[_Group]:
    """Yield whole groups as long as they fit into `limit` items, and at least one."""
    shown = 0
    for group in groups:
        # It ends at the first that does not fit: a later, smaller one would stand beside a gap.
        if shown and shown + len(group) > limit:
            return
        shown += len(group)
        yield group


def _as_text(messages: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Return role and text of each message of a chat; media are named, the rest is JSON."""

    def text_of(part: Any) -> str:
        match part:
            case str(text) | {"type": "text", "text": str(text)}:
                return text
            case {"type": "image" | "video" as kind, **rest} if not rest:
                return f"[{kind}]"
        return json.dumps(part, ensure_ascii=False)

    shown: list[tuple[str, str]] = []
    for message in messages:
        content = message.get("content")
        texts = [text_of(part) for part in (content if isinstance(content, list) else [content])]
        # Tool calls and the like: rare, and shown as they are rather than left out.
        if rest := {key: message[key] for key in message if key not in ("role", "content")}:
            texts.append(json.dumps(rest, ensure_ascii=False))
        shown.append((str(message.get("role")), "\n".join(texts)))
    return tuple(shown)


def _mean(values: Any, form: str = "") -> str:
    """Return the mean of what a column of pandas knows, or a dash if that is nothing."""
    mean = float(values.mean())
    if math.isnan(mean):
        return "–"
    return format(mean, form) if form else as_number(mean)
