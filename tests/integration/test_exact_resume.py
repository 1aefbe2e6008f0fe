"""Real runs that are killed and resumed leave to the last bit what an uninterrupted one leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.run.checkpoints import Checkpoints
from rl.run.ledger import read_rows
from rl.run.sinks import read_metrics
from tests.integration.command import HANGS_S, finish, start

STEPS, KILLED_IN = 5, 4
SETTINGS = [
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    f"steps={STEPS}",
    "rollout.deterministic=true",
    "rollout.prompts_per_step=4",
    "rollout.group_size=2",
    "eval.prompts=2",
    "log.tensorboard=false",
    "checkpoint.every=2",
    "algorithm.drop_zero_variance=true",
    # A preference model scores what waits for it together, and so rounds by what that is.
    "reward.preference=null",
]
# What a clock, the memory or the load of the machine decides.
MEASURED = ("time/", "perf/", "memory/", "idle/", "engine/")


def die(run: Path, point: str, *settings: str) -> None:
    """Start or continue the run in a process that dies at the point."""
    arguments = [point, str(KILLED_IN), *SETTINGS, f"run={run}", *settings]
    process = start("tests.integration.killed_launch", *arguments)
    output, _ = process.communicate(timeout=HANGS_S)
    # Ray's own processes are in its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, output[-5000:]
    # The security of a run by the way, while all its processes are there.
    assert "open port" not in output


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


@pytest.mark.parametrize(
    ("staleness", "points"),
    [
        (2, ("sampling", "saving")),
        pytest.param(
            0,
            ("sampling", "scoring", "updating", "publishing", "saving"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            ("sampling", "scoring", "updating", "publishing", "saving"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_it_is_the_same_run(tmp_path, staleness, points):
    """One run, which dies at each of the points in the step after its checkpoint."""
    settings = f"rollout.max_staleness={staleness}"
    output = finish(start("rl.launch", *SETTINGS, f"run={tmp_path / 'whole'}", settings))
    assert "groups: drawn" in output
    for point in points:
        die(tmp_path / "killed", point, settings)
    finish(start("rl.launch", *SETTINGS, f"run={tmp_path / 'killed'}", settings))
    whole, killed = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    states = whole.pop("state"), killed.pop("state")
    for part, expected in whole.items():
        assert killed[part] == expected, part
    assert states[0].keys() == states[1].keys() != set()
    different = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert not different
    assert whole["groups"]["trained"] == STEPS * 4
