"""What was chosen by difficulty, and what an oracle would have chosen."""

from __future__ import annotations

import pytest

from rl.config.rollout import ModeConfig
from rl.evaluate.choosing import Asked, choosing_figures, frontier
from rl.evaluate.evaluation import Question, Sample, summarize
from rl.loop.stages import Prompt

MODES = {
    "short": ModeConfig(share=0.5, thinking=False, max_tokens=9),
    "long": ModeConfig(share=0.5, thinking=True, max_tokens=99),
    "auto": ModeConfig(share=0.0, thinking="auto", max_tokens=99),
}


def evaluated(difficulties: list[float | None], short: list[float], auto: list[bool]):
    """Questions and samples of every mode; long is always right."""
    prompts = [Prompt(str(n), (), "1", difficulty=d) for n, d in enumerate(difficulties)]
    wanted, samples = [], {}
    for mode in MODES:
        for index, prompt in enumerate(prompts):
            question = Question(index, prompt, mode, 0)
            accuracy = short[index] if mode == "short" else 1.0
            reasons = auto[index] if mode == "auto" else None
            tokens = 5 if mode == "short" or reasons is False else 50
            wanted.append(question)
            samples[question.key] = Sample(
                *question.key, text="", tokens=tokens, accuracy=accuracy, reasons=reasons
            )
    return wanted, samples


def test_the_share_that_reasons_is_told_by_the_difficulty_that_the_task_names():
    wanted, samples = evaluated([6, 2, 4, 6, 2, 4], [1.0] * 6, [True, False, True] + [False] * 3)
    figures = choosing_figures(MODES, wanted, samples)
    shares = {third: each["reasons"] for third, each in figures["by_difficulty"]["auto"].items()}
    assert shares == {"easy": 0.0, "middle": 0.5, "hard": 0.5}


def test_without_it_hard_is_what_is_answered_wrong_at_once():
    right = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    wanted, samples = evaluated([None] * 6, right, [True, False, False, True, False, False])
    figures = choosing_figures(MODES, wanted, samples)
    shares = {third: each["reasons"] for third, each in figures["by_difficulty"]["auto"].items()}
    assert shares == {"easy": 0.0, "middle": 0.0, "hard": 1.0}
    assert choosing_figures({"short": MODES["short"]}, wanted, samples) == {}


def test_an_oracle_lets_those_reason_that_gain_by_it():
    direct = {"a": Asked(1.0, 5, 0), "b": Asked(0.0, 5, 0)}
    thinking = {"a": Asked(1.0, 45, 1), "b": Asked(1.0, 55, 1)}
    points = {point["share"]: point for point in frontier(direct, thinking)}
    assert points[0.0] == {"share": 0.0, "tokens": 5, "accuracy": 0.5}
    assert points[0.5] == {"share": 0.5, "tokens": 30, "accuracy": 1.0}
    assert points[1.0] == {"share": 1.0, "tokens": 50, "accuracy": 1.0}


def test_the_share_that_reasons_is_a_figure_of_modes_that_leave_a_choice_alone():
    wanted, samples = evaluated([1.0] * 4, [1.0] * 4, [True, False, False, False])
    of_mode = {m: summarize([samples[q.key] for q in wanted if q.mode == m]) for m in MODES}
    assert of_mode["auto"].reasons == pytest.approx(0.25)
    assert of_mode["long"].reasons is None
    assert "eval/long/reasons" not in of_mode["long"].as_metrics("long")
    assert of_mode["auto"].as_metrics("auto")["eval/auto/reasons"] == 0.25
