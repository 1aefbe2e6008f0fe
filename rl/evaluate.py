"""Evaluate: `python -m rl.evaluate run=runs/NAME [eval.prompts=512] [eval.temperature=0]`.

Both modes of a run's newest checkpoint on the held-out split, side by side. Settings are those of
the run; any can be changed on the command line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.atomic_write import write_text
from rl.checkpoints import Checkpoint
from rl.config import Config
from rl.evaluation import ModeResult, evaluate
from rl.recipe import load
from rl.run_directory import RunDirectory


def main(arguments: list[str]) -> int:
    """Return the exit code; an error that a user can mend is one line, not a traceback."""
    console = Console(stderr=True)
    try:
        config = config_of_run(arguments)
        directory = RunDirectory(Path(config.run))
        checkpoint = directory.newest_checkpoint(console.print)
        if checkpoint is None:
            raise ValueError(f"{directory.root} has no checkpoint yet; train it with rl.launch")
        results = asyncio.run(evaluate_checkpoint(config, checkpoint, console))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = directory.root / f"evaluation_step_{checkpoint.step:06d}.json"
    write_text(path, json.dumps(as_json(config, checkpoint, results), indent=1))
    Console().print(as_table(checkpoint.step, results))
    console.print(f"written to {path}")
    return 0


def config_of_run(arguments: list[str]) -> Config:
    """The stored configuration of `run=DIR`, with the other arguments over it."""
    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(runs) != 1:
        raise ValueError("name one run directory: run=runs/NAME")
    stored = RunDirectory(Path(runs[0])).config_path
    if not stored.is_file():
        raise ValueError(f"{runs[0]} is no run directory: it has no {stored.name}")
    return load([f"config={stored}", *arguments]).config


async def evaluate_checkpoint(
    config: Config, checkpoint: Checkpoint, console: Console
) -> dict[str, ModeResult]:
    """Sample the checkpoint's exported model in the run's own engines and reward service."""
    from rl.assembly import gather_material, start_system

    material = gather_material(config)
    model = checkpoint.path / "model"
    system = await start_system(material, console.print, train=False, model=model)
    try:
        system.scorer.load(checkpoint.progress["scorer"])
        console.print(f"evaluating step {checkpoint.step} on {len(material.heldout)} prompts")
        return await evaluate(
            config, material.encode, system.engine, system.scorer, material.heldout
        )
    finally:
        await system.close()


def as_json(config: Config, checkpoint: Checkpoint, results: dict[str, ModeResult]) -> dict:
    """The figures with the task, metric and settings they belong to."""
    return {
        "run": config.run,
        "step": checkpoint.step,
        "task": f"{config.data.kind}{':' + config.data.path if config.data.path else ''}",
        "metric": "accuracy of one response per held-out prompt",
        "settings": config.eval.model_dump(),
        "modes": {mode: dataclasses.asdict(result) for mode, result in results.items()},
    }


def as_table(step: int, results: dict[str, ModeResult]) -> Table:
    table = Table(title=f"held-out prompts at step {step}")
    for column in ("mode", "accuracy", "tokens", "truncated", "prompts"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode, result in results.items():
        table.add_row(
            mode,
            f"{result.accuracy:.1%} ± {100 * result.half_width:.1f}",
            f"{result.tokens_mean:.1f}",
            f"{result.truncated:.1%}",
            str(result.count),
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
