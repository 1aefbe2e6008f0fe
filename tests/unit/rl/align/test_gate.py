"""What the gate lets through."""

from __future__ import annotations

import json
from dataclasses import asdict

from rl.align.gate import HallucinationRate, Measurement, as_measurement, refusals
from rl.config.align import GateConfig
from rl.evaluate.evaluation import ModeResult


def measurement(**modes: tuple[float, float]) -> Measurement:
    """Accuracy and wrong claims per response of each mode."""
    return Measurement(
        {
            mode: ModeResult(accuracy, 0.04, 12.0, 0.0, 0, 100, pass_at={1: accuracy})
            for mode, (accuracy, _) in modes.items()
        },
        {
            mode: HallucinationRate(wrong, 0.1, min(1.0, wrong), 0.05, 2.0, 9.0, 0.0, 100, 0)
            for mode, (_, wrong) in modes.items()
        },
    )


BEFORE = measurement(short=(0.60, 0.8), long=(0.90, 0.2))


def test_fewer_wrong_claims_within_the_tolerance_are_let_through() -> None:
    assert refusals(BEFORE, measurement(short=(0.585, 0.5), long=(0.95, 0.1)), GateConfig()) == []


def test_a_mode_that_loses_more_is_named_with_its_figures() -> None:
    (why,) = refusals(BEFORE, measurement(short=(0.57, 0.5), long=(0.95, 0.1)), GateConfig())
    assert why.startswith("short loses 3.0 points of accuracy (60.0% to 57.0%), of at most 2 ")


def test_more_wrong_claims_are_refused_even_with_better_accuracy() -> None:
    (why,) = refusals(BEFORE, measurement(short=(0.9, 0.9), long=(0.95, 0.2)), GateConfig())
    assert why == "wrong claims per response rise from 0.500 to 0.550"


def test_one_mode_may_pay_for_another() -> None:
    """Wrong claims are compared over both modes, accuracy in each."""
    assert refusals(BEFORE, measurement(short=(0.6, 0.4), long=(0.9, 0.3)), GateConfig()) == []


def test_a_mode_that_can_no_longer_be_judged_is_refused() -> None:
    after = measurement(short=(0.6, 0.4), long=(0.9, 0.3))
    silent = Measurement(after.modes, {"short": after.hallucination["short"]})
    (why,) = refusals(BEFORE, silent, GateConfig())
    assert why == "no response in long has claims that could be judged"


def test_a_measurement_survives_json() -> None:
    assert as_measurement(json.loads(json.dumps(asdict(BEFORE)))) == BEFORE
    assert BEFORE.as_metrics()["eval/short/wrong_claims"] == 0.8
    assert BEFORE.as_metrics()["eval/long/accuracy"] == 0.9
