"""Align: `python -m rl.align run=runs/NAME [config=rlaif_v.yaml] [step=N] [align.key=value ...]`.

Removes hallucination from a policy without RL rewards: RLAIF-V's pass over its own responses
(rl/alignment/). Of a run, its newest or named checkpoint is aligned, under the run's settings;
over them go the section `align` of the recipe, if any, and the command line. Of any other model,
`model=DIR_OR_NAME config=RECIPE [scale=...] [run=DIR]`, the recipe has all settings. What it makes
is left in `runs/NAME/align/`; the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console

from rl.align.console import AlignmentConsole
from rl.align.directory import AlignmentDirectory
from rl.config.recipe import load, load_over
from rl.config.run import Config
from rl.run.checkpoints import MANIFEST, Checkpoint, find_checkpoint
from rl.run.command import exit_code
from rl.run.directory import CHECKPOINT_BYTES, NEEDED_BYTES, RunDirectory
from rl.system.memory_estimate import count_parameters

if TYPE_CHECKING:
    from rl.align.parts import Origin
    from rl.assembly import Material

SECTION = "align"
COPIES = 4
"""Checkpoints of DPO, the result and its copy in checkpoints/, in sizes of a checkpoint."""


@dataclass(frozen=True)
class Align:
    """What a command line asks for."""

    config: Config
    step: int | None
    """Checkpoint of the run; None takes the newest."""
    model: str | None
    """Aligned in place of a run's checkpoint."""


def main(arguments: list[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return exit_code(lambda: _align(arguments), "make room, the same command goes on")


def _align(arguments: Sequence[str]) -> None:
    asyncio.run(run_alignment(parse(arguments)))


def parse(arguments: Sequence[str]) -> Align:
    """Read the command line; raises ValueError for one that names no policy, or two."""
    pairs = [argument.partition("=")[::2] for argument in arguments]
    own = {key: value for key, value in pairs if key in ("run", "step", "model")}
    others = [one for one in arguments if one.partition("=")[0] not in ("step", "model")]
    if empty := [key for key, value in own.items() if not value]:
        raise ValueError(f"{empty[0]}= names nothing; write {empty[0]}=VALUE")
    if any(one.startswith("dry_run=") for one in others):
        raise ValueError("rl.align has no dry run; leave dry_run out")
    if not re.fullmatch("[0-9]+", own.get("step", "0")):
        raise ValueError(f"step must be the number of a step, got {own['step']!r}")
    if "model" in own:
        if "step" in own:
            raise ValueError("step= is of a run's checkpoint; leave out model= or step=")
        return Align(load(others).config, None, own["model"])
    if "run" not in own:
        raise ValueError(
            "name a run directory, run=runs/NAME; or another policy with the recipe whose settings "
            "it takes, model=DIR_OR_NAME config=NAME.yaml"
        )
    stored = RunDirectory(Path(own["run"])).config_path
    if not stored.is_file():
        raise ValueError(
            f"{own['run']} is no run directory: it has no {stored.name}; train one with rl.launch, "
            "or name a model with model="
        )
    config = load_over(stored, SECTION, others, takes_others=True)
    return Align(config, int(own["step"]) if "step" in own else None, None)


async def run_alignment(asked: Align, screen: rich.console.Console | None = None) -> None:
    """Align a policy, or go on with it.

    Raises ValueError for input that cannot be aligned, before anything heavy starts.
    """
    console = AlignmentConsole(screen or rich.console.Console(highlight=False))
    run = RunDirectory(Path(asked.config.run))
    directory = AlignmentDirectory(run.root)
    config = _config(asked, directory)
    # What can be refused at once comes before torch and vLLM load.
    config.align.dpo.accumulation(config.policy.ranks)
    has_ledger = asked.model is None and any(run.ledger_path.glob("step_*.parquet"))
    if config.align.mine and not has_ledger:
        raise ValueError(
            f"align.mine={config.align.mine} takes pairs from the ledger of the run that trained "
            f"the policy, and there is none in {run.ledger_path}; leave it out, or name a run that "
            "was trained with log.ledger=true"
        )
    checkpoint = None if asked.model else find_checkpoint(run.root, asked.step, console.note)
    from rl.align.assistants import DIVIDER, LABELLER, assistant_source
    from rl.align.iterations import align
    from rl.align.parts import Parts
    from rl.assembly import gather_material

    material = gather_material(config)
    origin = _origin(material, run, checkpoint)
    labeller = await assistant_source(config, LABELLER, origin.model)
    divider = await assistant_source(config, DIVIDER, origin.model)
    assert labeller is not None, "a labeller has a default"
    with directory.open(config, origin.identity):
        size = (count_parameters(str(material.model)) or 0) * CHECKPOINT_BYTES
        run.check_room(NEEDED_BYTES + COPIES * size)
        console.note(f"aligning {origin.name}; all of it is left in {directory.root}")
        await align(Parts(material, origin, labeller, divider, directory, console))


def _config(asked: Align, directory: AlignmentDirectory) -> Config:
    """The pass's own configuration."""
    config = asked.config.without_preference()
    changes: dict[str, Any] = {"run": str(directory.root)}
    if asked.model is not None:
        changes["policy"] = config.policy.model_copy(update={"model": asked.model})
    return config.model_copy(update=changes)


def _origin(material: Material, run: RunDirectory, checkpoint: Checkpoint | None) -> Origin:
    from rl.align.parts import Origin
    from rl.data.fingerprint import stamp, stamp_of_model

    if checkpoint is None:
        name = material.config.policy.model
        identity = {"model": name, "weights": stamp_of_model(material.model)}
        untrained = {"progress": {"trained_tokens": {}}, "before": {}}
        return Origin(material.model, name, identity, untrained, 0, run.ledger_path)
    manifest = (checkpoint.path / MANIFEST).read_text(encoding="utf-8")
    return Origin(
        checkpoint.path / "model",
        str(checkpoint.path),
        {"step": checkpoint.step, "weights": stamp(manifest)},
        checkpoint.progress,
        checkpoint.step,
        run.ledger_path,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
