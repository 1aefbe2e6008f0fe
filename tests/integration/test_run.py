"""Whole runs through the command line, on CPU with real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rl.evaluate import __main__ as evaluate_command
from rl.launch import __main__ as launch_command
from rl.run.ledger import read_rows
from tests.integration.command import finish, start
from tests.integration.test_exact_resume import EXACT, assert_same_run, die

STEPS = 6
PROMPTS = 4
GROUP = 2
SETTINGS = [
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    f"steps={STEPS}",
    f"rollout.prompts_per_step={PROMPTS}",
    f"rollout.group_size={GROUP}",
    "rollout.max_staleness=0",
    "eval.prompts=8",
    "checkpoint.every=2",
]
OWN_LINE = re.compile(r"\[(\d+ [smh] ?)+\] |note: |step \d|error: |\d+ steps, ")
REPEATED = [*EXACT, "algorithm.drop_zero_variance=true"]


def launch(run: Path, *settings: str) -> subprocess.Popen[str]:
    return start("rl.launch", *SETTINGS, f"run={run}", *settings)


def metrics_of(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    # A run that is still going may have written half a line.
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return [step for step in steps if "loss/policy" in step]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    output = finish(launch(run, *REPEATED))
    # A table ends it. Nothing of vLLM, Ray or torch stands between the run's own lines.
    lines, table, _ = output.partition("held-out prompts, before and after")
    assert [line for line in lines.splitlines() if not OWN_LINE.match(line)] == []
    assert table
    # Ray tells of a process that ends in another way than by Ray's own hand.
    assert "raylet" not in output
    return run


def test_engine_and_learner_agree_at_every_step(uninterrupted):
    steps = metrics_of(uninterrupted)
    assert len(steps) == STEPS
    assert max(abs(s["rollout/mismatch_kl"]) for s in steps) <= 1e-5
    assert max(s["sync/canary_max_abs_diff"] for s in steps) <= 1e-4
    assert all(s["staleness/max"] == 0 for s in steps)


def test_every_step_says_what_it_cost(uninterrupted):
    steps = metrics_of(uninterrupted)
    parts = ("record", "wait_for_groups", "update", "publish")
    for step in steps:
        assert step["time/step"] == pytest.approx(sum(step[f"time/{part}"] for part in parts))
        assert 0 < step["idle/learner"] < 1
        # Without staleness nothing is sampled while the learner updates.
        assert 0 < step["idle/engines"] <= 1
        assert 0 < step["engine/kv_use"] <= step["engine/kv_use_max"] < 1
        assert step["engine/preemptions"] == 0
        assert step["perf/engine_tokens_per_second"] > 0
        for role in ("driver", "engine", "rank", "rewards"):
            assert 0.05 < step[f"memory/rss_{role}_gib"] < 16
        assert step["memory/rank_peak_gib"] >= 0.9 * step["memory/rss_rank_gib"]
        assert not any(key.endswith("_per_gpu") or key == "perf/mfu" for key in step)
    # What is written down after a step, such as a checkpoint, is in the time of the next.
    assert all(step["time/record"] > 0 for step in steps[1:])


def test_every_step_trains_the_drawn_share(uninterrupted):
    for step in metrics_of(uninterrupted):
        assert step["rollout/short/groups"] == step["rollout/long/groups"] == PROMPTS / 2


def test_trained_tokens_are_those_in_the_ledger(uninterrupted):
    last = metrics_of(uninterrupted)[-1]
    response = sum(
        sum(pq.read_table(path, columns=["num_tokens"])["num_tokens"].to_pylist())
        for path in (uninterrupted / "ledger").glob("*.parquet")
    )
    assert last["progress/trained_tokens"] > response > 0
    assert last["progress/trained_tokens"] == sum(
        last[f"progress/{mode}/trained_tokens"] for mode in ("short", "long")
    )


def test_the_run_leaves_what_a_person_looks_for(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == STEPS
    for moment in ("before", "after"):
        assert set(summary[moment]) == {"short", "long"}
        assert 0 <= summary[moment]["long"]["accuracy"] <= 1
    assert (uninterrupted / "curves.png").stat().st_size > 10_000
    assert list((uninterrupted / "tensorboard").iterdir())
    logs = {path.name for path in (uninterrupted / "logs").iterdir()}
    assert logs >= {"engine_0.log", "rank_0.log", "rewards_0.log"}
    assert (uninterrupted / "checkpoints" / "latest" / "model" / "config.json").exists()
    rows = [len(read_rows(path)) for path in (uninterrupted / "ledger").iterdir()]
    assert rows == [PROMPTS * GROUP] * STEPS


def test_killed_and_resumed_it_is_the_same_run(uninterrupted, tmp_path):
    run = tmp_path / "run"
    die(run, "sampling", 4, *SETTINGS, *REPEATED)
    saved = {path.name for path in (run / "checkpoints").glob("step_*")}
    assert saved == {"step_000002"}
    finish(launch(run, *REPEATED))
    assert_same_run(run, uninterrupted)


def test_a_finished_run_is_left_alone(uninterrupted, capsys):
    assert launch_command.main([*SETTINGS, *REPEATED, f"run={uninterrupted}"]) == 0
    assert f"finished at step {STEPS}" in capsys.readouterr().out


def test_a_checkpoint_evaluates_as_it_did_in_training(uninterrupted):
    """The exported weights in fresh engines, with the same seeds: the same answers."""
    assert evaluate_command.main([f"run={uninterrupted}"]) == 0
    label = f"step_{STEPS:06d}_heldout_t1"
    evaluated = json.loads((uninterrupted / "evaluations" / label / "result.json").read_text())
    summary = json.loads((uninterrupted / "summary.json").read_text())
    for mode in ("short", "long"):
        assert evaluated["modes"][mode]["accuracy"] == summary["after"][mode]["accuracy"]


def test_a_scale_with_more_gpus_than_there_are_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    settings = [
        *("scale=one_gpu", "policy.model=builtin:tiny", "data.kind=chain_sum"),
        "rollout.max_model_length=5000",
    ]
    assert launch_command.main([*SETTINGS, *settings, f"run={run}"]) == 2
    assert "asks for 1 GPUs, this machine shows 0" in capsys.readouterr().err
    assert not list(run.glob("checkpoints/*"))
