"""Evaluate: `python -m rl.evaluate run=runs/NAME [step=N] [eval.temperature=0] [key=value ...]`.

All modes of a policy on the same prompts, side by side: of a run's newest or named checkpoint, of a
model (`model=DIR_OR_NAME`), or of an OpenAI-compatible server (`endpoint=URL [served_name=NAME]`),
the last two under the settings of a run (`run=`) or a recipe (`config=`). `split=train` asks the
prompts that training asks first; `out=DIR` says where responses and figures go.

The same command goes on where a killed one stopped (rl/evaluation_directory.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rl.config import Config
from rl.evaluation import (
    METRICS,
    ModeResult,
    NothingAnswered,
    Question,
    Sample,
    answered_before,
    evaluate,
    figures,
    questions,
)
from rl.evaluation_directory import EvaluationDirectory, label, open_evaluation
from rl.evaluation_plot import draw_accuracy
from rl.evaluation_sources import (
    Note,
    Source,
    checkpoint_source,
    endpoint_source,
    model_source,
)
from rl.recipe import load
from rl.run_directory import RunDirectory
from rl.stack_versions import stack_versions

SPLITS = ("heldout", "train")
OWN_KEYS = ("run", "config", "step", "model", "endpoint", "served_name", "split", "out")


@dataclass(frozen=True)
class Evaluation:
    """What a command line asks for."""

    config: Config
    run: Path | None
    split: str
    data: str | None
    """Name of the data, where the command line says anything of them."""
    step: int | None
    """Checkpoint of the run; None takes the newest."""
    model: str | None
    endpoint: str | None
    served_name: str | None
    out: Path | None


def main(arguments: list[str]) -> int:
    """Return the exit code; an error that a user can mend is one line, not a traceback."""
    try:
        console = Console(stderr=True, soft_wrap=True, markup=False)
        asyncio.run(run_evaluation(parse(arguments), console))
    except (ValueError, NothingAnswered) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> Evaluation:
    """Read the command line; raises ValueError for one that names no policy, or two."""
    pairs = [argument.partition("=")[::2] for argument in arguments]
    own = {key: value for key, value in pairs if key in OWN_KEYS}
    settings = [one for one in arguments if one.partition("=")[0] not in OWN_KEYS]
    if any(one.startswith("dry_run=") for one in settings):
        raise ValueError("rl.evaluate has no dry run; leave dry_run out")
    _refuse_unclear(own)
    config = _config(own, settings)
    has_own_data = any(one.startswith("data") for one in settings)
    data = config.data
    return Evaluation(
        config=config,
        run=Path(own["run"]) if "run" in own else None,
        split=own.get("split", SPLITS[0]),
        data=Path(data.heldout_path or data.path or data.kind).stem if has_own_data else None,
        step=int(own["step"]) if "step" in own else None,
        model=own.get("model"),
        endpoint=own.get("endpoint"),
        served_name=own.get("served_name"),
        out=Path(own["out"]) if "out" in own else None,
    )


def _refuse_unclear(own: Mapping[str, str]) -> None:
    has = own.keys().__contains__
    is_other = has("model") or has("endpoint")
    split, step = own.get("split", SPLITS[0]), own.get("step", "0")
    refusals = [
        *((not value, f"{key}= names nothing; write {key}=VALUE") for key, value in own.items()),
        (has("model") and has("endpoint"), "model= and endpoint= are two policies; name one"),
        (has("run") and has("config"), "run= and config= both give settings; name one of them"),
        (
            not (has("run") or has("config")),
            "name a run directory, run=runs/NAME; or another policy, model= or endpoint=, and "
            "whose settings it is asked under, run= or config=",
        ),
        (
            has("config") and not is_other,
            "config= names settings and no policy; add model=DIR_OR_NAME or endpoint=URL",
        ),
        (
            has("step") and is_other,
            "step= is of a run's checkpoint; leave out model= and endpoint=",
        ),
        (
            has("served_name") and not has("endpoint"),
            "served_name= belongs to endpoint=URL; add it",
        ),
        (not re.fullmatch("[0-9]+", step), f"step must be the number of a step, got {step!r}"),
        (split not in SPLITS, f"split must be {' or '.join(SPLITS)}, got {split!r}"),
    ]
    for is_refused, why in refusals:
        if is_refused:
            raise ValueError(why)


def _config(own: Mapping[str, str], settings: Sequence[str]) -> Config:
    if "run" in own:
        return config_of_run([f"run={own['run']}", *settings])
    return load([f"config={own['config']}", *settings]).config


def config_of_run(arguments: Sequence[str]) -> Config:
    """The stored configuration of `run=DIR`, with the other arguments over it."""
    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(runs) != 1:
        raise ValueError("name one run directory: run=runs/NAME")
    stored = RunDirectory(Path(runs[0])).config_path
    if not stored.is_file():
        raise ValueError(f"{runs[0]} is no run directory: it has no {stored.name}")
    return load([f"config={stored}", *arguments]).config


async def run_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Ask for what is not there yet and leave the figures; raises ValueError for bad input."""
    started = time.monotonic()
    config = evaluation.config
    source = await _source(evaluation, console.print)
    name = label(source.name, evaluation.data, evaluation.split, config.eval)
    root = evaluation.out or (evaluation.run or Path()) / "evaluations" / name
    settings = settings_of(evaluation, source.policy)
    asked = questions(config, source.prompts)
    with open_evaluation(root, settings) as directory:
        known = answered_before(asked, directory.samples)
        missing = [question for question in asked if question.key not in known]
        console.print(f"{root}: {len(missing)} of {len(asked)} responses are to be asked for")
        if missing:
            results = await _ask(config, source, directory, asked, console)
        else:
            results = figures(asked, known)
        result = settings | {
            "policy": {"path": source.path, **source.policy},
            "n": len(source.prompts),
            "k": config.eval.samples,
            "metrics": METRICS,
            "modes": {mode: dataclasses.asdict(figure) for mode, figure in results.items()},
            "asked": len(missing),
            "seconds": round(time.monotonic() - started, 1),
            "versions": stack_versions(),
        }
        directory.write_result(result)
        picture = draw_accuracy(root)
    Console().print(as_table(name, results))
    console.print(f"written to {root}; picture: {picture}")


