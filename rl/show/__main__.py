"""Writes what a step of a run sampled as one page for a browser, which needs no other file.

    python -m rl.show run=runs/NAME
    python -m rl.show run=runs/NAME step=10..20 limit=500 out=page.html
    python -m rl.show run=runs/NAME/align step=1

Each group stands with its prompt and pictures, and under it every trajectory with its reward and
what the reward was made of. Of an RLAIF-V pass it shows the preference pairs: each with its two
responses and the labels of their claims. It only reads the ledger or the pairs, and the media that
they name, so it can look at a run that is going on.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from pydantic import Field, ValidationError, field_validator
from yaml import YAMLError

from rl.config.run import SourceConfig
from rl.data.media.names import MediaError, Medium, Video, describe, from_json
from rl.data.media.store import MediaStore
from rl.data.media.video_frames import spread
from rl.run.command import Command, Keys, RunPath, run_command
from rl.run.directory import RunDirectory
from rl.run.files import write_text
from rl.run.ledger import LedgerRow, read_rows
from rl.show.page import Page, Picture, Room, as_html, as_ranges
from rl.show.pairs import holds_pass, page_of_pairs, pair_files
from rl.show.trajectories import Group, page_of_trajectories

MAX_TRAJECTORIES = 2_000
MAX_SIDE = 448
"""Pixels of the longer side of an image on the page."""
MAX_FRAMES, MAX_FRAME_SIDE = 6, 160
"""Frames that stand for a video on the page, and the longer side of each in pixels."""


class ShowKeys(Keys):
    run: RunPath
    """The run, or the pass, `runs/NAME/align`."""
    step: str | None = Field(default=None, examples=["12"])
    """A step, or the steps of a range such as 10..20; of a pass, iterations. By default the
    newest."""
    limit: int = Field(default=MAX_TRAJECTORIES, gt=0, lt=10**9)
    """The most trajectories, or pairs, on the page."""
    out: Path | None = Field(default=None, examples=["FILE.html"])
    """The page; by default in `samples` of the run's directory."""

    @field_validator("out")
    @classmethod
    def _is_a_page(cls, out: Path) -> Path:
        if out.suffix != ".html":
            raise ValueError(f"names the page, a file that ends with .html, got {out}")
        return out


def write_page(keys: ShowKeys) -> None:
    path, page = show(keys)
    counts = f"{page.num_shown:,} of {page.num_items:,} {page.form.items}"
    print(f"{counts} of {page.extent} in {path}")


def show(keys: ShowKeys) -> tuple[Path, Page]:
    """Write the page that is asked for; returns where it is and what is on it.

    Raises ValueError for a run or pass that cannot be shown, and OSError where the page cannot be
    written. A page that was there is replaced once the new one is complete.
    """
    run = RunDirectory(keys.run)
    pictures = Pictures(run.config_path)
    if holds_pass(run):
        paths = _chosen(
            pair_files(run.root), keys.step, "the pass has no pairs.parquet of iteration"
        )
        name = "iteration_" + _ends(paths, "d")
        page = page_of_pairs(
            f"{run.root.resolve().parent.name}/{run.name}", paths, keys.limit, pictures.of
        )
    else:
        paths = _chosen(ledger_steps(run.ledger_path), keys.step, "the ledger has no step")
        name = "step_" + _ends(paths, "06d")
        page = read_page(run.name, paths, keys.limit, pictures)
    out = keys.out or run.root / "samples" / f"{name}.html"
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


def read_page(name: str, paths: Mapping[int, Path], limit: int, pictures: Pictures) -> Page:
    """Read steps, whole groups as long as they fit into `limit` trajectories, and at least one."""
    groups: list[Group] = []
    rows: list[LedgerRow] = []
    room = Room(limit)
    for path in paths.values():
        for group in _groups(path):
            if room.takes(len(group)):
                groups.append(Group(group, _pictures(group[0], pictures)))
            rows += map(_without_text, group)
    return page_of_trajectories(name, list(paths), groups, rows)


def _groups(path: Path) -> Iterator[tuple[LedgerRow, ...]]:
    """The groups of a step in the order of the ledger."""
    for _, members in groupby(read_rows(path), key=lambda row: row.group_id):
        yield tuple(members)


def _pictures(row: LedgerRow, pictures: Pictures) -> tuple[Picture, ...]:
    return () if row.media is None else pictures.of(from_json(row.media), row.media_digests)


def _without_text(row: LedgerRow) -> LedgerRow:
    """What counts and means need; the texts of many steps would not fit into memory."""
    bare = dataclasses.replace(row, messages="", text="", reasoning=None, answer=None)
    return dataclasses.replace(bare, preference_answer=None)


class Pictures:
    """The media of a run, as they are on disk now and as small as a page needs them."""

    def __init__(self, config_path: Path) -> None:
        """config_path: the run's; read once a row has media."""
        self._config_path = config_path

    def of(self, media: Sequence[Medium], digests: Sequence[str] = ()) -> tuple[Picture, ...]:
        """The media of a prompt; raises ValueError where the run's data are not known.

        digests: of the pixels that the policy saw; empty where they are not known.
        """
        known = digests or (None,) * len(media)
        return tuple(self._picture(*pair) for pair in zip(media, known, strict=True))

    def _picture(self, medium: Medium, digest: str | None) -> Picture:
        """digest: of the pixels that the policy saw, if it is known."""
        name, is_strip = describe(medium), medium.kind == "video"
        try:
            seen = self._store.read(medium)
        except MediaError as error:
            return Picture(name, None, f"not shown: {error}", is_strip)
        image = _strip(seen) if isinstance(seen, Video) else _small(seen.pixels, MAX_SIDE)
        is_same = digest in (None, seen.digest)
        changed = None if is_same else "changed since: these are not the pixels the policy saw"
        return Picture(name, embedded(image), changed, is_strip)

    @cached_property
    def _store(self) -> MediaStore:
        try:
            stored = OmegaConf.to_container(OmegaConf.load(self._config_path))
            data = stored.get("data") if isinstance(stored, dict) else None
            return MediaStore(SourceConfig.model_validate(data))
        except (YAMLError, OmegaConfBaseException, ValidationError) as error:
            raise ValueError(
                f"{self._config_path} does not say where the media of the run are: {error}"
            ) from error


def embedded(image: Image.Image) -> str:
    """The image as a data URI."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _strip(video: Video) -> Image.Image:
    """Frames from all over the video, from left to right."""
    places = spread(len(video.frames), min(MAX_FRAMES, len(video.frames)))
    frames = [_small(Image.fromarray(video.frames[n]), MAX_FRAME_SIDE) for n in places]
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * width, 0))
    return strip


def _small(image: Image.Image, side: int) -> Image.Image:
    """No side longer than `side`; never enlarged."""
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _chosen(paths: Mapping[int, Path], wanted: str | None, missing: str) -> dict[int, Path]:
    """The steps that `12` or `10..20` names, or the newest; never none.

    missing: how the error begins that says which step there is not.
    """
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
        raise ValueError(f"{missing} {wanted}; it has {as_ranges(list(paths))}")
    return chosen


def _ends(steps: Mapping[int, Path], form: str) -> str:
    """Such as `12`, or `10-20` for the first and the last of several; form: of each."""
    return "-".join(format(step, form) for step in sorted({min(steps), max(steps)}))


COMMAND = Command("rl.show", __doc__, ShowKeys, write_page)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
