"""The probability reward: formula by hand, what is asked, and what a failure becomes."""

import asyncio
import math
from dataclasses import replace

import pytest

from rewards.probability import ProbabilityReward, probability_accuracy
from rl.config.reward import ProbabilityConfig
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Choice, Prompt, ReferenceRequest, RolloutGroup, RolloutRequest
from tests.fakes import trajectory

REFERENCE = "because the sky scatters blue light more than it scatters red light"
PROMPT = Prompt("sky/1", ({"role": "user", "content": "Why is the sky blue?"},), REFERENCE)


class Letters:
    """A splice over characters: a context is what its text says."""

    def after_reasoning(self, group, place, kept_text, reference):
        context = tuple(map(ord, "prompt:" + kept_text))
        tokens = tuple(map(ord, reference))
        return ReferenceRequest(
            f"{place}", group.request.prompt, context, tokens, 1.0, group.engine
        )

    def without_reasoning(self, prompt, reference, temperature):
        return ReferenceRequest("b", prompt, tuple(map(ord, "prompt:")), (1,), temperature)


class Scorer:
    """Answers by the length of the context; remembers what it was asked."""

    def __init__(self, logprobs=lambda context: (math.log(0.5), math.log(0.7))):
        self.asked = []
        self._logprobs = logprobs

    async def reference_logprobs(self, request):
        text = "".join(map(chr, request.context_token_ids))
        self.asked.append(text)
        await asyncio.sleep(0)
        return self._logprobs(text)


def by_context(text):
    """Right reasoning makes the reference likely, none makes it 0.1, wrong reasoning 0."""
    if text == "prompt:":
        return (math.log(0.1),)
    return (0.0, math.log(0.5)) if "right" in text else (math.log(1e-9),)


def long(reasoning, answer="it scatters", finish_reason="stop"):
    text = f"{reasoning}</think>\n\n{answer}"
    return trajectory(
        text=text, reasoning=reasoning, answer=f"\n\n{answer}", finish_reason=finish_reason
    )


def group(trajectories, prompt=PROMPT, mode="long"):
    request = RolloutRequest("1/2/0", prompt, mode, (1, 2, 3), len(trajectories), 9, 1.0, None)
    return RolloutGroup(request, tuple(trajectories))


def accuracies(reward, one_group, thinking=True):
    return asyncio.run(reward.accuracies(one_group, thinking))


def test_the_mean_of_probabilities_is_not_their_product():
    reward = ProbabilityReward(ProbabilityConfig(debias=False), Scorer(), Letters())
    (scored,) = accuracies(reward, group([long("right")]))
    assert scored.value == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize(
    ("probability", "baseline", "expected"), [(0.75, 0.25, 0.5), (0.2, 0.5, 0.0), (1.0, 0.0, 1.0)]
)
def test_debiasing(probability, baseline, expected):
    assert probability_accuracy(probability, baseline).value == pytest.approx(expected)


def test_reasoning_is_rewarded_by_what_it_adds():
    scorer = Scorer(by_context)
    reward = ProbabilityReward(ProbabilityConfig(), scorer, Letters())
    right, wrong = accuracies(reward, group([long("right"), long("a guess")]))
    assert right.value == pytest.approx(0.75 - 0.1)
    assert right.made_of == pytest.approx({"probability": 0.75, "baseline": 0.1})
    assert wrong.value == 0.0
    assert "prompt:right</think>\n\n" in scorer.asked


def test_a_mode_without_reasoning_is_not_debiased_and_asks_each_context_once():
    scorer = Scorer()
    reward = ProbabilityReward(ProbabilityConfig(), scorer, Letters())
    answers = [trajectory(text=a, answer=a) for a in ("air", "water", "Thus: \\boxed{air}")]
    scored = accuracies(reward, group(answers, mode="short"), thinking=False)
    assert [one.value for one in scored] == pytest.approx([0.6, 0.6, 0.6])
    assert scorer.asked == ["prompt:", "prompt:Thus: \\boxed{"]
    assert all("baseline" not in one.made_of for one in scored)


def test_the_baseline_is_asked_once_per_prompt_and_survives_a_resume():
    scorer = Scorer(by_context)
    first = ProbabilityReward(ProbabilityConfig(), scorer, Letters())

    async def together():
        await asyncio.gather(*(first.accuracies(group([long("right")]), True) for _ in range(3)))

    asyncio.run(together())
    assert scorer.asked.count("prompt:") == 1
    second = ProbabilityReward(ProbabilityConfig(), scorer, Letters())
    second.load(first.state)
    (scored,) = accuracies(second, group([long("right")]))
    assert scored.made_of["baseline"] == pytest.approx(0.1)
    assert scorer.asked.count("prompt:") == 1