async def _source(evaluation: Evaluation, note: Note) -> Source:
    config, split = evaluation.config, evaluation.split
    if evaluation.endpoint is not None:
        return await endpoint_source(
            config, split, evaluation.endpoint, evaluation.served_name, note
        )
    if evaluation.model is not None:
        return model_source(config, split, evaluation.model, note)
    assert evaluation.run is not None, "the command line names one of them"
    return checkpoint_source(config, split, evaluation.run, evaluation.step, note)


async def _ask(
    config: Config,
    source: Source,
    directory: EvaluationDirectory,
    asked: Sequence[Question],
    console: Console,
) -> dict[str, ModeResult]:
    async with source.open() as (encode, sampler, scorer):
        known = answered_before(asked, directory.samples).values()
        with progress(asked, known, console) as advance:

            def keep(sample: Sample) -> None:
                directory.add(sample)
                advance(sample.mode)

            return await evaluate(config, encode, sampler, scorer, source.prompts, known, keep)


def settings_of(evaluation: Evaluation, policy: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a response is and how it is scored, but for how many there are."""
    config = evaluation.config
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    modes = {
        name: {"thinking": mode.thinking, "max_tokens": mode.max_tokens}
        for name, mode in config.modes.items()
    }
    return {
        "policy": dict(policy),
        "task": {"kind": config.data.kind, **data},
        "split": evaluation.split,
        "settings": {
            "temperature": config.eval.temperature,
            "top_p": config.eval.top_p,
            "seed": config.seed,
            "seed_requests": config.rollout.seed_requests,
            "dtype": config.policy.dtype,
            "modes": modes,
            "reward": config.reward.model_dump(mode="json", include={"probability", "plugins"}),
        },
    }


# What a person sees


@contextmanager
def progress(
    asked: Sequence[Question], known: Collection[Sample], console: Console
) -> Iterator[Callable[[str], None]]:
    """A bar per mode; yields what moves the bar of a mode by one response."""
    keys = {sample.key for sample in known}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        bar_of = {
            mode: bars.add_task(mode, total=total)
            for mode, total in Counter(question.mode for question in asked).items()
        }
        for mode, done in Counter(q.mode for q in asked if q.key in keys).items():
            bars.advance(bar_of[mode], done)
        yield lambda mode: bars.advance(bar_of[mode])


def as_table(title: str, results: Mapping[str, ModeResult]) -> Table:
    """A column per mode, side by side."""
    shown = list(results.values())
    first = shown[0]
    table = Table(title=title, title_justify="left")
    table.add_column(f"{first.count} prompts")
    for mode in results:
        table.add_column(mode, justify="right")
    rows = {
        "accuracy" if first.samples == 1 else f"accuracy (avg@{first.samples})": [
            f"{result.accuracy:.1%} ± {100 * result.half_width:.1f}" for result in shown
        ],
        **{
            f"pass@{k}": [f"{r.pass_at[k]:.1%}" if k in r.pass_at else "-" for r in shown]
            for k in sorted({k for result in shown for k in result.pass_at if k > 1})
        },
        "tokens": [f"{result.tokens_mean:.1f}" for result in shown],
        "truncated": [f"{result.truncated:.1%}" for result in shown],
        "leak": [f"{result.leak:.1%}" for result in shown],
        "unscored": [str(result.unscored) for result in shown],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
