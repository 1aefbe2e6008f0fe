"""What a person at the terminal sees of an RLAIF-V pass: a bar per stage, a table per verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.table import Table
from rich.text import Text

from rl.run.terminal import duration, progress_bars

# Often enough to see that the pass is alive, seldom enough for a log file.
LINE_EVERY_S = 60.0
# Name, kind, field and form of the figures of a Measurement (gate.py).
_ROWS = (
    ("accuracy", "modes", "accuracy", ".1%"),
    ("tokens", "modes", "tokens_mean", ".1f"),
    ("wrong claims a response", "hallucination", "wrong_claims", ".3f"),
    ("responses with one", "hallucination", "wrong_responses", ".1%"),
    ("claims a response", "hallucination", "claims", ".2f"),
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
        """A bar of `total` pieces of work, or a line a minute where there is no terminal.

        Yields a function, to be called for each piece that is done.
        """
        self.note(f"{name}: {total:,}")
        with progress_bars(self._screen) as bars:
            bar = bars.add_task(name, total=total)
            done, said = 0, time.monotonic()

            def advance() -> None:
                nonlocal done, said
                done += 1
                bars.advance(bar)
                # Without a terminal there is no bar, and a log should still show progress.
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
            # A mode in which no response could be judged has no rates.
            rates = [when[kind].get(mode) for mode in before["modes"] for when in (before, after)]
            table.add_row(name, *(format(rate[figure], form) if rate else "-" for rate in rates))
        self._screen.print(table)
        if verdict["is_accepted"]:
            self.note("accepted")
        else:
            self.note(f"not accepted, the policy before it stays: {'; '.join(verdict['reasons'])}")


def listed(counts: Mapping[str, int]) -> str:
    """Example: listed({"timeout": 2, "empty": 1}) == "2 timeout, 1 empty" """
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing"
