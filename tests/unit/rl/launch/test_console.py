import io
import logging
import sys

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from rl.launch.console import Console
from rl.run.terminal import counted, duration, sparkline, step_line

METRICS = {
    "reward/long/accuracy": 0.61,
    "reward/long/mean": 0.68,
    "rollout/long/tokens_mean": 47.3,
    "reward/short/accuracy": 0.4,
    "staleness/max": 0,
    "rollout/mismatch_kl": 2e-7,
    "perf/tokens_per_second": 9812.4,
    "time/step": 2.31,
}
FIGURES = {"accuracy": 0.5, "tokens_mean": 40.0}
SUMMARY = {
    "before": {"long": FIGURES, "short": FIGURES | {"half_width": 0.031}},
    "after": {"long": FIGURES | {"accuracy": 0.625}, "short": FIGURES | {"accuracy": 0.48}},
    "steps": 120,
    "trained_tokens": 1_234_567,
    "seconds": 3725.0,
}


def console(is_terminal):
    output = io.StringIO()
    screen = rich.console.Console(
        file=output, force_terminal=is_terminal, width=100, color_system=None, highlight=False
    )
    return Console("hybrid", 120, ["long", "short"], screen), output


def test_a_step_is_one_line():
    assert step_line(7, 120, ["long", "short"], METRICS, 260.0) == (
        "step 7/120 | long acc 0.61 reward 0.68 47 tok | short acc 0.40 | staleness 0 | kl 2e-07 "
        "| 9,812 tok/s | 2.3 s | left 4 m 20 s"
    )


def test_a_step_without_metrics_is_still_a_line():
    assert step_line(1, 2, ["long"], {}, None) == "step 1/2"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 m 00 s"),
        (3599, "59 m 59 s"),
        (11100, "3 h 05 m"),
        (198000, "2 d 07 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_one_of_a_kind_is_singular():
    assert (counted(1, "rank"), counted(1200, "rank")) == ("1 rank", "1,200 ranks")


def test_sparklines_go_from_the_lowest_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 1, 2, 3], 2) == "▁█"
    assert sparkline([5.0, float("nan"), 5.0], 8) == "▁▁"
    assert sparkline([], 8) == ""


@given(st.lists(st.floats(width=32), max_size=40), st.integers(1, 12))
def test_sparklines_never_exceed_their_width(values, width):
    line = sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= set("▁▂▃▄▅▆▇█")


def test_without_a_terminal_everything_is_a_plain_line():
    follower, output = console(is_terminal=False)
    follower.phase("starting 1 vLLM engine")
    follower.note("checkpoint [b]step_000010[/b] is skipped")
    follower.step_done(7, METRICS)
    follower.close()
    lines = output.getvalue().splitlines()
    assert lines[:2] == [
        "[0 s] starting 1 vLLM engine",
        "note: checkpoint [b]step_000010[/b] is skipped",
    ]
    # The only step so far took 2.31 s, and 113 are left.
    assert lines[2] == step_line(7, 120, ["long", "short"], METRICS, 113 * 2.31)
    assert len(lines) == 3


@pytest.mark.parametrize("is_terminal", [False, True])
def test_before_and_after_are_compared_in_points(is_terminal):
    follower, output = console(is_terminal)
    follower.step_done(120, METRICS)
    follower.before_after_table(SUMMARY)
    follower.close()
    table = [line for line in output.getvalue().splitlines() if "│" in line]
    assert [cell.strip() for cell in table[0].split("│")[1:-1]] == [
        *("long", "50.0 %", "62.5 %", "+12.5", "40.0", "40.0")
    ]
    assert [cell.strip() for cell in table[1].split("│")[1:-1]] == [
        *("short", "50.0 % ± 3.1", "48.0 %", "-2.0", "40.0", "40.0")
    ]
    assert output.getvalue().endswith("120 steps, 1,234,567 trained tokens, 1 h 02 m\n")


def test_a_mixture_is_compared_by_source_too():
    before = FIGURES | {"by_source": {"pictures": FIGURES}}
    after = FIGURES | {"by_source": {"pictures": FIGURES | {"accuracy": 0.75}, "new": FIGURES}}
    summary = SUMMARY | {"before": SUMMARY["before"] | {"short": before}}
    follower, output = console(False)
    follower.before_after_table(summary | {"after": SUMMARY["after"] | {"short": after}})
    table = [line for line in output.getvalue().splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in table] == ["long", "short", "pictures"]
    assert table[2].split("│")[4].strip() == "+25.0"


def test_the_live_view_shows_the_latest_step_and_gives_the_streams_back():
    handler = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger("made before the view")
    logger.addHandler(handler)
    logger.propagate = False
    before = sys.stdout
    follower, output = console(is_terminal=True)
    assert sys.stdout is not before
    logger.warning("a log line")
    follower.note("a [/note] with brackets")
    follower.step_done(7, METRICS)
    follower.close()
    logger.removeHandler(handler)
    assert sys.stdout is before
    assert handler.stream is before
    shown = output.getvalue()
    assert "a log line" in shown
    assert "a [/note] with brackets" in shown
    assert "step 7/120" in shown
    assert "0.610" in shown
