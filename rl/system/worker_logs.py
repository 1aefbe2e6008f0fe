"""What worker processes print goes into files of the run directory: `logs/engine_0.log`, ...

Ray would write it to the driver's terminal, in between the run's own lines, and an engine that dies
writes hundreds. In a file it is whole, and it is there while the worker still runs.
"""

import faulthandler
import gc
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

LOG_VARIABLE = "HYBRID_RL_WORKER_LOG"
"""Environment variable of a worker: the file that it writes to."""
SETUP_HOOK = "rl.system.worker_logs.set_up"
"""What Ray is to call in every worker process, before anything else runs there."""
_START = "==== process"
# vLLM marks each line with its process and, where it is logged, with level, time and place:
# `(EngineCore pid=20180) ERROR 11-28 20:08:53 [core.py:1512] RuntimeError: ...`
_MARK = re.compile(r"\((?P<process>\w+) pid=\d+\) ?(?:[A-Z]+ \S+ \S+ \[\S+\] ?)?")
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): \S")


def log_variables(logs: Path | None, worker: str) -> Mapping[str, str]:
    """The environment of a worker, such as `engine 0`, that writes to a file in `logs`."""
    if logs is None:
        return {}
    return {LOG_VARIABLE: str(logs.absolute() / f"{worker.replace(' ', '_')}.log")}


def set_up() -> None:
    """Before a worker process loads anything."""
    # What torch and vLLM make as they load stays. To look through it for garbage at every 700th
    # object takes a sixth of a start.
    gc.set_threshold(50_000, 10, 10)
    keep_output()


def keep_output() -> None:
    """From here on, append what this process and those it starts print to the file named for it."""
    if (path := os.environ.get(LOG_VARIABLE)) is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Appended: a run that goes on keeps what was printed before it was stopped.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"{_START} {os.getpid()}\n".encode())
    # The descriptors themselves, because the engine's own processes and C++ write to them too.
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    answer_with_stacks()


def answer_with_stacks() -> None:
    """From here on SIGUSR2 makes this process print the stacks of its threads (stacks.py)."""
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)


def engine_error() -> str | None:
    """The error that a process of vLLM ended with, as this worker's log has it, or None.

    vLLM itself raises only that some process of its engine died.
    """
    path = os.environ.get(LOG_VARIABLE)
    if path is None or not Path(path).is_file():
        return None
    text = Path(path).read_text(encoding="utf-8", errors="replace").rpartition(_START)[2]
    errors = []
    for line in text.splitlines():
        mark = _MARK.match(line)
        # MainProcess is this worker, which only passes on that the engine is gone.
        if mark and mark["process"] != "MainProcess" and _ERROR.match(line, mark.end()):
            errors.append(line[mark.end() :])
    return errors[-1] if errors else None
