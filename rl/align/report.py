"""What a person sees of an RLAIF-V pass: a bar per stage, a table per verdict, and curves.png."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
from rich.table import Table
from rich.text import Text

from rl.align.directory import AlignmentDirectory
from rl.run.pictures import MODE_COLORS, legend_above, mode_colors, panel, save, sheet
from rl.run.sinks import read_metrics
from rl.run.terminal import duration, progress_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Often enough to see that the pass is alive, seldom enough for a log file.
LINE_EVERY_S = 60.0
# Name, kind, field and form of the figures of a Measurement (gate.py).
_ROWS = (
    ("accuracy", "modes", "accuracy", ".1%"),
    ("tokens", "modes", "tokens_mean", ".1f"),
    ("wrong claims a response", "hallucination", "wrong_claims", ".3f"),
    ("responses with one", "hallucination", "wrong_responses", ".1%"),
    ("claims a response", "hallucination", "claims", ".2f"),
    ("words an answer", "hallucination", "words", ".1f"),
)
_CURVES = (
    ("Loss and accuracy of preferences", {"dpo/loss": "loss", "dpo/accuracy": "accuracy"}),
    (
        "Implicit rewards",
        {"dpo/chosen_reward": "chosen", "dpo/rejected_reward": "rejected", "dpo/margin": "margin"},
    ),
)
# Title, then kind, field and interval of a figure of a Measurement (gate.py).
_FIGURES = (
    ("Held-out accuracy", "modes", "accuracy", "half_width"),
    (
        "Held-out responses with a wrong claim",
        *("hallucination", "wrong_responses", "wrong_responses_half_width"),
    ),
)


class AlignmentConsole:
    """Follows a pass. Text from elsewhere is shown as it is, never as markup."""

    def __init__(self, screen: rich.console.Console) -> None:
        self._screen = screen
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        elapsed = duration(time.monotonic() - self._started)
        self._screen.print(Text(f"[{elapsed}] {text}"), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of `total` pieces of work; yields what is to be called for each that is done."""
        self.note(f"{name}: {total:,}")
        with progress_bars(self._screen) as bars:
            bar = bars.add_task(name, total=total)
            done, said = 0, time.monotonic()

            def advance() -> None:
                nonlocal done, said
                done += 1
                bars.advance(bar)
                # Without a terminal there is no bar, and a log should still show progress: a line a
                # minute.
                if bars.disable and time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    self.note(f"{name}: {done:,} of {total:,}")

            yield advance

    def note_counts(self, what: str, counts: Counter[str]) -> None:
        if counts:
            self.note(f"{what}: {listed(counts)}")

    def verdict(self, number: int, verdict: Mapping[str, Any]) -> None:
        """Both measurements of an iteration side by side, and what became of its policy."""
        before, after = verdict["before"], verdict["after"]
        # Side by side for each mode, because a reader compares before with after.
        table = Table(title=f"iteration {number}", title_justify="left")
        table.add_column("held-out")
        for mode in before["modes"]:
            table.add_column(f"{mode} before", justify="right")
            table.add_column("after", justify="right")
        for name, kind, figure, form in _ROWS:
            rates = [when[kind].get(mode) for mode in before["modes"] for when in (before, after)]
            # Of a mixture its sources stand below all of it.
            by_source = [rate.get("by_source", {}) if rate else {} for rate in rates]
            rows = {f"  {source}": [of.get(source) for of in by_source] for source in by_source[0]}
            for title, of in ({name: rates} | rows).items():
                # A mode in which no response could be judged has no rates, and the verdict of an
                # older version may lack a figure.
                figures = [rate.get(figure) if rate else None for rate in of]
                table.add_row(title, *("-" if f is None else format(f, form) for f in figures))
        self._screen.print(table)
        if verdict["is_accepted"]:
            self.note("accepted")
        else:
            self.note(f"not accepted, the policy before it stays: {'; '.join(verdict['reasons'])}")


def listed(counts: Mapping[str, int]) -> str:
    """Example: listed({"timeout": 2, "empty": 1}) == "2 timeout, 1 empty" """
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing"


def draw_alignment(directory: AlignmentDirectory, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Draw the picture from metrics.jsonl and the verdicts of the iterations; return its path."""
    # It starts slowly, and the command's help does not draw.
    from matplotlib import ticker

    logged = read_metrics(directory.metrics_path)
    name = directory.root.resolve().parent.name
    accepted = sum(verdict["is_accepted"] for verdict in verdicts)
    iterations = "1 iteration" if len(verdicts) == 1 else f"{len(verdicts)} iterations"
    picture = sheet(f"{name}, RLAIF-V", f"{iterations}, {accepted} accepted")
    panels = picture.subplots(2, 2)
    for axes, (title, curves) in zip(panels[0], _CURVES, strict=True):
        panel(axes, title, "DPO step")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
        for (key, label), color in zip(curves.items(), MODE_COLORS, strict=False):
            points = [(step, metrics[key]) for step, metrics in logged.items() if key in metrics]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    for axes, (title, *names) in zip(panels[1], _FIGURES, strict=True):
        panel(axes, title)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        _draw_modes(axes, verdicts, *names)
    for axes in panels.flat:
        legend_above(axes)
    return save(picture, directory.root / "curves.png")


def _draw_modes(
    axes: Axes, verdicts: Sequence[Mapping[str, Any]], kind: str, field: str, half_width: str
) -> None:
    """A point with its 95 % interval before and after each iteration; hollow if not accepted."""
    for index, (mode, color) in enumerate(mode_colors(verdicts[0]["before"]["modes"]).items()):
        for number, verdict in enumerate(verdicts):
            # Beside each other, so that the intervals of two modes do not hide one another.
            x = [2 * number + 0.06 * index, 2 * number + 1 + 0.06 * index]
            # A mode in which no response could be judged has no point.
            figures = [verdict[when][kind].get(mode, {}) for when in ("before", "after")]
            y, width = ([of.get(name, math.nan) for of in figures] for name in (field, half_width))
            is_accepted = verdict["is_accepted"]
            axes.errorbar(
                x,
                y,
                width,
                color=color,
                marker="o",
                markersize=9,
                markerfacecolor=color if is_accepted else "white",
                linestyle="-" if is_accepted else ":",
                linewidth=2,
                capsize=4,
                label=mode if number == 0 else None,
            )
    numbers = [f" {number}" for number in range(1, len(verdicts) + 1)] if verdicts[1:] else [""]
    labels = [f"{when}{number}" for number in numbers for when in ("before", "after")]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(bottom=0)
