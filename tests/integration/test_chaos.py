"""scripts/chaos.py in short: a run under one fault of each sort, and its accounts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.run.jsonl import write_records

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import chaos

# Those that end the driver are left to test_run.py and test_exact_resume.py: most of the time goes
# into starting a run.
KINDS = ("slow vllm", "stop preference", "hang plugin", "damage rank")


def test_faults_follow_from_the_seed_and_each_comes_before_any_comes_twice():
    dealt = chaos.deal(random.Random(1), 30)
    assert dealt == chaos.deal(random.Random(1), 30)
    assert dealt != chaos.deal(random.Random(2), 30)
    first = len(chaos.KINDS)
    assert sorted(dealt[:first]) == sorted(chaos.KINDS)


def test_wrong_accounts_are_found(tmp_path):
    def write(step: int, groups: list[str], reward: float | None = 1.0) -> None:
        rows = [
            {"group_id": group, "reward": reward, "failure": None}
            for group in groups
            for _ in range(chaos.GROUP)
        ]
        (tmp_path / "ledger").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ledger" / f"step_{step:06d}.parquet")

    def groups(step: int) -> list[str]:
        return [f"{step - 1}/{place}/0" for place in range(chaos.PROMPTS)]

    write(1, groups(1))
    write(2, groups(2))
    write_records(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}])
    counts: dict[str, Any] = {"drawn": 2 * chaos.PROMPTS + 1, "dropped": {"low_spread": 1}}
    counts |= {"trained": 2 * chaos.PROMPTS, "in_flight": 0}
    (tmp_path / "summary.json").write_text(json.dumps({"groups": counts}))
    assert chaos.accounts(tmp_path, 2) == []
    assert chaos.accounts(tmp_path, 3) != []
    write(2, groups(1))
    assert "step 2 trained" in chaos.accounts(tmp_path, 2)[0]
    write(2, groups(2), reward=None)
    assert "reward None" in chaos.accounts(tmp_path, 2)[0]
    write(2, groups(2))
    write_records(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}, {"step": 2}])
    assert "metrics.jsonl" in chaos.accounts(tmp_path, 2)[0]
    write_records(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}])
    counts["trained"] -= 1
    (tmp_path / "summary.json").write_text(json.dumps({"groups": counts}))
    assert "do not add up" in chaos.accounts(tmp_path, 2)[0]


def test_a_reward_that_is_another_when_asked_again_is_found(tmp_path):
    def write(folder: str, rewards: list[float | None]) -> Path:
        rows = [
            {"group_id": f"0/{place}/0", "reward": reward, "failure": None}
            for place, reward in enumerate(rewards)
        ]
        rows[-1]["failure"] = "timeout"
        path = tmp_path / folder / "step_000001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path.parent

    rescored = write("rescored", [1.0, 0.0, 0.7])
    write("ledger", [1.0, 0.0, None])
    assert chaos.spoiled(tmp_path, rescored) == []
    write("ledger", [0.0, 0.0, None])
    assert chaos.spoiled(tmp_path, rescored) == ["0/0/0 was rewarded 0.0, and 1.0 when asked again"]


@pytest.mark.parametrize(("calm", "num_wrong"), [(0.6, 0), (0.9, 1)])
def test_an_accuracy_beyond_the_noise_is_found(tmp_path, calm, num_wrong):
    for name, accuracy in (("run", 0.5), ("calm", calm)):
        (tmp_path / name).mkdir()
        after = {"long": {"accuracy": accuracy, "half_width": 0.1}}
        (tmp_path / name / "summary.json").write_text(json.dumps({"after": after}))
    lines, wrong = chaos.against_calm(tmp_path / "run", tmp_path / "calm")
    assert "standard error of 0.072" in lines[0]
    assert len(wrong) == num_wrong


@pytest.mark.timeout(1200)
def test_a_run_goes_on_through_a_fault_of_each_sort(tmp_path):
    script = Path(chaos.__file__)
    command = [sys.executable, str(script), "seed=1", f"faults={len(KINDS)}", "calm=false"]
    command += [f"kinds={','.join(KINDS)}", f"out={tmp_path}", "eval.prompts=4"]
    command += ["rollout.workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{len(KINDS)} faults" in done.stdout
    assert "the accounts are right" in done.stdout