def test_a_baseline_that_an_earlier_process_asked_for_is_not_asked_again():
    first = ProbabilityReward(ProbabilityConfig(), Scorer(by_context), Letters())
    asked = group([long("right")])
    assert first.learnt(asked.request) == {}
    accuracies(first, asked)
    learnt = first.learnt(asked.request)
    assert [*learnt.values()] == pytest.approx([0.1])
    scorer = Scorer(lambda context: (math.log(0.5),))
    second = ProbabilityReward(ProbabilityConfig(), scorer, Letters())
    second.recall(learnt)
    (scored,) = accuracies(second, asked)
    assert scored.made_of["baseline"] == pytest.approx(0.1)
    assert "prompt:" not in scorer.asked


@pytest.mark.parametrize(
    "broken",
    [
        trajectory(text="right, and", reasoning="right, and", answer=None),
        long("right", finish_reason="length"),
        long("right", answer=""),
        long("right", answer="x</think>y"),
    ],
)
def test_a_response_without_a_well_formed_answer(broken):
    scorer = Scorer()
    zero = ProbabilityReward(ProbabilityConfig(), scorer, Letters())
    assert accuracies(zero, group([broken]))[0].value == 0.0
    strict = ProbabilityReward(ProbabilityConfig(invalid="not_scorable"), scorer, Letters())
    (scored,) = accuracies(strict, group([broken]))
    assert scored.value is None
    assert str(scored.failure).startswith("not_scorable: no well-formed answer")
    assert scorer.asked == []


def test_a_failed_request_is_a_failure_and_never_zero():
    def fails(text):
        raise GenerationFailed("timeout", "it took too long")

    reward = ProbabilityReward(ProbabilityConfig(), Scorer(fails), Letters())
    (scored,) = accuracies(reward, group([long("right")]))
    assert (scored.value, str(scored.failure)) == (None, "probability: timeout: it took too long")
    assert reward.state == {"baselines": {}}


def test_what_does_not_fit_the_engine_is_a_failure_though_invalid_forms_are_zero():
    class Full(Letters):
        def after_reasoning(self, group, place, kept_text, reference):
            return None

    reward = ProbabilityReward(ProbabilityConfig(), Scorer(), Full())
    (scored,) = accuracies(reward, group([long("right")]))
    assert scored.value is None
    assert str(scored.failure) == (
        "not_scorable: response and reference are longer than the engine takes"
    )


def test_a_number_that_is_none_is_a_failure_and_no_baseline():
    reward = ProbabilityReward(ProbabilityConfig(), Scorer(lambda text: (math.nan,)), Letters())
    (scored,) = accuracies(reward, group([long("right")]))
    assert (scored.value, str(scored.failure)) == (None, "probability: the mean probability is nan")
    assert reward.state == {"baselines": {}}


def test_a_scorer_that_is_gone_ends_the_run():
    def dies(text):
        raise RuntimeError("engine 0: its process died")

    reward = ProbabilityReward(ProbabilityConfig(), Scorer(dies), Letters())
    with pytest.raises(RuntimeError, match="engine 0"):
        accuracies(reward, group([long("right")]))


def test_an_empty_reference_cannot_be_scored():
    prompt = Prompt("p", PROMPT.messages, "  ")
    reward = ProbabilityReward(ProbabilityConfig(), Scorer(), Letters())
    (scored,) = accuracies(reward, group([long("right")], prompt))
    assert str(scored.failure) == "not_scorable: the reference is empty"


def test_only_a_response_that_chose_to_reason_is_compared_with_the_baseline():
    reward = ProbabilityReward(ProbabilityConfig(), Scorer(by_context), Letters())
    reasoned = replace(long("right"), choice=Choice(True, 1))
    at_once = trajectory(text="right it is", answer="right it is")
    at_once = replace(at_once, choice=Choice(False, 3))
    first, second = accuracies(reward, group([reasoned, at_once], mode="auto"), "auto")
    assert first.made_of["baseline"] == pytest.approx(0.1)
    assert "baseline" not in second.made_of
    assert second.value == second.made_of["probability"]
