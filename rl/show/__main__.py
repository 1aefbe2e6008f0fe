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

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from rl.run.command import Command, Keys, RunPath, run_command
from rl.run.directory import RunDirectory
from rl.run.files import write_text
from rl.show.page import Page, as_html, as_ranges
from rl.show.pictures import Pictures

# A browser would be slow to filter many more.
MAX_TRAJECTORIES = 2_000


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
        # Without the ending a browser would show the page as its source.
        if out.suffix != ".html":
            raise ValueError(f"names the page, a file that ends with .html, got {out}")
        return out


def write_page(keys: ShowKeys) -> None:
    path, page = show(keys)
    counts = f"{len(page.shown):,} of {page.num_items:,} {page.items}"
    print(f"{counts} of {page.extent} in {path}")


def show(keys: ShowKeys) -> tuple[Path, Page]:
    """Write the page that is asked for; returns where it is and what is on it.

    Raises ValueError for a run or pass that cannot be shown, and OSError where the page cannot be
    written. A page that was there is replaced once the new one is complete.
    """
    # pandas, which both need, loads slowly, and a mistyped key is answered without it.
    from rl.show import pairs, trajectories

    run = RunDirectory(keys.run)
    pictures = Pictures(run.config_path)
    # A pass has a run directory like a run's, but pairs in place of a ledger.
    if pairs.holds_pass(run):
        paths = _chosen(
            pairs.pair_files(run.root), keys.step, "the pass has no pairs.parquet of iteration"
        )
        name = "iteration_" + _ends(paths, "d")
        page = pairs.page_of_pairs(
            f"{run.root.resolve().parent.name}/{run.name}", paths, keys.limit, pictures.of
        )
    else:
        paths = _chosen(
            trajectories.ledger_steps(run.ledger_path), keys.step, "the ledger has no step"
        )
        name = "step_" + _ends(paths, "06d")
        page = trajectories.page_of_ledger(run.name, paths, keys.limit, pictures.of)
    out = keys.out or run.root / "samples" / f"{name}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not at all: a browser may reload the page while it is written.
    write_text(out, as_html(page))
    return out, page


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
