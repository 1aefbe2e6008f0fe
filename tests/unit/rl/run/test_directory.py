import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rl.run import directory
from rl.run.checkpoints import find_damage
from rl.run.directory import RunDirectory
from tests.fakes import config

REPOSITORY = Path(__file__).parents[4]


def opened(root, **changes):
    return RunDirectory(root).open(config(**changes))


def open_once(root, **changes):
    with opened(root, **changes) as run:
        return run


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "runs" / "first") as run:
        yield run


def writer(run, step, progress):
    return run.checkpoints.writer(step, progress, keep_last=2)


def save(run, step, weights=b"weights"):
    with writer(run, step, {"tokens": step * 10}) as path:
        (path / "learner").mkdir()
        (path / "learner" / "model.bin").write_bytes(weights)


def checkpoints(run):
    return sorted(path.name for path in (run.root / "checkpoints").iterdir())


def newest(run):
    notes = []
    return run.checkpoints.newest(notes.append), notes


# Opening


def test_a_run_continues_with_its_own_config_and_the_stored_one_is_the_newest(tmp_path):
    open_once(tmp_path, steps=4)
    run = open_once(tmp_path, steps=9, log__tensorboard=False, checkpoint__every=3)
    assert OmegaConf.load(run.config_path).steps == 9


def started(root, **changes):
    """A run that made a step, closed again."""
    with opened(root, **changes) as run:
        run.metrics_path.write_text('{"step": 1}\n')
    return run


def test_a_run_without_a_step_takes_a_mended_config(tmp_path):
    open_once(tmp_path)
    run = open_once(tmp_path, seed=3)
    assert "seed: 3" in run.config_path.read_text()


def test_what_errors_advise_to_change_may_change_on_a_resume(tmp_path):
    started(tmp_path)
    open_once(
        tmp_path, sync__deadline_s=900, rollout__engine={"max_num_seqs": 64}, rollout__workers=2
    )


def test_another_config_is_refused_and_the_differing_keys_are_named(tmp_path):
    run = started(tmp_path)
    before = run.config_path.read_text()
    with pytest.raises(ValueError, match="run=NAME") as error:
        open_once(tmp_path, seed=3, policy__optimizer__learning_rate=1e-5, checkpoint__every=3)
    assert "seed was 0, is 3; policy.optimizer.learning_rate was 1e-06, is 1e-05." in str(
        error.value
    )
    assert "checkpoint.every was" not in str(error.value) and "rl.evaluate" not in str(error.value)
    assert run.config_path.read_text() == before


def test_how_a_run_is_measured_stays_and_when_may_change(tmp_path):
    """What was measured before training would be compared with another measure after it."""
    started(tmp_path, eval__temperature=1.0, eval__every=5)
    open_once(tmp_path, eval__temperature=1.0, eval__every=2)
    with pytest.raises(
        ValueError, match=r"python -m rl\.evaluate run=.* eval\.temperature=0"
    ) as error:
        open_once(tmp_path, eval__temperature=0, eval__prompts=8, eval__top_p=0.9)
    assert (
        "eval.prompts was 256, is 8; eval.temperature was 1.0, is 0.0; eval.top_p was 1.0"
        in str(error.value)
    )


def test_resume_never_refuses_a_run_that_exists(tmp_path):
    started(tmp_path)
    with pytest.raises(ValueError, match="resume is never"):
        open_once(tmp_path, resume="never")


