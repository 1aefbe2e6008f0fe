import json
import math

import numpy as np
import pytest

from rl.config.run import LogConfig
from rl.run.directory import RunDirectory
from rl.run.sinks import JsonlSink, Sinks, TensorBoardSink, read_columns, read_metrics


class BrokenSink:
    def __init__(self):
        self.calls = 0

    def write(self, step, metrics):
        self.calls += 1
        raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("a dropped sink is not closed")


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(
        3, {"step": 3.0, "a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": 7, "e": -1e-9}
    )
    line = (tmp_path / "metrics.jsonl").read_text()
    sink.close()
    assert line.endswith("}\n")
    assert json.loads(line) == {"step": 3, "a": None, "b": None, "c": 0.5, "d": 7, "e": -1e-9}


def test_metrics_are_read_by_step_without_nulls_and_without_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "a": 1.0}\n{"step": 1, "a": null}\n{"step": 2, "b": 3}\n{"step": 3, "a'
    )
    assert read_metrics(path) == {1: {}, 2: {"a": 1.0, "b": 3}}
    assert read_metrics(tmp_path / "absent") == {}


def test_metrics_are_read_by_column_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "a": 1.0}\n{"step": 1, "a": null, "b": 0}\n{"step": 2, "c": 3}\n'
        '{"step": 4, "a": 5}\n{"step": 5, "a'
    )
    steps, columns = read_columns(path)
    assert steps == [2, 1, 4]
    nan = math.nan
    expected = {"a": [1.0, nan, 5.0], "b": [nan, 0.0, nan], "c": [3.0, nan, nan]}
    assert columns.keys() == expected.keys()
    for key, values in expected.items():
        assert list(columns[key]) == pytest.approx(values, nan_ok=True)
    assert read_columns(tmp_path / "absent") == ([], {})


def test_a_sink_that_fails_is_reported_once_and_the_others_go_on(tmp_path):
    notes = []
    directory = RunDirectory(tmp_path)
    sinks = Sinks(LogConfig(tensorboard=False), directory, notes.append)
    broken = BrokenSink()
    sinks._sinks.insert(0, broken)
    sinks.write(1, {"a": 1.0})
    sinks.write(2, {"a": 2.0})
    sinks.close()
    assert broken.calls == 1
    assert notes == ["BrokenSink is no longer written: ConnectionError('no route to host')"]
    assert read_metrics(directory.metrics_path) == {1: {"a": 1.0}, 2: {"a": 2.0}}


def tensorboard_scalars(path, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_shows_the_steps_that_a_resume_makes_again_once(tmp_path):
    first = TensorBoardSink(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, {"step": float(step), "reward/mean": 0.25})
    first.close()
    second = TensorBoardSink(tmp_path, 3)
    second.write(3, {"reward/mean": 0.75})
    second.close()
    assert tensorboard_scalars(tmp_path, "reward/mean") == [(1, 0.25), (2, 0.25), (3, 0.75)]


def test_a_sink_that_cannot_be_opened_is_reported_and_left_out(tmp_path, monkeypatch):
    def refuse(project, directory):
        raise ConnectionError(f"not logged in to {project}")

    refuse.__name__ = "WandbSink"
    monkeypatch.setattr("rl.run.sinks.WandbSink", refuse)
    # A file where TensorBoard's directory should be.
    (tmp_path / "tensorboard").write_text("")
    notes = []
    sinks = Sinks(LogConfig(wandb_project="mine"), RunDirectory(tmp_path), notes.append)
    sinks.write(1, {"a": 1.0})
    sinks.close()
    assert [note.partition(": ")[0] for note in notes] == [
        "TensorBoardSink cannot be opened and is left out",
        "WandbSink cannot be opened and is left out",
    ]
    assert notes[1].endswith(": ConnectionError('not logged in to mine')")
    assert read_metrics(tmp_path / "metrics.jsonl") == {1: {"a": 1.0}}
