"""What a person at the terminal sees of a run: a live view, or a line per step where stdout is
not a terminal."""

import logging
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rl.run.pictures import mode_colors
from rl.run.terminal import duration, sparkline, step_line

_MAX_SPARK_WIDTH = 24
# Enough steps to even out evaluations and checkpoints, few enough to follow a change of speed.
_PACE_STEPS = 20

_MODE_ROWS = (
    ("accuracy", "reward/{mode}/accuracy", "{:.3f}"),
    ("reward", "reward/{mode}/mean", "{:.3f}"),
    ("tokens", "rollout/{mode}/tokens_mean", "{:.1f}"),
    ("truncated", "rollout/{mode}/truncated", "{:.1%}"),
    ("mode leak", "rollout/{mode}/leak", "{:.1%}"),
    ("reasons", "rollout/{mode}/reasons", "{:.1%}"),
    ("held-out accuracy", "eval/{mode}/accuracy", "{:.3f}"),
)
_RUN_FIELDS = (
    ("perf/tokens_per_second", "{:,.0f} tok/s"),
    ("time/step", "{:.1f} s a step"),
    ("perf/mfu", "MFU {:.0%}"),
    ("engine/kv_use", "KV cache {:.0%}"),
    ("idle/learner", "learner waits {:.0%}"),
    ("idle/engines", "engines wait {:.0%}"),
    ("staleness/max", "staleness {:.0f}"),
    ("choice/reasons", "chooses to reason {:.0%}"),
    ("choice/price", "1,000 tokens cost {:.2g}"),
    ("rollout/mismatch_kl", "mismatch KL {:.0e}"),
    ("sync/canary_max_abs_diff", "canary {:.0e}"),
)


