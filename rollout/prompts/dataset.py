"""Prompts from a data set: a .jsonl or .parquet file, a directory of them, or a Hugging Face name.

Everything that can be wrong with the rows is found when the source is opened, before anything
heavy starts. A row whose media cannot be used, or whose reward is turned off, is quarantined, which
means left out with a reason: a large data set always has some, and one broken picture must not stop
a run. Any other fault is refused, because a mistake in a recipe shows in all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rl.config.data import SourceConfig
from rl.data.fingerprint import stable_hash
from rl.data.media.names import MediaError
from rl.data.references import reference_text
from rl.data.tables import Location, heldout_location, read_table, train_location
from rl.loop.stages import Prompt
from rollout.prompts.row_media import (
    Messages,
    conversation,
    media_of_rows,
    place_media,
    system_message,
)

SHOWN_IDS = 5


@dataclass(frozen=True)
class Quarantined:
    """A row that is never asked."""

    id: str
    """As a prompt's; the split is that of the table that holds the row."""
    reason: str
    """Such as `missing: ...`; what an rl.data.media.names.MediaError says, or `unrewarded: ...`."""


class DatasetSource:
    """Rows are shuffled by rollout/prompts/stream.py; here they keep the order of the data set."""

    def __init__(
        self, config: SourceConfig, modes: Collection[str], unrewarded: Collection[str] = ()
    ) -> None:
        """modes: that rows may be pinned to. unrewarded: tasks whose rows are left out."""
        train, heldout = train_location(config), heldout_location(config)
        if train is None:
            raise ValueError(
                "data.path is required: name a .jsonl or .parquet file, a directory of them, or a "
                "Hugging Face data set"
            )
        self._columns = config.columns
        self._task = config.task
        self._system_prompt = config.system_prompt
        rows = _Rows(train, "train", config, modes, unrewarded)
        if heldout is None:
            # One table serves both splits.
            self._heldout_rows = rows
            self._train, self._heldout = _divide(rows, config.heldout_share)
            self.quarantined = rows.quarantined
        else:
            self._heldout_rows = _Rows(heldout, "heldout", config, modes, unrewarded)
            self._train = _not_among(rows, self._heldout_rows)
            self._heldout = self._heldout_rows.usable
            self.quarantined = rows.quarantined + self._heldout_rows.quarantined
        self._rows = rows
        pins = rows.pins()
        self._pins = None if pins is None else [pins[row] for row in self._train]

    @property
    def train_count(self) -> int:
        return len(self._train)

    @property
    def heldout_count(self) -> int:
        return len(self._heldout)

    def train(self, index: int) -> Prompt:
        return self._prompt(self._rows, "train", int(self._train[index]))

    def heldout(self, index: int) -> Prompt:
        return self._prompt(self._heldout_rows, "heldout", int(self._heldout[index]))

    def rows_for(self, mode: str) -> list[int] | None:
        if self._pins is None:
            return None
        return [place for place, pin in enumerate(self._pins) if pin in (None, mode)]

    def _prompt(self, rows: _Rows, split: str, number: int) -> Prompt:
        row, columns = rows.table[number], self._columns
        messages, media = place_media(rows.asked(row), rows.media[number].media, rows.has_media)
        # A row's own system message says more about it than the recipe's.
        if self._system_prompt is not None and messages[0]["role"] != "system":
            messages = (system_message(self._system_prompt), *messages)
        return Prompt(
            id=f"{rows.name}/{split}/{rows.id_of(number)}",
            messages=messages,
            reference=reference_text(row[columns.reference]),
            task=(row[columns.task] if columns.task else None) or self._task,
            mode=row[columns.mode] or None if columns.mode else None,
            media=media,
        )


