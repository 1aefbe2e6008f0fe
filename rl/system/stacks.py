"""What every process of a run is at, written down when nothing goes on any more.

A process that is sent SIGUSR2 writes the stacks of its threads to its log (worker_logs.py), in C,
so that it does so in the middle of a hang too. A process that was stopped cannot, which is said.
"""

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rl.system.worker_logs import LOG_VARIABLE

ANSWER_S = 1.0
"""How long a process is waited for."""
NODE_S = 60.0
"""How long all processes of a node are."""


def write_stacks(logs: Path) -> Path:
    """Write the stacks of this process, and of all that print into `logs`, to a file there."""
    path = logs / f"stacks_{time.strftime('%Y%m%d_%H%M%S')}.txt"
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    with path.open("w", encoding="utf-8") as file:
        file.write(f"== driver: process {os.getpid()}\n")
        file.flush()
        faulthandler.dump_traceback(file)
        file.write(stacks_of_node(logs))
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            read: Any = ray.remote(stacks_of_node).options(num_cpus=0, scheduling_strategy=there)
            try:
                file.write(ray.get(read.remote(logs), timeout=NODE_S))
            except RayError as error:
                file.write(f"== node {node}: {error}\n")
    return path


@dataclass(frozen=True)
class RunProcess:
    """A process of this node that prints into a log of a run."""

    pid: int
    log: Path
    command: str
    state: str
    """Such as `S (sleeping)` or `T (stopped)`."""
    catches: int
    """The signals that it handles, a bit each."""


def processes_of_run(logs: Path) -> Iterator[RunProcess]:
    """The processes of this node that print into `logs`."""
    variable = f"{LOG_VARIABLE}={logs.absolute()}/"
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        # Any process may end while it is looked at.
        with suppress(OSError):
            environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            values = [entry for entry in environment if entry.startswith(variable)]
            if not values:
                continue
            status = dict(
                line.split(":\t", 1)
                for line in (process / "status").read_text().splitlines()
                if ":\t" in line
            )
            yield RunProcess(
                pid=int(process.name),
                log=Path(values[0].partition("=")[2]),
                command=(process / "cmdline").read_bytes().decode(errors="replace"),
                state=status["State"],
                catches=int(status["SigCgt"], 16),
            )


def stacks_of_node(logs: Path) -> str:
    """The stacks of the processes of this node that print into `logs`, one after the other."""
    sections = []
    for process in processes_of_run(logs):
        with suppress(OSError):
            sections.append(_stacks_of(process))
    return "".join(sections)


def _stacks_of(process: RunProcess) -> str:
    command = process.command.replace("\0", " ").strip()[:80]
    title = f"== {process.log.stem}: process {process.pid}, {process.state}, {command}\n"
    # The signal ends a process that has no handler for it.
    is_caught = process.catches >> (signal.SIGUSR2 - 1) & 1
    if not is_caught or process.state.startswith(("T", "Z")):
        return f"{title}(it cannot say what it is at)\n"
    before = process.log.stat().st_size
    os.kill(process.pid, signal.SIGUSR2)
    deadline, size = time.monotonic() + ANSWER_S, before
    # Until it has begun to write, and until it has ended.
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = process.log.stat().st_size
        if now == size > before:
            break
        size = now
    with process.log.open("rb") as file:
        file.seek(before)
        return title + file.read(size - before).decode(errors="replace") + "\n"
