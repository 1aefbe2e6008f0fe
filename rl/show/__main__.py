"""Writes a run as one page for a browser, which needs no other file, or serves it while it goes on.

    python -m rl.show run=runs/NAME
    python -m rl.show run=runs/NAME watch=true
    python -m rl.show run=runs/NAME step=latest
    python -m rl.show run=runs/NAME step=10..20 limit=500 out=page.html
    python -m rl.show run=runs/NAME/align

The page of the whole run says how far it is and what it has gained, with its curves, the faults,
what became of its groups, and how its settings differ from the recipe's. With `watch=true` it is
served to browsers on this machine and renews itself.

The page of a step has each group with its prompt and pictures, and under it every trajectory with
its reward and what the reward was made of. Of an RLAIF-V pass it shows the preference pairs: each
with its two responses and the labels of their claims. All of them only read, so they can look at a
run that is going on.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from rl.run.command import Command, Keys, RunPath, Switch
from rl.run.directory import RunDirectory
from rl.run.files import numbered, write_text
from rl.show.page import Page, as_html, as_ranges
from rl.show.pictures import Pictures

LATEST = "latest"


class ShowKeys(Keys):
    run: RunPath
    """The run, or the pass, `runs/NAME/align`."""
    step: str | None = Field(default=None, examples=["12"])
    """A step, `latest`, or the steps of a range such as 10..20; of a pass, iterations. Without it
    the page is of the whole run, or of the newest iteration of a pass."""
    watch: Switch = False
    """Serve the page of the whole run, and those of its steps, until Ctrl-C. It listens on this
    machine alone: from another, `ssh -L PORT:127.0.0.1:PORT` leads to it."""
    port: int | None = Field(default=None, ge=0, lt=2**16)
    """Where to serve; by default any port that is free."""
    # A browser would be slow to filter many more.
    limit: int = Field(default=2_000, gt=0, lt=10**9)
    """The most trajectories, or pairs, on the page of a step."""
    out: Path | None = Field(default=None, examples=["FILE.html"])
    """The page; by default run.html of the run's directory, and for steps in its `samples`."""

    @field_validator("out")
    @classmethod
    def _is_a_page(cls, out: Path) -> Path:
        # Without the ending a browser would show the page as its source.
        if out.suffix != ".html":
            raise ValueError(f"names the page, a file that ends with .html, got {out}")
        return out

    @model_validator(mode="after")
    def _serves_or_writes(self) -> "ShowKeys":
        if self.watch and (self.step or self.out):
            raise ValueError(
                "watch=true serves the whole run and writes nothing; leave out step= and out="
            )
        if self.port is not None and not self.watch:
            raise ValueError("port= is where a page is served; set watch=true, or leave it out")
        return self


def show(keys: ShowKeys) -> None:
    """Write a page, or serve it; one that was there is replaced once the new one is complete."""
    run = RunDirectory(keys.run)
    if _is_pass(run) and keys.watch:
        raise ValueError(f"{run.root} is an RLAIF-V pass, and watch=true is for runs; leave it out")
    # pandas and matplotlib, which all need, load slowly; a mistyped key is answered without them.
    if keys.watch:
        from rl.show.watch import serve

        serve(run, keys.port or 0, lambda step: as_html(page_of_steps(keys, str(step))[1]))
        return
    if _is_pass(run) or keys.step is not None:
        path, page = page_of_steps(keys, keys.step or LATEST)
        html, counts = as_html(page), f"{len(page.shown):,} of {page.num_items:,} {page.items}"
        told = f"{counts} of {page.extent} in {path}"
    else:
        from rl.show import run as whole

        path = keys.out or run.root / "run.html"
        page = whole.read_run(run, path.parent)
        html, told = whole.as_html(page), f"{page.title}: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not at all: a browser may reload the page while it is written.
    write_text(path, html)
    print(told)


def page_of_steps(keys: ShowKeys, wanted: str) -> tuple[Path, Page]:
    """Return the page and where it is to be; raises ValueError for a run that cannot be shown.

    wanted: as the key `step` has it.
    """
    # pandas, which it needs, loads slowly, and a mistyped key is answered without it.
    from rl.show import samples

    run = RunDirectory(keys.run)
    name, page_of, stem, form = run.name, samples.page_of_ledger, "step", "06d"
    paths = numbered(run.ledger_path, "step_*.parquet")
    nothing = (
        f"{run.ledger_path} holds no step_*.parquet; a run has samples to show after its first "
        "step, and with log.ledger=true"
    )
    if _is_pass(run):
        name = f"{run.root.resolve().parent.name}/{run.name}"
        page_of, stem, form = samples.page_of_pairs, "iteration", "d"
        paths = numbered(run.root, "iteration_*/pairs.parquet")
        nothing = (
            f"no iteration of {run.root} has its pairs.parquet; a pass has pairs to show once the "
            "responses of an iteration are judged"
        )
    if not paths:
        raise ValueError(nothing)
    paths = _chosen(paths, wanted, stem)
    page = page_of(name, paths, keys.limit, Pictures(run.config_path).of, run.modes())
    # Such as step_000012.html, or iteration_10-20.html for the first and the last of several.
    ends = "-".join(format(number, form) for number in sorted({min(paths), max(paths)}))
    return keys.out or run.root / "samples" / f"{stem}_{ends}.html", page


def _is_pass(run: RunDirectory) -> bool:
    """Whether it is an RLAIF-V pass: a run directory, but with pairs in place of a ledger."""
    return not run.ledger_path.exists() and any(run.root.glob("iteration_[0-9]*"))


def _chosen(paths: Mapping[int, Path], wanted: str, stem: str) -> dict[int, Path]:
    """The steps, or iterations, that `12`, `10..20` or `latest` names."""
    if wanted == LATEST:
        return {max(paths): paths[max(paths)]}
    match = re.fullmatch(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", wanted)
    if match is None:
        raise ValueError(f"step is a number, latest, or a range such as 10..20, got {wanted!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"step={wanted} ends before it begins; give the lower step first")
    chosen = {step: path for step, path in paths.items() if first <= step <= last}
    if not chosen:
        raise ValueError(f"no {stem} {wanted} can be shown; there are {as_ranges(list(paths))}")
    return chosen


main = Command("rl.show", __doc__, ShowKeys, show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
