"""The preference pairs of an RLAIF-V pass as a page.

A card has the pairs of one prompt in one mode. A pair has its chosen and its rejected response side
by side; under each stand its claims with what the labeller found, or, for a pair that was mined
from a ledger, its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from rl.align.claims.files import read_stage
from rl.align.claims.types import JudgedResponse, PreferencePair
from rl.run.directory import RunDirectory
from rl.show.page import (
    Card,
    Page,
    PicturesOf,
    as_mean,
    as_ranges,
    first_that_fit,
    messages_as_text,
)


def holds_pass(run: RunDirectory) -> bool:
    """Whether a run directory is that of an RLAIF-V pass, whatever it has made so far."""
    return not run.ledger_path.exists() and any(_iterations(run.root))


def pair_files(root: Path) -> dict[int, Path]:
    """Return the pairs of every iteration in order; raises ValueError if there are none yet.

    root: directory of a pass, rl/align/directory.py.
    """
    files = {number: path / "pairs.parquet" for number, path in _iterations(root).items()}
    files = {number: path for number, path in files.items() if path.is_file()}
    if not files:
        raise ValueError(
            f"no iteration of {root} has its pairs.parquet; a pass has pairs to show once the "
            "responses of an iteration are judged"
        )
    return files


def _iterations(root: Path) -> dict[int, Path]:
    numbered = [(path.name.removeprefix("iteration_"), path) for path in root.glob("iteration_*")]
    return dict(sorted((int(number), path) for number, path in numbered if number.isdecimal()))


def page_of_pairs(
    name: str, paths: Mapping[int, Path], limit: int, pictures_of: PicturesOf
) -> Page:
    """Read pairs, all of a prompt and mode as long as they fit into `limit`, and at least those of
    one; raises ValueError for a file that holds no pairs.

    name: of the pass. paths: by iteration.
    """
    pairs = [(n, pair) for n, path in paths.items() for pair in read_stage(path, PreferencePair)]
    # Pairs are stored by prompt and mode, so equal ones stand together.
    grouped = groupby(pairs, key=lambda pair: (pair[0], pair[1].prompt.id, pair[1].mode))
    groups = [tuple(members) for _, members in grouped]
    figures = _figures([pair for _, pair in pairs])
    names = [name for name in figures.columns if name not in ("mode", "prompt")]
    lines: list[tuple[str, ...]] = []
    for mode, of_mode in figures.groupby("mode"):
        counts = (f"{of_mode.prompt.nunique():,}", f"{len(of_mode):,}")
        lines.append((str(mode), *counts, *(as_mean(of_mode[name]) for name in names)))
    return Page(
        name=name,
        extent=f"iteration {as_ranges(list(paths))}",
        items="pairs",
        modes=tuple(line[0] for line in lines),
        header=("mode", "prompts", "pairs", *names),
        lines=tuple(lines),
        num_groups=len(groups),
        num_items=len(pairs),
        cards=tuple(_card(group, pictures_of) for group in first_that_fit(groups, limit)),
    )


def _figures(pairs: list[PreferencePair]) -> pd.DataFrame:
    """Return a line per pair: score, number of claims and tokens of both responses."""
    measures = {
        "score": lambda response: response.score,
        # A response of a pair that was mined from a ledger has no claims.
        "claims": lambda r: len(r.claims) if isinstance(r, JudgedResponse) else None,
        "tokens": lambda response: len(response.response.token_ids),
    }
    columns: dict[str, list[Any]] = {
        "mode": [pair.mode for pair in pairs],
        "prompt": [pair.prompt.id for pair in pairs],
    }
    for name, measure in measures.items():
        columns[f"{name} of chosen"] = [measure(pair.chosen) for pair in pairs]
        columns[f"{name} of rejected"] = [measure(pair.rejected) for pair in pairs]
    return pd.DataFrame(columns)


def _card(group: tuple[tuple[int, PreferencePair], ...], pictures_of: PicturesOf) -> Card:
    iteration, first = group[0]
    prompt = first.prompt
    return Card(
        prompt_id=prompt.id,
        mode=first.mode,
        facts=(f"iteration {iteration}", f"task {prompt.task}", f"{len(group)} pairs"),
        messages=messages_as_text(prompt.messages),
        reference=prompt.reference,
        # Pairs do not store what pixels the policy saw.
        pictures=pictures_of(prompt.media, ()),
        items=tuple(pair for _, pair in group),
    )
