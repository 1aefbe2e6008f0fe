"""Training from start to end: bad input is refused, the parts are started, the loop runs.

Held-out accuracy is measured before and after, and everything a person needs is left in the run
directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import rich.console

from policy.builtin.names import POLICY_SIZES
from rl.config.recipe import dump
from rl.config.run import Config
from rl.evaluate.evaluation import ModeResult, evaluate
from rl.launch.console import Console
from rl.launch.curves import draw_curves, write_summary
from rl.launch.metrics import Progress, step_metrics
from rl.loop.interfaces import MetricSink
from rl.loop.loop import Parts, StepResult, TrainingLoop
from rl.loop.publish import publish
from rl.run.checkpoints import Checkpoint
from rl.run.directory import CHECKPOINT_BYTES, NEEDED_BYTES, RunDirectory
from rl.run.files import stack_versions
from rl.run.jsonl import write_records
from rl.run.ledger import ledger_rows, write_step
from rl.run.sinks import Sinks
from rl.system.memory_estimate import VOCABULARY_GUESS, count_parameters, describe_memory
from rl.system.placement import describe, place


def described(config: Config, notes: Sequence[str]) -> str:
    """The resolved configuration, the placement and the memory estimate, for people."""
    if (builtin := POLICY_SIZES.get(config.policy.model)) is not None:
        parameters, vocabulary = builtin.parameters, builtin.vocabulary
    else:
        parameters, vocabulary = count_parameters(config.policy.model), VOCABULARY_GUESS
    return "\n".join(
        [
            dump(config).rstrip(),
            "placement:",
            describe(place(config)),
            "memory:",
            describe_memory(config.policy, config.rollout, parameters, vocabulary),
            *(f"note: {note}" for note in notes),
        ]
    )


async def train(
    config: Config,
    notes: Sequence[str] = (),
    screen: rich.console.Console | None = None,
    sinks: Sequence[MetricSink] = (),
) -> bool:
    """Run, or continue, the training that `config` describes; whether it came to its end.

    notes: shown at the start. screen: where a person follows the run; stdout by default. sinks:
    get every step's metrics, beside those that `config.log` asks for.
    """
    directory = RunDirectory(Path(config.run))
    with (
        directory.open(config, dump(config), NEEDED_BYTES),
        closing(Console(directory.name, config.steps, list(config.modes), screen)) as console,
    ):
        for note in notes:
            console.note(note)
        return await _Training(config, directory, console, sinks).run()


class _Training:
    """One process's share of a run: from its newest checkpoint to its end or a stop."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        console: Console,
        sinks: Sequence[MetricSink],
    ) -> None:
        self._config = config
        self._directory = directory
        self._console = console
        self._more_sinks = sinks
        self._progress = Progress()
        self._before: dict[str, dict[str, float]] = {}
        self._summary: dict[str, Any] = {}
        self._stopping = False

    async def run(self) -> bool:
        """Whether the last step is done, and nobody asked to stop."""
        checkpoint = self._directory.checkpoints.newest(self._console.note)
        step = checkpoint.step if checkpoint else 0
        if step >= self._config.steps:
            self._console.note(
                f"{self._directory.root} is finished at step {step}; raise steps= to go on"
            )
            return True
        # Imported here, so that a mistyped key is answered before torch and vLLM load.
        from rl.assembly import gather_material

        self._console.phase("preparing the policy and its prompts")
        self._material = gather_material(self._config)
        listed = (f"{count} {route}" for route, count in self._material.routes.items())
        self._console.note(f"references by reward: {', '.join(listed)}")
        self._directory.check_room(self._checkpoint_bytes())
        self._report_quarantined()
        await self._check_alignment()
        # Only now that all input has been checked: what is forgotten here is about to be remade.
        self._directory.truncate_to(step)
        self._sinks = Sinks(self._config.log, self._directory, self._console.note, self._more_sinks)
        try:
            await self._run_system(step, checkpoint)
        finally:
            self._sinks.close()
        return not self._stopping

    async def _check_alignment(self) -> None:
        """Refuse now what the pass after the last step could not work with."""
        if self._config.align.enabled:
            from rl.align.assistants import check_assistants

            await check_assistants(self._config, self._material.model)

    def _report_quarantined(self) -> None:
        """Rows that are never asked, with the reason of each in the run directory."""
        quarantined = self._material.quarantined
        if not quarantined:
            return
        path = self._directory.root / "quarantine.jsonl"
        write_records(path, map(dataclasses.asdict, quarantined))
        counts = Counter(row.reason.partition(":")[0] for row in quarantined)
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        self._console.note(
            f"{len(quarantined)} rows are left out ({listed}), such as {quarantined[0].id}: "
            f"{quarantined[0].reason}; all are in {path}"
        )

    def _checkpoint_bytes(self) -> int:
        """Room for the checkpoints that are kept and the one that is being written."""
        parameters = count_parameters(str(self._material.model)) or 0
        return NEEDED_BYTES + parameters * CHECKPOINT_BYTES * (
            self._config.checkpoint.keep_last + 1
        )

    async def _run_system(self, step: int, checkpoint: Checkpoint | None) -> None:
        # Imported here for the same reason.
        from rl.assembly import start_system

        self._system = await start_system(self._material, self._console.phase)
        try:
            if checkpoint is not None:
                self._console.note(f"continuing from step {step} ({checkpoint.path})")
                await self._system.learner.load(checkpoint.path)
                self._progress = Progress(**checkpoint.progress["progress"])
                self._before = dict(checkpoint.progress["before"])
            try:
                await self._train_from(step, checkpoint)
            except ValueError as error:
                # From here on it is no mistake in the input: keep the traceback.
                raise RuntimeError(f"training failed: {error}") from error
        finally:
            await self._system.close()

    async def _train_from(self, step: int, checkpoint: Checkpoint | None) -> None:
        system, config = self._system, self._config
        self._console.phase("publishing and proving the first weights")
        await publish(system.learner, system.engine, step, config.canary_tolerance)
        if not self._before:
            self._before = _figures(await self._evaluate())
        parts = Parts(
            self._material.stream,
            self._material.encode,
            system.engine,
            system.scorer,
            system.learner,
        )
        self._loop = TrainingLoop(config, parts, step)
        if checkpoint is not None:
            system.scorer.load(checkpoint.progress["scorer"])
            self._loop.group_filter.load(checkpoint.progress["group_filter"])
        with self._finish_step_on_interrupt():
            await self._loop.run(self._on_step)
        if self._summary:
            self._console.before_after_table(self._summary)

    async def _on_step(self, result: StepResult) -> bool:
        """Record the step, evaluate and save where due; False ends the loop."""
        self._progress.add(result)
        modes, count = list(self._config.modes), self._config.rollout.prompts_per_step
        metrics = step_metrics(result, modes, count, self._progress)
        if self._config.log.ledger:
            rows = ledger_rows(result.step, result.groups, result.advantages, result.mismatches)
            write_step(self._directory.ledger_path, result.step, rows)
        is_last = result.step == self._config.steps
        every = self._config.eval.every
        results = {}
        if is_last or (every and result.step % every == 0):
            results = await self._evaluate()
            metrics |= _metrics(results)
        self._sinks.write(result.step, metrics)
        self._console.step_done(result.step, metrics)
        if is_last:
            self._summarize(results)
        if self._is_checkpoint_due(result.step):
            await self._save(result.step)
        if self._stopping and not is_last:
            self._console.note(
                f"stopped after step {result.step}; the same command goes on from there"
            )
        return not self._stopping

    def _is_checkpoint_due(self, step: int) -> bool:
        is_last = step == self._config.steps
        return is_last or self._stopping or step % self._config.checkpoint.every == 0

    async def _save(self, step: int) -> None:
        draw_curves(self._directory)
        state = {
            "progress": dataclasses.asdict(self._progress),
            "before": self._before,
            "scorer": self._system.scorer.state,
            "group_filter": self._loop.group_filter.state,
        }
        keep_last = self._config.checkpoint.keep_last
        with self._directory.checkpoints.writer(step, state, keep_last) as path:
            await self._system.learner.save(path)

    async def _evaluate(self) -> dict[str, ModeResult]:
        self._console.phase(f"evaluating {len(self._material.heldout)} held-out prompts per mode")
        return await evaluate(
            self._config,
            self._material.encode,
            self._system.engine,
            self._system.scorer,
            self._material.heldout,
        )

    def _summarize(self, after: Mapping[str, ModeResult]) -> None:
        """Before the last checkpoint: a run killed in between does its last steps again."""
        self._summary = {
            "before": self._before,
            "after": _figures(after),
            "steps": self._config.steps,
            "trained_tokens": self._progress.total_trained_tokens,
            "seconds": round(self._progress.seconds, 1),
            "versions": stack_versions(),
        }
        write_summary(self._directory, self._summary)

    @contextmanager
    def _finish_step_on_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the step and its checkpoint, the second at once."""
        if threading.current_thread() is not threading.main_thread():
            # Signals belong to the main thread, and to whoever runs this one.
            yield
            return
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if self._stopping:
                task.cancel()
            self._stopping = True
            self._console.note("finishing this step, then saving; Ctrl-C again stops at once")

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def _metrics(results: Mapping[str, ModeResult]) -> dict[str, float]:
    return {
        key: value
        for mode, result in results.items()
        for key, value in result.as_metrics(mode).items()
    }


def _figures(results: Mapping[str, ModeResult]) -> dict[str, dict[str, float]]:
    return {mode: dataclasses.asdict(result) for mode, result in results.items()}
