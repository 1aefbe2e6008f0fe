"""Train: `python -m rl.launch config=hybrid_50_50.yaml [scale=...] [key=value ...] [dry_run=true]`.

rl/launch/training.py has the run from start to end. `align.enabled=true` goes on with rl.align
after the last step.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rl.align.__main__ import Align, run_alignment
from rl.config.recipe import Launch, load
from rl.launch.training import described, train
from rl.run.command import exit_code


def main(arguments: list[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return exit_code(lambda: _launch(arguments), "make room, the same command goes on")


def _launch(arguments: Sequence[str]) -> None:
    launch = load(arguments)
    if launch.dry_run:
        print(described(launch))
    else:
        asyncio.run(_train_and_align(launch))


async def _train_and_align(launch: Launch) -> None:
    config = launch.config
    is_finished = await train(config, launch.notes)
    if config.align.enabled and is_finished:
        await run_alignment(Align(config, step=None, model=None))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
