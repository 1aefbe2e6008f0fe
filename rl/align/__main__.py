"""Removes hallucination from a policy without RL rewards, by preferences between its own responses.

    python -m rl.align run=runs/NAME
    python -m rl.align run=runs/NAME step=80 config=rlaif_v.yaml align.responses=8
    python -m rl.align model=DIR_OR_NAME config=rlaif_v.yaml run=runs/NAME

This is the pass of RLAIF-V (rl/align/). Of a run, its newest or named checkpoint is aligned, under
the run's settings; over them go the section `align` of the recipe, if any, and the command line.
Of any other model (`model=`) the recipe has all settings. What it makes is left in
`runs/NAME/align/`; the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rich.console
from pydantic import Field, model_validator

from rl.align.report import AlignmentConsole
from rl.config.recipe import load, load_over, lora_rate_notes
from rl.config.run import Config
from rl.run.checkpoints import find_checkpoint
from rl.run.command import (
    Command,
    Keys,
    OptionalRecipeName,
    ScaleName,
    Step,
    require_run,
)
from rl.run.directory import RunDirectory


class AlignKeys(Keys):
    run: Path | None = Field(default=None, examples=["runs/NAME"])
    """The run whose checkpoint is aligned; with `model`, where the result goes."""
    step: Step | None = None
    """Step of the run's checkpoint; by default the newest."""
    model: str | None = Field(default=None, examples=["DIR_OR_NAME"])
    """A model that is aligned in place of a run's checkpoint: its directory or name."""
    config: OptionalRecipeName = None
    scale: ScaleName = None

    @model_validator(mode="after")
    def _name_one_policy(self) -> AlignKeys:
        if self.model is not None and self.step is not None:
            raise ValueError("step= is of a run's checkpoint; leave out model= or step=")
        if self.model is None:
            if self.run is None:
                raise ValueError(
                    "name a run directory, run=runs/NAME; or another policy with the recipe whose "
                    "settings it takes, model=DIR_OR_NAME config=NAME.yaml"
                )
            require_run(self.run)
        return self


def config_of(keys: AlignKeys) -> Config:
    """The settings of the pass; raises ValueError where they are none."""
    if keys.run is None:
        return load(keys.settings).config
    settings = [*keys.settings, f"run={keys.run}"]
    if keys.model is not None:
        return load(settings).config
    return load_over(RunDirectory(keys.run).config_path, "align", settings, takes_others=True)


async def align(keys: AlignKeys) -> None:
    await run_alignment(config_of(keys), keys.step, keys.model)


async def run_alignment(config: Config, step: int | None = None, model: str | None = None) -> None:
    """Align a policy, or go on with it.

    step: of the run's checkpoint; None takes the newest. model: is aligned in place of a run's
    checkpoint. Raises ValueError for input that cannot be aligned, before anything heavy starts.
    """
    console = AlignmentConsole(rich.console.Console(highlight=False))
    run = RunDirectory(Path(config.run))
    config.align.dpo.accumulation(config.policy.ranks)
    for note in lora_rate_notes(config, "align.dpo"):
        console.note(note)
    has_ledger = model is None and any(run.ledger_path.glob("step_*.parquet"))
    if config.align.mine and not has_ledger:
        raise ValueError(
            f"align.mine={config.align.mine} takes pairs from the ledger of the run that trained "
            f"the policy, and there is none in {run.ledger_path}; leave it out, or name a run that "
            "was trained with log.ledger=true"
        )
    checkpoint = None if model else find_checkpoint(run.root, step, console.note)
    if model is not None:
        policy = config.policy.model_copy(update={"model": model})
        config = config.model_copy(update={"policy": policy})
    # torch and vLLM take long to load, so what can be refused without them is refused before.
    from rl.align.iterations import run_pass

    await run_pass(config, run, checkpoint, console)


main = Command("rl.align", __doc__, AlignKeys, align, (Config,), goes_on=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
