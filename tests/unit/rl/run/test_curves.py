import json
import math
import struct

import pytest
from matplotlib.figure import Figure

from rl.run.curves import (
    LEARNING,
    Panel,
    choice_panels,
    draw_curves,
    part_panels,
    picture_of,
    read_course,
)
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
    assert [size(path) for path in draw_curves(directory)] == [(1600, 1000)]


def test_missing_metrics_leave_their_panel_empty(tmp_path):
    directory = logged(tmp_path, {1: {"rollout/long/groups": 2}, 2: {"time/update": 1.0}})
    assert [size(path) for path in draw_curves(directory)] == [(1600, 1000)]


def test_modes_keep_the_order_of_the_log_and_values_that_are_no_number_are_left_out(tmp_path):
    steps = {
        1: {"rollout/short/groups": 1, "reward/short/mean": 0.1, "rollout/dropped/crash": 1},
        2: {"rollout/long/groups": 1, "reward/short/mean": math.nan},
    }
    course = read_course(logged(tmp_path, steps))
    assert list(course.heldout) == ["short", "long"]
    assert course.known("reward/short/mean").to_dict() == {1: 0.1}
    assert course.last == 2


def test_the_order_of_the_config_comes_before_that_of_the_log(tmp_path):
    directory = logged(tmp_path, {1: {"rollout/long/groups": 1, "rollout/short/groups": 1}})
    directory.config_path.write_text("modes: {short: {}, long: {}}")
    assert list(read_course(directory).heldout) == ["short", "long"]
    # A page of a run shows what it can, whatever its config is like.
    directory.config_path.write_text("modes: [")
    assert list(read_course(directory).heldout) == ["long", "short"]


def test_the_held_out_start_is_at_step_0_also_while_the_run_goes_on(tmp_path):
    directory = logged(tmp_path, {4: {"eval/long/accuracy": 0.75}})
    assert read_course(directory).heldout["long"].to_dict() == {4: 0.75}
    checkpoint = tmp_path / "checkpoints" / "latest"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text(json.dumps({"before": {"long": FIGURES}}))
    assert read_course(directory).heldout["long"].to_dict() == {0: 0.25, 4: 0.75}
    summary = {"before": {"long": FIGURES | {"accuracy": 0.5}}}
    directory.summary_path.write_text(json.dumps(summary))
    assert read_course(directory).heldout["long"].to_dict() == {0: 0.5, 4: 0.75}


def test_parts_of_the_reward_have_a_panel_each_but_mean_and_accuracy(tmp_path):
    parts = {"reward/long/format": 1.0, "reward/short/brevity": 0.5, "reward/mean": 1.0}
    parts["reward/long/preference"] = -1.8e-17
    course = read_course(logged(tmp_path, {1: step(1) | parts | {"rollout/short/groups": 1}}))
    assert [one.title for one in part_panels(course)] == ["format", "brevity", "preference"]
    assert course.known("reward/long/preference").to_dict() == {1: 0.0}


def test_a_panel_by_itself_is_svg_and_absent_without_its_metrics(tmp_path):
    course = read_course(logged(tmp_path, {n: step(n) for n in range(1, 30)}))
    for one in LEARNING:
        picture = picture_of(one, course)
        assert picture is not None and b"<svg" in picture
    assert picture_of(Panel("Loss", {"": "loss/policy"}), course) is None


def test_a_long_run_is_drawn_with_its_peak_and_few_points(tmp_path):
    steps = {n: {"policy/grad_norm": 1.0 + n % 2} for n in range(1, 3001)}
    steps[1234]["policy/grad_norm"] = 90.0
    axes = Figure().subplots()
    assert Panel("Norm", {"": "policy/grad_norm"}).draw(axes, read_course(logged(tmp_path, steps)))
    points, mean = axes.get_lines()
    assert dict(zip(points.get_xdata(), points.get_ydata(), strict=True))[1234] == 90.0
    assert 400 < len(points.get_xdata()) == len(mean.get_xdata()) <= 800


CHOSEN = {"choice/reasons": 0.5, "choice/entropy": 0.6, "rollout/auto/gap": 0.1}
CHOSEN |= {f"rollout/auto/reasons_{third}": 0.3 for third in ("easy", "middle", "hard")}
CHOSEN |= {"choice/price": 0.25, "rollout/auto/groups": 2, "rollout/auto/pairs": 0.5}


def test_a_run_in_which_the_policy_chooses_has_a_picture_of_that(tmp_path):
    directory = logged(tmp_path, {number: step(number) | CHOSEN for number in (1, 2)})
    drawn = draw_curves(directory)
    assert [path.name for path in drawn] == ["curves.png", "choice.png"]
    assert size(drawn[1]) == (1600, 1000)


def test_the_choice_is_shown_by_difficulty_and_where_there_are_several_by_source(tmp_path):
    assert choice_panels(read_course(logged(tmp_path / "plain", {1: step(1)}))) == []
    course = read_course(logged(tmp_path / "one", {1: CHOSEN}))
    by_difficulty, entropy, gap, price, pairs = choice_panels(course)
    lines = ["probability", "auto easy", "auto middle", "auto hard"]
    assert list(by_difficulty.lines) == lines
    assert "Entropy" in entropy.title and "Gain" in gap.title and pairs.title == "Pairs"
    assert all(picture_of(panel, course) for panel in (by_difficulty, entropy, gap, price, pairs))
    sources = {f"rollout/auto/reasons_of_{source}": 0.2 for source in ("sums", "legs")}
    several = choice_panels(read_course(logged(tmp_path / "two", {1: CHOSEN | sources})))
    assert list(several[0].lines) == lines
    assert several[1].lines == {
        "auto sums": "rollout/auto/reasons_of_sums",
        "auto legs": "rollout/auto/reasons_of_legs",
    }
