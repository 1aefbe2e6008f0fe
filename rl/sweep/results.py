"""What a sweep's arms show, compared: pure functions over the metrics that each run wrote.

Accuracy is on the held-out split. Tokens are trained tokens: prompt and response tokens of every
trajectory that entered an update. `signal_tokens` leaves out groups whose rewards are all equal,
which an update learns nothing from: a step's tokens of a mode times the share of its groups with
variance. How many those are depends on how hard a mode's questions still are, so both are reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rl.run.checkpoints import Checkpoints
from rl.run.directory import RunDirectory
from rl.run.sinks import read_metrics
from rl.sweep.arms import Arm, Point


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation of one run."""

    step: int
    trained_tokens: float
    signal_tokens: float
    accuracy: Mapping[str, float]
    """By mode."""
    half_width: Mapping[str, float]
    tokens_mean: Mapping[str, float]
    """Response tokens, by mode."""


# Evaluation's figures by mode, in the order of its fields.
_FIGURES = ("accuracy", "half_width", "tokens_mean")


@dataclass(frozen=True)
class Course:
    """One arm's evaluations, by step; the first is before training."""

    seed: int
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class PointResult:
    """All seeds of one point of the sweep."""

    point: Point
    shares: Mapping[str, float]
    """Share of every mode."""
    courses: tuple[Course, ...]

    @property
    def mean_course(self) -> tuple[Evaluation, ...]:
        """The mean over seeds, at every step that all of them were evaluated at."""
        by_step = [{e.step: e for e in course.evaluations} for course in self.courses]
        steps = sorted(set.intersection(*(set(one) for one in by_step)))
        return tuple(_mean([one[step] for one in by_step]) for step in steps)

    @property
    def first(self) -> Evaluation:
        return self.mean_course[0]

    @property
    def last(self) -> Evaluation:
        return self.mean_course[-1]

    def spread(self, mode: str) -> float:
        """Half the distance between the best and the worst seed's last accuracy."""
        finals = [course.evaluations[-1].accuracy[mode] for course in self.courses]
        return (max(finals) - min(finals)) / 2


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

    def long_only(self, like: Point) -> PointResult | None:
        """The point that trains the long mode alone and is like `like` in all else."""
        for one in self.points:
            is_alone = self.long_mode is not None and one.shares[self.long_mode] == 1
            if is_alone and one.point.others == like.others:
                return one
        return None

    def peak(self, like: Point) -> Peak | None:
        long_only = self.long_only(like)
        if long_only is None or self.long_mode is None:
            return None
        mode = self.long_mode
        best = max(long_only.mean_course, key=lambda e: e.accuracy[mode])
        return Peak(best.accuracy[mode], best.half_width[mode], best.trained_tokens)

    def tokens_to(self, course: Sequence[Evaluation], accuracy: float) -> float | None:
        """Trained tokens at the first evaluation whose long accuracy is at least `accuracy`."""
        assert self.long_mode is not None
        for evaluation in course:
            if evaluation.accuracy[self.long_mode] >= accuracy:
                return evaluation.trained_tokens
        return None

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, and what was concluded of it."""
        return {
            "metric": "accuracy of held-out prompts by mode; tokens are prompt and response "
            "tokens of every trajectory that entered an update",
            "zero_variance_groups": "in trained_tokens, where they were trained on; not in "
            "signal_tokens",
            "modes": list(self.modes),
            "failures": dict(self.failures),
            "points": [self._point_as_json(one) for one in self.points],
        }

    def _point_as_json(self, one: PointResult) -> dict[str, Any]:
        peak = self.peak(one.point)
        reached = []
        if peak:
            courses = (one.mean_course, *(course.evaluations for course in one.courses))
            levels = (peak.accuracy, peak.accuracy - peak.half_width)
            reached = [[self.tokens_to(course, level) for course in courses] for level in levels]
        return {
            "name": one.point.name,
            "long_share": one.point.long_share,
            "others": dict(one.point.others),
            "shares": dict(one.shares),
            "final": asdict(one.last),
            "final_spread_over_seeds": {mode: one.spread(mode) for mode in self.modes},
            "long_only_peak": asdict(peak) if peak else None,
            # The mean over seeds first, then every seed's own.
            "tokens_to_peak": reached[0] if peak else None,
            "tokens_to_peak_interval": reached[1] if peak else None,
            "courses": [asdict(course) for course in one.courses],
        }


def is_finished(arm: Arm) -> bool:
    """Whether the arm has trained all the steps its configuration asks for, and saved the last."""
    run = Path(arm.config.run)
    if not (run / "summary.json").is_file():
        return False
    saved = Checkpoints(run / "checkpoints").steps()
    return _summary(arm)["steps"] >= arm.config.steps and max(saved, default=0) >= arm.config.steps


def read_results(finished: Sequence[Arm], failures: Mapping[str, str]) -> SweepResults:
    """Compare the finished arms."""
    modes = finished[0].config.modes
    thinking = [name for name, mode in modes.items() if mode.thinking]
    # By name, since a point cannot be a key: what an arm varies may be a list or a mapping.
    by_name: dict[str, list[Arm]] = {}
    for arm in finished:
        by_name.setdefault(arm.point.name, []).append(arm)
    points = []
    for arms in by_name.values():
        shares = {name: mode.share for name, mode in arms[0].config.modes.items()}
        courses = tuple(read_course(arm) for arm in arms)
        points.append(PointResult(arms[0].point, shares, courses))
    long_mode = thinking[0] if len(thinking) == 1 else None
    return SweepResults(tuple(modes), long_mode, tuple(points), failures)


def read_course(arm: Arm) -> Course:
    """The evaluations that a finished run logged, with the one before training."""
    metrics = read_metrics(RunDirectory(Path(arm.config.run)).metrics_path)
    modes = list(arm.config.modes)
    before = _summary(arm)["before"]
    evaluations = [
        Evaluation(
            0,
            0.0,
            0.0,
            *({mode: before[mode][key] for mode in modes} for key in _FIGURES),
        )
    ]
    signal = 0.0
    tokens = dict.fromkeys(modes, 0.0)
    for step, values in metrics.items():
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
            evaluations.append(Evaluation(step, sum(tokens.values()), signal, *figures))
    return Course(arm.seed, tuple(evaluations))


def _summary(arm: Arm) -> dict[str, Any]:
    return json.loads((Path(arm.config.run) / "summary.json").read_text(encoding="utf-8"))


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    first, by_mode = evaluations[0], []
    for figure in _FIGURES:
        figures: list[Mapping[str, float]] = [getattr(e, figure) for e in evaluations]
        by_mode.append({mode: fmean(each[mode] for each in figures) for mode in first.accuracy})
    return Evaluation(
        first.step,
        fmean(e.trained_tokens for e in evaluations),
        fmean(e.signal_tokens for e in evaluations),
        *by_mode,
    )
