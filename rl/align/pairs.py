"""Preference pairs of an iteration: of judged responses, or mined from the ledger of the RL run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.types import JudgedResponse, PreferencePair
from rl.align.console import listed
from rl.align.directory import labels_path
from rl.align.pairing import PairSelection, mine_pairs, select_pairs
from rl.align.parts import Iteration
from rl.run.files import write_text
from rl.run.ledger import LedgerRow, read_rows


def make_pairs(iteration: Iteration) -> list[PreferencePair]:
    """Make the pairs, unless they are there; raises ValueError where there are none."""
    files = iteration.files
    if not files.pairs.exists():
        is_mined = iteration.config.align.mine is not None
        selection = _mined(iteration) if is_mined else _selected(iteration)
        balance = selection.balance and dataclasses.asdict(selection.balance)
        counts = {"counts": dict(selection.counts), "balance": balance}
        write_text(files.pair_counts, json.dumps(counts, indent=1) + "\n")
        iteration.console.note(f"pairs: {listed(selection.counts)}")
        refuse_no_pairs(selection.counts)
        write_stage(files.pairs, PreferencePair, selection.pairs)
    return read_stage(files.pairs, PreferencePair)


def refuse_no_pairs(counts: Mapping[str, int]) -> None:
    """Raise ValueError if no preference pair is left.

    counts: what became of responses and pairs, as rl.align.pairing counts them.
    """
    if not counts.get("pairs/kept"):
        raise ValueError(
            f"no preference pair is left: {listed(counts)}; lower align.gap, or start again with "
            "more align.prompts, more align.responses or a higher align.temperature. All that was "
            "sampled and labelled is kept until then"
        )


def _selected(iteration: Iteration) -> PairSelection:
    config, judged = (
        iteration.config,
        read_stage(labels_path(iteration.files.root), JudgedResponse),
    )
    return select_pairs(judged, config.seed, config.align.gap, config.align.pairs_per_prompt)


def _mined(iteration: Iteration) -> PairSelection:
    config, chat = iteration.config, iteration.parts.material.chat

    def encode(row: LedgerRow) -> tuple[int, ...]:
        return chat.response_token_ids(row.text, is_ended=row.finish_reason == "stop")

    assert config.align.mine is not None
    return mine_pairs(
        _ledger_rows(iteration),
        encode,
        config.seed,
        config.align.gap,
        config.align.mine,
        config.align.pairs_per_prompt,
    )


def _ledger_rows(iteration: Iteration) -> list[LedgerRow]:
    """Of the newest steps of the policy, as many groups as an iteration asks prompts."""
    origin = iteration.parts.origin
    rows: list[LedgerRow] = []
    for path in sorted(origin.ledger.glob("step_*.parquet"), reverse=True):
        if int(path.stem.removeprefix("step_")) > origin.step:
            continue
        rows += read_rows(path)
        if len({row.group_id for row in rows}) >= iteration.config.align.prompts:
            break
    return rows
