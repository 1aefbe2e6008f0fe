"""Prompts from a data set: files, a directory of them, or a Hugging Face name.

Everything that can be wrong with the rows is found when the source is opened, before anything
heavy starts. A row whose media cannot be used, or whose reward is turned off, is quarantined, which
means left out with a reason: a large data set always has some, and one broken picture must not stop
a run. Any other fault is refused, because a mistake in a recipe shows in all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rl.config.data import PromptsConfig
from rl.data.fingerprint import stable_hash
from rl.data.media.names import MediaError, shortened
from rl.data.references import reference_text
from rl.data.tables import Location, heldout_location, read_table, train_location
from rl.loop.stages import Prompt
from rollout.prompts.conversation import (
    Messages,
    Question,
    Template,
    brings_parts,
    read_question,
    system_message,
    without_answer,
)
from rollout.prompts.row_media import MediaColumns, RowMedia, media_of_rows, place_media

SHOWN_IDS = 5
SHOWN_REASONS = 300
"""Characters of an error that say why the first rows are left out."""


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
        self,
        config: PromptsConfig,
        modes: Collection[str],
        unrewarded: Collection[str] = (),
        name: str = "",
    ) -> None:
        """modes: that rows may be pinned to. unrewarded: tasks whose rows are left out. name: of
        the source in `data.mix`."""
        train, heldout = train_location(config), heldout_location(config)
        if train is None:
            raise ValueError(
                "data.path is required: name a file with rows, a list or a directory of them, or a "
                "Hugging Face data set"
            )
        self._config = config
        rows = _Rows(train, "train", config, modes, unrewarded, name)
        if heldout is None:
            # One table serves both splits.
            self._heldout_rows = rows
            self._train, self._heldout = _divide(rows, config.heldout_share)
            self.quarantined = rows.quarantined
        else:
            self._heldout_rows = _Rows(heldout, "heldout", config, modes, unrewarded, name)
            self._train = _not_among(rows, self._heldout_rows)
            self._heldout = self._heldout_rows.usable
            self.quarantined = rows.quarantined + self._heldout_rows.quarantined
        self._rows = rows

    @property
    def train_count(self) -> int:
        return len(self._train)

    @property
    def heldout_count(self) -> int:
        return len(self._heldout)

    @property
    def shows_media(self) -> bool:
        return self._rows.shows_media or self._heldout_rows.shows_media

    def train(self, index: int) -> Prompt:
        return self._prompt(self._rows, "train", int(self._train[index]))

    def heldout(self, index: int) -> Prompt:
        return self._prompt(self._heldout_rows, "heldout", int(self._heldout[index]))

    def rows_for(self, mode: str) -> list[int] | None:
        pins = self._rows.pins
        if pins is None:
            return None
        return [n for n, row in enumerate(self._train) if pins[row] in (None, mode)]

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Quarantine the prompts with these ids; raises ValueError where none would be left."""
        left = {"train": self._train, "heldout": self._heldout}
        for split, rows in (("train", self._rows), ("heldout", self._heldout_rows)):
            kept = [n for n in left[split] if f"{rows.name}/{split}/{rows.id_of(n)}" not in reasons]
            if not kept:
                first = next(iter(reasons.values()))
                raise ValueError(f"{rows.name}: no {split} row is left; the first: {first}")
            left[split] = np.array(kept, dtype=int)
        self._train, self._heldout = left["train"], left["heldout"]
        self.quarantined += tuple(Quarantined(name, why) for name, why in reasons.items())

    def _prompt(self, rows: _Rows, split: str, number: int) -> Prompt:
        row, config = rows.read(number), self._config
        messages, media = rows.placed(row, number)
        # A row's own system message says more about it than the recipe's.
        if config.system_prompt is not None and messages[0]["role"] != "system":
            messages = (system_message(config.system_prompt), *messages)
        return Prompt(
            id=f"{rows.name}/{split}/{rows.id_of(number)}",
            messages=messages,
            reference=reference_text(rows.answer(row, rows.question(row))),
            task=rows.task_of(number),
            mode=None if rows.pins is None else rows.pins[number],
            media=media,
        )


