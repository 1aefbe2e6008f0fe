"""A tiny run under random faults.

    python scripts/chaos.py [seed=0] [faults=30] [kinds=KIND,KIND] [calm=true] [out=DIR] [KEY=VALUE]

Starts rl.launch with two engines, kills, stops and damages what it is made of while it trains, and
starts the same command again where it has ended, until every fault has struck and the steps after
the last one are trained. Then it prints what happened and checks:

    every step was trained once, on the groups that were asked for in its name
    drawn = trained + dropped, for a stated reason
    a full disk ended the driver with code 2, which is that of what a person can mend
    each reward is what rl.rescore gives for the same texts afterwards, or a stated failure
    held-out accuracy is that of a run without faults (calm=true), up to three standard errors

The faults and their order are functions of the seed; the moments at which they strike are not.
They are dealt so that each kind comes before any kind comes twice. Other settings go to rl.launch.

    kill, stop       SIGKILL or SIGSTOP: an engine's actor, its vLLM process, a learner rank, the
                     actor of the text rewards, one of its verifiers, the preference model
    slow             an engine that stands still for two seconds and goes on
    driver           the driver and all that it started in its group, with SIGKILL
    preempt          SIGTERM, as a scheduler sends it
    damage           the newest checkpoint loses its last byte, and driver or rank are killed
    full disk        the driver's files can grow no more, by a limit of the kernel
    hang             a reward plug-in that never returns, once
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rl.loop.accounting import in_words
from rl.run.jsonl import read_records
from rl.system.stacks import processes_of_run

PROMPTS, GROUP = 6, 4
STEPS_PER_FAULT, STEPS_BESIDE = 2, 4
SETTINGS = (
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    "rollout.workers=2",
    f"rollout.prompts_per_step={PROMPTS}",
    f"rollout.group_size={GROUP}",
    "rollout.max_staleness=1",
    "eval.prompts=400",
    # That of the scale is for batches of 768: with 24 two calm runs would end far apart.
    "policy.optimizer.learning_rate=1e-4",
    "checkpoint.every=2",
    "recovery.heartbeat_s=8",
    "recovery.restarts_per_hour=100",
    "recovery.stall_s=300",
    "sync.deadline_s=30",
    "log.tensorboard=false",
)
PLUGIN = """
import time
from pathlib import Path

def score(prompt, mode, answer):
    bait = Path({bait!r})
    try:
        bait.unlink()
    except FileNotFoundError:
        return 0.0
    time.sleep(10_000)
"""
QUIET_S = 600.0
"""For as long a run may show no new step before it counts as stuck."""
DRIVER_ENDS = ("driver", "preempt", "damage driver", "full disk")
FULL_BYTES = (0, 2**14)
"""What a file may grow to on a full disk: it has no room at all, or for small files only."""
STANDARD_ERRORS = 3.0
IN_HALF_WIDTH = 1.96
"""Standard errors in the `half_width` of an accuracy (rl/evaluate/evaluation.py)."""
WORKERS = {
    "engine": ("engine_", "ray::"),
    "vllm": ("engine_", "VLLM::"),
    "rank": ("rank_", "ray::"),
    "rewards": ("rewards_", "ray::"),
    "verifier": ("rewards_", "forkserver"),
    "preference": ("preference_model_", "ray::"),
}
"""How a role's log and its command line begin."""
KINDS = (
    *(f"{how} {role}" for how in ("kill", "stop") for role in WORKERS),
    *("slow vllm", "hang plugin", "damage rank", *DRIVER_ENDS),
)


