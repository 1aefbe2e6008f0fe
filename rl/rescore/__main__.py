"""Replays the ledger of a run under another reward configuration, on CPU and without sampling.

    python -m rl.rescore run=runs/NAME reward.weights.format=0.2
    python -m rl.rescore run=runs/NAME config=other.yaml out=DIR

It says what each part, each mode and each advantage would have been, and writes the new scores in
the form of the ledger. Rules, format, repetition, length and plug-ins are computed anew; a reward
model that the run did not use is loaded and asked; a probability is taken from the ledger, because
it belongs to weights that are gone. Only keys of `reward` can be changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator
from rich.console import Console

from rewards.text.plugins import with_checked_plugins
from rl.config.recipe import load_over
from rl.config.run import Config
from rl.run.command import Command, Keys, OptionalRecipeName, RunPath, ScaleName, run_command
from rl.run.directory import RunDirectory


class RescoreKeys(Keys):
    run: RunPath
    """The run whose ledger is scored."""
    out: Path | None = Field(default=None, examples=["DIR"])
    """Directory for the new scores; by default `rescored` in the run's directory."""
    config: OptionalRecipeName = None
    scale: ScaleName = None

    @model_validator(mode="after")
    def _keep_the_ledger(self) -> RescoreKeys:
        # The ledger is the only record of what was sampled, and nothing may write over it.
        ledger = RunDirectory(self.run).ledger_path
        if self.out is not None and self.out.resolve() == ledger.resolve():
            raise ValueError(f"out={self.out} is the ledger itself; name another directory")
        return self


async def compare(keys: RescoreKeys) -> None:
    # Imported here, so that help is answered before pandas loads.
    from rl.rescore.replay import rescore
    from rl.rescore.study import alarms, as_table, changes, sign_flips

    console = Console(stderr=True)
    directory = RunDirectory(keys.run)
    out = keys.out or directory.root / "rescored"
    stored = load_over(directory.config_path, "reward", [])
    config = load_over(directory.config_path, "reward", keys.settings)
    reward = with_checked_plugins(config.reward)
    config = config.model_copy(update={"reward": reward})
    paths = sorted(directory.ledger_path.glob("step_*.parquet"))
    if not paths:
        raise ValueError(f"{directory.ledger_path} holds no step_*.parquet; was log.ledger on?")
    old, new = await rescore(paths, stored, config, out, console)
    Console().print(as_table(changes(old, new)))
    for mode, share in sign_flips(old, new).items():
        Console().print(f"{mode}: {share:.1%} of the advantages change their sign")
    weights = {mode: config.reward.weights_for("", "", mode) for mode in config.modes}
    for sentence in alarms(new, weights):
        Console().print(f"[bold red]alarm[/] {sentence}")
    console.print(f"{len(new)} scores written to {out}")


COMMAND = Command("rl.rescore", __doc__, RescoreKeys, compare, (Config,))


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
