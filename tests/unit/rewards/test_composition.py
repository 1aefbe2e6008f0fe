"""From parts to rewards, weighed by hand."""

import pytest
from pydantic import ValidationError

from rewards.composition import Accuracy, Preference, TextParts, compose_group
from rl.config.reward import RewardConfig
from rl.loop.stages import Failure, Prompt, Route, not_scorable

PROMPT = Prompt("p", ({"role": "user", "content": "2+9?"},), "11", "auto")
GOOD = TextParts({"format": 1.0, "repetition": 0.0, "leak": 0.0})


def compose(config, accuracies, texts=None, preferences=None, mode="long", prompt=PROMPT):
    texts = texts or [GOOD] * len(accuracies)
    return compose_group(RewardConfig(**config), prompt, mode, accuracies, texts, preferences)


def number(value):
    return Accuracy(value, Route("number", 1))


def test_equation_one():
    """R = R_acc + 0.1 R_format + R_rep + 0.5 z: raw 3 and 1 have z 0.7071 and -0.7071."""
    looped = TextParts({"format": 0.0, "repetition": -0.5, "leak": 0.0})
    scores = compose(
        {},
        [number(1.0), number(0.0)],
        [GOOD, looped],
        [Preference("11", 3.0), Preference("12", 1.0)],
    )
    z = 2**-0.5
    assert scores[0].reward == pytest.approx(1 + 0.1 + 0.5 * z, abs=1e-3)
    assert scores[1].reward == pytest.approx(-0.5 - 0.5 * z, abs=1e-3)
    assert scores[0].parts["preference_raw"] == 3.0
    assert [score.preference_answer for score in scores] == ["11", "12"]


def test_a_trajectory_without_an_answer_is_not_scored_as_one_and_does_not_gain_by_it():
    shown = [Preference("11", 3.0), Preference("12", 1.0), Preference(None, None)]
    scores = compose({}, [number(1.0), number(0.0), number(0.0)], None, shown)
    assert "preference_raw" not in scores[2].parts
    assert scores[2].parts["preference"] == scores[1].parts["preference"] < 0


def test_an_answer_that_the_preference_model_could_not_read_is_a_failure_and_no_bad_answer():
    shown = [Preference("11", 3.0), Preference("12", 1.0), Preference("1" * 9000, None)]
    scores = compose({}, [number(1.0)] * 3, None, shown)
    assert scores[2].reward is None
    assert scores[2].failure.reason == "not_scorable" and "longer" in scores[2].failure.detail
    assert scores[0].reward is not None


def test_a_part_without_weight_fails_nothing():
    failed = Accuracy(None, Route("natural", 1), not_scorable("needs the probability reward"))
    assert compose({"weights": {"accuracy": 0.0}}, [failed])[0].reward == pytest.approx(0.1)


def test_a_failed_part_leaves_no_reward_and_keeps_the_others():
    broken = TextParts({"format": 1.0, "repetition": 0.0}, failure=Failure("timeout", "brevity"))
    failed = Accuracy(None, Route("expression", 1), Failure("timeout"))
    config = {"plugins": {"brevity": {"file": "brevity.py"}}}
    scores = compose(config, [failed, number(1.0)], [GOOD, broken])
    assert [score.reward for score in scores] == [None, None]
    assert [score.failure for score in scores] == [
        Failure("timeout"),
        Failure("timeout", "brevity"),
    ]
    assert scores[1].parts["accuracy"] == 1.0


def test_weights_of_task_and_mode_replace_single_weights_the_mode_last():
    config = {
        "weights": {"format": 0.1},
        "task_weights": {"number": {"accuracy": 2.0, "format": 0.2}},
        "mode_weights": {"short": {"format": 0.3}},
    }
    assert compose(config, [number(1.0)], mode="long")[0].reward == pytest.approx(2.2)
    assert compose(config, [number(1.0)], mode="short")[0].reward == pytest.approx(2.3)
    text = Accuracy(1.0, Route("text", 1))
    assert compose(config, [text], mode="long")[0].reward == pytest.approx(1.1)


def test_a_plug_in_is_a_part_with_its_own_weight():
    config = {"plugins": {"brevity": {"file": "brevity.py", "weight": 0.25}}}
    brief = TextParts({"format": 1.0, "repetition": 0.0, "brevity": -2.0})
    assert compose(config, [number(1.0)], [brief])[0].reward == pytest.approx(1.1 - 0.5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"task_weights": {"number": {"acuracy": 1.0}}}, "unknown parts"),
        ({"mode_weights": {"long": {"speed": 1.0}}}, "unknown parts"),
        ({"plugins": {"baseline": {"file": "x.py"}}}, "name of a part"),
    ],
)
def test_unknown_parts_are_refused(config, said):
    with pytest.raises(ValidationError, match=said):
        RewardConfig(**config)