@dataclass
class Chaos:
    """A run, its driver, and what was done to it."""

    run: Path
    steps: int
    settings: list[str]
    rng: random.Random
    driver: subprocess.Popen[bytes] | None = None
    struck: list[tuple[int, str]] = field(default_factory=list)
    """The step that was trained last, and the fault."""
    starts: int = 0
    wrong: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.starts += 1
        # Through a pipe: its output must go on where it can write no file.
        self.driver = subprocess.Popen(
            self.command(self.run),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        log = (self.run.parent / "driver.log").open("ab", buffering=0)
        copying = threading.Thread(
            target=shutil.copyfileobj, args=(self.driver.stdout, log), daemon=True
        )
        copying.start()

    def command(self, run: Path) -> list[str]:
        plugin = self.run.parent / "plugin.py"
        plugin.write_text(PLUGIN.format(bait=str(self.bait)))
        return [
            *(sys.executable, "-m", "rl.launch", *SETTINGS, f"run={run}"),
            *(f"steps={self.steps}", f"reward.plugins.chaos.file={plugin}"),
            *("reward.plugins.chaos.weight=1", *self.settings),
        ]

    @property
    def bait(self) -> Path:
        return self.run.parent / "bait"

    def step(self) -> int:
        path = self.run / "metrics.jsonl"
        return max((record["step"] for record in read_records(path)), default=0)

    def victims(self, role: str) -> list[int]:
        log, command = WORKERS[role]
        found = []
        for process in processes_of_run(self.run / "logs"):
            is_role = process.log.stem.startswith(log) and command in process.command
            # A stopped one cannot be stopped again, and what is gone cannot be hit.
            if is_role and not process.state.startswith(("T", "Z")):
                found.append(process.pid)
        return sorted(found)

    def strike(self, kind: str) -> bool:
        """Do it, if what it needs is there."""
        how, _, role = kind.partition(" ")
        victims = self.victims(role) if role in WORKERS else []
        if (role in WORKERS and not victims) or (how == "damage" and not self.damage()):
            return False
        if kind == "hang plugin":
            self.bait.touch()
        elif kind in DRIVER_ENDS:
            self.end_driver(kind)
        else:
            pid = self.rng.choice(victims)
            os.kill(pid, signal.SIGSTOP if how in ("stop", "slow") else signal.SIGKILL)
            if how == "slow":
                time.sleep(2)
                os.kill(pid, signal.SIGCONT)
        self.struck.append((self.step(), kind))
        print(f"after step {self.step()}: {kind}", flush=True)
        return True

    def damage(self) -> bool:
        """Cut the newest checkpoint short; False where it is the only one."""
        files = sorted(self.run.glob("checkpoints/step_*/model/model.safetensors"))
        # Without any checkpoint a run refuses to go on.
        if len(files) < 2:
            return False
        os.truncate(files[-1], files[-1].stat().st_size - 1)
        return True

    def end_driver(self, kind: str) -> None:
        assert self.driver is not None
        if kind == "preempt":
            self.driver.send_signal(signal.SIGTERM)
        elif kind == "full disk":
            limit = resource.RLIMIT_FSIZE
            _, most = resource.prlimit(self.driver.pid, limit)
            resource.prlimit(self.driver.pid, limit, (self.rng.choice(FULL_BYTES), most))
        else:
            os.killpg(self.driver.pid, signal.SIGKILL)
        code = self.driver.wait(QUIET_S)
        if kind == "full disk" and code != 2:
            self.wrong.append(f"a full disk ended the driver with {code}")


def unleash(chaos: Chaos, faults: list[str]) -> None:
    """Strike one fault after the other, until the run has taken steps enough after the last one."""
    waiting = list(faults)
    chaos.start()
    moved, step, next_at = time.monotonic(), 0, 1.0
    while True:
        assert chaos.driver is not None
        code = chaos.driver.poll()
        if code is not None:
            if code == 0 and not waiting:
                return
            if code == 0:
                # It went back to checkpoints less often than was allowed for.
                chaos.steps += STEPS_BESIDE + STEPS_PER_FAULT * len(waiting)
            print(f"the driver ended with {code}; it goes on to step {chaos.steps}", flush=True)
            if chaos.starts > 2 * len(faults) + STEPS_BESIDE:
                raise RuntimeError("the run ends again and again; see driver.log")
            chaos.start()
        if (now := chaos.step()) != step:
            moved, step = time.monotonic(), now
        if time.monotonic() - moved > QUIET_S:
            raise RuntimeError(f"no step in {QUIET_S:g} s after {chaos.struck[-1:]}")
        # Between two faults the run shows that it goes on, and after the last one too.
        is_due = bool(waiting) and next_at <= step <= chaos.steps - STEPS_PER_FAULT
        if is_due and chaos.strike(waiting[0]):
            waiting.pop(0)
            next_at = step + STEPS_PER_FAULT * chaos.rng.uniform(0.5, 1.2)
            moved = time.monotonic()
        elif is_due:
            # What it needs is not there yet: another one first.
            waiting.append(waiting.pop(0))
        time.sleep(chaos.rng.uniform(0.05, 0.4))


def accounts(run: Path, steps: int) -> list[str]:
    """What ledger, metrics and summary show to be wrong; empty if every step is as it must be."""
    wrong: list[str] = []
    for step in range(1, steps + 1):
        path = run / "ledger" / f"step_{step:06d}.parquet"
        if not path.exists():
            wrong.append(f"step {step} is not in the ledger")
            continue
        rows = ledger_of(path)
        groups = Counter(row["group_id"] for row in rows)
        places = sorted(group.rpartition("/")[0] for group in groups)
        if places != sorted(f"{step - 1}/{place}" for place in range(PROMPTS)):
            wrong.append(f"step {step} trained the groups {places}")
        if set(groups.values()) != {GROUP}:
            wrong.append(f"step {step} has groups of {sorted(set(groups.values()))}")
        for row in rows:
            if (row["reward"] is None) != (row["failure"] is not None):
                wrong.append(f"{row['group_id']}: reward {row['reward']}, {row['failure']}")
    trained = [record["step"] for record in read_records(run / "metrics.jsonl")]
    if trained != list(range(1, steps + 1)):
        wrong.append(f"metrics.jsonl has the steps {trained}")
    groups = json.loads((run / "summary.json").read_text())["groups"]
    dropped = sum(groups["dropped"].values())
    if not groups["drawn"] == groups["trained"] + dropped == steps * PROMPTS + dropped:
        wrong.append(f"groups do not add up: {in_words(groups)}")
    return wrong


def ledger_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=["group_id", "reward", "failure"]).to_pylist()


