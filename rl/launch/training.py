"""Training from start to end: bad input is refused, the parts are started, the loop runs.

Held-out accuracy is measured before and after, and everything a person needs is left in the run
directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console

from rl.config.recipe import Origin
from rl.config.run import Config
from rl.evaluate.evaluation import ModeResult, evaluate
from rl.launch.advice import Advice
from rl.launch.console import Console
from rl.launch.memory_growth import Recycling
from rl.launch.metrics import Progress
from rl.launch.run_state import RunState
from rl.launch.stopping import Stop
from rl.launch.usage import gather_metrics
from rl.loop.accounting import in_words
from rl.loop.interfaces import LearnerLost, MetricSink
from rl.loop.loop import Parts, StepResult, TrainingLoop, unless_stopped
from rl.loop.publish import at_next_publish, publish
from rl.loop.stages import Failure, Route
from rl.loop.step_guard import RunStopped
from rl.run.checkpoints import Checkpoint
from rl.run.directory import NEEDED_BYTES, RunDirectory
from rl.run.files import stack_versions, write_text
from rl.run.finished import FinishedGroups, write_skipped
from rl.run.jsonl import Journal, write_records
from rl.run.ledger import ledger_rows, write_step
from rl.run.sinks import Sinks, read_metrics
from rl.run.threads import in_thread, shorten_stalls
from rl.system.memory_estimate import checkpoint_bytes
from rl.system.stacks import write_stacks
from rl.system.supervision import Supervisor
from rl.system.watchdog import LoopWatch, watch_progress

if TYPE_CHECKING:
    from rl.assembly import RunInputs, TrainingServices


async def train(
    config: Config,
    origin: Origin,
    notes: Sequence[str] = (),
    screen: rich.console.Console | None = None,
    sinks: Sequence[MetricSink] = (),
) -> signal.Signals | None:
    """Run, or continue, the training that `config` describes; the signal that stopped it, if any.

    screen: where a person follows it; stdout by default. sinks: beside those of `config.log`.
    """
    directory = RunDirectory(Path(config.run))
    stop = Stop(config.checkpoint.grace_s)
    # All is closed in the reverse order: first the processes, then what they report to. The lock of
    # the directory goes last, so that no other driver starts while this one still writes.
    async with AsyncExitStack() as stack:
        stack.enter_context(directory.open(config))
        write_text(directory.recipe_path, json.dumps(dataclasses.asdict(origin), indent=1) + "\n")
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
        events = stack.enter_context(Journal(directory.events_path))
        supervisor = Supervisor(config.recovery, console.note, events.add)
        services = await stack.enter_async_context(open_training(inputs, console.phase, supervisor))
        stack.enter_context(_watched(supervisor, directory.root / "logs"))
        shorten_stalls()
        scorer_at_start, done = services.scorer.state, False
        try:
            while not done:
                try:
                    with closing(Sinks(config.log, directory, console.note, sinks)) as all_sinks:
                        if checkpoint is not None:
                            step, path = checkpoint.step, checkpoint.path
                            console.note(f"continuing from step {step} ({path})")
                            await services.learner.load(path)
                        outputs = directory, console, all_sinks
                        work = _train_from(checkpoint, inputs, services, *outputs, stop)
                        await supervisor.until(work)
                    done = True
                except LearnerLost as lost:
                    checkpoint = await _restart_learner(lost, services, supervisor, directory)
                    if checkpoint is None:
                        services.scorer.load(scorer_at_start)
        except ValueError as error:
            # A ValueError tells a person what to mend in the input (rl/run/command.py). From here
            # on there is no such thing, so this is a crash, which keeps its traceback.
            raise RuntimeError(f"training failed: {error}") from error
        if directory.summary_path.exists():
            console.before_after_table(json.loads(directory.summary_path.read_text("utf-8")))
    return stop.signals[0] if stop.signals else None


@contextmanager
def _watched(supervisor: Supervisor, logs: Path) -> Iterator[None]:
    """Within the block a run that stands still is noticed."""
    stall_s = supervisor.config.stall_s
    tasks = (
        supervisor.in_background(watch_progress(supervisor, stall_s, partial(write_stacks, logs))),
        LoopWatch(stall_s, logs / "stacks_of_driver.txt").start(),
    )
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _restart_learner(
    lost: LearnerLost,
    services: TrainingServices,
    supervisor: Supervisor,
    directory: RunDirectory,
) -> Checkpoint | None:
    """Start the ranks anew; returns the checkpoint to go on from, None for the start of the run.

    What follows is what a new driver would do, but with the engines that are there.
    """
    services.engine.admit = at_next_publish
    while True:
        supervisor.lost("learner", lost)
        supervisor.mended()
        checkpoint = directory.checkpoints.newest(supervisor.note)
        start, steps = checkpoint.step if checkpoint else 0, read_metrics(directory.metrics_path)
        again = sum(step > start for step in steps)
        directory.truncate_to(start)
        supervisor.event("discarded", "learner", groups=lost.discarded, steps=again)
        supervisor.note(
            f"going back to step {start}: {again} steps are made again, and {lost.discarded} "
            "groups of versions that are gone are discarded"
        )
        try:
            await services.learner.restart()
            return checkpoint
        except LearnerLost as error:
            lost = error


async def _publish_first(loop: TrainingLoop, services: TrainingServices) -> None:
    """Give the engines the weights to begin with, and let those that join later have theirs."""
    engine = services.engine
    await publish(services.learner, engine, loop.version, loop.canary)
    engine.admit = partial(loop.admit, engine)
    # One that was joining when the publish had begun has been asked to wait for the next one, which
    # may never come: too few engines may serve without it.
    await loop.admit(engine)


async def _train_from(
    checkpoint: Checkpoint | None,
    inputs: RunInputs,
    services: TrainingServices,
    directory: RunDirectory,
    console: Console,
    sinks: Sinks,
    stop: Stop,
) -> None:
    """Take the steps from a checkpoint, or from the start, until the last one or a stop."""
    config, done = inputs.config, checkpoint.step if checkpoint else 0
    engine, scorer, learner = services.engine, services.scorer, services.learner
    console.phase("publishing and proving the first weights")
    finished = FinishedGroups(directory.finished_path, done)
    parts = Parts(inputs.stream, inputs.encode, engine, scorer, learner)
    loop = TrainingLoop(config, parts, done, finished=finished)
    await _publish_first(loop, services)

    async def heldout() -> dict[str, ModeResult]:
        console.phase(f"evaluating {len(inputs.heldout)} held-out prompts per mode")
        return await evaluate(config, inputs.encode, engine, scorer, inputs.heldout)

    advice = Advice(config, console.note, (recycling := Recycling(services)).begin)
    if checkpoint is None:
        progress, before = Progress(), _figures(await heldout())
    else:
        # Measured by the process that started the run: these weights are trained already.
        before = checkpoint.progress["before"]
        progress = Progress(**checkpoint.progress["progress"])
    so_far = progress, before, config.checkpoint.keep_last, done
    state = RunState(directory, loop, learner, scorer, finished, *so_far)
    if checkpoint is not None:
        state.load(checkpoint.progress)

    async def on_step(result: StepResult) -> bool:
        """Record the step, evaluate and save where due; False ends the loop."""
        # The engines sample the next step meanwhile, and their groups come in on this event loop.
        # So what takes long, such as hashing a checkpoint of many gigabytes, is done in a thread.
        step, is_last = result.step, result.step == config.steps
        progress.add(result)
        metrics = await gather_metrics(result, config, progress, services)
        await _keep_trajectories(result, config, directory, console)
        after: Mapping[str, ModeResult] = {}
        if is_last or (config.eval.every and step % config.eval.every == 0):
            # It may take longer than a scheduler waits, and only the last one cannot be left out.
            after = (
                await unless_stopped(heldout(), asyncio.Event() if is_last else stop.asked) or {}
            )
        for mode, figures in after.items():
            metrics |= figures.as_metrics(mode)
        sinks.write(step, metrics)
        console.step_done(step, metrics)
        advice.after(result, learner.device, metrics)
        if progress.skipped_in_a_row >= config.guard.max_skipped:
            raise RunStopped(_too_many_skipped(result, progress, directory))
        if is_last:
            # Before the last checkpoint, with which the run is finished: a run killed in between
            # makes its last steps again. The other way round it would have no summary for good.
            _write_summary(directory, step, before, _figures(after), progress, loop)
        # While steps are skipped none is saved, so that a run which ends because of them goes on
        # from before the first one.
        if is_last or (step % config.checkpoint.every == 0 and result.skipped is None):
            await state.save(step)
            recycling.after_checkpoint(is_last)
        return not stop.signals

    with closing(finished), stop.on_signals(console.note):
        await loop.run(on_step, stop.asked)
        # Also in the middle of a step: engines may need longer for its groups than a scheduler
        # waits, and what they have finished is kept.
        if loop.version > state.saved:
            await state.save(loop.version)
    console.note(f"groups: {in_words(loop.accounting.check())}")
    advice.at_end()
    if stop.signals and state.saved < config.steps:
        late = f", not saved in {config.checkpoint.grace_s:g} s" if stop.gave_up else ""
        console.note(f"stopped after step {state.saved}{late}; the same command goes on from there")


def _write_summary(
    directory: RunDirectory,
    step: int,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    progress: Progress,
    loop: TrainingLoop,
) -> None:
    summary = {
        "before": before,
        "after": after,
        "steps": step,
        "trained_tokens": sum(progress.trained_tokens.values()),
        "seconds": round(progress.seconds, 1),
        "versions": stack_versions(),
        "groups": loop.accounting.check(),
    }
    write_text(directory.summary_path, json.dumps(summary, indent=2) + "\n")


async def _keep_trajectories(
    result: StepResult, config: Config, directory: RunDirectory, console: Console
) -> None:
    """Write the step into the ledger, and beside it what a person needs of one that was skipped."""
    step, groups, advantages = result.step, result.groups, result.advantages
    if config.log.ledger:
        is_skipped = result.skipped is not None
        trained = groups, advantages, result.mismatches, result.choices
        rows = await in_thread(ledger_rows, step, *trained, is_skipped)
        await in_thread(write_step, directory.ledger_path, step, rows)
    if result.skipped is not None:
        kept = (directory.skipped_path, step, result.skipped, groups, advantages)
        path = await in_thread(write_skipped, *kept)
        console.note(f"step {step} is skipped ({result.skipped}); its samples are in {path}")


def _too_many_skipped(result: StepResult, progress: Progress, directory: RunDirectory) -> str:
    steps = directory.checkpoints.steps()
    from_where = f"the checkpoint of step {steps[-1]}" if steps else "the start"
    return (
        f"{progress.skipped_in_a_row} steps in a row were skipped, the last one, step "
        f"{result.step}, because of its {result.skipped}. Their samples are in "
        f"{directory.skipped_path}. The same command goes on from {from_where}; raise "
        "guard.grad_norm or guard.mismatch_kl if a limit is too low, or start under another "
        "run=NAME with a lower policy.optimizer.learning_rate"
    )


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
    size = checkpoint_bytes(str(inputs.model), config.policy)
    directory.check_room(NEEDED_BYTES + size * (config.checkpoint.keep_last + 1))
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
