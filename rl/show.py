"""Show: `python -m rl.show run=runs/NAME [step=12 | step=10..20] [limit=2000] [out=FILE.html]`.

Writes what a step of a run sampled as one page for a browser that needs no network and no other
file: each group with its prompt, and under it every trajectory with its reward and what the reward
was made of. Without `step` it shows the newest. It only reads the ledger, so it can look at a run
that is going on.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from rl.atomic_write import write_text
from rl.ledger import LedgerRow, read_rows
from rl.run_directory import RunDirectory
from rl.show_page import Card, Page, Picture, as_html, as_ranges

OWN_KEYS = ("run", "step", "limit", "out")
MAX_TRAJECTORIES = 2_000
MAX_SIDE = 512
"""Pixels of the longer side of an image on the page."""
# Formats that Pillow decodes in this process; it gives others, such as PostScript, to programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_PIXELS = 2**26


def main(arguments: list[str]) -> int:
    """Return the exit code; an error that a user can mend is one line, not a traceback."""
    try:
        path, page = show(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = sum(len(card.rows) for card in page.cards)
    print(f"{shown:,} of {len(page.rows):,} trajectories of step {as_ranges(page.steps)} in {path}")
    return 0


def show(arguments: Sequence[str]) -> tuple[Path, Page]:
    """Write the page that a command line asks for; returns where it is and what is on it.

    Raises ValueError for a command line, run or ledger that cannot be shown, and OSError where the
    page cannot be written. A page that was there is replaced once the new one is complete.
    """
    own = _parse(arguments)
    limit = _limit(own.get("limit", str(MAX_TRAJECTORIES)))
    run = RunDirectory(Path(own["run"]))
    if not run.config_path.is_file():
        raise ValueError(
            f"{run.root} is no run directory: it has no {run.config_path.name}; "
            "name one with run=runs/NAME"
        )
    paths = _chosen(ledger_steps(run.ledger_path), own.get("step"))
    out = Path(own.get("out", run.root / "samples" / f"{_file_name(list(paths))}.html"))
    if out.suffix != ".html":
        raise ValueError(f"out names the page, a file that ends with .html, got {out}")
    page = read_page(run.name, paths, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, as_html(page))
    return out, page


def ledger_steps(ledger: Path) -> dict[int, Path]:
    """The file of every step in order; raises ValueError if there is none."""
    paths = sorted(ledger.glob("step_*.parquet"))
    if not paths:
        raise ValueError(
            f"{ledger} holds no step_*.parquet; a run has samples to show after its first step, "
            "and with log.ledger=true"
        )
    return {int(path.stem.removeprefix("step_")): path for path in paths}


def read_page(name: str, paths: Mapping[int, Path], limit: int) -> Page:
    """Read steps, whole groups as long as they fit into `limit` trajectories, and at least one."""
    cards: list[Card] = []
    rows: list[LedgerRow] = []
    room = limit
    for path in paths.values():
        for group, images in _groups(path):
            if not cards or len(group) <= room:
                cards.append(Card(group, tuple(map(embedded, images))))
                room -= len(group)
            else:
                # From here on none fits: a later, smaller group would stand beside a gap.
                room = 0
            rows += map(_without_text, group)
    return Page(name, tuple(paths), tuple(cards), tuple(rows))


def _groups(path: Path) -> Iterator[tuple[tuple[LedgerRow, ...], Sequence[str]]]:
    """The groups of a step in the order of the ledger, each with the paths of its images."""
    rows = read_rows(path)
    images: list[list[str] | None] = [None] * len(rows)
    if "images" in pq.read_schema(path).names:
        images = pq.read_table(path, columns=["images"])["images"].to_pylist()
    pairs = zip(rows, images, strict=True)
    for _, members in groupby(pairs, key=lambda pair: pair[0].group_id):
        group, paths = zip(*members, strict=True)
        yield group, paths[0] or ()


def _without_text(row: LedgerRow) -> LedgerRow:
    """What counts and means need; the texts of many steps would not fit into memory."""
    bare = dataclasses.replace(row, messages="", text="", reasoning=None, answer=None)
    return dataclasses.replace(bare, preference_answer=None)


def embedded(path: str) -> Picture:
    """The image as a data URI, at most MAX_SIDE pixels wide and high, or why it is not shown."""
    try:
        # A pipe would keep the reader waiting for ever.
        if not Path(path).is_file():
            return Picture(path, None, "there is no such file")
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels"
                return Picture(path, None, f"it has {size}, more than {_MAX_PIXELS:,}")
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Picture(path, None, f"it cannot be read as an image: {error}")
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    white = Image.new("RGBA", upright.size, "white")
    encoded = io.BytesIO()
    Image.alpha_composite(white, upright).convert("RGB").save(encoded, "JPEG", quality=85)
    uri = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return Picture(path, uri, None)


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    own = {key: value for key, _, value in (one.partition("=") for one in arguments)}
    if unknown := sorted(set(own) - set(OWN_KEYS)):
        keys = ", ".join(f"{key}=" for key in OWN_KEYS)
        raise ValueError(f"rl.show takes {keys}, got {', '.join(unknown)}")
    if not own.get("run"):
        raise ValueError("name a run directory: run=runs/NAME")
    return own


def _limit(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"limit is the most trajectories on the page, such as 2000, got {text!r}")
    return int(text)


def _chosen(paths: Mapping[int, Path], wanted: str | None) -> dict[int, Path]:
    """The steps of the ledger that `12` or `10..20` names, or the newest; never none."""
    if wanted is None:
        newest = max(paths)
        return {newest: paths[newest]}
    match = re.fullmatch(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", wanted)
    if match is None:
        raise ValueError(f"step is a number or a range such as 10..20, got {wanted!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"step={wanted} ends before it begins; give the lower step first")
    chosen = {step: path for step, path in paths.items() if first <= step <= last}
    if not chosen:
        raise ValueError(f"the ledger has no step {wanted}; it has {as_ranges(list(paths))}")
    return chosen


def _file_name(steps: Sequence[int]) -> str:
    """`step_000012`, or `step_000010-000020` for the first and the last of several."""
    return "step_" + "-".join(f"{step:06d}" for step in sorted({steps[0], steps[-1]}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
