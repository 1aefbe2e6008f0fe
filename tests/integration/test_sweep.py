"""A whole sweep through the command line: Ray Tune over real arms, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_run import metrics_of, texts_of

STEPS = 6
SETTINGS = [
    *("config=sweep_ratio.yaml", "scale=cpu_tiny", f"steps={STEPS}", "seeds=[0]"),
    *("rollout.prompts_per_step=8", "rollout.group_size=4"),
    *("eval.prompts=16", "eval.every=2", "checkpoint.every=2"),
]
ARMS = ("long_50_seed_0", "long_100_seed_0")


def start(root: Path, shares: str = "[0.5,1]") -> subprocess.Popen[str]:
    """The sweep in a process group of its own, so that a kill reaches nothing else."""
    return subprocess.Popen(
        [sys.executable, "-m", "rl.sweep", *SETTINGS, f"long_share={shares}", f"run={root}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output[-5000:]
    return output


def points_of(root: Path) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads((root / "results.json").read_text())["points"]}


def trained_steps(root: Path, arm: str) -> list[int]:
    run = root / "arms" / arm
    return [int(s["step"]) for s in metrics_of(run)] if (run / "metrics.jsonl").exists() else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep") / "uninterrupted"
    finish(start(root))
    return root


def test_every_arm_is_trained_and_reported(uninterrupted):
    for arm in ARMS:
        assert trained_steps(uninterrupted, arm) == list(range(1, STEPS + 1))
    assert set(points_of(uninterrupted)) == {"long_50", "long_100"}
    half, alone = (points_of(uninterrupted)[name] for name in ("long_50", "long_100"))
    assert [e["step"] for e in half["courses"][0]["evaluations"]] == [0, 2, 4, 6]
    assert half["final"]["trained_tokens"] < alone["final"]["trained_tokens"]
    assert alone["long_only_peak"]["accuracy"] == max(
        e["accuracy"]["long"] for e in alone["courses"][0]["evaluations"]
    )
    assert "## What training one mode does" in (uninterrupted / "report.md").read_text()
    assert (uninterrupted / "report.html").stat().st_size > 50_000


def test_arms_start_from_the_same_policy_on_the_same_prompts(uninterrupted):
    before = [one["courses"][0]["evaluations"][0] for one in points_of(uninterrupted).values()]
    assert before[0]["accuracy"] == before[1]["accuracy"]


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_to_the_same_numbers_past_an_arm_that_fails(uninterrupted, tmp_path):
    root = tmp_path / "killed"
    process = start(root)
    deadline = time.monotonic() + 300
    while not any(len(trained_steps(root, arm)) >= 3 for arm in ARMS):
        assert time.monotonic() < deadline, "no arm came to its third step"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "results.json").exists()
    # A third arm, in whose way lies the run of another configuration.
    blocked = root / "arms" / "long_0_seed_0"
    blocked.mkdir()
    (blocked / "config.yaml").write_text((root / "arms" / ARMS[0] / "config.yaml").read_text())
    (blocked / "metrics.jsonl").write_text('{"step": 1}\n')
    output = finish(start(root, "[0,0.5,1]"), code=1)
    assert "long_0_seed_0" in output and "another config" in output
    assert "| long_0_seed_0 |" in (root / "report.md").read_text()
    for arm in ARMS:
        assert trained_steps(root, arm) == list(range(1, STEPS + 1))
        pairs = list(
            zip(texts_of(root / "arms" / arm), texts_of(uninterrupted / "arms" / arm), strict=True)
        )
        # Seeded sampling: the same texts, up to rounding that flips a token.
        assert sum(ours == theirs for ours, theirs in pairs) >= 0.98 * len(pairs)
    for name, one in points_of(uninterrupted).items():
        ours = points_of(root)[name]["final"]
        assert ours["trained_tokens"] == pytest.approx(one["final"]["trained_tokens"], rel=0.01)
        for mode, accuracy in one["final"]["accuracy"].items():
            # One of sixteen prompts.
            assert ours["accuracy"][mode] == pytest.approx(accuracy, abs=1 / 16 + 1e-9)
