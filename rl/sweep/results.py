"""What a sweep's arms show, compared: pure functions over the metrics that each run wrote.

Accuracy is on the held-out split. Tokens are trained tokens: prompt and response tokens of every
trajectory that entered an update. `signal_tokens` leaves out groups whose rewards are all equal,
which an update learns nothing from: a step's tokens of a mode times the share of its groups with
variance. How many those are depends on how hard a mode's questions still are, so both are reported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from rl.run.curves import MODE
from rl.run.directory import RunDirectory
from rl.run.sinks import read_metrics
from rl.sweep.arms import Arm, Point


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation of one run, or the mean of several runs'."""

    step: int
    trained_tokens: float
    signal_tokens: float
    accuracy: Mapping[str, float]
    """By mode."""
    half_width: Mapping[str, float]
    tokens_mean: Mapping[str, float]
    """Response tokens, by mode."""
    of_source: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """By mode and source of a mixture: accuracy, and half the width of its interval."""


# Evaluation's figures by mode, in the order of its fields.
_FIGURES = ("accuracy", "half_width", "tokens_mean")


@dataclass(frozen=True)
class PointResult:
    """All seeds of one point of the sweep."""

    point: Point
    shares: Mapping[str, float]
    """Share of every mode."""
    courses: Mapping[int, tuple[Evaluation, ...]]
    """The evaluations of every seed's arm, in the order of their steps; the first is before
    training."""
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By metric, what was logged: a row a step and a column a seed."""

    @cached_property
    def mean_course(self) -> tuple[Evaluation, ...]:
        """The mean over seeds, at every step that all of them were evaluated at."""
        by_step = [{e.step: e for e in course} for course in self.courses.values()]
        steps = sorted(set.intersection(*map(set, by_step)))
        return tuple(_mean([seed[step] for seed in by_step]) for step in steps)

    @property
    def last(self) -> Evaluation:
        return self.mean_course[-1]

    def spread(self, mode: str) -> float:
        """Half the distance between the best and the worst seed's last accuracy."""
        finals = [course[-1].accuracy[mode] for course in self.courses.values()]
        return (max(finals) - min(finals)) / 2

    def gains(self, mode: str) -> list[float]:
        """What each seed's accuracy rose by from before training to the end."""
        ends = ((course[0], course[-1]) for course in self.courses.values())
        return [last.accuracy[mode] - first.accuracy[mode] for first, last in ends]

    def ends(self, metric: str) -> tuple[float, float, float] | None:
        """The mean of a metric over the first tenth of its steps and over the last, and half the
        distance between the seeds' last; None where it was not logged."""
        logged = self.curves[metric].dropna()
        if logged.empty:
            return None
        count = max(1, len(logged) // 10)
        last = logged.tail(count).mean()
        half = (last.max() - last.min()) / 2
        return float(logged.head(count).mean().mean()), float(last.mean()), float(half)


@dataclass(frozen=True)
class Peak:
    """The best held-out accuracy of the long mode that the long-only arm shows."""

    accuracy: float
    half_width: float
    """Of one run's 95 % interval over prompts. All seeds are asked the same prompts, so more seeds
    do not narrow it."""
    tokens: float
    """Trained tokens at which it stood there."""


@dataclass(frozen=True)
class SweepResults:
    modes: tuple[str, ...]
    long_mode: str | None
    """The mode that thinks, where exactly one does."""
    points: tuple[PointResult, ...]
    failures: Mapping[str, str]
    """Why an arm failed, by its name."""

    @property
    def sources(self) -> list[str]:
        """The sources that the held-out prompts of the first arm are from, if they are several."""
        return [*self.points[0].last.of_source.get(self.modes[0], {})]

    def long_only(self, like: Point) -> PointResult | None:
        """The point that trains the long mode alone and is like `like` in all else."""
        return self.alone(self.long_mode, like) if self.long_mode else None

    def alone(self, mode: str, like: Point) -> PointResult | None:
        """The point that trains one mode alone and is like `like` in all but the shares."""
        alone = (p for p in self.points if p.shares[mode] == 1)
        return next((p for p in alone if p.point.besides == like.besides), None)

    def peak(self, like: Point) -> Peak | None:
        long_only, mode = self.long_only(like), self.long_mode
        if long_only is None or mode is None:
            return None
        best = max(long_only.mean_course, key=lambda e: e.accuracy[mode])
        return Peak(best.accuracy[mode], best.half_width[mode], best.trained_tokens)

    def tokens_to(self, course: Sequence[Evaluation], accuracy: float) -> float | None:
        """Trained tokens at the first evaluation whose long accuracy is at least `accuracy`."""
        assert self.long_mode is not None
        reached = (e.trained_tokens for e in course if e.accuracy[self.long_mode] >= accuracy)
        return next(reached, None)

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, and what was concluded of it."""
        points = []
        for result in self.points:
            peak, to_peak, to_interval = self.peak(result.point), None, None
            if peak:
                # The mean over seeds first, then every seed's own.
                courses = [result.mean_course, *result.courses.values()]
                to_peak = [self.tokens_to(course, peak.accuracy) for course in courses]
                lowest = peak.accuracy - peak.half_width
                to_interval = [self.tokens_to(course, lowest) for course in courses]
            as_json = {
                "name": result.point.name,
                "long_share": result.point.long_share,
                "variant": result.point.variant,
                "others": dict(result.point.others),
                "shares": dict(result.shares),
                "final": asdict(result.last),
                "final_spread_over_seeds": {mode: result.spread(mode) for mode in self.modes},
                "long_only_peak": asdict(peak) if peak else None,
                "tokens_to_peak": to_peak,
                "tokens_to_peak_interval": to_interval,
                "courses": [
                    {"seed": seed, "evaluations": [asdict(e) for e in course]}
                    for seed, course in result.courses.items()
                ],
                "curves": {
                    metric: {str(seed): logged[seed].dropna().to_dict() for seed in logged}
                    for metric, logged in result.curves.items()
                },
            }
            points.append(as_json)
        return {
            "metric": "accuracy of held-out prompts by mode; tokens are prompt and response "
            "tokens of every trajectory that entered an update",
            "zero_variance_groups": "in trained_tokens, where they were trained on; not in "
            "signal_tokens",
            "modes": list(self.modes),
            "failures": dict(self.failures),
            "points": points,
        }


def read_results(
    finished: Sequence[Arm], failures: Mapping[str, str], curves: Sequence[str] = ()
) -> SweepResults:
    """Compare the finished arms. curves: metrics to keep, with `{mode}` for every mode."""
    modes = finished[0].config.modes
    thinking = [name for name, mode in modes.items() if mode.thinking is True]
    metrics = {name.replace(MODE, mode): None for name in curves for mode in modes}
    points = []
    # The seeds of a point stand together. By name, since what an arm varies may be a list.
    for _, of_point in groupby(finished, key=lambda arm: arm.point.name):
        arms = list(of_point)
        shares = {name: mode.share for name, mode in arms[0].config.modes.items()}
        logged = {arm.seed: read_logged(arm) for arm in arms}
        courses = {seed: course_of(list(shares), run) for seed, run in logged.items()}
        tables = {s: pd.DataFrame.from_dict(run, orient="index") for s, run in logged.items()}
        by_metric = {
            name: pd.DataFrame({s: table[name] for s, table in tables.items() if name in table})
            for name in metrics
        }
        points.append(PointResult(arms[0].point, shares, courses, by_metric))
    long_mode = thinking[0] if len(thinking) == 1 else None
    return SweepResults(tuple(modes), long_mode, tuple(points), failures)


def course_of(
    modes: Sequence[str], logged: Mapping[int, Mapping[str, float]]
) -> tuple[Evaluation, ...]:
    """The evaluations among a run's metrics by step, as `read_logged` returns them."""
    evaluations, signal, tokens = [], 0.0, dict.fromkeys(modes, 0.0)
    for step, values in logged.items():
        signal_of_step = 0.0
        for mode in modes:
            # The counter only grows; a step that trained none of this mode does not log it.
            trained = values.get(f"progress/{mode}/trained_tokens", tokens[mode])
            with_variance = 1 - values.get(f"rollout/{mode}/zero_variance", 0.0)
            signal_of_step += (trained - tokens[mode]) * with_variance
            tokens[mode] = trained
        signal += signal_of_step
        if all(f"eval/{mode}/accuracy" in values for mode in modes):
            figures = ({m: values[f"eval/{m}/{key}"] for m in modes} for key in _FIGURES)
            of_source = {
                m: {
                    key.removeprefix(prefix): (value, values[key.replace(prefix, width)])
                    for key, value in values.items()
                    if key.startswith(prefix)
                }
                for m in modes
                for prefix, width in [(f"eval/{m}/accuracy_of_", f"eval/{m}/half_width_of_")]
            }
            evaluations.append(
                Evaluation(step, sum(tokens.values()), signal, *figures, of_source=of_source)
            )
    return tuple(evaluations)


def read_logged(arm: Arm) -> dict[int, dict[str, float]]:
    """The metrics of a finished run by step, as if step 0 had logged the evaluation before it."""
    run, modes = RunDirectory(Path(arm.config.run)), list(arm.config.modes)
    before = json.loads(run.summary_path.read_text(encoding="utf-8"))["before"]
    first = {f"eval/{mode}/{key}": before[mode][key] for mode in modes for key in _FIGURES}
    for mode in modes:
        for source, figures in before[mode].get("by_source", {}).items():
            for key in ("accuracy", "half_width"):
                first[f"eval/{mode}/{key}_of_{source}"] = figures[key]
    return {0: first} | read_metrics(run.metrics_path)


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The mean of evaluations of the same step."""
    first = evaluations[0]
    by_mode = [
        {mode: fmean(getattr(e, figure)[mode] for e in evaluations) for mode in first.accuracy}
        for figure in _FIGURES
    ]
    tokens = fmean(e.trained_tokens for e in evaluations)
    signal = fmean(e.signal_tokens for e in evaluations)
    of_source = {
        mode: {
            source: (fmean(accuracies), fmean(half_widths))
            for source in sources
            # Of a source with few prompts a seed may have answered none.
            if all(source in e.of_source[mode] for e in evaluations)
            for accuracies, half_widths in [
                zip(*(e.of_source[mode][source] for e in evaluations), strict=True)
            ]
        }
        for mode, sources in first.of_source.items()
    }
    return Evaluation(first.step, tokens, signal, *by_mode, of_source=of_source)
