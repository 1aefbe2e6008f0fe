"""Replays the ledger of a run under another reward configuration, on CPU and without sampling.

    python -m rl.rescore run=runs/NAME reward.weights.format=0.2
    python -m rl.rescore run=runs/NAME config=other.yaml out=DIR

It says what each part, each mode and each advantage would have been, and writes the new scores in
the form of the ledger. Rules, format, repetition, length and plug-ins are computed anew; a reward
model that the run did not use is loaded and asked; a probability is taken from the ledger, because
it belongs to weights that are gone. Only keys of `reward` can be changed.
"""

import sys
from pathlib import Path

from pydantic import Field
from rich.console import Console

from rewards.text.plugins import with_checked_plugins
from rl.config.recipe import load_over
from rl.config.run import Config
from rl.run.command import Command, Keys, OptionalRecipeName, RunPath, ScaleName
from rl.run.directory import RunDirectory


class RescoreKeys(Keys):
    run: RunPath
    """The run whose ledger is scored."""
    out: Path | None = Field(default=None, examples=["DIR"])
    """Directory for the new scores; by default `rescored` in the run's directory."""
    config: OptionalRecipeName = None
    scale: ScaleName = None


async def compare(keys: RescoreKeys) -> None:
    directory = RunDirectory(keys.run)
    out = keys.out or directory.root / "rescored"
    # The ledger is the only record of what was sampled, and nothing may write over it.
    if out.resolve() == directory.ledger_path.resolve():
        raise ValueError(f"out={out} is the ledger itself; name another directory")
    stored = load_over(directory.config_path, "reward", [])
    config = load_over(directory.config_path, "reward", keys.settings)
    reward = with_checked_plugins(config.reward)
    config = config.model_copy(update={"reward": reward})
    paths = sorted(directory.ledger_path.glob("step_*.parquet"))
    if not paths:
        raise ValueError(f"{directory.ledger_path} holds no step_*.parquet; was log.ledger on?")
    # They load pandas, for which help and what is refused above do not wait.
    from rl.rescore import replay

    console, screen = Console(stderr=True), Console()
    old, new = await replay.rescore(paths, stored, config, out, console)
    screen.print(replay.as_table(replay.changes(old, new)))
    for mode, share in replay.sign_flips(old, new).items():
        screen.print(f"{mode}: {share:.1%} of the advantages change their sign")
    weights = {mode: reward.weights_for("", "", mode) for mode in config.modes}
    for sentence in replay.alarms(new, weights):
        screen.print(f"[bold red]alarm[/] {sentence}")
    console.print(f"{len(new)} scores written to {out}")


main = Command("rl.rescore", __doc__, RescoreKeys, compare, (Config,))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
