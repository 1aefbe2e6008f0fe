"""The curves of a run: panels of what it logged by step, curves.png with the first four, and
choice.png where the policy chooses whether to reason."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rl.run.directory import RunDirectory
from rl.run.files import read_json
from rl.run.pictures import BLUES, GREY, legend_above, mode_colors, panel, save, sheet, single
from rl.run.sinks import read_columns

MODE = "{mode}"
_TIME_PARTS = {
    "time/wait_for_groups": "waiting for groups",
    "time/update": "learner update",
    "time/publish": "publish",
}
_HELDOUT_STYLE: dict[str, Any] = {"linestyle": (0, (2, 2)), "linewidth": 1.4, "marker": "o"}
_HELDOUT_STYLE |= {"markersize": 8, "markeredgecolor": "white", "zorder": 4, "clip_on": False}
_MAX_BARS = 160
_MAX_POINTS = 400
_SMOOTH_FROM_STEPS = 10


@dataclass(frozen=True)
class Course:
    """What a run has logged."""

    logged: pd.DataFrame
    """A row a step, ascending, and a column a metric."""
    heldout: dict[str, pd.Series]
    """Every mode's held-out accuracy by step, with its start at 0 where that is known; the modes
    are in the config's order."""
    before: dict[str, dict[str, Any]]
    """Every mode's held-out figures from before the first step; empty before the first
    checkpoint."""

    @property
    def last(self) -> int:
        """The newest step; 0 before the first."""
        return int(max(self.logged.index, default=0))

    def known(self, key: str) -> pd.Series:
        """The values of a metric by step, of the steps that have it."""
        return (
            pd.Series(self.logged[key]).dropna() if key in self.logged else pd.Series(dtype=float)
        )


@dataclass(frozen=True)
class Panel:
    """Some metrics in one pair of axes; what a run did not log is left out."""

    title: str
    lines: dict[str, str] = field(default_factory=dict)
    """Metrics by label; `{mode}` in both stands for every mode."""
    is_share: bool = False
    """Whether the values are shares, which are written as percent."""
    limits: tuple[float | None, float | None] = (None, None)
    """Where the axis of the values begins and ends; None follows the values."""
    more: Callable[[Axes, Course], None] | None = None
    """Draws what is no line over steps."""

    @property
    def _shades(self) -> dict[str, str]:
        """The colours of lines that are no modes: blues, as far as these can be told apart."""
        if len(self.lines) > len(BLUES):
            return mode_colors(self.lines)
        return dict(zip(self.lines, BLUES[::-1], strict=False))

    def draw(self, axes: Axes, course: Course) -> bool:
        """Draw it; False if nothing of it was logged, which the panel then says."""
        panel(axes, self.title, "step")
        axes.set_xlim(0, max(course.last * 1.02, course.last + 0.6))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if self.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        for label, key in self.lines.items():
            if MODE in key:
                for mode, color in mode_colors(course.heldout).items():
                    series = course.known(key.replace(MODE, mode))
                    _draw_smoothed(axes, series, label.replace(MODE, mode), color)
            else:
                _draw_smoothed(axes, course.known(key), label, self._shades[label])
        if self.more is not None:
            self.more(axes, course)
        is_drawn = axes.has_data()
        axes.set_ylim(*self.limits)
        legend_above(axes)
        if not is_drawn:
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=GREY)
            axes.set_yticks([])
        return is_drawn


def draw_curves(directory: RunDirectory) -> list[Path]:
    """Draw curves.png: reward, accuracy, length and the seconds of a step.

    Where the policy chooses whether to reason, also choice.png: the first four of `choice_panels`.
    """
    course = read_course(directory)
    steps = sum(step > 0 for step in course.logged.index)
    pieces = [directory.name, "1 step" if steps == 1 else f"{steps} steps"]
    if len(throughput := course.known("perf/tokens_per_second")):
        pieces.append(f"median {throughput.median():,.0f} tokens/s")
    pictures: list[tuple[str, list[str], Sequence[Panel]]] = [("curves.png", pieces, LEARNING)]
    if of_choice := choice_panels(course):
        pieces = [directory.name, "the choice whether to reason"]
        pictures.append(("choice.png", pieces, of_choice[:4]))
    drawn = []
    for name, title, panels in pictures:
        figure = sheet(*title)
        for axes, one in zip(figure.subplots(2, 2).flat, panels, strict=True):
            one.draw(axes, course)
        drawn.append(save(figure, directory.root / name))
    return drawn


