"""The pass as a whole: its iterations, what the gate decides of each, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl.align.curves import draw_alignment
from rl.align.directory import AlignmentDirectory
from rl.align.gate import refusals
from rl.align.heldout import gate_config, measurement
from rl.align.judging import ask_assistants
from rl.align.learning import learn
from rl.align.pairs import make_pairs
from rl.align.parts import Iteration, Parts
from rl.align.sampling import ask_aligned, ask_policy
from rl.run.directory import RunDirectory
from rl.run.files import stack_versions, write_text
from rl.run.sinks import Sinks
from rl.system.cluster import open_cluster


async def align(parts: Parts) -> None:
    """Run the pass, or what is left of it."""
    directory = parts.directory
    numbers = range(1, parts.material.config.align.iterations + 1)
    if not all(directory.iteration(number).gate.exists() for number in numbers):
        await _iterate(parts, numbers)
    verdicts = [_verdict(directory, number) for number in numbers]
    for number, verdict in zip(numbers, verdicts, strict=True):
        parts.console.verdict(number, verdict)
    accepted = [verdict for verdict in verdicts if verdict["is_accepted"]]
    summary = {
        "origin": dict(parts.origin.identity),
        "before": verdicts[0]["before"],
        "after": accepted[-1]["after"] if accepted else verdicts[0]["before"],
        "iterations": [
            {key: verdict[key] for key in ("is_accepted", "reasons", "pairs")}
            for verdict in verdicts
        ],
        "versions": stack_versions(),
    }
    write_text(directory.summary, json.dumps(summary, indent=1) + "\n")
    parts.console.note(f"curves: {draw_alignment(directory, verdicts)}")


async def _iterate(parts: Parts, numbers: Iterable[int]) -> None:
    """Every iteration that is not over, each from the last policy that was accepted."""
    config, directory = parts.material.config, parts.directory
    cluster = open_cluster(config)
    model, num_accepted = parts.origin.model, 0
    sinks = None
    try:
        sinks = Sinks(config.log, RunDirectory(directory.root), parts.console.note)
        for number in numbers:
            if not directory.iteration(number).gate.exists():
                parts.console.note(f"iteration {number} of {config.align.iterations}")
                await _run(Iteration(parts, cluster, sinks, number, model, num_accepted))
            if _verdict(directory, number)["is_accepted"]:
                num_accepted += 1
                model = directory.checkpoints.path(number) / "model"
                # A kill right after the verdict leaves the copy that the checkpoint was made of.
                shutil.rmtree(directory.iteration(number).dpo / "model", ignore_errors=True)
    finally:
        if sinks is not None:
            sinks.close()
        cluster.close()


def _verdict(directory: AlignmentDirectory, number: int) -> dict[str, Any]:
    return json.loads(directory.iteration(number).gate.read_text(encoding="utf-8"))


async def _run(iteration: Iteration) -> None:
    """An iteration, or what is left of it."""
    align, files = iteration.config.align, iteration.files
    files.root.mkdir(exist_ok=True)
    if align.mine is not None:
        # Nothing is asked where there are none.
        make_pairs(iteration)
    _take_over_measurement(iteration)
    await ask_policy(iteration)
    await ask_assistants(iteration, files.before)
    pairs = make_pairs(iteration)
    aligned = await learn(iteration, pairs)
    await ask_aligned(iteration, aligned)
    await ask_assistants(iteration, files.after)
    before, after = measurement(files.before), measurement(files.after)
    reasons = refusals(before, after, align.gate)
    verdict = {
        "is_accepted": not reasons,
        "reasons": reasons,
        "pairs": len(pairs),
        "before": before.as_record(),
        "after": after.as_record(),
    }
    iteration.sinks.write(iteration.number * align.dpo.steps, after.as_metrics())
    if not reasons:
        _keep(iteration, aligned, verdict)
    # Last: with it the iteration is over.
    write_text(files.gate, json.dumps(verdict, indent=1) + "\n")


def _take_over_measurement(iteration: Iteration) -> None:
    """The policy was measured already, when the iteration before this one ended."""
    number, files, directory = iteration.number, iteration.files, iteration.parts.directory
    if number == 1 or files.before.exists():
        return
    last = directory.iteration(number - 1)
    aside = files.root / ".before.partial"
    shutil.rmtree(aside, ignore_errors=True)
    is_accepted = _verdict(directory, number - 1)["is_accepted"]
    shutil.copytree(last.after if is_accepted else last.before, aside)
    aside.rename(files.before)


def _keep(iteration: Iteration, aligned: Path, verdict: Mapping[str, Any]) -> None:
    """Make a checkpoint of the aligned policy, with what led to it."""
    origin, config = iteration.parts.origin, iteration.config
    alignment = {
        **verdict,
        "accepted": iteration.num_accepted + 1,
        "origin": dict(origin.identity),
        "asked": gate_config(config).eval.model_dump(mode="json"),
    }
    progress = {**origin.progress, "align": alignment}
    checkpoints = iteration.parts.directory.checkpoints
    with checkpoints.writer(iteration.number, progress, config.align.iterations) as path:
        shutil.copytree(aligned, path / "model")
