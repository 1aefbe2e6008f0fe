"""Trains a policy by the recipe, or goes on with a training that was stopped.

    python -m rl.launch config=hybrid_50_50.yaml
    python -m rl.launch config=hybrid_50_50.yaml scale=one_gpu rollout.group_size=16
    python -m rl.launch config=hybrid_50_50.yaml dry_run=true
    python -m rl.launch config=hybrid_50_50.yaml scale=node_8gpu simulate=true

Ctrl-C, or SIGTERM, ends a training with a checkpoint, within `checkpoint.grace_s` after SIGTERM:
with code 0, or 143 where it was SIGTERM, so that a scheduler starts the same command again, which
goes on from there.

`align.enabled=true` goes on with rl.align after the last step. rl/launch/training.py has a run
from start to end.
"""

import asyncio
import signal
import sys

from rl.align.__main__ import run_alignment
from rl.config.recipe import load
from rl.config.run import Config
from rl.run.command import Command, Keys, RecipeName, ScaleName, Switch

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a training that a scheduler's SIGTERM stopped."""


class LaunchKeys(Keys):
    config: RecipeName
    scale: ScaleName = None
    dry_run: Switch = False
    """Read data, model and template as a run would, say what was found, and start nothing; the exit
    code is 1 if the run would fail."""
    simulate: Switch = False
    """Print how long a step of this scale takes by arithmetic, who waits, and what other engines
    and another staleness would change; response lengths are those of the ledger in run=, or drawn.
    """


async def launch(keys: LaunchKeys) -> int:
    loaded = load(keys.settings)
    if loaded.auto_scale is not None:
        # It asks how much memory the model takes, for which it loads torch.
        from rl.launch.auto_scale import fit_scale

        loaded = fit_scale(keys.settings, loaded)
    config = loaded.config
    # torch and drawing libraries start slowly, and help and a mistyped key are to be answered at
    # once.
    if keys.dry_run:
        from rl.launch.preflight import print_preflight

        return await print_preflight(config, loaded.notes)
    if keys.simulate:
        from rl.launch.simulate.report import print_simulation

        # In a thread, since it runs an event loop of its own, whose clock jumps.
        await asyncio.to_thread(print_simulation, config)
        return 0
    from rl.launch.training import train

    stopped_by = await train(config, loaded.origin, loaded.notes)
    if stopped_by is None and config.align.enabled:
        await run_alignment(config)
    # Not 0: a scheduler that took the machine away must know that the run wants it back. A person
    # who pressed Ctrl-C has what they asked for.
    return TERMINATED if stopped_by == signal.SIGTERM else 0


main = Command("rl.launch", __doc__, LaunchKeys, launch, (Config,), goes_on=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
