"""What a run notes about itself: another split of its GPUs is better, a role's memory grows, the
policy chooses one way only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean

from rl.config.run import Config
from rl.launch.memory_growth import MemoryGrowth
from rl.loop.loop import StepResult
from rl.run.terminal import counted

WAITS_LONG = 1 / 3
"""Share of a step from which a side that waits is worth a word."""
WORTH_IT = 0.9
"""A split that makes steps less than a tenth shorter is none worth starting a run again for."""
EVERY_STEPS = 20
"""Steps over which the shares are taken, and between two looks at them."""
COLLAPSED = 0.05
"""Probability of one of the two choices, as a mean over prompts, below which nothing is chosen."""


def idle_shares(seconds: dict[str, float]) -> tuple[float, float]:
    """Shares of a step in which the learner waits for groups, and in which no engine samples.

    seconds: `StepResult.seconds`. While samples are scored and none is taken, engines wait too.
    """
    engines = seconds["engines_idle"] + seconds["scoring"]
    return seconds["wait_for_groups"] / seconds["step"], engines / seconds["step"]


def propose_split(
    ranks: int,
    engines: int,
    tensor_parallel: int,
    idle: tuple[float, float],
    overlaps: bool,
) -> str | None:
    """Words for a person, or None where neither side waits for long or nothing better is known.

    idle: shares of a step in which learner and engines wait. overlaps: whether engines sample the
    next step while the learner updates (rollout.max_staleness).

    The work of a side is the part of a step in which it is busy, times its GPUs (on CPU, its
    processes), and any number of them is taken to share it evenly. A step then lasts as long as its
    slower side, or as both sides one after the other where they do not overlap.
    """
    learner_idle, engines_idle = idle
    if max(idle) <= WAITS_LONG:
        return None
    learner_work = (1 - learner_idle) * ranks
    engine_work = (1 - engines_idle) * engines * tensor_parallel
    total = ranks + engines * tensor_parallel

    def seconds(number: int) -> float:
        """A step's length with so many engines, in lengths of the step as it is."""
        busy = number * tensor_parallel
        parts = (learner_work / (total - busy), engine_work / busy)
        return max(parts) if overlaps else sum(parts)

    counts = range(1, (total - 1) // tensor_parallel + 1)
    # Of equally good ones the nearest, which changes the run least.
    best = min(counts, key=lambda number: (round(seconds(number), 6), abs(number - engines)))
    who = "the learner waits" if learner_idle >= engines_idle else "the engines wait"
    waits = f"{who} {max(idle):.0%} of the time"
    if seconds(best) < WORTH_IT * seconds(engines):
        other = counted(total - best * tensor_parallel, "rank")
        saved = 1 - seconds(best) / seconds(engines)
        return (
            f"{waits}: {other} and {counted(best, 'engine')} (policy.ranks="
            f"{total - best * tensor_parallel} rollout.workers={best}) in place of "
            f"{counted(ranks, 'rank')} and {counted(engines, 'engine')} would make steps about "
            f"{saved:.0%} shorter"
        )
    if not overlaps:
        return (
            f"{waits}, and no other split is better: the sides take turns. With "
            "rollout.max_staleness=1 engines sample the next step while the learner updates"
        )
    return None


class Advice:
    """Follows the steps of a run, and says something now and then; never twice the same."""

    def __init__(
        self,
        config: Config,
        note: Callable[[str], None],
        recycle: Callable[[str, str], bool] = lambda role, why: False,
    ) -> None:
        """note: shows a person a line. recycle: starts a role anew, and says whether it can."""
        self._note, self._recycle = note, recycle
        resources, rollout = config.resources, config.rollout
        self._sides = (config.policy.ranks, rollout.workers, rollout.tensor_parallel)
        self._overlaps = rollout.max_staleness > 0
        # Where both sides share their GPUs there is nothing to split, and neither is there with one
        # process a side on a machine without any.
        several = config.policy.ranks + rollout.workers > 2
        self._may_split = not resources.colocate and (resources.gpus > 0 or several)
        self._steps: list[dict[str, float]] = []
        self._said: str | None = None
        self._is_first, self._device = True, None
        self._growth, self._grown = MemoryGrowth(resources.memory_growth), set[str]()
        self._reasons: deque[float] = deque(maxlen=EVERY_STEPS)
        self._has_collapsed = False
        self._price_adapts = any(mode.price == "target" for mode in config.modes.values())
        # While more and more choices are left to the policy it may well lean to one side for a
        # while, and come back: by then both ways are still forced often.
        falls = [m.pairs for m in config.modes.values() if m.pairs.start > m.pairs.floor]
        self._chooses_from = max((pairs.until for pairs in falls), default=0.0) * config.steps

    def after(self, result: StepResult, device: str | None, metrics: Mapping[str, float]) -> None:
        """Note what there is to say after a step; device: the GPU of the ranks, if any.

        metrics: all of the step.
        """
        grown = self._growth.grown(metrics)
        for role in grown.keys() - self._grown:
            why = f"memory of {role} grows: {grown[role]} (resources.memory_growth)"
            if self._recycle(role, why):
                self._note(f"{why}; its processes are replaced")
                self._growth.start_anew(role)
            else:
                self._note(
                    f"{why}; stop the run with Ctrl-C and give the same command, which goes on "
                    "with new processes"
                )
                self._grown.add(role)
        if "choice/reasons" in metrics and result.step > self._chooses_from:
            self._watch_choice(metrics["choice/reasons"])
        if device != self._device and "perf/mfu" not in result.learner_metrics:
            self._note(f"perf/mfu is left out: the peak of {device} is not known")
        self._device = device
        if self._is_first:
            # In it everything waits for the first groups, whatever the split.
            self._is_first = False
            return
        self._steps.append(result.seconds)
        if len(self._steps) % EVERY_STEPS == 0:
            self._propose(self._steps[-EVERY_STEPS:])

    def at_end(self) -> None:
        """Note what there is to say of the whole run."""
        self._propose(self._steps)

    def _watch_choice(self, reasons: float) -> None:
        """reasons: mean probability of the choice to reason."""
        self._reasons.append(reasons)
        if len(self._reasons) < EVERY_STEPS:
            return
        mean = fmean(self._reasons)
        has_collapsed = not COLLAPSED < mean < 1 - COLLAPSED
        if has_collapsed and not self._has_collapsed:
            what, other = ("reason", "raise") if mean > 0.5 else ("answer at once", "lower")
            by_price = "" if self._price_adapts else f"{other} modes.NAME.price, or "
            self._note(
                f"the choice has collapsed: over {EVERY_STEPS} steps the policy chooses to {what} "
                f"with probability {max(mean, 1 - mean):.1%}, whatever it is asked; {by_price}"
                "force more pairs by modes.NAME.pairs.floor"
            )
        self._has_collapsed = has_collapsed

    def _propose(self, steps: list[dict[str, float]]) -> None:
        if not self._may_split or not steps:
            return
        seconds = {part: sum(step[part] for step in steps) for part in steps[0]}
        words = propose_split(*self._sides, idle_shares(seconds), self._overlaps)
        if words is not None and words != self._said:
            self._note(words)
        self._said = words
