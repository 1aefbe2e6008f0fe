"""The service over real text rewards and workers; sources behind it that tests can steer."""

import asyncio
from contextlib import closing

import pytest

from rewards.composition import Accuracy
from rewards.rules.verifier import symbolic
from rewards.service import PreferredAnswers, RewardService, accuracy_route
from rewards.text.text_rewards import TextRewards, question_text
from rl.config.policy import ThinkTags
from rl.config.reward import RewardConfig
from rl.config.rollout import ModeConfig
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, Route
from tests.fakes import trajectory

TIMEOUT_S = 3.0
"""Much for what sympy compares in milliseconds on an idle machine; the bomb takes all of it."""
TOWER = r"\boxed{9^{9^{9^{9^{9}}}}}"
PROSE = "because the light of the sun is scattered by the air far more where it is blue"
MODES = {
    "short": ModeConfig(share=0.5, thinking=False, max_tokens=16),
    "long": ModeConfig(share=0.5, thinking=True, max_tokens=64),
}
CONFIG = RewardConfig(workers=2, timeout_s=TIMEOUT_S, memory_mib=512, overlong_window={"short": 8})


@pytest.fixture(scope="module")
def text():
    text = TextRewards(CONFIG, MODES)
    yield text
    text.close()


class OneHalf:
    """A probability reward that finds every reference half as probable as can be."""

    async def accuracies(self, group, thinking):
        return [Accuracy(0.5, Route("probability", 1)) for _ in group.trajectories]


class Lengths:
    """A preference model that likes long answers; remembers what it was shown."""

    def __init__(self):
        self.shown = []

    async def score(self, inputs):
        self.shown += inputs
        return tuple(float(len(one.answer)) for one in inputs)


def group(reference, answers, mode="short", task="auto", question="?"):
    prompt = Prompt("prompt/0", ({"role": "user", "content": question},), reference, task)
    request = RolloutRequest("0/0/0", prompt, mode, (1,), len(answers), 16, 1.0, None)
    return RolloutGroup(request, tuple(answers))


def answered(*answers):
    return [trajectory(text=answer, answer=answer) for answer in answers]


def score(text, one_group, probability=None, preference=None):
    service = RewardService(
        CONFIG, MODES, text, probability, preference and PreferredAnswers(preference)
    )
    return asyncio.run(service.score(one_group))


def test_a_long_group_is_scored_part_by_part(text):
    texts = ["2+9\n</think>\n\n11", "2+9\n</think>\n\n12", "2+9, and so", "</think>\n\n11"]
    trajectories = [
        trajectory(
            text=one,
            reasoning=one.partition("</think>")[0],
            answer=one.partition("</think>")[2] or None,
        )
        for one in texts
    ]
    scores = score(text, group("11", trajectories, "long"))
    assert [s.reward for s in scores] == pytest.approx([1.1, 0.1, 0.0, 1.0])
    assert [s.parts["accuracy"] for s in scores] == [1.0, 0.0, 0.0, 1.0]
    assert [s.parts["leak"] for s in scores] == [0.0, 0.0, 1.0, 1.0]
    assert {s.route.name for s in scores} == {"number"}
    assert all("overlong" not in s.parts for s in scores)


def test_every_part_reads_the_tags_that_the_policy_writes():
    tags = ThinkTags(open="[T]", close="[/T]")
    leaked = "12[/T]\n11"
    kept = trajectory(text=f"2+9[/T]{leaked}", reasoning="2+9", answer=leaked)
    whole = trajectory(text="2+9[/T]11", reasoning="2+9", answer="11")
    with closing(TextRewards(CONFIG, MODES, tags)) as text:
        model = Lengths()
        service = RewardService(CONFIG, MODES, text, None, PreferredAnswers(model, tags))
        scores = asyncio.run(service.score(group("11", [whole, kept], "long")))
    # What stands behind a second closing tag is the answer, to rules and to the preference model.
    assert [s.parts["accuracy"] for s in scores] == [1.0, 1.0]
    assert [shown.answer for shown in model.shown] == ["11", "11"]
    assert [s.parts["format"] for s in scores] == [1.0, 0.0]