def spoiled(run: Path, rescored: Path) -> list[str]:
    """Rewards that are others than those of the same texts without faults.

    rescored: what rl.rescore has made of the ledger.
    """
    wrong = []
    for path in sorted(rescored.glob("step_*.parquet")):
        ours, theirs = ledger_of(run / "ledger" / path.name), ledger_of(path)
        # What a preference is worth depends on the whole group.
        failed = {row["group_id"] for row in ours if row["failure"]}
        for own, again in zip(ours, theirs, strict=True):
            group, was, would_be = own["group_id"], own["reward"], again["reward"]
            if group not in failed and (would_be is None or not math.isclose(was, would_be)):
                wrong.append(f"{group} was rewarded {was}, and {would_be} when asked again")
    return wrong


def against_calm(run: Path, calm: Path) -> tuple[list[str], list[str]]:
    """Held-out accuracies of both runs, a line a mode, and those that differ by more than noise."""
    stormy, still = (json.loads((one / "summary.json").read_text())["after"] for one in (run, calm))
    lines, wrong = [], []
    for mode in stormy:
        ours, theirs = stormy[mode], still[mode]
        error = math.hypot(ours["half_width"], theirs["half_width"]) / IN_HALF_WIDTH
        apart = ours["accuracy"] - theirs["accuracy"]
        line = f"{mode}: accuracy {ours['accuracy']:.3f}, without faults {theirs['accuracy']:.3f}, "
        lines.append(line + f"apart {apart:+.3f} with a standard error of {error:.3f}")
        if abs(apart) > STANDARD_ERRORS * error:
            wrong.append(lines[-1])
    return lines, wrong


def report(chaos: Chaos) -> list[str]:
    lines = [
        f"{len(chaos.struck)} faults, {chaos.steps} steps, {chaos.starts} starts of the driver"
    ]
    events = read_records(chaos.run / "events.jsonl")
    counts = Counter((event["event"], event["who"]) for event in events)
    lines += [f"{count:4} {event:10} {who}" for (event, who), count in sorted(counts.items())]
    summary = json.loads((chaos.run / "summary.json").read_text())
    lines.append(f"groups: {in_words(summary['groups'])}")
    paths = sorted((chaos.run / "ledger").glob("step_*.parquet"))
    failures = Counter(row["failure"] for path in paths for row in ledger_of(path))
    lines += [f"{count:4} without a reward: {why}" for why, count in failures.items() if why]
    for mode in summary["before"]:
        before, after = (summary[when][mode]["accuracy"] for when in ("before", "after"))
        lines.append(f"{mode}: accuracy {before:.3f} before, {after:.3f} after")
    return lines


def deal(rng: random.Random, num: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """So many faults, each kind once before any comes twice."""
    dealt: list[str] = []
    while len(dealt) < num:
        dealt += rng.sample(kinds, len(kinds))
    return dealt[:num]


def main(arguments: list[str], note: Callable[[str], None] = print) -> int:
    given = {key: value for key, _, value in (a.partition("=") for a in arguments)}
    seed, faults = int(given.pop("seed", 0)), int(given.pop("faults", 30))
    kinds = tuple(given.pop("kinds", ",".join(KINDS)).split(","))
    is_compared = given.pop("calm", "true") == "true"
    out = Path(given.pop("out", "") or tempfile.mkdtemp(prefix="chaos-"))
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    settings = [f"{key}={value}" for key, value in given.items()]
    chaos = Chaos(out / "run", STEPS_BESIDE + STEPS_PER_FAULT * faults, settings, rng)
    note(f"seed {seed}: {faults} faults over {chaos.steps} steps, in {out}")
    try:
        unleash(chaos, deal(rng, faults, kinds))
    finally:
        if chaos.driver is not None and chaos.driver.poll() is None:
            os.killpg(chaos.driver.pid, signal.SIGKILL)
    note("\n".join(report(chaos)))
    rescore = [sys.executable, "-m", "rl.rescore", f"run={chaos.run}", f"out={out / 'rescored'}"]
    subprocess.run(rescore, check=True, stdout=subprocess.DEVNULL, timeout=QUIET_S)
    wrong = [*chaos.wrong, *accounts(chaos.run, chaos.steps), *spoiled(chaos.run, out / "rescored")]
    if is_compared:
        with (out / "calm.log").open("wb") as log:
            subprocess.run(chaos.command(out / "calm"), check=True, stdout=log, stderr=log)
        lines, apart = against_calm(chaos.run, out / "calm")
        note("\n".join(lines))
        wrong += apart
    note("\n".join(["the accounts are wrong:", *wrong]) if wrong else "the accounts are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
