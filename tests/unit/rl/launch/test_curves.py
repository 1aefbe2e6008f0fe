import json
import math
import struct

import pytest

from rl.launch.curves import _known, _read, draw_curves
from rl.run.directory import RunDirectory
from rl.run.sinks import JsonlSink

FIGURES = {"accuracy": 0.25, "tokens_mean": 40.0}


def logged(tmp_path, steps):
    directory = RunDirectory(tmp_path)
    sink = JsonlSink(directory.metrics_path)
    for step, metrics in steps.items():
        sink.write(step, metrics)
    sink.close()
    return directory


def size(path):
    header = path.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    return struct.unpack(">II", header[16:24])


def step(number):
    return {
        "rollout/long/groups": 2,
        "reward/long/mean": math.nan if number == 2 else 0.5,
        "reward/long/accuracy": 0.5,
        "rollout/long/tokens_mean": 30.0,
        "time/wait_for_groups": 1.0,
        "time/update": 0.5,
        "perf/tokens_per_second": 1000.0,
    }


@pytest.mark.parametrize("count", [0, 1, 170])
def test_curves_are_drawn_for_any_number_of_steps(tmp_path, count):
    directory = logged(tmp_path, {number: step(number) for number in range(1, count + 1)})
    assert size(draw_curves(directory)) == (1600, 1000)


def test_missing_metrics_leave_their_panel_empty(tmp_path):
    directory = logged(tmp_path, {1: {"rollout/long/groups": 2}, 2: {"time/update": 1.0}})
    assert size(draw_curves(directory)) == (1600, 1000)


def test_modes_keep_the_order_of_the_log_and_values_that_are_no_number_are_left_out(tmp_path):
    directory = logged(
        tmp_path,
        {
            1: {"rollout/short/groups": 1, "reward/short/mean": 0.1, "rollout/dropped/crash": 1},
            2: {"rollout/long/groups": 1, "reward/short/mean": math.nan},
        },
    )
    logged_metrics, heldout = _read(directory)
    assert list(heldout) == ["short", "long"]
    assert _known(logged_metrics, "reward/short/mean").to_dict() == {1: 0.1}


def test_the_held_out_start_is_drawn_at_step_0(tmp_path):
    directory = logged(tmp_path, {4: {"eval/long/accuracy": 0.75}})
    directory.summary_path.write_text(json.dumps({"before": {"long": FIGURES}}))
    _, heldout = _read(directory)
    assert heldout["long"].to_dict() == {0: 0.25, 4: 0.75}
