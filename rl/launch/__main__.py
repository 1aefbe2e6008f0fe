"""Trains a policy by the recipe, or goes on with a training that was stopped.

    python -m rl.launch config=hybrid_50_50.yaml
    python -m rl.launch config=hybrid_50_50.yaml scale=one_gpu rollout.group_size=16
    python -m rl.launch config=hybrid_50_50.yaml dry_run=true

`align.enabled=true` goes on with rl.align after the last step. rl/launch/training.py has a run
from start to end.
"""

from __future__ import annotations

import sys

from rl.align.__main__ import run_alignment
from rl.config.recipe import load
from rl.config.run import Config
from rl.run.command import Command, Keys, RecipeName, ScaleName, Switch


class LaunchKeys(Keys):
    config: RecipeName
    scale: ScaleName = None
    dry_run: Switch = False
    """Read data, model and template as a run would, say what was found, and start nothing; the exit
    code is 1 if the run would fail."""


async def launch(keys: LaunchKeys) -> int | None:
    loaded = load(keys.settings)
    config = loaded.config
    # torch and drawing libraries start slowly, and help and a mistyped key are to be answered at
    # once.
    if keys.dry_run:
        from rl.launch.preflight import print_preflight

        return await print_preflight(config, loaded.notes)
    from rl.launch.training import train

    is_finished = await train(config, loaded.notes)
    if config.align.enabled and is_finished:
        await run_alignment(config)
    return None


main = Command("rl.launch", __doc__, LaunchKeys, launch, (Config,), goes_on=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