class _Rows:
    """The rows of one table: all of them readable, most of them usable."""

    def __init__(
        self,
        location: Location,
        split: Literal["train", "heldout"],
        config: PromptsConfig,
        modes: Collection[str],
        unrewarded: Collection[str],
        source: str,
    ) -> None:
        columns = config.columns
        self.name = location.name
        self._columns = columns
        self._task = config.task
        self._path = shortened(", ".join(location.paths), 200)
        self._table = read_table(location)
        self._question_column = columns.messages or columns.question
        self._reference = self._find_reference()
        self._refuse_missing_columns()
        self._template = None
        if config.template is not None:
            self._template = Template(config.template, self._table.names, self._reference)
        names = [
            self._question_column,
            self._reference,
            *(self._template.columns if self._template else ()),
        ]
        self._names = list(dict.fromkeys(name for name in names if name))
        ids = self._texts(columns.id)
        self._ids = None if ids is None else [text or "" for text in ids]
        self.pins = self._texts(columns.mode)
        self._tasks = self._texts(columns.task)
        self._refuse_bad_rows(modes)
        has_parts = any(map(brings_parts, self._table.column(self._question_column)))
        media = MediaColumns(
            columns.media, self._question_column if has_parts else None, split, source
        )
        try:
            self.media = list(media_of_rows(self._table, media))
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from error
        self.shows_media = bool(columns.media) or any(row.own for row in self.media)
        problems = self._problems(unrewarded)
        self.usable = np.array([n for n in range(len(self)) if n not in problems], dtype=int)
        self.quarantined = tuple(
            Quarantined(f"{self.name}/{split}/{self.id_of(n)}", why) for n, why in problems.items()
        )
        if not len(self.usable):
            raise ValueError(f"{self._path} has no row that can be used; {self.left_out()}")

    def __len__(self) -> int:
        return len(self._table)

    def id_of(self, number: int) -> str:
        return self._ids[number] if self._ids is not None else str(number)

    def task_of(self, number: int) -> str:
        return (self._tasks[number] if self._tasks else None) or self._task

    def read(self, number: int) -> Mapping[str, Any]:
        """The cells of the row that make its prompt."""
        return self._table.rows(self._names, number, number + 1)[0]

    def question(self, row: Mapping[str, Any]) -> Question:
        return read_question(row[self._question_column], self._columns.messages is not None)

    def answer(self, row: Mapping[str, Any], question: Question) -> Any:
        """The row's reference answer, or its accepted answers; None where it has none."""
        cell = question.answer if self._reference is None else row[self._reference]
        if isinstance(cell, list):
            cell = [answer for answer in cell if not _is_blank(answer)]
        return None if _is_blank(cell) else cell

    def placed(self, row: Mapping[str, Any], number: int) -> tuple[Messages, tuple[Any, ...]]:
        """The row's messages and media, in their places; raises MediaError."""
        messages, media = self.question(row).messages, self.media[number]
        if self._template is not None:
            cells = {name: row[name] for name in self._template.columns}
            messages = self._template.fill(messages, cells)
        return place_media(messages, media.media, bool(self._columns.media), media.own)

    def split_keys(self) -> list[str]:
        """What decides a row's split: its content, so that equal questions share a split."""
        # A template may ask the same words about the cells of other columns.
        others = set(self._template.columns if self._template else ()) - {self._question_column}
        return [
            repr(
                (
                    without_answer(row[self._question_column]),
                    *media.names,
                    *map(row.get, sorted(others)),
                )
            )
            for row, media in self._with_media()
        ]

    def left_out(self) -> str:
        """How many rows are quarantined for which reason, and the first of them."""
        if not self.quarantined:
            return "no row is quarantined"
        counts = Counter(row.reason.partition(":")[0] for row in self.quarantined)
        counted = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        first = "; ".join(f"{row.id} {row.reason}" for row in self.quarantined[:SHOWN_IDS])
        return f"quarantined are {counted}; the first: {shortened(first, SHOWN_REASONS)}"

    def _with_media(self) -> Iterator[tuple[Mapping[str, Any], RowMedia]]:
        """The cells of every row that make its prompt, and its media."""
        columns = [self._table.column(name) for name in self._names]
        for cells, media in zip(zip(*columns, strict=True), self.media, strict=True):
            yield dict(zip(self._names, cells, strict=True)), media

    def _problems(self, unrewarded: Collection[str]) -> dict[int, str]:
        """Why rows cannot be used, by number: for their media, or because nothing scores them."""
        problems = {}
        for number, (row, media) in enumerate(self._with_media()):
            task = self.task_of(number)
            try:
                if media.problem is not None:
                    problems[number] = media.problem
                else:
                    self.placed(row, number)
            except MediaError as error:
                problems[number] = str(error)
            except ValueError as error:
                raise ValueError(f"{self._path}, {self._table.where(number)}: {error}") from error
            if task in unrewarded:
                why = f"unrewarded: reward.{task} is off, which its task names; set it, or the task"
                problems.setdefault(number, why)
        return problems

    def _texts(self, column: str | None) -> list[str | None] | None:
        """The cells of a column of ids, modes or tasks as text, None where there is nothing."""
        if column is None:
            return None
        return [None if cell in (None, "") else str(cell) for cell in self._table.column(column)]

    def _find_reference(self) -> str | None:
        """None where the answer is the assistant's last turn."""
        name = self._columns.reference
        # People who have such rows have no column to name, and need not say so.
        if name != "answer" or self._table.has_column(name):
            return name
        try:
            first = read_question(next(self._table.column(self._question_column), None), False)
        except ValueError:
            # What is wrong with the messages is said with their row.
            return None
        return name if first.answer is None else None

    def _refuse_missing_columns(self) -> None:
        columns = self._columns
        mapped = {"messages" if columns.messages else "question": self._question_column}
        mapped |= {"reference": self._reference, "task": columns.task}
        mapped |= {"mode": columns.mode, "id": columns.id}
        named = [(key, name) for key, name in mapped.items() if name is not None]
        named += [(f"{kind}s", name) for name, kind in self._columns.media.items()]
        missing = [(key, name) for key, name in named if not self._table.has_column(name)]
        if missing:
            keys = ", ".join(f"data.columns.{key}={name}" for key, name in missing)
            fields = [field for _, name in missing for field in self._table.fields_beside(name)]
            names = shortened(", ".join([*fields, *self._table.names]), 200)
            raise ValueError(f"{self._path} has no column for {keys}; its columns are {names}")

    def _refuse_bad_rows(self, modes: Collection[str]) -> None:
        """Raise ValueError for rows that cannot be asked."""
        faults: dict[tuple[str, str], list[int]] = {}
        shown: dict[tuple[str, str], str] = {}
        for number, key, why in self._faults(modes):
            # Rows with the same fault are counted together, whatever each of them holds.
            fault = key, why.partition(", got")[0]
            faults.setdefault(fault, []).append(number)
            shown.setdefault(fault, why)
        # The first fault is enough: it is often the cause of the others.
        for fault, numbers in faults.items():
            ids = ", ".join(self.id_of(number) for number in numbers[:SHOWN_IDS])
            raise ValueError(
                f"{self._path} has {len(numbers)} rows {shown[fault]} (data.columns.{fault[0]}); "
                f"the first is {self._table.where(numbers[0])}, the first ids: {ids}"
            )

    def _faults(self, modes: Collection[str]) -> Iterator[tuple[int, str, str]]:
        """Yield each fault: the row's number, the setting that names the column, what is wrong."""
        question_key = (
            f"{'messages' if self._columns.messages else 'question'}={self._question_column}"
        )
        answer_key = f"reference={self._reference or 'null'}"
        names = [name for name in (self._question_column, self._reference) if name]
        columns = [self._table.column(name) for name in names]
        for number, cells in enumerate(zip(*columns, strict=True)):
            row = dict(zip(names, cells, strict=True))
            try:
                question = self.question(row)
            except MediaError:
                # Such a row is left out with the others whose media cannot be used.
                continue
            except ValueError as error:
                yield number, question_key, str(error)
                continue
            answer = self.answer(row, question)
            if not question.messages:
                why = f"with nothing in column {self._question_column}; fill or remove them"
                yield number, question_key, why
            elif answer is None:
                what = f"nothing in column {self._reference}" if self._reference else "no answer"
                yield number, answer_key, f"with {what}; fill or remove them"
            else:
                try:
                    reference_text(answer)
                except ValueError as error:
                    yield number, answer_key, f"whose answer is none: {error}"
        for number, pin in enumerate(self.pins or ()):
            if pin and pin not in modes:
                why = f"pinned to a mode that is none of {', '.join(modes)}, got {pin:.40}"
                yield number, f"mode={self._columns.mode}", why
        counts = Counter(self._ids)
        for number, row_id in enumerate(self._ids or ()):
            if counts[row_id] > 1 or not row_id:
                what = "not unique" if row_id else "empty"
                key = f"id={self._columns.id}"
                yield number, key, f"whose id is {what}; name another column"


def _is_blank(cell: Any) -> bool:
    """Whether a cell, or an accepted answer in it, says nothing."""
    return cell in (None, []) or (isinstance(cell, str) and not cell.strip())


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
