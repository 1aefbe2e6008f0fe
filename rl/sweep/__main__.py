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

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.console
from omegaconf import OmegaConf

from rl.config.recipe import read_tree
from rl.config.run import Config
from rl.run.command import Command, Keys, RecipeName, ScaleName, Switch, run_command
from rl.run.directory import OwnedDirectory, RunDirectory, setting_differences
from rl.run.files import write_text
from rl.sweep.arms import Arm, Sweep, SweepConfig, load_sweep
from rl.sweep.results import is_finished, read_results
from rl.system.placement import place

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
    _refuse_foreign(sweep.root)
    with OwnedDirectory(sweep.root, "run=PATH").hold():
        _refuse_another(sweep)
        return _train_and_report(sweep, console)


def _train_and_report(sweep: Sweep, console: rich.console.Console) -> int:
    left = [arm for arm in sweep.arms if not is_finished(arm)]
    if len(left) < len(sweep.arms):
        console.print(f"{len(sweep.arms) - len(left)} of {len(sweep.arms)} arms are finished")
    if left:
        _check_input([arm.config for arm in left])
        write_text(sweep.root / "sweep.yaml", OmegaConf.to_yaml(sweep.config.model_dump()))
    failures = train_arms(sweep, left, console) if left else {}
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


def _refuse_foreign(root: Path) -> None:
    """Raise ValueError if the directory holds something that is no sweep's."""
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if names - {".lock"} and "sweep.yaml" not in names:
        raise ValueError(f"{root} is no sweep and not empty; name another with run=PATH")


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
        # It decides the prompts of every arm.
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
    from rl.assembly import gather_inputs

    checked: set[str] = set()
    for config in configs:
        # Shares, seeds and optimizers ask nothing new of data and models.
        asked = config.model_dump_json(include={"data", "reward", "eval"})
        asked += f"{config.policy.model} {config.rollout.max_model_length}"
        asked += str([(m.thinking, m.max_tokens) for m in config.modes.values()])
        if asked not in checked:
            checked.add(asked)
            gather_inputs(config)


def train_arms(sweep: Sweep, arms: Sequence[Arm], console: rich.console.Console) -> dict[str, str]:
    """Train the arms under Ray Tune; returns why arms failed, by name."""
    # The metrics are in the arms' own directories, and so is what an arm prints.
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    # Of Tune's two displays the one that verbose=0 silences.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Starts slowly, and help and a mistyped key are to be answered at once.
    import ray
    from ray import tune

    from rl.sweep.trials import SweepProgress
    from rl.system.cluster import refuse_unplaceable, start_ray

    resources = max((arm.config.resources for arm in arms), key=lambda one: one.gpus)
    bundles = {arm.name: [b.resources for b in place(arm.config).bundles] for arm in arms}
    most = max(sum(bundle["CPU"] for bundle in listed) for listed in bundles.values())
    at_once = sweep.config.arms_at_once
    room = most * (at_once or 1) if resources.gpus == 0 else most
    start_ray(resources, room, shows_workers=False)
    try:
        for listed in bundles.values():
            refuse_unplaceable(listed)
        trainable = tune.with_resources(
            tune.with_parameters(
                train_arm,
                configs={arm.name: arm.config for arm in arms},
                directory=Path.cwd(),
            ),
            # An empty first bundle: the arm's own process computes nothing.
            lambda picked: tune.PlacementGroupFactory([{}, *bundles[picked["arm"]]]),
        )
        with SweepProgress(arms, console) as progress:
            tuner = tune.Tuner(
                trainable,
                param_space={"arm": tune.grid_search([arm.name for arm in arms])},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=at_once,
                    trial_name_creator=lambda trial: trial.config["arm"],
                    trial_dirname_creator=lambda trial: trial.config["arm"],
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(sweep.root),
                    verbose=0,
                    callbacks=[progress],
                    # A node that was lost, say: the arm goes on from its checkpoint.
                    failure_config=tune.FailureConfig(max_failures=1),
                ),
            )
            results = tuner.fit()
        errors = {r.config["arm"]: str(r.error) for r in results if r.error and r.config}
        return {name: _last_line(text) for name, text in errors.items()}
    finally:
        ray.shutdown()


def train_arm(picked: Mapping[str, str], configs: Mapping[str, Config], directory: Path) -> None:
    """A trial of Ray Tune: one arm, from its newest checkpoint or from the start.

    directory: where the sweep was started; a recipe's relative paths are meant from there.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not on this node; start the sweep from a shared disk")
    os.chdir(directory)
    from rl.launch.training import train  # only a trial needs it

    config = configs[picked["arm"]]
    root = Path(config.run)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "output.txt").open("a", encoding="utf-8") as file:
        screen = rich.console.Console(file=file, highlight=False)
        asyncio.run(train(config, screen=screen, sinks=[_TuneSink()]))


class _TuneSink:
    """Tells Tune, and so the person at the terminal, how far an arm is."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray import tune

        heldout = {key: value for key, value in metrics.items() if key.startswith("eval/")}
        tune.report({"step": step} | heldout)

    def close(self) -> None:
        pass


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


COMMAND = Command("rl.sweep", __doc__, SweepKeys, sweep_arms, (SweepConfig, Config), goes_on=True)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
