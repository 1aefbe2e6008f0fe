"""Images and videos of a data set's rows: what a cell names, and where in the text it goes.

A medium that cannot be used, or does not match its text, is a MediaError, and its row is left out.
Before a run only headers are read, since decoding a data set takes hours. A file with a good header
and broken contents is met by the engine that reads it, and its group is dropped.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from rich.console import Console
from rich.progress import Progress

from rl.config.data import ColumnsConfig
from rl.data.media.files import check, digest
from rl.data.media.names import MediaCell, MediaError, MediaFile, Medium, MediumKind, describe
from rl.data.tables import media_in

Messages = tuple[Mapping[str, Any], ...]

BATCH_ROWS = 64
CHECK_THREADS = 16
"""Most of a check is waiting for a disk, often one of the network."""
SILENT_S = 2.0
"""Checks that end sooner show no progress."""

_TAG = re.compile(r"<(image|video)>")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_OWN_CONTENT = ("image", "video", "image_url", "video_url", "url", "path", "data", "bytes")


# Cells.


@dataclass(frozen=True)
class RowMedia:
    """The media of one row."""

    media: tuple[Medium, ...] = ()
    """Of its cells in order: images, then videos."""
    names: tuple[list[str], ...] = ()
    """For every column the paths as they are written, and digests of bytes."""
    problem: str | None = None
    """Why the first bad one cannot be used, as a MediaError says it."""


def media_of_rows(
    table: Dataset, columns: ColumnsConfig, split: Literal["train", "heldout"], directory: Path
) -> Iterator[RowMedia]:
    """Yield the media of every row, checked.

    directory: where relative paths start; those that lead nowhere start at the working directory.
    Raises ValueError for a column that holds something else than media.
    """
    named: dict[str | None, MediumKind] = {columns.images: "image", columns.videos: "video"}
    kinds = {name: kind for name, kind in named.items() if name is not None}
    if not kinds:
        yield from repeat(RowMedia(), len(table))
        return
    # In Arrow's own form, because `datasets` would otherwise decode an image column on the way.
    stored = table.select_columns(list(kinds)).with_format("arrow")
    read = partial(_row_media, kinds=kinds, split=split, directory=directory, checked={})
    # A bar on stderr, which only shows once the work has lasted a while.
    started, bar = time.monotonic(), Progress(console=Console(stderr=True))
    task = bar.add_task("checking media", total=len(table))
    with ThreadPoolExecutor(CHECK_THREADS) as pool, ExitStack() as stack:
        stack.callback(bar.stop)
        # Batch by batch, because a cell may hold a whole video as bytes.
        for first in range(0, len(table), BATCH_ROWS):
            rows = stored[first : first + BATCH_ROWS].to_pylist()
            yield from pool.map(read, range(first, first + len(rows)), rows)
            bar.advance(task, len(rows))
            if time.monotonic() - started > SILENT_S:
                bar.start()


def _row_media(
    number: int,
    row: Mapping[str, Any],
    kinds: Mapping[str, MediumKind],
    split: Literal["train", "heldout"],
    directory: Path,
    checked: dict[MediaFile, str | None],
) -> RowMedia:
    """checked: the problems of files, which many rows may share."""
    media: list[Medium] = []
    names: list[list[str]] = []
    problems: list[str | None] = []
    for column, kind in kinds.items():
        names.append([])
        try:
            cell = media_in(row[column])
        except ValueError as error:
            raise ValueError(f"column {column} {error}") from error
        for index, content in enumerate(cell):
            medium, source = MediaCell(kind, split, column, number, index), content or b""
            if isinstance(source, str):
                # isfile, because a cell may hold anything, even what is no path at all.
                below, given = os.path.join(directory, source), os.path.abspath(source)
                is_given = os.path.isfile(given) and not os.path.isfile(below)
                medium = MediaFile(kind, given if is_given else below)
                # Two threads may check the same file; both then write the same.
                if medium not in checked:
                    checked[medium] = _problem(medium, medium.path)
                if _ADDRESS.match(source):
                    problems.append(
                        f"missing: {source:.100} is an address, and media are files or bytes; "
                        "download it"
                    )
                problems.append(checked[medium])
                names[-1].append(source)
            else:
                problems.append(_problem(medium, BytesIO(source)))
                names[-1].append(digest((), source))
            media.append(medium)
    return RowMedia(tuple(media), tuple(names), next(filter(None, problems), None))


def _problem(medium: MediaFile | MediaCell, source: str | BytesIO) -> str | None:
    try:
        check(medium.kind, source, describe(medium))
    except MediaError as error:
        return str(error)
    return None


# Messages, and where media go in them.


def conversation(question: str, system_prompt: str | None) -> Messages:
    """Return the chat messages of a question given as text."""
    asked = {"role": "user", "content": question}
    return (asked,) if system_prompt is None else (system_message(system_prompt), asked)


def system_message(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}


def place_media(
    messages: Sequence[Mapping[str, Any]], media: Sequence[Medium], has_tags: bool
) -> tuple[Messages, tuple[Medium, ...]]:
    """Return the messages with a content part for each medium, and the media in that order.

    A medium goes where the messages have a content part of type image or video or, with `has_tags`,
    the word <image> or <video> in a text. Messages without any show their media in front of the
    first question, images first. Raises MediaError where the messages name other numbers of media
    than there are.
    """
    contents = [_parts(message["content"], has_tags) for message in messages]
    if media and not any(map(_kinds, contents)):
        # The order of the published chats: first the pictures, then the question about them.
        first = next((n for n, m in enumerate(messages) if m["role"] == "user"), 0)
        contents[first] = [*({"type": medium.kind} for medium in media), *contents[first]]
    kinds = [kind for parts in contents for kind in _kinds(parts)]
    wanted, given = Counter(kinds), Counter(medium.kind for medium in media)
    if wanted != given:
        raise MediaError(
            f"places_differ: the text has places for {wanted['image']} images and "
            f"{wanted['video']} videos, the row has {given['image']} and {given['video']}"
        )
    by_kind = {kind: iter([m for m in media if m.kind == kind]) for kind in given}
    ordered = tuple(next(by_kind[kind]) for kind in kinds)
    shown = (
        {**message, "content": parts} if _kinds(parts) else message
        for message, parts in zip(messages, contents, strict=True)
    )
    return tuple(shown), ordered


def _kinds(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part["type"] for part in parts if part["type"] != "text"]


def _parts(content: Any, has_tags: bool) -> list[Mapping[str, Any]]:
    """Example: _parts("a <image>", True) == [{"type": "text", "text": "a "}, {"type": "image"}]"""
    if isinstance(content, str):
        # With one group in the pattern, every second piece is what it matched.
        pieces = enumerate(_TAG.split(content) if has_tags else [content])
        typed = [
            {"type": piece} if n % 2 else {"type": "text", "text": piece} for n, piece in pieces
        ]
        return [part for part in typed if part.get("text") != ""]
    parts: list[Mapping[str, Any]] = []
    for part in content or ():
        kind = part.get("type")
        if kind == "text":
            parts += _parts(part.get("text") or "", has_tags)
        # A part that brings its own picture would be shown beside those of the columns, unchecked.
        elif kind in ("image", "video") and not any(part.get(key) for key in _OWN_CONTENT):
            parts.append({"type": kind})
        else:
            raise MediaError(
                f"unknown_part: a content part {part!r:.100} is neither text nor the place of a "
                "medium; write {'type': 'image'} and name the medium in data.columns.images"
            )
    return parts
