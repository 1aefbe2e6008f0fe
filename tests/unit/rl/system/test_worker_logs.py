import os
import subprocess
import sys

import pytest

from rl.system.worker_logs import LOG_VARIABLE, engine_error, log_variables

CORE = "(EngineCore pid=7) ERROR 11-28 20:08:53 [core.py:1512] "
MAIN = "(MainProcess pid=5) ERROR 11-28 20:08:53 [async_llm.py:906] "


def test_a_worker_and_what_it_starts_print_into_its_own_file(tmp_path):
    variables = log_variables(tmp_path / "logs", "engine 0")
    code = (
        "import os, sys; from rl.system.worker_logs import keep_output; keep_output(); "
        "print('from python', flush=True); os.system('echo from a child >&2')"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | dict(variables),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == done.stderr == ""
    # A run that goes on keeps what was printed before it was stopped.
    log = (tmp_path / "logs" / "engine_0.log").read_text()
    assert log.count("from python\nfrom a child\n") == 2


def test_a_worker_without_a_file_prints_where_it_did():
    assert log_variables(None, "engine 0") == {}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [
                f"{CORE}Traceback (most recent call last):",
                f'{CORE}  File "core.py", line 1, in run',
                f"{CORE}RuntimeError: Unsupported CPU attention configuration: head_dim=24",
                f"{MAIN}vllm.v1.engine.exceptions.EngineDeadError: See stack trace (above)",
                "RuntimeError: its engine died",
            ],
            "RuntimeError: Unsupported CPU attention configuration: head_dim=24",
        ),
        # As a process prints that was not logging.
        (["(EngineCore pid=7) ValueError: no room"], "ValueError: no room"),
        (["(Worker_TP0 pid=7) torch.OutOfMemoryError: CUDA"], "torch.OutOfMemoryError: CUDA"),
        ([f"{CORE}ValueError: first", f"{CORE}KeyError: 'last'"], "KeyError: 'last'"),
        ([f"{CORE}ValueError: of another process", "==== process 9"], None),
        (["ValueError: of this worker", f"{CORE}an Error in words"], None),
    ],
)
def test_the_reason_is_the_last_error_of_the_engines_own_processes(
    tmp_path, monkeypatch, lines, reason
):
    log = tmp_path / "engine_0.log"
    log.write_text("\n".join(["==== process 5", *lines]) + "\n")
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    assert engine_error() == reason


def test_without_a_log_there_is_no_reason(tmp_path, monkeypatch):
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    assert engine_error() is None
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "no.log"))
    assert engine_error() is None
