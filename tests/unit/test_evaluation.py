import asyncio
import math

import pytest

from rl.evaluation import evaluate, summarize
from rl.stages import Prompt, Score, ScoredGroup
from tests.fakes import FakeEngine, FakeScorer, config


def ask(scorer, cfg=None):
    prompts = [Prompt(str(i), (), "12") for i in range(4)]
    engine = FakeEngine()
    encode = lambda prompt, mode: (1, 2, 3)  # noqa: E731
    return asyncio.run(evaluate(cfg or config(), encode, engine, scorer, prompts)), engine


def test_every_mode_answers_every_prompt_once():
    results, engine = ask(FakeScorer(lambda g: [float(g.request.mode == "long")]))
    assert {mode: r.accuracy for mode, r in results.items()} == {"short": 0.0, "long": 1.0}
    asked = sorted((r.mode, r.prompt.id, r.n) for r in engine.requests)
    assert asked == sorted((m, str(i), 1) for m in ("short", "long") for i in range(4))


def test_evaluation_uses_its_own_temperature_and_the_modes_budget():
    _, engine = ask(FakeScorer(), config(eval={"temperature": 0.0}))
    assert {r.temperature for r in engine.requests} == {0.0}
    assert {(r.mode, r.max_tokens) for r in engine.requests} == {("short", 4), ("long", 16)}


def test_a_failed_score_counts_as_wrong_and_is_reported():
    results, _ = ask(FakeScorer(lambda g: [None if g.request.prompt.id == "0" else 1.0]))
    assert results["long"].accuracy == 0.75
    assert results["long"].unscored == 1


def test_half_width_of_the_confidence_interval_by_hand():
    results, _ = ask(FakeScorer(lambda g: [float(g.request.prompt.id in "01")]))
    assert results["short"].half_width == pytest.approx(1.96 * math.sqrt(0.25 / 4))


def test_truncation_and_length_are_measured():
    from tests.unit.test_step_metrics import scored

    group = scored("long", [6], [1.0], finish_reason="length")
    answer = ScoredGroup(group.group, (Score(1.0, {"accuracy": 1.0}),))
    figures = summarize([answer])
    assert (figures.truncated, figures.tokens_mean, figures.count) == (1.0, 6.0, 1)
