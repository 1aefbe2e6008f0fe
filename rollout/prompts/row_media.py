"""Images and videos of a data set's rows: what a cell names, and where in the text it goes.

A medium that cannot be used, or does not match its text, is a MediaError, and its row is left out.
Before a run only headers are read, since decoding a data set takes hours. A file with a good header
and broken contents is met by the engine that reads it, and its group is dropped.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from rl.data.cells import Content, media_in, messages_in, parts_of
from rl.data.media.files import Source, check, digest
from rl.data.media.names import MediaCell, MediaError, MediaFile, Medium, MediumKind, describe
from rl.data.media.store import named, opened
from rl.data.tables import Table
from rollout.prompts.conversation import Message, Messages

BATCH_ROWS = 64
CHECK_THREADS = 16
"""Most of a check is waiting for a disk, often one of the network."""
SILENT_S = 2.0
"""Checks that end sooner show no progress."""

_TAG = re.compile(r"<(?P<kind>image|video)(?: ?(?P<number>[1-9]\d?))?>")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


# Cells.


@dataclass(frozen=True)
class RowMedia:
    """The media of one row."""

    media: tuple[Medium, ...] = ()
    """Of its columns in order: images, then videos."""
    own: tuple[Medium, ...] = ()
    """Of its messages, in the order of their parts."""
    names: tuple[list[str], ...] = ()
    """For every column the paths as they are written, and digests of bytes."""
    problem: str | None = None
    """Why the first bad one cannot be used, as a MediaError says it."""


@dataclass(frozen=True)
class MediaColumns:
    """Where the rows of a table have media."""

    kinds: Mapping[str, MediumKind]
    """Columns of media, and what each holds."""
    messages: str | None
    """The column of messages whose parts hold media; None where none do."""
    split: Literal["train", "heldout"]
    source: str
    """The name of the table's source in `data.mix`."""


def media_of_rows(table: Table, columns: MediaColumns) -> Iterator[RowMedia]:
    """Yield the media of every row, checked.

    Raises ValueError for a column that holds something else than media.
    """
    names = [*columns.kinds, *([columns.messages] if columns.messages else [])]
    if not names:
        yield from repeat(RowMedia(), len(table))
        return
    read = partial(_row_media, table=table, columns=columns, checked={})
    # A bar on stderr, which only shows once the work has lasted a while.
    started, bar = time.monotonic(), Progress(console=Console(stderr=True))
    task = bar.add_task("checking media", total=len(table))
    with ThreadPoolExecutor(CHECK_THREADS) as pool, ExitStack() as stack:
        # Batch by batch, because a cell may hold a whole video as bytes.
        for first in range(0, len(table), BATCH_ROWS):
            rows = table.rows(names, first, min(first + BATCH_ROWS, len(table)))
            yield from pool.map(read, range(first, first + len(rows)), rows)
            bar.advance(task, len(rows))
            if time.monotonic() - started > SILENT_S and not bar.live.is_started:
                bar.start()
                # Only now: where no one watches, a bar that ends leaves an empty line.
                stack.callback(bar.stop)


def _row_media(
    number: int,
    row: Mapping[str, Any],
    table: Table,
    columns: MediaColumns,
    checked: dict[MediaFile, str | None],
) -> RowMedia:
    """checked: the problems of files, which many rows may share."""
    media: list[Medium] = []
    names: list[list[str]] = []
    problems: list[str | None] = []

    def note(content: Content | None, kind: MediumKind, column: str, place: int) -> Medium:
        cell = MediaCell(kind, columns.split, column, number, place, columns.source)
        if content is None:
            problems.append(f"not_an_image: {describe(cell)} is empty; fill or remove it")
            return cell
        try:
            source = opened(content, partial(table.find, row=number))
        except MediaError as error:
            problems.append(str(error))
            return cell
        if not isinstance(source, str) or content.settings:
            problems.append(_problem(cell, source))
            return cell
        if isinstance(content.source, str) and _ADDRESS.match(content.source):
            problems.append(
                f"missing: {content.source:.100} is an address, and media are files or bytes; "
                "download it"
            )
        file = MediaFile(kind, source)
        # Two threads may check the same file; both then write the same.
        if file not in checked:
            checked[file] = _problem(file, source)
        problems.append(checked[file])
        return file

    for column, kind in columns.kinds.items():
        try:
            contents = media_in(row[column], kind)
        except ValueError as error:
            raise ValueError(f"{table.where(number)}, column {column} {error}") from error
        media += [note(content, kind, column, n) for n, content in enumerate(contents)]
        names.append([_name(content) for content in contents])
    own: list[Medium] = []
    if columns.messages is not None:
        try:
            own = [
                note(content, kind, columns.messages, n)
                for n, (kind, content) in enumerate(_own_media(row[columns.messages]))
            ]
        except MediaError as error:
            problems.append(str(error))
    return RowMedia(tuple(media), tuple(own), tuple(names), next(filter(None, problems), None))


