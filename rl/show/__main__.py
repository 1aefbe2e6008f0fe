"""Writes what a step of a run sampled as one page for a browser, which needs no other file.

    python -m rl.show run=runs/NAME
    python -m rl.show run=runs/NAME step=10..20 limit=500 out=page.html
    python -m rl.show run=runs/NAME/align step=1

Each group stands with its prompt and pictures, and under it every trajectory with its reward and
what the reward was made of. Of an RLAIF-V pass it shows the preference pairs: each with its two
responses and the labels of their claims. It only reads the ledger or the pairs, and the media that
they name, so it can look at a run that is going on.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from rl.run.command import Command, Keys, RunPath
from rl.run.directory import RunDirectory
from rl.run.files import write_text
from rl.show.page import Page, as_html, as_ranges
from rl.show.pictures import Pictures


class ShowKeys(Keys):
    run: RunPath
    """The run, or the pass, `runs/NAME/align`."""
    step: str | None = Field(default=None, examples=["12"])
    """A step, or the steps of a range such as 10..20; of a pass, iterations. By default the
    newest."""
    # A browser would be slow to filter many more.
    limit: int = Field(default=2_000, gt=0, lt=10**9)
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
    """Write the page; one that was there is replaced once the new one is complete."""
    path, page = page_of_run(keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not at all: a browser may reload the page while it is written.
    write_text(path, as_html(page))
    counts = f"{len(page.shown):,} of {page.num_items:,} {page.items}"
    print(f"{counts} of {page.extent} in {path}")


def page_of_run(keys: ShowKeys) -> tuple[Path, Page]:
    """Return the page and where it is to be; raises ValueError for a run that cannot be shown."""
    # pandas, which it needs, loads slowly, and a mistyped key is answered without it.
    from rl.show import samples

    run = RunDirectory(keys.run)
    name, page_of, stem, form = run.name, samples.page_of_ledger, "step", "06d"
    paths = _numbered(run.ledger_path, "step_*.parquet")
    nothing = (
        f"{run.ledger_path} holds no step_*.parquet; a run has samples to show after its first "
        "step, and with log.ledger=true"
    )
    # A pass has a run directory like a run's, but pairs in place of a ledger.
    if not run.ledger_path.exists() and any(run.root.glob("iteration_[0-9]*")):
        name = f"{run.root.resolve().parent.name}/{run.name}"
        page_of, stem, form = samples.page_of_pairs, "iteration", "d"
        paths = _numbered(run.root, "iteration_*/pairs.parquet")
        nothing = (
            f"no iteration of {run.root} has its pairs.parquet; a pass has pairs to show once the "
            "responses of an iteration are judged"
        )
    if not paths:
        raise ValueError(nothing)
    paths = _chosen(paths, keys.step, stem)
    page = page_of(name, paths, keys.limit, Pictures(run.config_path).of)
    # Such as step_000012.html, or iteration_10-20.html for the first and the last of several.
    ends = "-".join(format(number, form) for number in sorted({min(paths), max(paths)}))
    return keys.out or run.root / "samples" / f"{stem}_{ends}.html", page


def _numbered(directory: Path, pattern: str) -> dict[int, Path]:
    """Return what matches, such as step_000012.parquet, by its number and in their order."""
    number = re.compile(re.escape(pattern).replace(r"\*", "([0-9]+)"))
    names = {path.relative_to(directory).as_posix(): path for path in directory.glob(pattern)}
    matches = ((number.fullmatch(name), path) for name, path in names.items())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _chosen(paths: Mapping[int, Path], wanted: str | None, stem: str) -> dict[int, Path]:
    """The steps, or iterations, that `12` or `10..20` names; by default the newest."""
    if wanted is None:
        return {max(paths): paths[max(paths)]}
    match = re.fullmatch(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", wanted)
    if match is None:
        raise ValueError(f"step is a number or a range such as 10..20, got {wanted!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"step={wanted} ends before it begins; give the lower step first")
    chosen = {step: path for step, path in paths.items() if first <= step <= last}
    if not chosen:
        raise ValueError(f"no {stem} {wanted} can be shown; there are {as_ranges(list(paths))}")
    return chosen


main = Command("rl.show", __doc__, ShowKeys, write_page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
