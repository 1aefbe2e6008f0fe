"""The ledger: every trajectory a run trained on, with all that its reward was made of.

One parquet file a step, `ledger/step_000012.parquet`, a row a trajectory. It is enough to score a
run again under other reward weights without sampling anything.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.media.names import to_json
from rl.loop.stages import Choice, ScoredGroup
from rl.run.files import atomic_write

PART_PREFIX = "part/"


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One trajectory of one step; the fields, in their order, are the columns of the file."""

    step: int
    group_id: str
    prompt_id: str
    task: str
    messages: str
    """The prompt's chat messages as JSON."""
    media: str | None = None
    """The prompt's images and videos by name, as names.to_json writes them; None without any."""
    media_digests: tuple[str, ...] = ()
    """Of their pixels, as the engine saw them."""
    mode: str
    first_version: int
    last_version: int
    text: str
    reasoning: str | None
    answer: str | None
    reference: str
    finish_reason: str
    end_token: int | None = None
    """The sampled end of sequence, which `text` leaves out; None where there is none, or where an
    older version wrote the row."""
    num_tokens: int
    """Response tokens."""
    choice: str | None = None
    """What a response chose where the mode leaves that to the policy: `long`, to reason, or
    `short`. None in other modes."""
    choice_by: str | None = None
    """`policy`; `pair` where it was set; `stray` where it did not go on as what it chose does."""
    choice_tokens: int | None = None
    """How many of its tokens say so, which `text` leaves out."""
    choice_advantage: float | None = None
    """What its choice was trained on; `advantage` is that of the tokens behind it."""
    reward: float | None
    parts: Mapping[str, float]
    """Reward parts before weighting; a column `part/NAME` each."""
    route: str
    failure: str | None
    claimed: str | None = None
    """The final answer that rules read in the response; None where they did not decide."""
    claimed_how: str | None = None
    """How they found it: `box`, `tag`, `marker`, `last claim`; empty where they found none."""
    why: str | None = None
    """Why the accuracy is no full score; empty where it is one."""
    preference_answer: str | None
    """What the preference model saw beside the messages; None where it was not asked."""
    advantage: float | None
    """None where the trajectory was left out of the update."""
    mismatch: float | None
    """Mean over response tokens of the log-probability under the learner minus that by the engine:
    the sign of `rollout/mismatch_kl`. None where the trajectory was left out of the update."""
    state: str = "trained"
    """`skipped` where the update of the step was not taken (rl/loop/step_guard.py)."""

    @property
    def as_choice(self) -> Choice | None:
        if self.choice is None or self.choice_tokens is None:
            return None
        by = self.choice_by
        return Choice(self.choice == "long", self.choice_tokens, by != "stray", by == "pair")


# The columns are those of LedgerRow, so the type alone says what a file holds.
_ARROW_TYPES = {
    int: pa.int32(),
    int | None: pa.int32(),
    str: pa.string(),
    str | None: pa.string(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
}


def ledger_rows(
    step: int,
    scored_groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    mismatches: Sequence[Sequence[float | None]],
    choices: Sequence[Sequence[float | None]] | None = None,
    is_skipped: bool = False,
) -> list[LedgerRow]:
    """The rows of a step (1-based); advantages and mismatches are per group and trajectory.

    choices: advantages of choices (StepResult.choices).
    """
    rows = []
    choices = choices or [[None] * len(scored.scores) for scored in scored_groups]
    for scored, *per_trajectory in zip(scored_groups, advantages, mismatches, choices, strict=True):
        group, request, prompt = scored.group, scored.group.request, scored.group.request.prompt
        messages = json.dumps(prompt.messages, default=dict, ensure_ascii=False)
        for trajectory, score, advantage, mismatch, choice_advantage in zip(
            group.trajectories, scored.scores, *per_trajectory, strict=True
        ):
            choice, chosen = trajectory.choice, {}
            if choice is not None:
                by = "pair" if choice.is_forced else "policy" if choice.is_kept else "stray"
                chosen = {
                    "choice": "long" if choice.thinking else "short",
                    "choice_by": by,
                    "choice_tokens": choice.num_tokens,
                    "choice_advantage": choice_advantage,
                }
            rows.append(
                LedgerRow(
                    step=step,
                    group_id=request.group_id,
                    prompt_id=prompt.id,
                    task=prompt.task,
                    messages=messages,
                    media=to_json(prompt.media) if prompt.media else None,
                    media_digests=group.media_digests,
                    mode=request.mode,
                    first_version=trajectory.versions[0],
                    last_version=trajectory.versions[1],
                    text=trajectory.text,
                    reasoning=trajectory.reasoning,
                    answer=trajectory.answer,
                    reference=prompt.reference,
                    finish_reason=trajectory.finish_reason,
                    end_token=trajectory.end_token,
                    num_tokens=trajectory.num_response_tokens,
                    **chosen,
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
                    state="skipped" if is_skipped else "trained",
                )
            )
    return rows


def write_step(directory: Path, step: int, rows: Sequence[LedgerRow]) -> Path:
    """Write the rows of one step, all or nothing; replaces what the step had."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:06d}.parquet"
    fields, columns = [], []

    def add(name: str, kind: pa.DataType, values: list[Any], is_optional: bool) -> None:
        fields.append(pa.field(name, kind, nullable=is_optional))
        try:
            columns.append(pa.array(values, kind))
        except UnicodeEncodeError:
            columns.append(pa.array([v if v is None else storable_text(v) for v in values], kind))

    # By columns: a thousand groups as records would keep this process from all else for seconds.
    for name, kind in get_type_hints(LedgerRow).items():
        if name == "parts":
            for part in sorted({part for row in rows for part in row.parts}):
                of_part = [row.parts.get(part) for row in rows]
                add(PART_PREFIX + part, pa.float64(), of_part, is_optional=True)
        else:
            is_optional = kind in (str | None, int | None, float | None)
            add(name, _ARROW_TYPES[kind], [getattr(row, name) for row in rows], is_optional)
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    with atomic_write(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return path


def read_rows(path: Path) -> list[LedgerRow]:
    """The rows of one step; raises ValueError for a file that is not of this version's form."""
    table = pq.read_table(path)
    present = set(table.column_names)
    names = {field.name for field in dataclasses.fields(LedgerRow)} - {"parts"}
    # Runs that older versions began have no word of what the rules read, nor of how it began and
    # ended.
    names -= {"claimed", "claimed_how", "why", "end_token", "state"} - present
    names -= {name for name in names if name.startswith("choice")} - present
    if missing := sorted(names - present):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; another version wrote it")
    rows = []
    for record in table.to_pylist():
        parts = {
            column.removeprefix(PART_PREFIX): value
            for column, value in record.items()
            # A part that another mode or task has is null here, which is not a part of value 0.
            if column.startswith(PART_PREFIX) and value is not None
        }
        fields = {name: record[name] for name in names}
        fields["media_digests"] = tuple(record["media_digests"])
        rows.append(LedgerRow(**fields, parts=parts))
    return rows


def read_lengths(path: Path) -> list[tuple[str, list[int]]]:
    """Of each group of one step its mode, and the response tokens of its trajectories."""
    groups: dict[str, tuple[str, list[int]]] = {}
    # Three columns of a file that mostly holds text.
    for row in pq.read_table(path, columns=["group_id", "mode", "num_tokens"]).to_pylist():
        groups.setdefault(row["group_id"], (row["mode"], []))[1].append(row["num_tokens"])
    return list(groups.values())


def storable_text(text: str) -> str:
    """The text with `?` for lone surrogates, which JSON data has and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