def _own_media(cell: Any) -> Iterator[tuple[MediumKind, Content]]:
    """The media that a cell's messages bring themselves, in the order of `media_in`."""
    for message in messages_in(cell) or ():
        for part in parts_of(message["content"]):
            if "content" in part:
                yield part["type"], part["content"]


def _name(content: Content | None) -> str:
    """What tells a medium from others in its column."""
    if content is None or isinstance(content.source, tuple):
        return "" if content is None else repr(content.source)
    return content.source if isinstance(content.source, str) else digest((), content.source)


def _problem(medium: MediaFile | MediaCell, source: Source) -> str | None:
    try:
        check(medium.kind, source, named(source, medium))
    except MediaError as error:
        return str(error)
    return None


# Where media go in messages.


def place_media(
    messages: Sequence[Message],
    media: Sequence[Medium],
    has_tags: bool,
    own: Sequence[Medium] = (),
) -> tuple[Messages, tuple[Medium, ...]]:
    """Return the messages with a content part for each medium, and the media in that order.

    A medium goes where the messages have a content part of type image or video or, with `has_tags`,
    the word <image> or <video> in a text; <image 2> is the place of the second image. Messages
    without any show their media in front of the first question, in the order given. Raises
    MediaError where the messages name other numbers of media than there are.

    own: the media that parts of the messages bring themselves.
    """
    named: set[tuple[str, int]] = set()
    contents = [_tagged(parts_of(message["content"]), has_tags, named) for message in messages]
    by_kind = {kind: [m for m in media if m.kind == kind] for kind in ("image", "video")}
    # The media that no number names fill the places without a number, in order.
    numbered = [by_kind[kind][n - 1] for kind, n in named if n <= len(by_kind[kind])]
    rest = [medium for medium in media if not any(medium is other for other in numbered)]
    parts = [part for content in contents for part in content if part["type"] != "text"]
    if all("content" in part or "number" in part for part in parts):
        # The order of the published chats: first the pictures, then the question about them.
        first = next((n for n, m in enumerate(messages) if m["role"] == "user"), 0)
        front = [{"type": medium.kind} for medium in rest]
        contents[first] = [*front, *contents[first]]
        parts = [part for content in contents for part in content if part["type"] != "text"]
    num_brought = sum("content" in part for part in parts)
    if num_brought > len(own):
        raise MediaError(f"unknown_part: {num_brought} content parts bring a medium of their own")
    places = Counter(part["type"] for part in parts if "content" not in part)
    given = Counter(medium.kind for medium in media)
    if places != given or any(number > given[kind] for kind, number in named):
        raise MediaError(
            f"places_differ: the text has places for {places['image']} images and "
            f"{places['video']} videos, the row has {given['image']} and {given['video']}"
        )
    brought = iter(own)
    following = {kind: iter([m for m in rest if m.kind == kind]) for kind in by_kind}
    ordered = []
    for part in parts:
        if "content" in part:
            ordered.append(next(brought))
        elif "number" in part:
            ordered.append(by_kind[part["type"]][part["number"] - 1])
        else:
            ordered.append(next(following[part["type"]]))
    shown = []
    for message, parts in zip(messages, contents, strict=True):
        content: Any = [{k: part[k] for k in ("type", "text") if k in part} for part in parts]
        # Some templates of language models refuse parts, and some write nothing in their place.
        if all(part["type"] == "text" for part in parts):
            content = "".join(part["text"] for part in parts)
        shown.append({**message, "content": content})
    return tuple(shown), tuple(ordered)


def _tagged(
    parts: Sequence[Mapping[str, Any]], has_tags: bool, named: set[tuple[str, int]]
) -> list[Mapping[str, Any]]:
    """Split texts at their tags: "a <image>" is {"type": "text", "text": "a "}, {"type": "image"}.

    named: gets the kinds and numbers of numbered tags. One that was there before stays text.
    """
    split: list[Mapping[str, Any]] = []
    for part in parts:
        text, end = part.get("text", ""), 0
        if part["type"] != "text":
            split.append(part)
            continue
        for tag in _TAG.finditer(text) if has_tags else ():
            number = {"number": int(tag["number"])} if tag["number"] else {}
            if number and (tag["kind"], number["number"]) in named:
                continue
            named |= {(tag["kind"], n) for n in number.values()}
            split.append({"type": "text", "text": text[end : tag.start()]})
            split.append({"type": tag["kind"], **number})
            end = tag.end()
        split.append({"type": "text", "text": text[end:]})
    return [part for part in split if part.get("text") != ""]
