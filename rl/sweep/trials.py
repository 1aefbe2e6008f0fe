"""What a person at the terminal sees of a sweep: a bar per arm under way, and one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from ray.tune import Callback

from rl.run.terminal import progress_bars
from rl.sweep.arms import Arm


class SweepProgress(Callback):
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
        # Tune stores its callbacks with an experiment; a terminal cannot be stored.
        return Callback, ()

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
