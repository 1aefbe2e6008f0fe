"""The page of a whole run: how far it is, what it has gained, and what happened to it.

All is read from the run's directory, into which a driver may be writing: what is not there yet is
left out, or said to be missing.
"""

import base64
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from rl.config.recipe import COMMAND_LINE, read_tree
from rl.loop.accounting import in_words
from rl.run.checkpoints import LATEST, PROGRESS
from rl.run.curves import (
    DIAGNOSTICS,
    LEARNING,
    Course,
    choice_panels,
    part_panels,
    picture_of,
    read_course,
)
from rl.run.directory import RunDirectory
from rl.run.files import numbered, read_json
from rl.run.jsonl import Record, read_records
from rl.run.terminal import counted, duration
from rl.show.page import as_ranges, render

PACE_STEPS = 20
"""Of so many of the newest steps a mean is taken for what a person sees of training now."""
STALL_STEPS, STALL_S = 3, 60.0
"""A run that goes on and has no new step is told of after so many times its slowest recent one, and
seconds at least."""
MAX_EVENTS = 200
NONE = "–"
_EVENT = ("time", "event", "who", "why")
_SETTINGS = ("key", "recipe", "this run", "set by")


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ModeNow:
    """What a mode has come to."""

    name: str
    accuracy: str
    """Held out, or in training where none was held out."""
    facts: tuple[str, ...]


@dataclass(frozen=True)
class RunPage:
    name: str
    state: Literal["running", "finished", "stopped"]
    step: int
    steps: int
    facts: tuple[str, ...]
    alarms: tuple[str, ...]
    modes: tuple[ModeNow, ...]
    learning: Mapping[str, str]
    """Pictures by title, as data URIs; so are the next three."""
    parts: Mapping[str, str]
    choice: Mapping[str, str]
    """Of the policy's choice whether to reason; empty where it has none."""
    diagnostics: Mapping[str, str]
    gains: Table
    evaluated: int
    """The step of its newest evaluation; 0 before the first."""
    groups: str | None
    """The sum of all groups; None before the first checkpoint."""
    groups_of_modes: Table
    events: Table
    num_events: Mapping[str, int]
    """By kind."""
    recipe: str | None
    """Recipe and scale, where the run's directory knows them."""
    asked: Table
    """What the command line says otherwise than the recipe, and then what its scale does."""
    scaled: Table
    pages: Mapping[str, str]
    """The pages of steps that can be opened: address by step."""
    ledger: str
    """The steps that the ledger holds, as ranges."""
    root: str
    is_served: bool

    @property
    def title(self) -> str:
        return f"{self.name}, {self.state}, step {self.step:,} of {self.steps:,}"


@dataclass(frozen=True)
class _Drawn:
    """What takes a while to make, and changes with a step alone."""

    course: Course
    learning: Mapping[str, str]
    parts: Mapping[str, str]
    choice: Mapping[str, str]
    diagnostics: Mapping[str, str]


def as_html(page: RunPage) -> str:
    """Return the whole document of a run's page."""
    return render("run.html.j2", page.title, page=page)


def read_run(run: RunDirectory, place: Path, is_served: bool = False) -> RunPage:
    """Return what the page of a run says; raises ValueError for a directory that is no run's.

    place: the directory from which the page's links lead to others. is_served: whether every step
    of the ledger has a page, and not only those that were written.
    """
    steps = read_tree(run.config_path).get("steps")
    if not isinstance(steps, int):
        raise ValueError(
            f"{run.config_path} does not say how many steps the run takes, so {run.root} is no run "
            "of this project; name another with run=runs/NAME"
        )
    # Asked first: a driver that ends meanwhile has then written all, and the page is only late.
    owner = run.owner()
    drawn = _drawn(run, _stamp(run))
    course, events = drawn.course, read_records(run.events_path)
    state = "running" if owner else "stopped"
    if not owner and course.last >= steps and run.summary_path.exists():
        state = "finished"
    kept, ledger = read_json(run.recipe_path), numbered(run.ledger_path, "step_*.parquet")
    differences = [(d["key"], d["recipe"], d["run"], d["by"]) for d in kept.get("differences", ())]
    asked, scaled = (
        tuple(line for line in differences if (line[-1] == COMMAND_LINE) == is_asked)
        for is_asked in (True, False)
    )
    samples = run.root / "samples"
    if is_served:
        named = {f"{step}": samples / f"step_{step:06d}.html" for step in ledger}
    else:
        named = {_steps_in(path.stem): path for path in sorted(samples.glob("step_*.html"))}
    measured = [step for series in course.heldout.values() for step in series.index]
    evaluated = int(max(measured, default=0))
    return RunPage(
        name=run.name,
        state=state,
        step=course.last,
        steps=steps,
        facts=facts_of(run, course, steps, owner),
        alarms=alarms_of(run, course, events, owner is not None),
        modes=modes_now(course),
        learning=drawn.learning,
        parts=drawn.parts,
        choice=drawn.choice,
        diagnostics=drawn.diagnostics,
        gains=gains_of(course, evaluated),
        evaluated=evaluated,
        groups=groups_of(run),
        groups_of_modes=groups_of_modes(course),
        events=table_of_events(events),
        num_events=Counter(str(event.get("event")) for event in events),
        recipe=" at ".join(filter(None, (kept.get("recipe"), kept.get("scale")))) or None,
        asked=Table(_SETTINGS, asked),
        scaled=Table(_SETTINGS, scaled),
        pages={
            steps_in: quote(Path(os.path.relpath(path, place)).as_posix())
            for steps_in, path in named.items()
        },
        ledger=as_ranges(list(ledger)),
        root=str(run.root),
        is_served=is_served,
    )