class Console:
    """Follows a run (interfaces.py). Text from elsewhere is shown as it is, never as markup."""

    def __init__(
        self,
        run_name: str,
        total_steps: int,
        modes: Sequence[str],
        screen: rich.console.Console | None = None,
    ) -> None:
        """screen: where to write; stdout by default."""
        self._run_name, self._total_steps, self._modes = run_name, total_steps, list(modes)
        self._screen = screen or rich.console.Console(highlight=False)
        self._started = time.monotonic()
        self._phase: tuple[str, float] | None = None
        self._step = 0
        self._step_times: deque[float] = deque(maxlen=_PACE_STEPS + 1)
        self._latest: dict[str, float] = {}
        self._history: defaultdict[str, list[float]] = defaultdict(list)
        self._live: Live | None = None
        self._moved_handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        # In a log file a live view would be thousands of copies of itself.
        if self._screen.is_terminal and not self._screen.is_dumb_terminal:
            self._start_live()

    def phase(self, text: str) -> None:
        """A stretch of work begins, and the one before it has ended."""
        self._end_phase()
        self._phase = (text, time.monotonic())
        if self._live is None:
            self._print(f"[{duration(time.monotonic() - self._started)}] {text}")

    def note(self, text: str) -> None:
        # Above the live view, where it stays to be read.
        self._print(f"note: {text}")

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        self._end_phase()
        self._step = step
        self._step_times.append(time.monotonic())
        # Held-out figures come every so many steps and stay in view until the next ones.
        self._latest.update(metrics)
        for key, value in metrics.items():
            self._history[key].append(value)
        if self._live is None:
            left = self._left()
            self._print(step_line(step, self._total_steps, self._modes, metrics, left))

    def before_after_table(self, summary: Mapping[str, Any]) -> None:
        """Print held-out accuracy and length of every mode, and of every source of a mixture in
        it, before and after (summary.json)."""
        # The live view would be drawn once more below the table.
        self.close()
        table = Table(title="held-out prompts, before and after", title_justify="left")
        table.add_column("mode")
        for label in ("accuracy before", "after", "points", "tokens before", "after"):
            table.add_column(label, justify="right")
        for mode in self._modes:
            start, end = summary["before"][mode], summary["after"][mode]
            pairs = {mode: (start, end)}
            for source, of_source in end.get("by_source", {}).items():
                # A run that went on from before figures were kept by source has none of its start.
                if (of_start := start.get("by_source", {}).get(source)) is not None:
                    pairs[f"  {source}"] = of_start, of_source
            for name, (before, after) in pairs.items():
                points = 100 * (after["accuracy"] - before["accuracy"])
                style = "green" if points > 0 else "red" if points < 0 else ""
                row = [_accuracy(before), _accuracy(after), Text(f"{points:+.1f}", style)]
                tokens = (f"{figures['tokens_mean']:.1f}" for figures in (before, after))
                table.add_row(Text(name), *row, *tokens)
        self._screen.print(table)
        tokens, took = summary["trained_tokens"], duration(summary["seconds"])
        self._print(f"{summary['steps']} steps, {tokens:,} trained tokens, {took}")

    def close(self) -> None:
        self._end_phase()
        if self._live is not None:
            for handler, stream in self._moved_handlers:
                handler.setStream(stream)
            self._live.stop()
            self._live = None

    def _start_live(self) -> None:
        # A redirected stderr is a log file that someone wants; only a shared terminal is captured.
        self._live = Live(
            console=self._screen,
            get_renderable=self._view,
            refresh_per_second=2,
            redirect_stderr=sys.stderr.isatty(),
        )
        before = (sys.stdout, sys.stderr)
        self._live.start()
        moved = dict(zip(before, (sys.stdout, sys.stderr), strict=True))
        # The view has put its own streams in place of both. A log handler that was made before
        # still holds the old one, and its lines would tear the view.
        loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
        for handler in [handler for logger in loggers for handler in logger.handlers]:
            if isinstance(handler, logging.StreamHandler) and handler.stream in moved:
                self._moved_handlers.append((handler, handler.stream))
                handler.setStream(moved[handler.stream])

    def _end_phase(self) -> None:
        ended, self._phase = self._phase, None
        if ended is not None and self._live is not None:
            self._print(f"{duration(time.monotonic() - ended[1]):>9}  {ended[0]}")

    def _print(self, text: str) -> None:
        # As Text it is no markup: a path or a note may hold square brackets.
        self._screen.print(Text(text), soft_wrap=True)

    def _left(self) -> float | None:
        """Return the seconds left at the recent pace; None if that is not known yet."""
        steps_left = self._total_steps - self._step
        times = self._step_times
        # Between the ends of steps, which includes evaluations and checkpoints.
        if len(times) > 1:
            return steps_left * (times[-1] - times[0]) / (len(times) - 1)
        return steps_left * self._latest["time/step"] if "time/step" in self._latest else None

    def _view(self) -> Group:
        times = f"{duration(time.monotonic() - self._started)} elapsed"
        if (left := self._left()) is not None:
            times += f", {duration(left)} left"
        header = Table.grid(padding=(0, 2))
        header.add_column(no_wrap=True, overflow="ellipsis")
        header.add_row(
            Text(self._run_name, style="bold"),
            Text(f"step {self._step}/{self._total_steps}"),
            ProgressBar(total=self._total_steps, completed=self._step, width=16),
            Text(times),
        )
        parts: list[Any] = [Text(), header]
        if self._latest:
            fields = [(key, text) for key, text in _RUN_FIELDS if key in self._latest]
            line = " · ".join(text.format(self._latest[key]) for key, text in fields)
            parts += [Text(line, style="dim"), Text(), self._mode_table()]
        if self._phase is not None:
            elapsed = duration(time.monotonic() - self._phase[1])
            parts.append(Spinner("dots", Text(f"{self._phase[0]}  {elapsed}", style="bold")))
        return Group(*parts)

    def _mode_table(self) -> Table:
        # Beside the labels (19 columns), each mode has its number and its gaps (11).
        width = (self._screen.width - 19) // len(self._modes) - 11
        spark_width = min(_MAX_SPARK_WIDTH, max(1, width))
        table = Table.grid(padding=(0, 2))
        table.add_column()
        header = [Text()]
        for mode, color in mode_colors(self._modes).items():
            # At least so wide, or the columns would jump from step to step.
            table.add_column(justify="right", min_width=7)
            table.add_column(min_width=spark_width, style=color)
            header += [Text(mode, style=f"bold {color}"), Text()]
        table.add_row(*header)
        for label, template, text in _MODE_ROWS:
            row = [Text(label)]
            for key in (template.format(mode=mode) for mode in self._modes):
                row.append(Text(text.format(self._latest[key]) if key in self._latest else ""))
                row.append(Text(sparkline(self._history.get(key, []), spark_width)))
            # A run without evaluations, say, has no line for them.
            if any(value.plain for value in row[1:]):
                table.add_row(*row)
        return table


def _accuracy(figures: Mapping[str, float]) -> str:
    """Return percent, with half of the 95 % interval where it is known."""
    text = f"{100 * figures['accuracy']:.1f} %"
    return f"{text} ± {100 * figures['half_width']:.1f}" if "half_width" in figures else text
