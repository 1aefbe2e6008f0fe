"""The arms of a sweep as trials of Ray Tune, and what a person at the terminal sees of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import rich.console
from ray import tune

from rl.config.run import Config
from rl.launch.training import train
from rl.run.terminal import progress_bars
from rl.sweep.arms import Arm, Sweep
from rl.system.cluster import refuse_unplaceable, start_ray
from rl.system.placement import place


def train_arms(sweep: Sweep, arms: Sequence[Arm], console: rich.console.Console) -> dict[str, str]:
    """Train the arms under Ray Tune; returns why arms failed, by name."""
    # The metrics are in the arms' own directories, and so is what an arm prints.
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    # Of Tune's two displays the one that verbose=0 silences.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    resources = max((arm.config.resources for arm in arms), key=lambda one: one.gpus)
    bundles = {arm.name: [b.resources for b in place(arm.config).bundles] for arm in arms}
    most = max(sum(bundle["CPU"] for bundle in listed) for listed in bundles.values())
    at_once = sweep.config.arms_at_once
    # Cores that arms share are declared several times over: see SweepConfig.arms_at_once.
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
    finally:
        ray.shutdown()
    failures = {}
    for result in results:
        if result.error and result.config:
            # The last line of a traceback that Ray wrapped several times is the error itself.
            lines = [line.strip() for line in str(result.error).splitlines() if line.strip()]
            failures[result.config["arm"]] = lines[-1] if lines else "no reason given"
    return failures


def train_arm(picked: Mapping[str, str], configs: Mapping[str, Config], directory: Path) -> None:
    """A trial of Ray Tune: one arm, from its newest checkpoint or from the start.

    directory: where the sweep was started; a recipe's relative paths are meant from there.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not on this node; start the sweep from a shared disk")
    os.chdir(directory)
    config = configs[picked["arm"]]
    root = Path(config.run)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "output.txt").open("a", encoding="utf-8") as file:
        screen = rich.console.Console(file=file, highlight=False)
        asyncio.run(train(config, screen=screen, sinks=[_TuneSink()]))


class _TuneSink:
    """Tells Tune, and so the person at the terminal, how far an arm is."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        heldout = {key: value for key, value in metrics.items() if key.startswith("eval/")}
        tune.report({"step": step} | heldout)

    def close(self) -> None:
        pass


class SweepProgress(tune.Callback):
    """A Ray Tune callback that draws while it is entered."""

    def __init__(self, arms: Sequence[Arm], console: rich.console.Console) -> None:
        self._console = console
        self._steps = {arm.name: arm.config.steps for arm in arms}
        self._modes = list(arms[0].config.modes)
        self._heldout: dict[str, str] = {}
        self._num_ended = 0
        self._bars = progress_bars(console)
        self._all = self._bars.add_task("all arms, in steps", total=sum(self._steps.values()))
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> SweepProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks into the experiment's state; a terminal cannot be pickled, and
        # a sweep that goes on makes a new callback anyway.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["arm"]
        if name not in self._tasks:  # it is, where Tune tries again
            self._tasks[name] = self._bars.add_task(name, total=self._steps[name])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        name, step = trial.config["arm"], int(result["step"])
        self._done[name] = step
        figures = [
            f"{mode} {result[key]:.1%}"
            for mode in self._modes
            if (key := f"eval/{mode}/accuracy") in result
        ]
        if figures:
            self._heldout[name] = ", ".join(figures)
        text = f"{name}  {self._heldout.get(name, '')}"
        self._bars.update(self._tasks[name], completed=step, description=text)
        self._bars.update(self._all, completed=sum(self._done.values()))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["arm"]
        self._end(name, f"held out: {self._heldout.get(name, 'was finished before')}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.config["arm"], "failed")

    def _end(self, name: str, what: str) -> None:
        self._num_ended += 1
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._console.print(f"[{self._num_ended}/{len(self._steps)}] {name}: {what}", markup=False)
