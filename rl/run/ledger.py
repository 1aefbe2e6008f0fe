"""The ledger: every trajectory a run trained on, with all that its reward was made of.

One parquet file a step, `ledger/step_000012.parquet`, a row a trajectory. It is enough to score a
run again under other reward weights without sampling anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.media.names import to_json
from rl.loop.stages import ScoredGroup
from rl.run.files import atomic_write

PART_PREFIX = "part/"

_COLUMNS_BEFORE_PARTS = (
    pa.field("step", pa.int32(), nullable=False),
    pa.field("group_id", pa.string(), nullable=False),
    pa.field("prompt_id", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("messages", pa.string(), nullable=False),
    pa.field("media", pa.string()),
    pa.field("media_digests", pa.list_(pa.string()), nullable=False),
    pa.field("mode", pa.string(), nullable=False),
    pa.field("first_version", pa.int32(), nullable=False),
    pa.field("last_version", pa.int32(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("reasoning", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("reference", pa.string(), nullable=False),
    pa.field("finish_reason", pa.string(), nullable=False),
    pa.field("num_tokens", pa.int32(), nullable=False),
    pa.field("reward", pa.float64()),
)
_COLUMNS_AFTER_PARTS = (
    pa.field("route", pa.string(), nullable=False),
    pa.field("failure", pa.string()),
    pa.field("claimed", pa.string()),
    pa.field("claimed_how", pa.string()),
    pa.field("why", pa.string()),
    pa.field("preference_answer", pa.string()),
    pa.field("advantage", pa.float64()),
    pa.field("mismatch", pa.float64()),
)


@dataclass(frozen=True)
class LedgerRow:
    """One trajectory of one step; the fields are the columns of the file."""

    step: int
    group_id: str
    prompt_id: str
    task: str
    messages: str
    """The prompt's chat messages as JSON."""
    mode: str
    first_version: int
    last_version: int
    text: str
    reasoning: str | None
    answer: str | None
    reference: str
    finish_reason: str
    num_tokens: int
    """Response tokens."""
    reward: float | None
    parts: Mapping[str, float]
    """Reward parts before weighting; a column `part/NAME` each."""
    route: str
    failure: str | None
    preference_answer: str | None
    """What the preference model saw beside the messages; None where it was not asked."""
    advantage: float | None
    """None where the trajectory was left out of the update."""
    mismatch: float | None
    """Mean over response tokens of the log-probability under the learner minus that by the engine:
    the sign of `rollout/mismatch_kl`. None where the trajectory was left out of the update."""
    media: str | None = None
    """The prompt's images and videos by name, as names.to_json writes them; None without any."""
    media_digests: tuple[str, ...] = ()
    """Of their pixels, as the engine saw them."""
    claimed: str | None = None
    """The final answer that rules read in the response; None where they did not decide."""
    claimed_how: str | None = None
    """How they found it: `box`, `tag`, `marker`, `last claim`; empty where they found none."""
    why: str | None = None
    """Why the accuracy is no full score; empty where it is one."""


def ledger_rows(
    step: int,
    scored_groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    mismatches: Sequence[Sequence[float | None]] | None = None,
) -> list[LedgerRow]:
    """The rows of a step (1-based); advantages and mismatches are per group and trajectory."""
    if mismatches is None:
        mismatches = [[None] * len(scored.scores) for scored in scored_groups]
    return [
        row
        for scored, of_group, apart in zip(scored_groups, advantages, mismatches, strict=True)
        for row in _group_rows(step, scored, of_group, apart)
    ]


def write_step(directory: Path, step: int, rows: Sequence[LedgerRow]) -> Path:
    """Write the rows of one step, all or nothing; replaces what the step had."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:06d}.parquet"
    with atomic_write(path) as partial:
        pq.write_table(_table(rows), partial, compression="zstd")
    return path


def read(directory: Path) -> pa.Table:
    """The whole ledger in order of steps; a part that a step did not have is null there."""
    paths = sorted(directory.glob("step_*.parquet"))
    if not paths:
        raise ValueError(
            f"{directory} holds no step_*.parquet; is it the ledger of a run with log.ledger=true?"
        )
    return pa.concat_tables([pq.read_table(path) for path in paths], promote_options="default")


def _group_rows(
    step: int,
    scored: ScoredGroup,
    advantages: Sequence[float | None],
    mismatches: Sequence[float | None],
) -> list[LedgerRow]:
    request = scored.group.request
    return [
        LedgerRow(
            step=step,
            group_id=request.group_id,
            prompt_id=request.prompt.id,
            task=request.prompt.task,
            messages=json.dumps(request.prompt.messages, default=dict, ensure_ascii=False),
            media=to_json(request.prompt.media) if request.prompt.media else None,
            media_digests=scored.group.media_digests,
            mode=request.mode,
            first_version=trajectory.versions[0],
            last_version=trajectory.versions[1],
            text=trajectory.text,
            reasoning=trajectory.reasoning,
            answer=trajectory.answer,
            reference=request.prompt.reference,
            finish_reason=trajectory.finish_reason,
            num_tokens=trajectory.num_response_tokens,
            reward=score.reward,
            parts=score.parts,
            route=str(score.route or ""),
            failure=str(score.failure) if score.failure else None,
            claimed=score.claimed.text if score.claimed else None,
            claimed_how=score.claimed.how if score.claimed else None,
            why=score.claimed.why if score.claimed else None,
            preference_answer=score.preference_answer,
            advantage=advantage,
            mismatch=mismatch,
        )
        for trajectory, score, advantage, mismatch in zip(
            scored.group.trajectories, scored.scores, advantages, mismatches, strict=True
        )
    ]


def _table(rows: Sequence[LedgerRow]) -> pa.Table:
    parts = sorted({part for row in rows for part in row.parts})
    part_columns = [pa.field(PART_PREFIX + part, pa.float64()) for part in parts]
    schema = pa.schema([*_COLUMNS_BEFORE_PARTS, *part_columns, *_COLUMNS_AFTER_PARTS])
    columns = {
        field.name: [_storable(vars(row)[field.name]) for row in rows]
        for field in (*_COLUMNS_BEFORE_PARTS, *_COLUMNS_AFTER_PARTS)
    }
    columns |= {PART_PREFIX + part: [row.parts.get(part) for row in rows] for part in parts}
    return pa.table(columns, schema=schema)


def _storable(value: Any) -> Any:
    return storable_text(value) if isinstance(value, str) else value


def storable_text(text: str) -> str:
    """The text with `?` for lone surrogates, which JSON data has and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_rows(path: Path) -> list[LedgerRow]:
    """The rows of one step; raises ValueError for a file that is not of this version's form."""
    table = pq.read_table(path)
    present = set(table.column_names)
    names = {field.name for field in dataclasses.fields(LedgerRow)} - {"parts"}
    # Runs that older versions began have no word of what the rules read.
    names -= {"claimed", "claimed_how", "why"} - present
    if missing := sorted(names - present):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; another version wrote it")
    parts = [name for name in table.column_names if name.startswith(PART_PREFIX)]
    return [_stored_row(record, names, parts) for record in table.to_pylist()]


def _stored_row(record: Mapping, names: set[str], parts: Sequence[str]) -> LedgerRow:
    known = {name: record[name] for name in parts if record[name] is not None}
    return LedgerRow(
        **{name: record[name] for name in names - {"media_digests"}},
        media_digests=tuple(record["media_digests"]),
        parts={name.removeprefix(PART_PREFIX): value for name, value in known.items()},
    )
