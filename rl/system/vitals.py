"""Signs of life of a Ray actor: what it answers of itself, and how it is ended where it does not.

The answer comes from a thread beside the one that works, so that an actor which is busy for
minutes still gives it. A process that was stopped, or that hangs with Python's lock held, does not.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PINGS_PER_HEARTBEAT = 6
"""How often an actor is asked for a sign of life within the time in which it must give one."""
VITALS = "vitals"
"""The concurrency group of an actor that answers for it."""


@dataclass(frozen=True)
class Process:
    """A process of a node, told apart from a later one that is given the same id."""

    pid: int
    started: int
    """In clock ticks since the node was booted."""

    def is_there(self) -> bool:
        return start_time(self.pid) == self.started

    def is_stopped(self) -> bool:
        """Whether it was sent SIGSTOP, say, and nothing has let it go on."""
        return (fields := _stat(self.pid)) is not None and fields[0] == "T"


@dataclass(frozen=True)
class Vitals:
    """What an actor says of itself."""

    node: str
    """Ray's id of its node."""
    process: Process
    children: tuple[Process, ...]
    """Processes that it has started, and those that they have started."""
    silent_s: float = 0.0
    """Seconds since its engine has answered it; 0 for an actor without one."""
    is_receiving: bool = False
    """Whether its engine is taking weights, and answers nothing else meanwhile."""


class Watched:
    """Mixed into a class that becomes an actor (ActorPlaces.start)."""

    _stopped: Mapping[Process, int] = MappingProxyType({})
    """Processes that it has started and that were stopped, and at how many pings in a row."""

    def vitals(self) -> Vitals:
        pid = os.getpid()
        children = tuple(process_of(child) for child in descendants(pid))
        stopped = [child for child in children if child.is_stopped()]
        self._stopped = {child: self._stopped.get(child, 0) + 1 for child in stopped}
        # What waits for such a process may have no deadline for it, as a server of others has none.
        # Whoever can tell more of its fault has had a heartbeat of time for that.
        late = [c for c, pings in self._stopped.items() if pings > 2 * PINGS_PER_HEARTBEAT]
        kill_processes(late)
        node = ray.get_runtime_context().get_node_id()
        return Vitals(node, process_of(pid), children)


def process_of(pid: int) -> Process:
    return Process(pid, start_time(pid) or 0)


def start_time(pid: int) -> int | None:
    """When a process was started; None if there is none of this id, or if it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, from its state on."""
    try:
        # Behind the name, which may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has started, and all that they have."""
    with suppress(OSError):
        # Each thread has a list of its own of the processes that it has started.
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                yield child
                yield from descendants(child)


def kill_processes(processes: Sequence[Process], patience_s: float = 0.0) -> None:
    """Kill those that are still there; works on stopped processes too.

    patience_s: how long they may take to end by themselves.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(process.is_there() for process in processes):
        time.sleep(0.05)
    for process in processes:
        if process.is_there():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


async def end_processes(vitals: Vitals, patience_s: float = 0.0) -> None:
    """Kill an actor's process and all that it started, on whichever node it is.

    patience_s: how long they may take to end by themselves.
    """
    # The actor itself first, so that it cannot start others in place of those that end.
    processes = (vitals.process, *vitals.children)
    if vitals.node == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(kill_processes, processes, patience_s)
    # A node that is gone has taken the processes with it.
    with suppress(RayError):
        there = NodeAffinitySchedulingStrategy(vitals.node, soft=False)
        kill: Any = ray.remote(kill_processes).options(num_cpus=0, scheduling_strategy=there)
        await kill.remote(processes, patience_s)
