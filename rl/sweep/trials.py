"""The arms of a sweep as trials of Ray Tune, and what a person at the terminal sees of them.

Everything that takes seconds to import (Ray, torch) is imported here, so that a refusal of
rl/sweep/__main__.py, or a report alone, need not wait for it.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import rich.console
from omegaconf import OmegaConf
from ray import tune
from rich.progress import Progress

from rl.assembly import gather_inputs
from rl.launch.training import train
from rl.run.files import write_text
from rl.run.terminal import progress_bars
from rl.sweep.arms import Arm, Sweep
from rl.system.cluster import refuse_unplaceable, start_ray
from rl.system.placement import place


def train_arms(sweep: Sweep, arms: Sequence[Arm], console: rich.console.Console) -> dict[str, str]:
    """Train the arms, whose input is all checked before; returns why arms failed, by name."""
    checked: set[str] = set()
    for config in (arm.config for arm in arms):
        # Checking an arm reads its data, and makes its built-in models. Arms that differ in shares,
        # seeds or optimizers alone have the same data and models, so one check covers them.
        inputs = config.model_dump_json(include={"data", "reward", "eval"})
        inputs += f"{config.policy.model} {config.rollout.max_model_length}"
        asked = [(m.thinking, m.max_tokens, m.chat_template_kwargs) for m in config.modes.values()]
        inputs += f"{asked} {config.policy.think_tags}"
        if inputs not in checked:
            checked.add(inputs)
            gather_inputs(config)
    # From here on the directory belongs to this sweep.
    write_text(sweep.root / "sweep.yaml", OmegaConf.to_yaml(sweep.config.model_dump()))
    # The metrics are in the arms' own directories, and so is what an arm prints.
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    # Of Tune's two displays the one that verbose=0 silences.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    resources = max((arm.config.resources for arm in arms), key=lambda each: each.gpus)
    placements = {arm.name: place(arm.config) for arm in arms}
    most = max(sum(bundle.cpus for bundle in each.bundles) for each in placements.values())
    at_once = sweep.config.arms_at_once
    # Cores that arms share are declared several times over: see SweepConfig.arms_at_once.
    room = most * (at_once or 1) if resources.gpus == 0 else most
    start_ray(resources, room)
    try:
        for placement in placements.values():
            refuse_unplaceable(placement)
        by_name = {arm.name: arm for arm in arms}
        trainable = tune.with_resources(
            tune.with_parameters(train_arm, arms=by_name, directory=Path.cwd()),
            # An empty first bundle: the arm's own process computes nothing.
            lambda picked: tune.PlacementGroupFactory(
                [{}, *(bundle.resources for bundle in placements[picked["arm"]].bundles)],
                strategy=placements[picked["arm"]].strategy,
            ),
        )
        with progress_bars(console) as bars:
            tuner = tune.Tuner(
                trainable,
                param_space={"arm": tune.grid_search([*by_name])},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=at_once,
                    trial_name_creator=lambda trial: trial.config["arm"],
                    trial_dirname_creator=lambda trial: trial.config["arm"],
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(sweep.root),
                    verbose=0,
                    callbacks=[_Progress(arms, bars)],
                    # A node that was lost, say: the arm goes on from its checkpoint.
                    failure_config=tune.FailureConfig(max_failures=1),
                ),
            )
            results = tuner.fit()
    finally:
        ray.shutdown()
    return {
        # The last line of a traceback that Ray wrapped several times is the error itself.
        result.config["arm"]: (str(result.error).strip() or "no reason given")
        .splitlines()[-1]
        .strip()
        for result in results
        if result.error and result.config
    }


def train_arm(picked: Mapping[str, str], arms: Mapping[str, Arm], directory: Path) -> None:
    """A trial of Ray Tune: one arm, from its newest checkpoint or from the start.

    directory: where the sweep was started; a recipe's relative paths are meant from there.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not on this node; start the sweep from a shared disk")
    os.chdir(directory)
    arm = arms[picked["arm"]]
    root = Path(arm.config.run)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "output.txt").open("a", encoding="utf-8") as file:
        screen = rich.console.Console(file=file, highlight=False)
        asyncio.run(train(arm.config, arm.origin, screen=screen, sinks=[_TuneSink()]))


class _TuneSink:
    """Tells Tune, and so the person at the terminal, how far an arm is."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        heldout = {key: value for key, value in metrics.items() if key.startswith("eval/")}
        tune.report({"step": step} | heldout)

    def close(self) -> None:
        pass


class _Progress(tune.Callback):
    """Shows on bars how far the arms are."""

    def __init__(self, arms: Sequence[Arm], bars: Progress) -> None:
        self._modes = list(arms[0].config.modes)
        self._bars = bars
        self._num_ended = 0
        total = sum(arm.config.steps for arm in arms)
        self._all = bars.add_task("all arms, in steps", total=total)
        # Hidden before an arm starts and after it has ended: a sweep may have more arms than a
        # screen has lines.
        self._tasks = {
            arm.name: bars.add_task(arm.name, total=arm.config.steps, visible=False) for arm in arms
        }
        self._heldout = dict.fromkeys(self._tasks, "")

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks into the experiment's state; a terminal cannot be pickled, and
        # a sweep that goes on makes a new callback anyway.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._bars.update(self._tasks[trial.config["arm"]], visible=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        name = trial.config["arm"]
        accuracies = [
            f"{mode} {result[key]:.1%}"
            for mode in self._modes
            if (key := f"eval/{mode}/accuracy") in result
        ]
        self._heldout[name] = ", ".join(accuracies) or self._heldout[name]
        text = f"{name}  {self._heldout[name]}"
        self._bars.update(self._tasks[name], completed=int(result["step"]), description=text)
        done = sum(task.completed for task in self._bars.tasks if task.id != self._all)
        self._bars.update(self._all, completed=done)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        heldout = self._heldout[trial.config["arm"]] or "was finished before"
        self._end(trial, f"held out: {heldout}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed")

    def _end(self, trial: Any, what: str) -> None:
        name = trial.config["arm"]
        self._num_ended += 1
        self._bars.update(self._tasks[name], visible=False)
        counted = f"[{self._num_ended}/{len(self._tasks)}]"
        self._bars.console.print(f"{counted} {name}: {what}", markup=False)