def picture_of(one: Panel, course: Course) -> bytes | None:
    """A panel by itself as SVG; None if nothing of it was logged."""
    figure = single()
    if not one.draw(figure.subplots(), course):
        return None
    encoded = io.BytesIO()
    # Without the date the same course gives the same bytes.
    figure.savefig(encoded, format="svg", metadata={"Date": None})
    return encoded.getvalue()


def read_course(directory: RunDirectory) -> Course:
    """Read metrics.jsonl, and the held-out start from where the run keeps it."""
    steps, columns = read_columns(directory.metrics_path)
    logged = pd.DataFrame(columns, index=pd.Index(steps, dtype=int)).sort_index()
    rewards = [key for key in logged.columns if key.startswith("reward/")]
    # What is standardised within a group has the mean 0, and what differs from it is rounding.
    logged[rewards] = logged[rewards].round(9)
    # A run that goes on has no summary yet; its checkpoints know the start too.
    kept = read_json(directory.summary_path) or directory.checkpoints.newest_progress()
    before = kept.get("before", {})
    heldout = {mode: pd.Series(dtype=float) for mode in directory.modes()}
    course = Course(logged, heldout, before)
    for area, _, rest in (key.partition("/") for key in logged.columns):
        mode, _, figure = rest.partition("/")
        # Other keys of three parts, such as rollout/dropped/crash, name no mode.
        is_mode = area in ("rollout", "reward", "eval")
        if is_mode and figure in ("groups", "tokens_mean", "accuracy"):
            course.heldout[mode] = course.known(f"eval/{mode}/accuracy")
    for mode, measured in course.heldout.items():
        # Where the start was logged as step 0, too, it is there already.
        if "accuracy" in before.get(mode, {}) and 0 not in measured.index:
            start = pd.Series({0: before[mode]["accuracy"]})
            course.heldout[mode] = pd.concat([start, measured]) if len(measured) else start
    return course


def part_panels(course: Course) -> list[Panel]:
    """A panel for each part of the reward but accuracy, which is among LEARNING."""
    parts: dict[str, None] = {}
    for area, _, rest in (key.partition("/") for key in course.logged.columns):
        mode, _, part = rest.partition("/")
        if area == "reward" and mode in course.heldout and part not in ("mean", "accuracy"):
            parts[part] = None
    return [Panel(part, {MODE: f"reward/{MODE}/{part}"}) for part in parts]


def choice_panels(course: Course) -> list[Panel]:
    """What the policy chooses, and how surely; none of a run in which it never chose."""
    if not len(course.known("choice/reasons")):
        return []
    by_difficulty, by_source = {"probability": "choice/reasons"}, dict[str, str]()
    for key in map(str, course.logged.columns):
        mode, is_share, part = key.removeprefix("rollout/").partition("/reasons_")
        source = part.removeprefix("of_")
        if is_share:
            (by_difficulty if source == part else by_source)[f"{mode} {source}"] = key
    shares = [
        Panel(f"Share that reasons, by {what}", lines, is_share=True, limits=(0, 1))
        for what, lines in (("difficulty", by_difficulty), ("source", by_source))
        if lines
    ]
    return [
        *shares,
        Panel("Entropy of the choice, nats", {"": "choice/entropy"}, limits=(0, None)),
        Panel("Gain in worth by reasoning, over pairs", {MODE: "rollout/{mode}/gap"}),
        Panel("Price of 1,000 tokens", {"": "choice/price"}, limits=(0, None)),
        Panel("Pairs", {MODE: "rollout/{mode}/pairs"}, is_share=True, limits=(0, 1)),
    ]


