"""The Parquet file of each stage of an RLAIF-V pass, written all or nothing.

Every row stands for itself, so that a file can be read with any tool: it has the prompt with its
media and reference, the texts, and the claims with their questions and probabilities.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

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


_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int32()
_PROMPT = [
    ("prompt_id", _TEXT),
    # The chat messages as JSON.
    ("messages", _TEXT),
    # As rl.data.media.names.to_json writes them; null without any.
    ("media", _TEXT),
    ("reference", _TEXT),
    ("task", _TEXT),
    # The mode that the data set prescribes, if any, and the one in which the prompt was asked.
    ("pinned_mode", _TEXT),
    ("mode", _TEXT),
]
# Token ids make up most of a file, so they are as small as they may be.
_ANSWER = [("place", _COUNT), ("token_ids", pa.list_(_COUNT)), ("text", _TEXT), ("answer", _TEXT)]
_CLAIM = [("text", _TEXT), ("question", _TEXT)]
# Both probabilities are null where the labeller gave no label.
_JUDGED = [*_CLAIM, ("p_yes", _NUMBER), ("p_no", _NUMBER)]
_JUDGED_CLAIMS = ("claims", pa.list_(pa.struct(_JUDGED)))
# In a pair of judged responses there is no group, and in one that was mined from a ledger there are
# no claims.
_SCORED = pa.struct([*_ANSWER, _JUDGED_CLAIMS, ("group_id", _TEXT), ("score", _NUMBER)])
_COLUMNS: Mapping[type, list[tuple[str, pa.DataType]]] = {
    Response: [*_PROMPT, *_ANSWER],
    DividedResponse: [
        *_PROMPT,
        *_ANSWER,
        ("claims", pa.list_(pa.struct(_CLAIM))),
        ("divider", _TEXT),
        ("fallback", _TEXT),
    ],
    # The score is null where a claim has no label.
    JudgedResponse: [*_PROMPT, *_ANSWER, _JUDGED_CLAIMS, ("score", _NUMBER)],
    PreferencePair: [*_PROMPT, ("id", _TEXT), ("chosen", _SCORED), ("rejected", _SCORED)],
}


def write_stage(path: Path, stage: type[ItemType], items: Iterable[ItemType]) -> None:
    """Write the file of a stage; `stage` is the type of the items, of which there may be none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([to_row(item) for item in items], pa.schema(_COLUMNS[stage]))
    with atomic_write(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_stage(path: Path, stage: type[ItemType]) -> list[ItemType]:
    """Return what `write_stage` wrote; raises ValueError for a file of another form."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    expected = [name for name, _ in _COLUMNS[stage]]
    # Only the names: a list's inner field is called otherwise in a file that was read back.
    if set(table.column_names) != set(expected):
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)} and should have "
            f"{', '.join(expected)}; another version wrote it, remove it to have it made again"
        )
    return [from_row(stage, row) for row in table.to_pylist()]


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
            # Arrow writes null for what is not there.
            claims = [
                _storable(vars(claim)) | (vars(label) if label else {})
                for claim, label in zip(item.claims, item.labels, strict=True)
            ]
            score = item.score if item.is_complete else None
            row = to_row(item.response) | {"claims": claims, "score": score}
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


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    # A data set read from JSON may hold half a surrogate pair, which Parquet's UTF-8 cannot.
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
