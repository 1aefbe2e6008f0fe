"""What a sweep concludes, from figures small enough to check by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rl.config.recipe import dump
from rl.sweep.__main__ import _refuse_another, run_sweep
from rl.sweep.arms import Arm, Point, Published, SweepConfig, is_finished, load_sweep
from rl.sweep.report import report, write_report
from rl.sweep.results import (
    Evaluation,
    PointResult,
    SweepResults,
    course_of,
    read_logged,
    read_results,
)


def evaluation(step, tokens, short, long, half_width=0.02):
    widths = {"short": half_width, "long": half_width}
    return Evaluation(
        step, tokens, tokens / 2, {"short": short, "long": long}, widths, {"short": 4, "long": 40}
    )


def point(share, *courses):
    return PointResult(
        Point(f"long_{100 * share:g}", share, ()),
        {"short": 1 - share, "long": share},
        {seed: tuple(course) for seed, course in enumerate(courses)},
    )


SHORT_ONLY = point(
    0, [evaluation(0, 0, 0.3, 0.5), evaluation(10, 200, 0.7, 0.2)],
)  # fmt: skip
HYBRID = point(
    0.5,
    [evaluation(0, 0, 0.3, 0.5), evaluation(10, 300, 0.5, 0.8), evaluation(20, 600, 0.6, 0.88)],
    [evaluation(0, 0, 0.3, 0.5), evaluation(10, 320, 0.5, 0.7), evaluation(20, 640, 0.7, 0.92)],
)
LONG_ONLY = point(
    1,
    [evaluation(0, 0, 0.3, 0.5), evaluation(10, 500, 0.3, 0.9), evaluation(20, 1000, 0.2, 0.86)],
    [evaluation(0, 0, 0.3, 0.5), evaluation(10, 500, 0.3, 0.8), evaluation(20, 1000, 0.4, 0.92)],
)


def results(*points):
    return SweepResults(("short", "long"), "long", points, {})


def one_line(text):
    """The text whatever its line breaks, which Markdown ignores, too."""
    return " ".join(text.split())


def test_the_mean_course_is_over_seeds_at_common_steps():
    mean = HYBRID.mean_course
    assert [e.step for e in mean] == [0, 10, 20]
    assert [e.trained_tokens for e in mean] == [0, 310, 620]
    assert [e.accuracy["long"] for e in mean] == pytest.approx([0.5, 0.75, 0.9])
    assert HYBRID.spread("long") == pytest.approx(0.02)
    courses = {0: HYBRID.courses[0], 1: SHORT_ONLY.courses[0]}
    shorter = PointResult(HYBRID.point, HYBRID.shares, courses)
    assert [e.step for e in shorter.mean_course] == [0, 10]


def test_the_peak_is_the_best_mean_of_the_long_only_arm():
    peak = results(HYBRID, LONG_ONLY).peak(HYBRID.point)
    assert peak is not None
    # Means over seeds: .5, .85, .89.
    assert peak.accuracy == pytest.approx(0.89)
    assert peak.tokens == 1000
    assert peak.half_width == 0.02


def test_tokens_to_the_peak_are_those_of_the_first_evaluation_at_or_above_it():
    both = results(HYBRID, LONG_ONLY)
    assert both.tokens_to(HYBRID.mean_course, 0.89) == 620
    assert both.tokens_to(HYBRID.mean_course, 0.75) == 310
    assert both.tokens_to(HYBRID.mean_course, 0.91) is None
    # Its seeds: .8 and .88 at 300 and 600, .7 and .92 at 320 and 640.
    assert [both.tokens_to(course, 0.9) for course in HYBRID.courses.values()] == [None, 640]


@pytest.mark.parametrize(
    ("final", "said"),
    [
        (0.90, "reaches the long-only peak with 62% of its tokens"),
        (0.88, "at its best stays 1.0 points below the long-only peak, inside its 95 % interval"),
        (0.80, "does not reach the long-only peak: at its best it stays 9.0 points below"),
    ],
)
def test_the_verdict_says_what_was_found(final, said):
    end = evaluation(20, 620, 0.6, final)
    hybrid = point(0.5, [evaluation(0, 0, 0.3, 0.5), end])
    assert said in one_line(report("x", results(hybrid, LONG_ONLY)))


def test_without_a_long_only_arm_there_is_no_peak_and_no_such_section():
    alone = results(SHORT_ONLY, HYBRID)
    assert alone.peak(HYBRID.point) is None
    assert "long-only peak" not in report("x", alone)


def test_a_point_is_compared_with_the_long_only_arm_that_is_like_it():
    other = PointResult(
        Point("long_100_x", 1.0, (("algorithm.clip_low", 0.1),)),
        LONG_ONLY.shares,
        LONG_ONLY.courses,
    )
    assert results(HYBRID, other).peak(HYBRID.point) is None
    assert results(HYBRID, other, LONG_ONLY).long_only(HYBRID.point) is LONG_ONLY


def test_the_report_states_transfer_tokens_the_paper_and_failures(tmp_path):
    found = results(SHORT_ONLY, HYBRID, LONG_ONLY)
    found = dataclasses.replace(found, failures={"long_75_seed_1": "a | b <i>"})
    published = load_sweep(["config=sweep_ratio.yaml", "scale=cpu_tiny"]).config.published
    write_report(tmp_path, found, published)
    text = one_line((tmp_path / "report.md").read_text())
    # Short-only took long from 50 to 20 %, long-only left short at 30 on average. Alone, each mode
    # gains 40 and 39 points; half of its prompts bring short 35 of them.
    assert "| 0 % long | long | 0% | 50.0% | 20.0% | -30.0 ± 2.8 | -30.0 | -77% |" in text
    said = "| 100 % long | short | 0% | 30.0% | 30.0% ± 10.0 | +0.0 ± 2.8 | -10.0, +10.0 | 0% |"
    assert said in text
    assert (
        "| 50 % long | short | 50% | 30.0% | 65.0% ± 5.0 | +35.0 ± 2.8 | +30.0, +40.0 | 88% |"
        in text
    )
    # 620 of 1,000 tokens here; 3.1 of 4.4 billion in the paper.
    assert "| 62% | 74.9 short, 77.1 long | 3.1 B (70%) |" in text
    assert "groups whose rewards are all equal included" in text
    # The short-only arm has one seed, the others two.
    assert "The arms have different seeds** (0 % long: 0; 50 % long: 0, 1;" in text
    assert "| long_75_seed_1 | a \\| b <i> |" in text
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "ratio.png" not in page
    assert "<i>" not in page
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["zero_variance_groups"].startswith("in trained_tokens")
    hybrid = next(one for one in stored["points"] if one["long_share"] == 0.5)
    assert hybrid["tokens_to_peak"] == [620, None, 640]
    assert (tmp_path / "ratio.png").stat().st_size > 10_000


def variant(name, final, *entropies):
    """Two seeds, half a point apart, that logged the entropies step by step, or none."""
    courses = [
        [evaluation(0, 0, 0.3, 0.5), evaluation(20, 600, final + half, 0.8)]
        for half in (-0.005, 0.005)
    ]
    logged = pd.DataFrame({seed: dict(enumerate(entropies, 1)) for seed in (0, 1)})
    logged[1] += 0.02
    made = point(0.5, *courses)
    named = Point(name, None, (), name)
    return dataclasses.replace(made, point=named, curves={"policy/entropy": logged})


def test_variants_are_compared_with_the_first_over_steps_and_with_what_was_published(tmp_path):
    found = results(
        variant("rules", 0.6, *np.linspace(0.6, 0.0, 20)),
        variant("more", 0.65, *np.linspace(0.6, 0.3, 20)),
        variant("silent", 0.5),
    )
    published = Published.model_validate(
        {"text": "Figure 3.", "points": {"more": {"policy/entropy": "0.6 → 0.5", "score": "77.1"}}}
    )
    write_report(tmp_path, found, published)
    text = one_line((tmp_path / "report.md").read_text())
    # Of two means with a half width of 2 points each.
    assert "| more | +5.0 ± 2.8 (+5.0, +5.0) | +0.0 ± 2.8 (+0.0, +0.0) |" in text
    # The first and the last two of 20 steps, and 0.01 more for the mean of both seeds.
    assert "| rules | 0.594 → 0.0258 ± 0.01 |" in text and "| silent | - |" in text
    assert (
        "| arm | accuracy here | tokens here | policy/entropy here | policy/entropy there "
        "| score there |" in text
    )
    assert (
        "| more | 65.0% short, 80.0% long | 600 | 0.602 → 0.318 ± 0.01 | 0.6 → 0.5 | 77.1 |" in text
    )
    assert 'src="curves.png"' not in (tmp_path / "report.html").read_text()
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["points"][0]["curves"]["policy/entropy"]["1"]["1"] == pytest.approx(0.62)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_became_of_every_source_stands_in_a_table_of_its_mode_and_in_a_picture(tmp_path):
    def of_source(made, short, long):
        both = {"short": {"seen": short}, "long": {"seen": long, "masked": (0.25, 0.06)}}
        return dataclasses.replace(made, of_source=both)

    courses = [
        [of_source(evaluation(0, 0, 0.3, 0.5), (0.4, 0.03), (0.2, 0.04)),
         of_source(evaluation(20, 600, 0.6, 0.8), (0.5 + half, 0.04), (0.1, 0.03))]
        for half in (-0.01, 0.01)
    ]  # fmt: skip
    found = results(point(0.5, *courses))
    assert found.points[0].last.of_source["short"]["seen"] == pytest.approx((0.5, 0.04))
    write_report(tmp_path, found)
    text = one_line((tmp_path / "report.md").read_text())
    # The interval of a difference: the root of 3 squared and 4 squared.
    assert "| short | 50 % long | | --- | --- | | seen | 40.0% → 50.0% (+10.0 ± 5.0) |" in text
    assert "| seen | 20.0% → 10.0% (-10.0 ± 5.0) |" in text
    assert "![accuracy of every arm by source](sources.png)" in text
    assert (tmp_path / "sources.png").stat().st_size > 10_000
    assert "## By source" not in report("s", results(HYBRID))


def finished_run(arm: Arm, steps=None):
    """A run directory with what read_logged reads."""
    root = Path(arm.config.run)
    root.mkdir(parents=True)
    before = {m: {"accuracy": 0.5, "half_width": 0.1, "tokens_mean": 4.0} for m in arm.config.modes}
    before["long"]["by_source"] = {"seen": {"accuracy": 0.4, "half_width": 0.2, "count": 24}}
    summary = {"before": before, "steps": steps or arm.config.steps}
    (root / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": 1, "progress/long/trained_tokens": 100, "rollout/long/zero_variance": 0.25,
         "progress/short/trained_tokens": 10, "rollout/short/zero_variance": 0.0},
        {"step": 2, "progress/long/trained_tokens": 300, "rollout/long/zero_variance": 0.5,
         "progress/short/trained_tokens": 10}
        | {f"eval/{m}/{k}": v for m in ("short", "long")
           for k, v in (("accuracy", 0.75), ("half_width", 0.05), ("tokens_mean", 5.0))}
        | {"eval/long/accuracy_of_seen": 0.9, "eval/long/half_width_of_seen": 0.1},
    ]  # fmt: skip
    (root / "checkpoints" / f"step_{steps or arm.config.steps:06d}").mkdir(parents=True)
    (root / "config.yaml").write_text(dump(arm.config))
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sweep_of(root, *arguments):
    return load_sweep(["config=sweep_ratio.yaml", "scale=cpu_tiny", "long_share=[0.5]",
                       "seeds=[0]", "steps=2", f"run={root}", *arguments])  # fmt: skip


def test_tokens_with_signal_leave_out_the_share_of_silent_groups(tmp_path):
    (arm,) = sweep_of(tmp_path).arms
    assert not is_finished(arm)
    finished_run(arm)
    assert is_finished(arm)
    first, last = course_of(list(arm.config.modes), read_logged(arm))
    assert (first.step, first.trained_tokens, first.accuracy["short"]) == (0, 0, 0.5)
    # Long: 100 x .75 + 200 x .5; short: 10 in the first step, none in the second.
    assert (last.trained_tokens, last.signal_tokens) == (310, 75 + 10 + 100)
    assert last.accuracy == {"short": 0.75, "long": 0.75}
    # The evaluation before training stands in the summary alone.
    assert first.of_source == {"short": {}, "long": {"seen": (0.4, 0.2)}}
    assert last.of_source == {"short": {}, "long": {"seen": (0.9, 0.1)}}


def test_a_run_of_fewer_steps_is_not_finished(tmp_path):
    (arm,) = sweep_of(tmp_path).arms
    finished_run(arm, steps=1)
    assert not is_finished(arm)


def test_a_sweep_whose_arms_are_finished_is_reported_without_training(tmp_path):
    sweep = sweep_of(tmp_path / "s")
    finished_run(sweep.arms[0])
    (sweep.root / "sweep.yaml").write_text(json.dumps(sweep.config.model_dump()))
    assert run_sweep(sweep) == 0
    assert (sweep.root / "report.html").is_file()
    curves = ["progress/{mode}/trained_tokens", "eval/long/accuracy", "no/metric"]
    (read,) = read_results(sweep.arms, {}, curves).points
    assert read.shares == {"short": 0.5, "long": 0.5}
    logged = {metric: table.get(0, {}) for metric, table in read.curves.items()}
    assert dict(logged["progress/long/trained_tokens"].dropna()) == {1: 100, 2: 300}
    # With the evaluation before training, as step 0.
    assert dict(logged["eval/long/accuracy"].dropna()) == {0: 0.5, 2: 0.75}
    assert read.ends("no/metric") is None


def started_sweep(root):
    """A sweep of one finished arm."""
    sweep = sweep_of(root)
    finished_run(sweep.arms[0])
    (sweep.root / "sweep.yaml").write_text(json.dumps(sweep.config.model_dump()))


def test_a_sweep_may_grow_but_not_become_another_or_shrink(tmp_path):
    root = tmp_path / "s"
    started_sweep(root)
    _refuse_another(sweep_of(root, "seeds=[0,5]", "long_share=[0,0.5,1]", "arms_at_once=7"))
    with pytest.raises(ValueError, match=r"settings\.steps was 2, is 3"):
        _refuse_another(sweep_of(root, "steps=3"))
    with pytest.raises(ValueError, match=r"seeds was \(0,\), is \(5, 0\)"):
        _refuse_another(sweep_of(root, "seeds=[5,0]"))
    with pytest.raises(ValueError, match=r"long_share was \(0\.5,\), is \(0\.9,\)"):
        _refuse_another(sweep_of(root, "long_share=[0.9]"))


def test_before_any_arm_has_trained_a_mended_command_may_differ(tmp_path):
    sweep = sweep_of(tmp_path / "s")
    sweep.root.mkdir()
    (sweep.root / "sweep.yaml").write_text(json.dumps(sweep.config.model_dump()))
    _refuse_another(sweep_of(tmp_path / "s", "steps=3"))


def test_a_finished_arm_of_other_settings_is_not_compared_with_the_rest(tmp_path):
    """As when the recipe's file was edited in between: sweep.yaml holds only its name."""
    root = tmp_path / "s"
    started_sweep(root)
    stored = next(root.glob("arms/*/config.yaml"))
    stored.write_text(stored.read_text().replace("group_size: 8", "group_size: 4"))
    with pytest.raises(ValueError, match=r"rollout\.group_size was 4, is 8"):
        _refuse_another(sweep_of(root))


def test_a_summary_without_its_last_checkpoint_is_not_finished(tmp_path):
    (arm,) = sweep_of(tmp_path).arms
    finished_run(arm)
    next(Path(arm.config.run).glob("checkpoints/*")).rmdir()
    assert not is_finished(arm)


def test_arms_may_vary_lists(tmp_path):
    varied = "arms.policy.optimizer.betas=[[0.9,0.99],[0.9,0.95]]"
    sweep = sweep_of(tmp_path, varied)
    for arm in sweep.arms:
        finished_run(arm)
    assert len(read_results(sweep.arms, {}).points) == 2


def test_a_long_only_arm_that_never_rises_has_a_verdict():
    falling = point(1, [evaluation(0, 0, 0.3, 0.9), evaluation(10, 500, 0.3, 0.5)])
    assert "never rises" in one_line(report("x", results(HYBRID, falling)))


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is no sweep and not empty"):
        run_sweep(sweep_of(tmp_path))


def test_the_stored_sweep_reads_back_equal():
    config = sweep_of("x").config
    assert SweepConfig.model_validate(json.loads(config.model_dump_json())) == config
