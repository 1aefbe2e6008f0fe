"""Trains every arm of a sweep as rl.launch would, and reports what they show side by side.

    python -m rl.sweep config=sweep_ratio.yaml
    python -m rl.sweep config=sweep_ratio.yaml scale=one_gpu arms_at_once=null seeds=[0]
    python -m rl.sweep config=sweep_ratio.yaml arms.rollout.group_size=[4,8] dry_run=true

The directory of a sweep, `runs/NAME` or `run=PATH`, holds

    sweep.yaml    what is swept          report.md, report.html, ratio.png, results.json
    arms/NAME/    an arm's run           tune/    Ray Tune's own files

Ray Tune schedules and places the arms: each is a trial with the placement group of its run. What
an arm has done is in its run directory, proven checkpoints and all; the same command therefore
gives Tune the arms that are not finished, each goes on from its newest checkpoint, and seeds or
shares may be added to a sweep at any time. The exit code is 0 if every arm is finished.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console
from omegaconf import OmegaConf

from rl.config.recipe import read_tree
from rl.config.run import Config
from rl.run.command import Command, Keys, RecipeName, ScaleName, Switch, run_command
from rl.run.directory import OwnedDirectory, RunDirectory, setting_differences
from rl.run.files import write_text
from rl.sweep.arms import Sweep, SweepConfig, load_sweep
from rl.sweep.results import is_finished, read_results

# Of a sweep that exists, these may change: more arms, and how many at a time.
MAY_DIFFER = ("arms_at_once", "seeds", "long_share")


class SweepKeys(Keys):
    config: RecipeName
    scale: ScaleName = None
    dry_run: Switch = False
    """Only print the arms, and the first of them in full."""


def sweep_arms(keys: SweepKeys) -> int:
    sweep = load_sweep(keys.settings)
    if keys.dry_run:
        print(described_sweep(sweep))
        return 0
    return run_sweep(sweep)


def described_sweep(sweep: Sweep) -> str:
    """The arms, and the resolved configuration and placement of the first."""
    from rl.launch.training import described  # starts slowly

    names = [f"  {arm.name}" for arm in sweep.arms]
    first = sweep.arms[0]
    in_full = described(first.config, sweep.notes)
    return "\n".join(
        [f"{len(names)} arms in {sweep.root}:", *names, f"{first.name} in full:", in_full]
    )


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
        return _train_and_report(sweep, console)


def _train_and_report(sweep: Sweep, console: rich.console.Console) -> int:
    left = [arm for arm in sweep.arms if not is_finished(arm)]
    if len(left) < len(sweep.arms):
        console.print(f"{len(sweep.arms) - len(left)} of {len(sweep.arms)} arms are finished")
    failures = {}
    if left:
        _check_input([arm.config for arm in left])
        write_text(sweep.root / "sweep.yaml", OmegaConf.to_yaml(sweep.config.model_dump()))
        # It loads Ray, which takes seconds that a refusal or a report alone need not wait for.
        from rl.sweep.trials import train_arms

        failures = train_arms(sweep, left, console)
    for name, why in failures.items():
        console.print(f"arm {name} failed: {why}", style="red", markup=False)
    finished = [arm for arm in sweep.arms if is_finished(arm)]
    num_left = len(sweep.arms) - len(finished)
    if num_left:
        console.print(
            f"{num_left} arms are not finished; the same command goes on with them (on a cluster "
            "run= must be on a disk that all nodes share)"
        )
    if not finished:
        return 1
    from rl.sweep.report import summary_table, write_report  # starts slowly

    results = read_results(finished, failures)
    report = write_report(sweep.root, results)
    rich.console.Console(highlight=False).print(summary_table(results))
    console.print(f"written to {report}")
    return 1 if num_left else 0


def _refuse_another(sweep: Sweep) -> None:
    """Raise ValueError if arms were trained that are not those of this sweep."""
    stored = sweep.root / "sweep.yaml"
    if not stored.is_file() or not any(sweep.root.glob("arms/*/metrics.jsonl")):
        return
    plain = OmegaConf.to_container(read_tree(stored))
    before, now = SweepConfig.model_validate(plain), sweep.config
    differences = setting_differences(before.model_dump(), now.model_dump(), MAY_DIFFER)
    missing = [f"long_share lacks {s}" for s in before.long_share if s not in now.long_share]
    missing += [f"seeds lacks {seed}" for seed in before.seeds if seed not in now.seeds]
    if before.seeds[0] != now.seeds[0]:
        # The first seed also decides the prompts of every arm (arms.py), so arms that were trained
        # under another one were asked other questions.
        missing.append(f"the first seed was {before.seeds[0]}, is {now.seeds[0]}")
    if differences or missing:
        listed = "; ".join(filter(None, [differences, *missing]))
        raise ValueError(
            f"{sweep.root} holds another sweep: {listed}; give the old values to go on with it "
            "(more seeds and shares may stand beside them), or name another with run=PATH"
        )
    for arm in sweep.arms:
        if is_finished(arm):
            RunDirectory(Path(arm.config.run)).refuse_another(arm.config)


def _check_input(configs: Sequence[Config]) -> None:
    """Refuse what an arm cannot run with, and make the models that arms share, once."""
    # It loads torch; see above.
    from rl.assembly import gather_inputs

    checked: set[str] = set()
    for config in configs:
        # Checking an arm reads its data. Arms that differ in shares, seeds or optimizers alone have
        # the same data and models, so one check covers them.
        asked = config.model_dump_json(include={"data", "reward", "eval"})
        asked += f"{config.policy.model} {config.rollout.max_model_length}"
        asked += str([(m.thinking, m.max_tokens) for m in config.modes.values()])
        if asked not in checked:
            checked.add(asked)
            gather_inputs(config)


COMMAND = Command("rl.sweep", __doc__, SweepKeys, sweep_arms, (SweepConfig, Config), goes_on=True)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
