"""Training from start to end: bad input is refused, the parts are started, the loop runs.

Held-out accuracy is measured before and after, and everything a person needs is left in the run
directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console

from rl.config.run import Config
from rl.evaluate.evaluation import ModeResult, evaluate
from rl.launch.console import Console
from rl.launch.curves import draw_curves
from rl.launch.metrics import Progress, step_metrics
from rl.loop.interfaces import MetricSink
from rl.loop.loop import Parts, StepResult, TrainingLoop
from rl.loop.publish import CanaryCheck, publish
from rl.loop.stages import Failure, Route
from rl.run.checkpoints import Checkpoint
from rl.run.directory import CHECKPOINT_BYTES, NEEDED_BYTES, RunDirectory
from rl.run.files import stack_versions, write_text
from rl.run.jsonl import write_records
from rl.run.ledger import ledger_rows, write_step
from rl.run.sinks import Sinks
from rl.run.threads import entered_in_thread, in_thread
from rl.system.memory_estimate import count_parameters

if TYPE_CHECKING:
    from rl.assembly import RunInputs, TrainingServices


async def train(
    config: Config,
    notes: Sequence[str] = (),
    screen: rich.console.Console | None = None,
    sinks: Sequence[MetricSink] = (),
) -> signal.Signals | None:
    """Run, or continue, the training that `config` describes; the signal that stopped it, if any.

    screen: where a person follows it; stdout by default. sinks: beside those of `config.log`.
    """
    directory = RunDirectory(Path(config.run))
    stop_signals: list[signal.Signals] = []
    # All is closed in the reverse order: first the processes, then what they report to. The lock of
    # the directory goes last, so that no other driver starts while this one still writes.
    async with AsyncExitStack() as stack:
        stack.enter_context(directory.open(config))
        view = Console(directory.name, config.steps, list(config.modes), screen)
        console = stack.enter_context(closing(view))
        for note in notes:
            console.note(note)
        checkpoint = directory.checkpoints.newest(console.note)
        start = checkpoint.step if checkpoint else 0
        if start >= config.steps:
            console.note(f"{directory.root} is finished at step {start}; raise steps= to go on")
            return None
        # torch and vLLM take seconds to load; what is refused above does not wait for them.
        from rl.assembly import gather_inputs, open_training

        console.phase("preparing the policy and its prompts")
        inputs = gather_inputs(config)
        await _check(inputs, directory, console)
        # Only after the last refusal: what is forgotten here is about to be made again.
        directory.truncate_to(start)
        all_sinks = Sinks(config.log, directory, console.note, sinks)
        stack.callback(all_sinks.close)
        services = await stack.enter_async_context(open_training(inputs, console.phase))
        if checkpoint is not None:
            console.note(f"continuing from step {start} ({checkpoint.path})")
            await services.learner.load(checkpoint.path)
        try:
            await _train_from(
                checkpoint, inputs, services, directory, console, all_sinks, stop_signals
            )
        except ValueError as error:
            # A ValueError tells a person what to mend in the input (rl/run/command.py). From here
            # on there is no such thing, so this is a crash, which keeps its traceback.
            raise RuntimeError(f"training failed: {error}") from error
        if directory.summary_path.exists():
            console.before_after_table(json.loads(directory.summary_path.read_text("utf-8")))
    return stop_signals[0] if stop_signals else None


async def _train_from(
    checkpoint: Checkpoint | None,
    inputs: RunInputs,
    services: TrainingServices,
    directory: RunDirectory,
    console: Console,
    sinks: Sinks,
    stop_signals: list[signal.Signals],
) -> None:
    """Take the steps from a checkpoint, or from the start, until the last one or a stop.

    stop_signals: gets the signals that ask for a stop.
    """
    config, done = inputs.config, checkpoint.step if checkpoint else 0
    engine, scorer, learner = services.engine, services.scorer, services.learner
    console.phase("publishing and proving the first weights")
    canary = CanaryCheck.of(config)
    await publish(learner, engine, done, canary)

    async def heldout() -> dict[str, ModeResult]:
        console.phase(f"evaluating {len(inputs.heldout)} held-out prompts per mode")
        return await evaluate(config, inputs.encode, engine, scorer, inputs.heldout)

    parts = Parts(inputs.stream, inputs.encode, engine, scorer, learner)
    loop = TrainingLoop(config, parts, done, canary)
    if checkpoint is None:
        progress, before = Progress(), _figures(await heldout())
    else:
        # Measured by the process that started the run: these weights are trained already.
        before = checkpoint.progress["before"]
        progress = Progress(**checkpoint.progress["progress"])
        scorer.load(checkpoint.progress["scorer"])
        loop.group_filter.load(checkpoint.progress["group_filter"])

    async def on_step(result: StepResult) -> bool:
        """Record the step, evaluate and save where due; False ends the loop."""
        # The engines sample the next step meanwhile, and their groups come in on this event loop.
        # So what takes long, such as hashing a checkpoint of many gigabytes, is done in a thread.
        step, is_last = result.step, result.step == config.steps
        progress.add(result)
        metrics = await in_thread(step_metrics, result, config, progress)
        if config.log.ledger:
            trained = result.groups, result.advantages, result.mismatches
            rows = await in_thread(ledger_rows, step, *trained)
            await in_thread(write_step, directory.ledger_path, step, rows)
        after: Mapping[str, ModeResult] = {}
        if is_last or (config.eval.every and step % config.eval.every == 0):
            after = await heldout()
            for mode, figures in after.items():
                metrics |= figures.as_metrics(mode)
        sinks.write(step, metrics)
        console.step_done(step, metrics)
        if is_last:
            # Before the last checkpoint, with which the run is finished: a run killed in between
            # makes its last steps again. The other way round it would have no summary for good.
            summary = {
                "before": before,
                "after": _figures(after),
                "steps": step,
                "trained_tokens": sum(progress.trained_tokens.values()),
                "seconds": round(progress.seconds, 1),
                "versions": stack_versions(),
            }
            write_text(directory.summary_path, json.dumps(summary, indent=2) + "\n")
        if is_last or stop_signals or step % config.checkpoint.every == 0:
            await in_thread(draw_curves, directory)
            state = {
                "progress": dataclasses.asdict(progress),
                "before": before,
                "scorer": scorer.state,
                "group_filter": loop.group_filter.state,
            }
            writer = directory.checkpoints.writer(step, state, config.checkpoint.keep_last)
            async with entered_in_thread(writer) as path:
                await learner.save(path)
        if stop_signals and not is_last:
            console.note(f"stopped after step {step}; the same command goes on from there")
        return not stop_signals

    with _stop_on_signal(stop_signals, console.note):
        await loop.run(on_step)


async def _check(inputs: RunInputs, directory: RunDirectory, console: Console) -> None:
    """Refuse what would only fail later, and say what of the input is not used."""
    config = inputs.config
    for note in inputs.notes:
        console.note(note)
    routes: Counter[Route | Failure] = Counter()
    for row, count in inputs.rows.items():
        routes[row.route] += count
    listed = ", ".join(f"{count} {route}" for route, count in routes.items())
    console.note(f"references by reward: {listed}")
    # Room for the checkpoints that are kept and the one that is being written.
    checkpoint_bytes = (count_parameters(str(inputs.model)) or 0) * CHECKPOINT_BYTES
    directory.check_room(NEEDED_BYTES + checkpoint_bytes * (config.checkpoint.keep_last + 1))
    if quarantined := inputs.stream.quarantined:
        path = directory.root / "quarantine.jsonl"
        write_records(path, map(dataclasses.asdict, quarantined))
        counts = Counter(row.reason.partition(":")[0] for row in quarantined)
        by_reason = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        console.note(
            f"{len(quarantined)} rows are left out ({by_reason}), such as {quarantined[0].id}: "
            f"{quarantined[0].reason}; all are in {path}"
        )
    if config.align.enabled:
        # The pass after the last step needs them; hours of training should not come first.
        from rl.align.assistants import check_assistants

        await check_assistants(config, inputs.model)


def _figures(results: Mapping[str, ModeResult]) -> dict[str, dict[str, Any]]:
    return {mode: dataclasses.asdict(result) for mode, result in results.items()}


@contextmanager
def _stop_on_signal(
    stop_signals: list[signal.Signals], note: Callable[[str], None]
) -> Iterator[None]:
    """Ctrl-C, or a scheduler's SIGTERM, ends the run after its step; a second Ctrl-C cancels it."""
    if threading.current_thread() is not threading.main_thread():
        # Signals belong to the main thread, and to whoever runs this one: an arm of a sweep.
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def on_signal(number: signal.Signals) -> None:
        # A scheduler may send SIGTERM several times, to the shell and to what it started. Only a
        # person who asks twice cannot wait.
        if stop_signals and number == signal.SIGINT:
            task.cancel()
        stop_signals.append(number)
        note("finishing this step, then saving; Ctrl-C again stops at once")

    # Ray has a handler of SIGTERM, which is to do its work again when the steps are over.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler or signal.SIG_DFL)