def _stamp(run: RunDirectory) -> tuple[tuple[int, int] | None, ...]:
    """What changes whenever a file does of which the pictures are made."""
    newest = run.checkpoints.directory / LATEST / PROGRESS
    stamp: list[tuple[int, int] | None] = []
    for path in (run.metrics_path, run.summary_path, newest, run.config_path):
        try:
            status = path.stat()
            stamp.append((status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            stamp.append(None)
    return tuple(stamp)


# Kept, so that a page that renews itself draws each step once and leaves the cores to the run.
@lru_cache(maxsize=1)
def _drawn(run: RunDirectory, stamp: tuple[tuple[int, int] | None, ...]) -> _Drawn:
    course = read_course(run)
    drawn: list[dict[str, str]] = []
    for panels in (LEARNING, part_panels(course), choice_panels(course), DIAGNOSTICS):
        pictures = {panel.title: picture_of(panel, course) for panel in panels}
        drawn.append(
            {
                title: f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"
                for title, picture in pictures.items()
                if picture is not None
            }
        )
    return _Drawn(course, *drawn)


def facts_of(run: RunDirectory, course: Course, steps: int, owner: str | None) -> tuple[str, ...]:
    """What a person wants to know at a glance beside accuracies: how long, how fast, until when."""
    facts = []
    seconds = course.known("time/step")
    if owner and len(seconds) and course.last < steps:
        left = (steps - course.last) * float(seconds.tail(PACE_STEPS).mean())
        facts.append(f"about {duration(left)} left")
    if len(seconds):
        newest = float(seconds.tail(PACE_STEPS).mean())
        facts += [f"{duration(seconds.sum())} of steps", f"{newest:,.3g} s a step"]
    if len(speed := course.known("perf/tokens_per_second")):
        facts.append(f"{speed.tail(PACE_STEPS).mean():,.0f} tokens/s")
    if len(tokens := course.known("progress/trained_tokens")):
        facts.append(f"{tokens.iloc[-1]:,.0f} trained tokens")
    if len(seconds):
        facts.append(f"newest step {_at(run.metrics_path.stat().st_mtime)}")
    if checkpoints := run.checkpoints.steps():
        facts.append(f"newest checkpoint of step {checkpoints[-1]:,}")
    if owner:
        facts.append(owner)
    return (*facts, f"page of {_at(time.time())}")


def alarms_of(
    run: RunDirectory, course: Course, events: Sequence[Record], is_running: bool
) -> tuple[str, ...]:
    """What went wrong, the worst first."""
    alarms = []
    gave_up = [event for event in events if event.get("event") == "gave_up"]
    if gave_up and not is_running:
        at, _, who, why = _fields(gave_up[-1])
        alarms.append(f"The run ended at {at} for {who}: {why}")
    seconds = course.known("time/step")
    if is_running and len(seconds):
        waited = time.time() - run.metrics_path.stat().st_mtime
        slowest = float(seconds.tail(PACE_STEPS).max())
        if waited > max(STALL_S, STALL_STEPS * slowest):
            alarms.append(
                f"No step for {duration(waited)}; the slowest of the last "
                f"{min(len(seconds), PACE_STEPS)} took {slowest:,.3g} s."
            )
    skipped = course.known("progress/skipped_steps")
    if len(skipped) and skipped.iloc[-1]:
        steps = counted(int(skipped.iloc[-1]), "step")
        alarms.append(f"{steps} without an update: the samples are in {run.skipped_path}.")
    lost = [event for event in events if event.get("event") in ("lost", "stalled")]
    if lost:
        again = sum(int(event.get("steps", 0)) for event in events)
        made_again = f"; {counted(again, 'step')} made again" if again else ""
        at, _, who, _ = _fields(lost[-1])
        alarms.append(f"{counted(len(lost), 'fault')}, the newest of {who} at {at}{made_again}.")
    return tuple(alarms)


def modes_now(course: Course) -> tuple[ModeNow, ...]:
    """Each mode's newest accuracy, what it gained, and how training goes."""
    modes = []
    for mode, measured in course.heldout.items():
        named = (
            ("accuracy", f"reward/{mode}/accuracy", ".1%"),
            ("reward", f"reward/{mode}/mean", ".3g"),
            ("tokens", f"rollout/{mode}/tokens_mean", ",.1f"),
            ("reasons", f"rollout/{mode}/reasons", ".1%"),
        )
        recent = {
            name: f"{name} {series.tail(PACE_STEPS).mean():{form}}"
            for name, key, form in named
            if len(series := course.known(key))
        }
        steps = counted(min(len(course.logged), PACE_STEPS), "step")
        training = f"last {steps}: {', '.join(recent.values())}" if recent else "no step yet"
        accuracy, facts = recent.get("accuracy", NONE).removeprefix("accuracy "), []
        if len(measured):
            step = int(measured.index[-1])
            accuracy = f"{measured.iloc[-1]:.1%}"
            widths = course.known(f"eval/{mode}/half_width")
            width = f", ± {100 * widths.iloc[-1]:.1f}" if step and len(widths) else ""
            when = f"at step {step:,}" if step else "before the first step"
            facts.append(f"held-out accuracy {when}{width}")
            if step and measured.index[0] == 0:
                gained = 100 * (measured.iloc[-1] - measured.iloc[0])
                facts.append(f"{gained:+.1f} points since the start, {measured.iloc[0]:.1%}")
        elif recent:
            facts.append("accuracy in training; none was held out yet")
        modes.append(ModeNow(mode, accuracy, (*facts, training)))
    return tuple(modes)


def gains_of(course: Course, evaluated: int) -> Table:
    """Held-out figures of every mode, and of every source of a mixture in it, before training and
    of the evaluation at a step."""
    columns = {"tokens_mean": ",.1f", "truncated": ".1%", "leak": ".1%"}
    header = ["mode", "accuracy before", "after", "points", "tokens", "truncated", "mode leaks"]
    if any(len(course.known(f"eval/{mode}/reasons")) for mode in course.heldout):
        columns["reasons"] = ".1%"
        header.append("reasons")
    figures = ("accuracy", "half_width", "tokens_mean", "truncated", "leak", "reasons")
    compared = {}
    for mode in course.heldout:
        start = course.before.get(mode, {})
        for source, of_start in ({"": start} | start.get("by_source", {})).items():
            ending = f"_of_{source}" if source else ""
            now = {
                key: by_step[evaluated]
                for key in figures
                if evaluated in (by_step := course.known(f"eval/{mode}/{key}{ending}").to_dict())
            }
            compared[f"{mode}, {source}" if source else mode] = of_start, now
    lines = []
    for name, (start, now) in compared.items():
        accuracies = [
            f"{some['accuracy']:.1%} ± {100 * some.get('half_width', 0):.1f}"
            if "accuracy" in some
            else NONE
            for some in (start, now)
        ]
        is_known = "accuracy" in start and "accuracy" in now
        points = f"{100 * (now['accuracy'] - start['accuracy']):+.1f}" if is_known else NONE
        others = [
            " → ".join(
                NONE if some.get(key) is None else f"{some[key]:{form}}" for some in (start, now)
            )
            for key, form in columns.items()
        ]
        if start or now:
            lines.append((name, *accuracies, points, *others))
    return Table(tuple(header), tuple(lines))


def groups_of(run: RunDirectory) -> str | None:
    """What became of the groups, in words; None before the first checkpoint."""
    if groups := read_json(run.summary_path).get("groups"):
        return f"{in_words(groups)}."
    if not (settled := run.checkpoints.newest_progress().get("accounting")):
        return None
    steps = run.checkpoints.steps()
    of_step = f" Counted by the checkpoint of step {steps[-1]:,}." if steps else ""
    # A checkpoint counts steps that are settled alone, of which nothing is in flight.
    return f"{in_words(settled | {'in_flight': 0})}.{of_step}"


def groups_of_modes(course: Course) -> Table:
    """What the steps so far were made of, and for which reasons groups were dropped for them."""
    sums = {mode: course.known(f"rollout/{mode}/groups").sum() for mode in course.heldout}
    tokens = {mode: course.known(f"progress/{mode}/trained_tokens") for mode in course.heldout}
    lines = [
        (
            mode,
            f"{groups:,.0f}",
            f"{groups / total:.1%}",
            f"{tokens[mode].iloc[-1]:,.0f}" if len(tokens[mode]) else NONE,
        )
        for mode, groups in sums.items()
        if (total := sum(sums.values()))
    ]
    return Table(("mode", "groups of its steps", "share", "trained tokens"), tuple(lines))


def table_of_events(events: Sequence[Record]) -> Table:
    """The newest events, newest first."""
    lines = []
    for event in events[: -MAX_EVENTS - 1 : -1]:
        more = [f"{key} {value}" for key, value in event.items() if key not in _EVENT]
        *which, why = _fields(event)
        lines.append((*which, "; ".join(filter(None, [why, *more]))))
    return Table(_EVENT, tuple(lines))


def _fields(event: Record) -> tuple[str, ...]:
    """The fields that every event has, with the time as people write it."""
    at, *others = (str(event.get(key, "")) for key in _EVENT)
    return (at.replace("T", " "), *others)


def _steps_in(stem: str) -> str:
    """Example: _steps_in("step_000010-000020") == "10..20" """
    numbers = stem.removeprefix("step_").split("-")
    return "..".join(number.lstrip("0") or "0" for number in numbers)


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))