def _draw_smoothed(axes: Axes, series: pd.Series, label: str, color: str) -> None:
    """Draw the values, faint behind their moving average where there are enough of them."""
    if len(series) == 0:
        return
    if len(series) < _SMOOTH_FROM_STEPS:
        axes.plot(series.index, series, "-s", color=color, markersize=5, label=label)
        return
    # Over a twentieth of the run: long runs are noisy at the scale of steps.
    mean = series.rolling(max(5, len(series) // 20), min_periods=1).mean()
    # Of a long run only so many steps as a picture has room for: the least and the most of each
    # stretch, so that no peak is lost.
    stretches = np.arange(len(series)) // -(-len(series) // _MAX_POINTS)
    parts = series.groupby(stretches)
    shown = sorted({*parts.idxmin(), *parts.idxmax()})
    axes.plot(shown, series[shown], color=color, alpha=0.22, linewidth=1.1)
    axes.plot(shown, mean[shown], color=color, linewidth=2.4, label=label)


def _draw_heldout(axes: Axes, course: Course) -> None:
    """Draw the held-out accuracy beside that of training."""
    measured = {mode: series for mode, series in course.heldout.items() if len(series)}
    colors = mode_colors(course.heldout)
    for mode, series in measured.items():
        axes.plot(series.index, series, color=colors[mode], **_HELDOUT_STYLE)
    if measured:
        axes.plot([], [], color=GREY, label="held-out", **_HELDOUT_STYLE)


def _draw_step_time(axes: Axes, course: Course) -> None:
    """Draw where the seconds of a step go, in stacked bars."""
    logged = course.logged
    first, last = min(logged.index, default=1), max(logged.index, default=1)
    # In a long run a bar is the mean of several steps: thousands would be thinner than a pixel.
    width = max(1, -(-(last - first + 1) // _MAX_BARS))
    bins = logged.reindex(columns=list(_TIME_PARTS)).groupby((logged.index - first) // width)
    heights = pd.DataFrame(bins.mean()).dropna(axis="columns", how="all").fillna(0.0)
    centers = first + heights.index * width + (width - 1) / 2
    # Thin bars with gaps would show a pattern that is the screen's, not the run's.
    shown_width = width if last - first > 30 else width * 0.8
    bottoms = heights.cumsum(axis="columns") - heights
    for (key, label), color in zip(_TIME_PARTS.items(), BLUES, strict=True):
        if key in heights:
            style = {"color": color, "label": label, "antialiased": False}
            axes.bar(centers, heights[key], shown_width, bottoms[key], **style)


LEARNING = (
    Panel("Reward", {MODE: "reward/{mode}/mean"}),
    # Always the whole range, so that pictures of two runs can be compared.
    Panel(
        "Accuracy",
        {MODE: "reward/{mode}/accuracy"},
        is_share=True,
        limits=(0, 1),
        more=_draw_heldout,
    ),
    # From 0, or a small change of length would look like a large one.
    Panel("Response tokens", {MODE: "rollout/{mode}/tokens_mean"}, limits=(0, None)),
    Panel("Seconds per step", more=_draw_step_time),
)
DIAGNOSTICS = (
    Panel("Truncated responses", {MODE: "rollout/{mode}/truncated"}, is_share=True),
    Panel("Mode leaks", {MODE: "rollout/{mode}/leak"}, is_share=True),
    Panel("Groups without variance", {MODE: "rollout/{mode}/zero_variance"}, is_share=True),
    Panel("Policy loss", {"": "loss/policy"}),
    Panel("Gradient norm", {"": "policy/grad_norm"}),
    Panel("Entropy", {"": "policy/entropy"}),
    Panel("Mismatch KL", {"": "rollout/mismatch_kl"}),
    Panel("Tokens a second", {"": "perf/tokens_per_second"}, limits=(0, None)),
    Panel(
        "Idle share of a step",
        {"learner waits": "idle/learner", "engines wait": "idle/engines"},
        is_share=True,
        limits=(0, 1),
    ),
)
"""What a person looks at when the first four do not do what they should."""