def test_length_is_punished_only_in_the_window_of_the_mode(text):
    """Budget 16, window 8: 8 tokens cost nothing, 12 cost a half."""
    answers = [trajectory(text="3", answer="3", num_response=n) for n in (8, 12)]
    scores = score(text, group("3", answers))
    assert [s.parts["overlong"] for s in scores] == [0.0, -0.5]
    assert [s.reward for s in scores] == pytest.approx([1.1, 0.6])


def test_a_bomb_fails_alone_and_a_failure_is_not_zero(text):
    asyncio.run(text._workers.run(symbolic, "x+1", "1+x"))  # a warm worker
    scores = score(text, group(r"2\sqrt{2}", answered(TOWER, r"\sqrt{8}", "3", r"2\sqrt{2}")))
    assert [s.reward for s in scores][1:] == pytest.approx([1.1, 0.1, 1.1])
    assert scores[0].failure is not None or scores[0].parts["accuracy"] == 0.0
    assert all(s.parts["format"] == 1.0 for s in scores)


def test_what_no_rule_can_check_is_a_failure_without_the_probability_reward(text):
    scores = score(text, group(PROSE, answered("x", "y")))
    assert {s.reward for s in scores} == {None}
    assert all(s.failure.reason == "not_scorable" for s in scores)


def test_natural_language_and_prompts_that_ask_for_it_take_the_probability_reward(text):
    for one_group in (group(PROSE, answered("x")), group("12", answered("x"), task="probability")):
        (scored,) = score(text, one_group, OneHalf())
        assert (scored.parts["accuracy"], scored.route) == (0.5, Route("probability", 1))
    (scored,) = score(text, group("12", answered("12")), OneHalf())
    assert scored.route.name == "number"


def test_routes_to_the_probability_reward():
    def prompt(reference, task="auto"):
        return Prompt("p", ({"role": "user", "content": "?"},), reference, task)

    by_probability = Route("probability")
    assert accuracy_route(prompt(PROSE), True) == by_probability
    assert accuracy_route(prompt("12", "probability"), True) == by_probability
    assert accuracy_route(prompt("12"), True).name == "number"
    assert accuracy_route(prompt(""), True).reason == "not_scorable"
    assert accuracy_route(prompt(PROSE), False) != by_probability


def test_the_preference_model_sees_question_and_final_answer_alone(text):
    model = Lengths()
    reasoned = trajectory(text="2+9</think>11", reasoning="2+9", answer="11")
    unfinished = trajectory(text="2+", reasoning="2+", answer=None, finish_reason="length")
    scores = score(text, group("11", [reasoned, unfinished], "long"), preference=model)
    assert [one.answer for one in model.shown] == ["11"]
    assert "2+9" not in str(model.shown)
    assert [s.preference_answer for s in scores] == ["11", None]
    assert "preference_raw" not in scores[1].parts


def test_the_preference_model_sees_the_whole_response_where_that_is_asked_for(text):
    model = Lengths()
    reasoned = trajectory(text="2+9</think>11", reasoning="2+9", answer="11")
    at_once = trajectory(text="2+9</think>12", reasoning="2+9", answer="12")
    service = RewardService(CONFIG, MODES, text, None, PreferredAnswers(model, reads="response"))
    scores = asyncio.run(service.score(group("11", [reasoned, at_once], "long")))
    whole = ["<think>\n2+9</think>11", "<think>\n2+9</think>12"]
    assert [one.answer for one in model.shown] == whole
    assert [s.preference_answer for s in scores] == whole


def test_the_question_is_what_the_user_asked_last():
    messages = (
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "second"}]},
    )
    assert question_text(Prompt("p", messages, "1")) == "second"
