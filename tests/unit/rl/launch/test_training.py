import asyncio
import errno
import io
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import rich.console

from rl.launch import __main__ as launch
from rl.launch import run_state, training
from rl.launch.console import Console
from rl.launch.stopping import Stop
from rl.loop.stages import Prompt
from rl.run import checkpoints
from rl.run.directory import RunDirectory
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config

ARGUMENTS = ["config=hybrid_50_50.yaml", "scale=cpu_tiny"]


def ends_with(monkeypatch, tmp_path, error):
    async def fail(config, origin, notes):
        raise error

    monkeypatch.setattr(training, "train", fail)
    return launch.main([*ARGUMENTS, f"run={tmp_path}"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_with_what_to_do(monkeypatch, tmp_path, capsys, number):
    error = OSError(number, "No space left on device", "ledger/step_000001.parquet")
    assert ends_with(monkeypatch, tmp_path, error) == 2
    assert "make room" in capsys.readouterr().err


def test_another_system_error_keeps_its_traceback(monkeypatch, tmp_path):
    with pytest.raises(PermissionError):
        ends_with(monkeypatch, tmp_path, PermissionError(errno.EACCES, "no"))


def test_mistakes_in_the_input_end_with_code_2(capsys):
    assert launch.main([*ARGUMENTS, "rollout.group_size=1"]) == 2
    assert "rollout.group_size: must be greater than 1, got 1" in capsys.readouterr().err


def test_a_dry_run_is_one_or_none(capsys):
    assert launch.main([*ARGUMENTS, "dry_run=1"]) == 2
    assert "dry_run: must be true or false, got '1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stopped_by", "code"), [(None, 0), (signal.SIGINT, 0), (signal.SIGTERM, 143)]
)
def test_a_run_that_a_scheduler_stopped_says_so_by_its_code(
    monkeypatch, tmp_path, stopped_by, code
):
    async def train(config, origin, notes):
        return stopped_by

    monkeypatch.setattr(training, "train", train)
    assert launch.main([*ARGUMENTS, f"run={tmp_path}"]) == code


async def signalled(*numbers: signal.Signals) -> tuple[list[signal.Signals], bool]:
    """What a run notes of these signals, and whether they cancelled it."""
    stop = Stop(60)
    try:
        with stop.on_signals(lambda text: None):
            for number in numbers:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return stop.signals, True
    assert stop.asked.is_set()
    return stop.signals, False


def test_ctrl_c_and_sigterm_ask_for_a_stop_and_a_second_ctrl_c_cancels():
    interrupt, terminate = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in (interrupt, terminate)]
    assert asyncio.run(signalled(interrupt)) == ([interrupt], False)
    assert asyncio.run(signalled(terminate, terminate)) == ([terminate, terminate], False)
    assert asyncio.run(signalled(terminate, interrupt)) == ([terminate, interrupt], True)
    assert [signal.getsignal(number) for number in (interrupt, terminate)] == before


def test_what_takes_long_to_write_does_not_hold_up_the_event_loop(monkeypatch, tmp_path):
    """Groups of the next step come in meanwhile; each writer here waits for the loop to turn."""
    written = []

    async def main():
        loop = asyncio.get_running_loop()

        def needs_the_loop(module, name):
            original = getattr(module, name)

            def write(*arguments):
                turned = threading.Event()
                loop.call_soon_threadsafe(turned.set)
                assert turned.wait(30), f"{name} runs on the event loop itself"
                written.append(name)
                return original(*arguments)

            monkeypatch.setattr(module, name, write)

        needs_the_loop(training, "write_step")
        needs_the_loop(run_state, "draw_curves")
        needs_the_loop(checkpoints, "_write_manifest")
        cfg = config(run=str(tmp_path / "run"), steps=1, log={"tensorboard": False})
        inputs = SimpleNamespace(
            config=cfg,
            encode=lambda prompt, mode: (1, 2, 3),
            stream=FakePrompts(4),
            heldout=(Prompt("heldout", (), "12"),),
        )
        services = SimpleNamespace(
            engine=FakeEngine(), scorer=FakeScorer(), reward_actors=(), learner=FakeLearner()
        )
        screen = rich.console.Console(file=io.StringIO())
        console = Console("run", cfg.steps, list(cfg.modes), screen)
        with RunDirectory(tmp_path / "run").open(cfg) as directory:
            sinks = training.Sinks(cfg.log, directory, console.note, ())
            await training._train_from(None, inputs, services, directory, console, sinks, Stop(60))
            assert directory.checkpoints.steps() == [1]

    asyncio.run(main())
    assert written == ["write_step", "draw_curves", "_write_manifest"]
