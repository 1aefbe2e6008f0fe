"""Real runs that are killed and resumed leave to the last bit what an uninterrupted one leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.run.checkpoints import Checkpoints
from rl.run.ledger import read_rows
from rl.run.sinks import read_metrics
from tests.integration.command import HANGS_S, finish, start

STEPS, KILLED_IN = 7, 4
# What makes a run repeat to the last bit.
EXACT = [
    "rollout.deterministic=true",
    # A preference model scores what waits for it together, and so rounds by what that is.
    "reward.preference=null",
]
SETTINGS = [
    *("config=hybrid_50_50.yaml", "scale=cpu_tiny", f"steps={STEPS}", *EXACT),
    *("rollout.prompts_per_step=4", "rollout.group_size=2", "eval.prompts=2"),
    *("log.tensorboard=false", "checkpoint.every=2", "algorithm.drop_zero_variance=true"),
]
# What a clock, the memory or the load of the machine decides.
MEASURED = ("time/", "perf/", "memory/", "idle/", "engine/")


def die(run: Path, point: str, step: int, *settings: str) -> None:
    """Start or continue the run in a process that dies at the point of the step."""
    arguments = [point, str(step), f"run={run}", *settings]
    process = start("tests.integration.killed_launch", *arguments)
    output, _ = process.communicate(timeout=HANGS_S)
    # Ray's own processes are in its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, output[-5000:]
    # The security of a run by the way, while all its processes are there.
    assert "open port" not in output


def interrupt(run: Path, *settings: str) -> None:
    """Continue the run and stop it by SIGTERM, after which it has saved its last step."""
    process = start("rl.launch", *settings, f"run={run}", "checkpoint.every=100")
    # One that no process before it came to.
    wait_for_step(run, KILLED_IN + 1)
    # As a scheduler does, more than once. Ctrl-C goes the same way (unit/rl/launch).
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert "goes on from there" in finish(process, code=128 + signal.SIGTERM)
    saved = max(read_metrics(run / "metrics.jsonl"))
    assert KILLED_IN < saved < STEPS
    assert (run / "checkpoints" / f"step_{saved:06d}").is_dir()


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + HANGS_S
    while max(read_metrics(run / "metrics.jsonl"), default=0) < step:
        assert time.monotonic() < deadline, f"{run} did not reach step {step}"
        time.sleep(0.05)


def left_by(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for what is measured."""
    metrics = {
        step: {
            key: value
            for key, value in line.items()
            if not key.startswith(MEASURED) and "seconds" not in key
        }
        for step, line in read_metrics(run / "metrics.jsonl").items()
    }
    rows = [read_rows(path) for path in sorted((run / "ledger").iterdir())]
    checkpoint = Checkpoints(run / "checkpoints").newest(print)
    assert checkpoint is not None
    progress = checkpoint.progress
    progress["progress"].pop("seconds")
    files = json.loads((checkpoint.path / "manifest.json").read_text())["files"]
    return {
        "metrics": metrics,
        "ledger": [[dataclasses.asdict(row) for row in step] for step in rows],
        "progress": progress,
        "model": {name: digest for name, digest in files.items() if name.startswith("model/")},
        "groups": json.loads((run / "summary.json").read_text())["groups"],
        "state": {
            f"{path.name}/{name}": tensor
            for path in sorted((checkpoint.path / "state").rglob("*.pt"))
            for name, tensor in tensors_in(torch.load(path, weights_only=False))
        },
    }


def tensors_in(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, list | tuple) else ()
    return [pair for key, inner in items for pair in tensors_in(inner, f"{name}.{key}")]


def assert_same_run(resumed: Path, whole: Path) -> None:
    """To the last bit."""
    ours, theirs = left_by(resumed), left_by(whole)
    assert theirs["progress"]["scorer"]["probability"]["baselines"]
    states = ours.pop("state"), theirs.pop("state")
    for part, expected in theirs.items():
        assert ours[part] == expected, part
    assert states[0].keys() == states[1].keys() != set()
    different = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert not different


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 2])
def test_killed_at_every_point_and_resumed_it_is_the_same_run(tmp_path, staleness):
    """One run, which dies at each of the points in the step after its checkpoint."""
    settings = [*SETTINGS, f"rollout.max_staleness={staleness}"]
    output = finish(start("rl.launch", *settings, f"run={tmp_path / 'whole'}"))
    assert "groups: drawn" in output
    for point in ("sampling", "scoring", "updating", "publishing", "saving"):
        die(tmp_path / "killed", point, KILLED_IN, *settings)
    interrupt(tmp_path / "killed", *settings)
    finish(start("rl.launch", *settings, f"run={tmp_path / 'killed'}"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert left_by(tmp_path / "whole")["groups"]["trained"] == STEPS * 4
