"""Trains every arm of a sweep as rl.launch would, and reports what they show side by side.

    python -m rl.sweep config=sweep_ratio.yaml
    python -m rl.sweep config=sweep_ratio.yaml scale=one_gpu arms_at_once=null seeds=[0]
    python -m rl.sweep config=sweep_ratio.yaml arms.rollout.group_size=[4,8] dry_run=true

The directory of a sweep, `runs/NAME` or `run=PATH`, holds

    sweep.yaml    what is swept          report.md, report.html, results.json
    arms/NAME/    an arm's run           ratio.png, and curves.png where the sweep names curves
    tune/         Ray Tune's own files

Ray Tune schedules and places the arms: each is a trial with the placement group of its run. What
an arm has done is in its run directory, proven checkpoints and all; the same command therefore
gives Tune the arms that are not finished, each goes on from its newest checkpoint, and seeds or
shares may be added to a sweep at any time. The exit code is 0 if every arm is finished.
"""

import asyncio
import sys
from pathlib import Path

import rich.console
from omegaconf import OmegaConf

from rl.config.recipe import read_tree
from rl.config.run import Config
from rl.run.command import Command, Keys, RecipeName, ScaleName, Switch
from rl.run.directory import OwnedDirectory, RunDirectory
from rl.sweep.arms import Sweep, SweepConfig, is_finished, load_sweep


class SweepKeys(Keys):
    config: RecipeName
    scale: ScaleName = None
    dry_run: Switch = False
    """Only print the arms, and the first of them in full, as a dry run of rl.launch does."""


def sweep_arms(keys: SweepKeys) -> int:
    sweep = load_sweep(keys.settings)
    if not keys.dry_run:
        return run_sweep(sweep)
    # It loads torch, which --help and a refusal need not wait for.
    from rl.launch.preflight import print_preflight

    first = sweep.arms[0]
    print(
        f"{len(sweep.arms)} arms in {sweep.root}:", *(f"  {a.name}" for a in sweep.arms), sep="\n"
    )
    print(f"{first.name} in full:")
    return asyncio.run(print_preflight(first.config, sweep.notes))


def run_sweep(sweep: Sweep) -> int:
    """Train what is left to train, then report on everything; returns the exit code."""
    console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    for note in sweep.notes:
        console.print(f"note: {note}", markup=False)
    names = {path.name for path in sweep.root.iterdir()} if sweep.root.is_dir() else set()
    if names - {".lock"} and "sweep.yaml" not in names:
        raise ValueError(f"{sweep.root} is no sweep and not empty; name another with run=PATH")
    with OwnedDirectory(sweep.root, "run=PATH").hold():
        _refuse_another(sweep)
        left = [arm for arm in sweep.arms if not is_finished(arm)]
        failures: dict[str, str] = {}
        if len(left) < len(sweep.arms):
            console.print(f"{len(sweep.arms) - len(left)} of {len(sweep.arms)} arms are finished")
        if left:
            # It loads Ray and torch, which a refusal or a report alone need not wait for.
            from rl.sweep.trials import train_arms

            failures = train_arms(sweep, left, console)
        for name, why in failures.items():
            console.print(f"arm {name} failed: {why}", style="red", markup=False)
        finished = [arm for arm in sweep.arms if is_finished(arm)]
        num_left = len(sweep.arms) - len(finished)
        if num_left:
            console.print(
                f"{num_left} arms are not finished; the same command goes on with them (on a "
                "cluster run= must be on a disk that all nodes share)"
            )
        if finished:
            # They load matplotlib and pandas, which --help and a refusal need not wait for.
            from rl.sweep import report, results

            found = results.read_results(finished, failures, sweep.config.curves)
            page = report.write_report(sweep.root, found, sweep.config.published)
            rich.console.Console(highlight=False).print(report.summary_table(found))
            console.print(f"written to {page}")
        return 1 if num_left else 0


def _refuse_another(sweep: Sweep) -> None:
    """Raise ValueError if arms were trained that are not those of this sweep."""
    stored = sweep.root / "sweep.yaml"
    if not stored.is_file() or not any(sweep.root.glob("arms/*/metrics.jsonl")):
        return
    before = SweepConfig.model_validate(OmegaConf.to_container(read_tree(stored)))
    now, may_differ = sweep.config, ["arms_at_once", "curves", "published"]
    if before.variants.items() <= now.variants.items():
        may_differ.append("variants")
    if set(before.long_share) <= set(now.long_share):
        may_differ.append("long_share")
    # The first seed also decides the prompts of every arm (arms.py), so arms that were trained
    # under another one were asked other questions.
    if set(before.seeds) <= set(now.seeds) and before.seeds[0] == now.seeds[0]:
        may_differ.append("seeds")
    OwnedDirectory(sweep.root, "run=PATH").refuse_other_settings(
        before.model_dump(),
        now.model_dump(),
        may_differ,
        content="holds another sweep",
        advice="Give the old values to go on with it (more shares and variants may stand beside "
        "them, and more seeds after the first), or name another with run=PATH",
    )
    for arm in sweep.arms:
        if is_finished(arm):
            RunDirectory(Path(arm.config.run)).refuse_another(arm.config)


main = Command("rl.sweep", __doc__, SweepKeys, sweep_arms, (SweepConfig, Config), goes_on=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