class _Rows:
    """The rows of one table: all of them readable, most of them usable."""

    def __init__(
        self,
        location: Location,
        split: Literal["train", "heldout"],
        config: SourceConfig,
        modes: Collection[str],
        unrewarded: Collection[str],
    ) -> None:
        columns = config.columns
        self.name = Path(location.path).stem
        self._columns = columns
        self._task = config.task
        self._path = location.path
        whole = read_table(location)
        mapped = columns.model_dump(exclude={"question"} if columns.messages is not None else set())
        known = (None, *whole.column_names)
        if missing := [f"data.columns.{k}={n}" for k, n in mapped.items() if n not in known]:
            raise ValueError(
                f"{self._path} has no column for {', '.join(missing)}; its columns are "
                f"{', '.join(whole.column_names)}"
            )
        media = {columns.images, columns.videos} - {None}
        self.has_media = bool(media)
        # Without the columns of media, because `datasets` would decode a picture with each row.
        self.table = whole.select_columns([n for n in whole.column_names if n not in media])
        self._ids = [_text(i) for i in self.table[columns.id]] if columns.id else None
        self._refuse_bad_rows(modes)
        try:
            self.media = list(media_of_rows(whole, columns, split, location.directory))
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from error
        problems = self._problems(unrewarded)
        self.usable = np.array([n for n in range(len(self)) if n not in problems], dtype=int)
        self.quarantined = tuple(
            Quarantined(f"{self.name}/{split}/{self.id_of(n)}", why) for n, why in problems.items()
        )
        if not len(self.usable):
            raise ValueError(f"{self._path} has no row that can be used; {self.left_out()}")

    def __len__(self) -> int:
        return len(self.table)

    def id_of(self, number: int) -> str:
        return self._ids[number] if self._ids is not None else str(number)

    def pins(self) -> list[str | None] | None:
        if self._columns.mode is None:
            return None
        return [pin or None for pin in self.table[self._columns.mode]]

    def asked(self, row: Mapping[str, Any]) -> Messages:
        """The row's messages as they are stored, or its question as one."""
        if self._columns.messages is not None:
            return tuple(row[self._columns.messages])
        return conversation(_text(row[self._columns.question]), None)

    def split_keys(self) -> list[str]:
        """What decides a row's split: its content, so that equal questions share a split."""
        texts = self.table[self._columns.messages or self._columns.question]
        return [repr((text, *media.names)) for text, media in zip(texts, self.media, strict=True)]

    def left_out(self) -> str:
        """How many rows are quarantined for which reason, and the first of them."""
        if not self.quarantined:
            return "no row is quarantined"
        counts = Counter(row.reason.partition(":")[0] for row in self.quarantined)
        counted = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        first = "; ".join(f"{row.id} {row.reason}" for row in self.quarantined[:SHOWN_IDS])
        return f"quarantined are {counted}; the first: {first}"

    def _problems(self, unrewarded: Collection[str]) -> dict[int, str]:
        """Why rows cannot be used, by number: for their media, or because nothing scores them."""
        asked = self._columns.messages or self._columns.question
        problems = {}
        rows = zip(self.table[asked], self.media, strict=True)
        for number, (content, row) in enumerate(rows):
            try:
                if row.problem is None:
                    place_media(self.asked({asked: content}), row.media, self.has_media)
                else:
                    problems[number] = row.problem
            except MediaError as error:
                problems[number] = str(error)
        tasks = self.table[self._columns.task] if self._columns.task else [None] * len(self)
        for number, own in enumerate(tasks):
            task = own or self._task
            if task in unrewarded:
                why = f"unrewarded: reward.{task} is off, which its task names; set it, or the task"
                problems.setdefault(number, why)
        return dict(sorted(problems.items()))

    def _refuse_bad_rows(self, modes: Collection[str]) -> None:
        if not len(self):
            raise ValueError(f"{self._path} has no rows")
        columns = self._columns
        # One row is enough, because all cells of a column have the same type.
        row = self.table[0]
        try:
            if _text(row[columns.reference]):
                reference_text(row[columns.reference])
        except ValueError as error:
            raise ValueError(f"{self._path}: column {columns.reference}: {error}") from error
        messages = [] if columns.messages is None else row[columns.messages]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and {"role", "content"} <= message.keys()
            for message in messages
        ):
            raise ValueError(
                f"{self._path}: column {columns.messages} must hold lists of messages with "
                f"role and content, got {messages!r:.120}"
            )
        asked = columns.messages or columns.question
        for name in (columns.reference, asked):
            empty = [n for n, value in enumerate(self.table[name]) if not _text(value).strip()]
            self._refuse(empty, f"with nothing in column {name}; fill or remove them")
        if columns.messages is not None:
            # A conversation that ends with the assistant may hold the answer that is to be found.
            asked_in = self.table[columns.messages]
            told = [n for n, messages in enumerate(asked_in) if messages[-1]["role"] != "user"]
            why = f"whose column {columns.messages} does not end with the user, so that the answer "
            self._refuse(told, why + "may stand in the prompt; cut them after the question")
        if columns.id is not None:
            counts = Counter(self._ids)
            repeated = [n for n in range(len(self)) if counts[self.id_of(n)] > 1]
            why = f"whose id in column {columns.id} is not unique; name another column"
            self._refuse(repeated, why)
        pinned = [n for n, pin in enumerate(self.pins() or ()) if pin and pin not in modes]
        why = f"pinned in column {columns.mode} to a mode that is none of {', '.join(modes)}"
        self._refuse(pinned, why)

    def _refuse(self, numbers: Sequence[int], why: str) -> None:
        if numbers:
            shown = ", ".join(self.id_of(number) for number in numbers[:SHOWN_IDS])
            raise ValueError(f"{self._path} has {len(numbers)} rows {why}; the first ids: {shown}")


def _text(value: Any) -> str:
    """A cell as text; empty for a missing value or an empty list."""
    return "" if value is None or value == [] else str(value)


def _divide(rows: _Rows, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of training and held out.

    A row's split depends on itself alone, so rows that are added later move no others. A data set
    so small that no row falls into the held-out share gives up those that come nearest to it.
    """
    # Hashes spread evenly over 64 bits, so a share of the rows lies below that share of 2^64.
    keys = np.array([stable_hash(key) for key in rows.split_keys()], dtype=np.uint64)[rows.usable]
    is_heldout = keys <= max(np.uint64(share * 2**64), keys.min())
    if is_heldout.all():
        raise ValueError(
            f"data.path has {len(rows.usable)} rows, too few to hold out data.heldout_share="
            f"{share} of different questions ({rows.left_out()}); name data.heldout_path"
        )
    return rows.usable[~is_heldout], rows.usable[is_heldout]


def _not_among(rows: _Rows, heldout: _Rows) -> np.ndarray:
    """Return the numbers of the usable rows that are not held out as well."""
    held, keys = set(heldout.split_keys()), rows.split_keys()
    train = np.array([n for n in rows.usable if keys[n] not in held], dtype=int)
    if not len(train):
        raise ValueError(
            "every row of data.path is among the held-out rows, so nothing is left to train on "
            f"({rows.left_out()}); name other rows in data.heldout_path or data.heldout_split"
        )
    return train
