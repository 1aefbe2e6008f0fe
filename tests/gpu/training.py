"""Trains as a user does, and holds every step to its engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def train(run: Path, num_steps: int, timeout_s: float, *settings: str) -> list[dict[str, Any]]:
    """The metrics of a run of so many steps."""
    command = [sys.executable, "-m", "rl.launch", f"run={run}", f"steps={num_steps}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == num_steps
    assert max(step["rollout/mismatch_kl"] for step in steps) <= 0.01
    return steps