def test_a_stored_config_that_is_no_config_is_refused(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read as a config"):
        open_once(tmp_path)


def test_a_path_through_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written \(Not a directory"):
        open_once(tmp_path / "file" / "run")


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "NEEDED_BYTES", 2**50)
    with pytest.raises(ValueError, match=r"the run needs 1048576\.00 GiB"):
        open_once(tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_second_driver_is_refused_until_the_first_closes(tmp_path):
    with (
        opened(tmp_path),
        pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"),
    ):
        open_once(tmp_path)
    open_once(tmp_path)


def test_who_holds_it_is_known_while_it_is_held_and_may_be_asked_by_many(tmp_path):
    assert RunDirectory(tmp_path).owner() is None
    with opened(tmp_path):
        asked = [RunDirectory(tmp_path).owner() for _ in range(2)]
        assert all(owner.startswith(f"process {os.getpid()} on ") for owner in asked)
    assert RunDirectory(tmp_path).owner() is None


def test_who_asks_for_the_owner_keeps_no_driver_out(tmp_path):
    open_once(tmp_path)
    with (tmp_path / ".lock").open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(asking, fcntl.LOCK_UN)).start()
        open_once(tmp_path)


def test_a_driver_killed_while_it_saves_leaves_a_run_that_goes_on(tmp_path):
    program = f"""
import time
from pathlib import Path
from tests.unit.rl.run.test_directory import opened, save, writer
with opened(Path({str(tmp_path)!r})) as run:
    save(run, 5)
    with writer(run, 10, {{}}) as path:
        (path / "half").write_text("a")
        print("saving", flush=True)
        time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"saving\n"
        with pytest.raises(ValueError, match=f"in use by process {driver.pid} on"):
            open_once(tmp_path)
        reader = RunDirectory(tmp_path)
        assert newest(reader)[0].step == 5
        assert ".step_000010.partial" in checkpoints(reader)
        driver.send_signal(signal.SIGKILL)
    run = open_once(tmp_path)
    checkpoint, notes = newest(run)
    assert (checkpoint.step, checkpoint.progress, notes) == (5, {"tokens": 50}, [])
    assert checkpoints(run) == ["latest", "step_000005"]


# Checkpoints


def test_a_checkpoint_appears_only_when_it_is_complete(run):
    with writer(run, 7, {"tokens": 70}) as path:
        assert list(path.iterdir()) == []
        (path / "model.bin").write_bytes(b"abc")
        assert newest(run)[0] is None
    checkpoint, _ = newest(run)
    assert (checkpoint.step, checkpoint.progress) == (7, {"tokens": 70})
    assert (run.root / "checkpoints" / "latest" / "model.bin").read_bytes() == b"abc"
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        "model.bin": 3,
        "progress.json": 14,
    }


def test_only_the_newest_are_kept(run):
    for step in (2, 4, 6):
        save(run, step)
    assert checkpoints(run) == ["latest", "step_000004", "step_000006"]
    assert os.readlink(run.root / "checkpoints" / "latest") == "step_000006"


def test_an_error_while_saving_leaves_the_previous_checkpoint_and_passes_on(run):
    save(run, 2)
    with pytest.raises(RuntimeError, match="rank 1"), writer(run, 4, {}) as path:
        (path / "half").write_text("a")
        raise RuntimeError("rank 1 died")
    assert checkpoints(run) == ["latest", "step_000002"]
    assert newest(run)[0].step == 2


def test_a_full_disk_is_named_with_what_to_do(run):
    save(run, 2)
    with (
        pytest.raises(OSError, match=r"keep_last.*continues from step 2"),
        writer(run, 4, {}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert checkpoints(run) == ["latest", "step_000002"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: f.write_bytes(b"weightz"), "has other content than was written"),
        (lambda f: f.write_bytes(b"weigh"), "has 5 bytes instead of 7"),
        (lambda f: f.unlink(), "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_its_file_is_named(run, damage, reason):
    save(run, 2)
    save(run, 4)
    damage(run.root / "checkpoints" / "step_000004" / "learner" / "model.bin")
    checkpoint, notes = newest(run)
    assert checkpoint.step == 2
    assert notes == [f"checkpoint step_000004 is skipped: learner/model.bin {reason}"]


def test_a_checkpoint_without_a_readable_manifest_is_damaged(run):
    save(run, 2)
    manifest = run.root / "checkpoints" / "step_000002" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-9])
    assert "manifest.json is not readable" in find_damage(manifest.parent)
    manifest.unlink()
    assert find_damage(manifest.parent) == "manifest.json is missing"


def test_a_run_whose_every_checkpoint_is_damaged_is_not_started_over(run):
    save(run, 2)
    (run.root / "checkpoints" / "step_000002" / "progress.json").unlink()
    with pytest.raises(ValueError, match=r"steps 2\).*run=NAME"):
        newest(run)


def test_a_damaged_checkpoint_does_not_push_out_the_ones_made_after_falling_back(run):
    save(run, 2)
    save(run, 8)
    (run.root / "checkpoints" / "step_000008" / "progress.json").unlink()
    run.truncate_to(newest(run)[0].step)
    save(run, 4)
    save(run, 6)
    assert newest(run)[0].step == 6
    save(run, 8)
    assert checkpoints(run) == ["latest", "step_000006", "step_000008", "step_000008.damaged"]
    assert newest(run)[0].step == 8


def test_a_step_saved_twice_holds_the_second(run):
    save(run, 2, b"first")
    save(run, 2, b"second")
    assert (newest(run)[0].path / "learner" / "model.bin").read_bytes() == b"second"
    assert checkpoints(run) == ["latest", "step_000002"]


# Truncation


def test_truncation_leaves_exactly_the_steps_up_to_the_checkpoint(run):
    lines = [json.dumps({"step": step, "reward/mean": 0.5}) + "\n" for step in range(1, 8)]
    run.metrics_path.write_text("".join(lines) + '{"step": 8, "rew')
    run.ledger_path.mkdir()
    for step in range(1, 9):
        (run.ledger_path / f"step_{step:06d}.parquet").write_text("")
    (run.ledger_path / ".step_000009.parquet.partial").write_text("")
    run.truncate_to(5)
    assert run.metrics_path.read_text() == "".join(lines[:5])
    assert sorted(path.name for path in run.ledger_path.iterdir()) == [
        f"step_{step:06d}.parquet" for step in range(1, 6)
    ]


def test_truncation_before_anything_was_logged_does_nothing(run):
    run.truncate_to(0)
    assert not run.metrics_path.exists()
