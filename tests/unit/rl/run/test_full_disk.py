"""On a full disk nothing is half-written, and the error says which file there was no room for."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from rl.config.run import LogConfig
from rl.run.directory import RunDirectory
from rl.run.files import FULL_DISK, write_text
from rl.run.jsonl import Journal, read_records
from rl.run.ledger import ledger_rows, write_step
from rl.run.sinks import Sinks, read_metrics
from tests.full_disk import full_disk


def test_a_file_that_is_replaced_stays_as_it_was(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with full_disk(), pytest.raises(OSError, match=r"summary\.json") as caught:
        write_text(path, "new")
    assert caught.value.errno in FULL_DISK
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_ledger_has_the_step_or_not(tmp_path):
    with full_disk(), pytest.raises(OSError, match=r"step_000001\.parquet") as caught:
        write_step(tmp_path, 1, ledger_rows(1, [], [], []))
    assert caught.value.errno in FULL_DISK
    assert not list(tmp_path.iterdir())
    assert pq.read_table(write_step(tmp_path, 1, ledger_rows(1, [], [], []))).num_rows == 0


def test_a_journal_goes_on_behind_its_last_whole_record(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.add({"a": 1})
    with full_disk(path.stat().st_size + 4):
        for refused in (lambda: journal.add({"b": "half of it"}), journal.close):
            with pytest.raises(OSError, match=r"events\.jsonl") as caught:
                refused()
            assert caught.value.errno in FULL_DISK
    with Journal(path) as journal:
        journal.add({"c": 3})
    assert read_records(path) == [{"a": 1}, {"c": 3}]


def test_metrics_that_cannot_be_kept_end_the_run(tmp_path):
    directory = RunDirectory(tmp_path)
    sinks = Sinks(LogConfig(tensorboard=False), directory, print)
    sinks.write(1, {"a": 1.0})
    with full_disk(), pytest.raises(OSError, match=r"metrics\.jsonl"):
        sinks.write(2, {"a": 2.0})
    sinks.close()
    assert 1 in read_metrics(directory.metrics_path)


@pytest.mark.parametrize("wrapped", [RuntimeError, ValueError])
def test_a_checkpoint_that_a_library_could_not_write_is_told_of_as_a_full_disk(tmp_path, wrapped):
    checkpoints = RunDirectory(tmp_path).checkpoints
    with checkpoints.writer(2, {}, keep_last=1):
        pass
    full = pytest.raises(OSError, match=r"checkpoint of step 4.*continues from step 2")
    with full_disk(2**20), full as caught, checkpoints.writer(4, {}, keep_last=1):
        raise wrapped("failed writing file data/0")
    assert caught.value.errno in FULL_DISK
    assert checkpoints.steps() == [2]
