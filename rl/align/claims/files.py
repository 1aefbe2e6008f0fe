"""The Parquet file of each stage of an RLAIF-V pass, written all or nothing.

Every row stands for itself, so that a file can be read with any tool: it has the prompt with its
media and reference, the texts, and the claims with their questions and probabilities. The columns
are the keys of the row types below, and the Arrow schema of a file is derived from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from rl.align.claims.types import (
    DividedResponse,
    JudgedResponse,
    PreferencePair,
    Response,
    RewardedResponse,
)
from rl.data.media.names import from_json, to_json
from rl.loop.stages import Prompt
from rl.run.files import atomic_write
from rl.run.ledger import storable_text

Item = Response | DividedResponse | JudgedResponse | RewardedResponse | PreferencePair
ItemType = TypeVar("ItemType", bound=Item)


class _PromptRow(TypedDict):
    prompt_id: str
    messages: str
    """The chat messages as JSON."""
    media: str | None
    """As rl.data.media.names.to_json writes them; None without any."""
    reference: str
    task: str
    pinned_mode: str | None
    """The mode that the data set prescribes, if any."""
    mode: str
    """The mode in which the prompt was asked."""


class _AnswerRow(TypedDict):
    place: int
    """Response.index."""
    token_ids: list[int]
    text: str
    answer: str | None


class _ClaimRow(TypedDict):
    text: str
    question: str


class _JudgedClaimRow(_ClaimRow):
    p_yes: float | None
    p_no: float | None
    """Both are None where the labeller gave no label."""


class _ResponseRow(_PromptRow, _AnswerRow):
    pass


class _DividedRow(_ResponseRow):
    claims: list[_ClaimRow]
    divider: str
    fallback: str | None


class _JudgedRow(_ResponseRow):
    claims: list[_JudgedClaimRow]
    score: float | None
    """None where a claim has no label."""


class _ScoredRow(_AnswerRow):
    """One response of a pair."""

    claims: list[_JudgedClaimRow] | None
    """None in a pair that was mined from a ledger."""
    group_id: str | None
    """None in a pair of judged responses."""
    score: float


class _PairRow(_PromptRow):
    id: str
    chosen: _ScoredRow
    rejected: _ScoredRow


_ROWS: Mapping[type, type] = {
    Response: _ResponseRow,
    DividedResponse: _DividedRow,
    JudgedResponse: _JudgedRow,
    PreferencePair: _PairRow,
}
# Numbers as small as they may be: token ids make up most of a file.
_ARROW_TYPES = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def write_stage(path: Path, stage: type[ItemType], items: Iterable[ItemType]) -> None:
    """Write the file of a stage; `stage` is the type of the items, of which there may be none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([to_row(item) for item in items], pa.schema(_columns(stage)))
    with atomic_write(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_stage(path: Path, stage: type[ItemType]) -> list[ItemType]:
    """Return what `write_stage` wrote; raises ValueError for a file of another form."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    expected = [column.name for column in _columns(stage)]
    # Only the names: a list's inner field is called otherwise in a file that was read back.
    if set(table.column_names) != set(expected):
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)} and should have "
            f"{', '.join(expected)}; another version wrote it, remove it to have it made again"
        )
    return [from_row(stage, row) for row in table.to_pylist()]


def _columns(stage: type) -> list[pa.Field]:
    return [pa.field(*column) for column in _arrow_fields(_ROWS[stage])]


def _arrow_fields(row: type) -> list[tuple[str, pa.DataType]]:
    """Name and Arrow type of each key of a row type; every column may hold nulls."""

    def arrow_type(hint: Any) -> pa.DataType:
        if get_origin(hint) is UnionType:
            # `X | None` is the only union that rows have.
            return arrow_type(get_args(hint)[0])
        if get_origin(hint) is list:
            return pa.list_(arrow_type(get_args(hint)[0]))
        return _ARROW_TYPES.get(hint) or pa.struct(_arrow_fields(hint))

    return [(name, arrow_type(hint)) for name, hint in get_type_hints(row).items()]


def to_row(item: Item) -> dict[str, Any]:
    """The row of an item: plain values, which JSON holds too."""
    match item:
        case Response(prompt=prompt):
            row = {
                "prompt_id": prompt.id,
                "messages": json.dumps(prompt.messages, default=dict, ensure_ascii=False),
                "media": to_json(prompt.media) if prompt.media else None,
                "reference": prompt.reference,
                "task": prompt.task,
                "pinned_mode": prompt.mode,
                "mode": item.mode,
                "place": item.index,
                "token_ids": list(item.token_ids),
                "text": item.text,
                "answer": item.answer,
            }
        case DividedResponse():
            row = to_row(item.response) | {
                "claims": [_storable(vars(claim)) for claim in item.claims],
                "divider": item.divider,
                "fallback": item.fallback,
            }
        case JudgedResponse():
            claims = []
            for claim, label in zip(item.claims, item.labels, strict=True):
                # Without a label both probabilities are null.
                probabilities = vars(label) if label else {"p_yes": None, "p_no": None}
                claims.append(_storable(vars(claim)) | probabilities)
            row = to_row(item.response) | {
                "claims": claims,
                "score": item.score if item.is_complete else None,
            }
        case RewardedResponse():
            row = to_row(item.response) | {"group_id": item.group_id, "score": item.score}
        case PreferencePair():
            # Arrow takes of a mapping what the schema names, and null for what is not there. So the
            # prompt does not stand in both responses again, and each has the columns of its kind.
            row = to_row(item.chosen.response) | {
                "id": item.id,
                "chosen": to_row(item.chosen),
                "rejected": to_row(item.rejected),
            }
    return _storable(row)


# A data set read from JSON may hold half a surrogate pair, which Parquet's UTF-8 cannot.
def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: storable_text(v) if isinstance(v, str) else v for k, v in row.items()}


def from_row(stage: type[ItemType], row: Mapping[str, Any]) -> ItemType:
    """Return what `to_row` made a row of; raises ValueError for a row of another form."""
    fields = dict(row)
    if stage is Response:
        fields["index"] = row["place"]
        fields["prompt"] = Prompt(
            id=row["prompt_id"],
            messages=tuple(json.loads(row["messages"])),
            reference=row["reference"],
            task=row["task"],
            mode=row["pinned_mode"],
            media=from_json(row["media"]) if row["media"] else (),
        )
    elif stage is PreferencePair:
        for name in ("chosen", "rejected"):
            scored = {**row, **row[name]}
            is_judged = scored["group_id"] is None
            fields[name] = from_row(JudgedResponse if is_judged else RewardedResponse, scored)
    else:
        fields["response"] = from_row(Response, row)
        if stage is JudgedResponse:
            # A claim's record has its label beside its texts.
            fields["labels"] = [c if c["p_yes"] is not None else None for c in row["claims"]]
    # Pydantic builds the nested values and ignores the keys that belong to other types.
    return _adapter(stage).validate_python(fields)


# Making an adapter takes a thousand times as long as using it.
_adapter = cache(TypeAdapter)
