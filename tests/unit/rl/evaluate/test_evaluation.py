import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rl.evaluate.evaluation import (
    ModeResult,
    NothingAnswered,
    Question,
    ResponseLogprob,
    Sample,
    answered_before,
    evaluate,
    half_width,
    questions,
    score_responses,
    scored_before,
    summarize,
)
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Prompt
from tests.fakes import FakeEngine, FakeScorer, config


def ask(scorer, cfg=None, engine=None, **options):
    prompts = [Prompt(str(i), (), "12") for i in range(4)]
    engine = engine or FakeEngine()
    encode = lambda prompt, mode: (1, 2, 3)  # noqa: E731
    return asyncio.run(
        evaluate(cfg or config(), encode, engine, scorer, prompts, **options)
    ), engine


def sample(prompt, accuracy, number=0, route="number/2", **changes):
    fields = {"text": "12", "tokens": 4, "finish_reason": "stop", "accuracy": accuracy, "leak": 0.0}
    return Sample(prompt, "long", number, route=route, **(fields | changes))


def of_prompts(*accuracies):
    """Samples of prompts 0, 1, ...; one list of accuracies each."""
    return [sample(str(p), a, n) for p, each in enumerate(accuracies) for n, a in enumerate(each)]


def test_every_mode_answers_every_prompt_once():
    results, engine = ask(FakeScorer(lambda g: [float(g.request.mode == "long")]))
    assert {mode: r.accuracy for mode, r in results.items()} == {"short": 0.0, "long": 1.0}
    asked = sorted((r.mode, r.prompt.id, r.n) for r in engine.requests)
    assert asked == sorted((m, str(i), 1) for m in ("short", "long") for i in range(4))


def test_evaluation_uses_its_own_temperature_and_the_modes_budget():
    _, engine = ask(FakeScorer(), config(eval={"temperature": 0.0}))
    assert {r.temperature for r in engine.requests} == {0.0}
    assert {(r.mode, r.max_tokens) for r in engine.requests} == {("short", 4), ("long", 16)}


def test_more_samples_leave_the_seed_of_the_first_as_it_was():
    _, once = ask(FakeScorer(), config())
    _, often = ask(FakeScorer(), config(eval={"samples": 3}))
    first, all_seeds = ({r.group_id: r.seed for r in e.requests} for e in (once, often))
    assert first.items() <= all_seeds.items()
    assert (len(first), len(set(all_seeds.values()))) == (8, 24)


def test_no_more_responses_are_in_flight_than_a_training_step_has():
    most, now = 0, 0

    class Counting(FakeEngine):
        async def generate(self, request):
            nonlocal most, now
            now += 1
            most = max(most, now)
            group = await super().generate(request)
            now -= 1
            return group

    cfg = config(eval={"samples": 4}, rollout__prompts_per_step=3)
    ask(FakeScorer(), cfg, Counting(delay=lambda request: 0.001))
    assert most == 3 * cfg.rollout.group_size


def test_known_samples_are_not_asked_again_and_new_ones_are_kept_as_they_come():
    before = []
    ask(FakeScorer(lambda g: [1.0]), keep=before.append)
    known = [one for one in before if one.mode == "long" and one.prompt_id != "3"]
    kept = []
    results, engine = ask(FakeScorer(lambda g: [0.0]), known=known, keep=kept.append)
    assert results["long"].accuracy == 0.75
    asked = {(r.prompt.id, r.mode) for r in engine.requests}
    assert asked == {("3", "long"), *((str(i), "short") for i in range(4))}
    assert {(one.prompt_id, one.mode) for one in kept} == asked


def test_an_answer_to_a_row_that_was_edited_since_is_asked_for_again():
    prompt, edited = Prompt("0", (), "12"), Prompt("0", (), "13")
    old, new = (Question(0, one, "long", 0) for one in (prompt, edited))
    sample = Sample(*old.key, text="12", asked=old.digest)
    assert answered_before([old], [sample]) == {old.key: sample}
    assert answered_before([new], [sample]) == {}


def test_an_error_of_the_engine_ends_the_evaluation_and_what_came_before_is_kept():
    class Dying(FakeEngine):
        async def generate(self, request):
            if request.prompt.id == "3":
                await asyncio.sleep(0.01)
                raise RuntimeError("engine 0: its process died")
            return await super().generate(request)

    kept = []
    with pytest.raises(RuntimeError, match="its process died"):
        ask(FakeScorer(), engine=Dying(), keep=kept.append)
    assert len(kept) == 6


def test_a_failed_score_counts_as_wrong_and_is_reported():
    results, _ = ask(FakeScorer(lambda g: [None if g.request.prompt.id == "0" else 1.0]))
    assert results["long"].accuracy == 0.75
    assert results["long"].unscored == 1


def test_a_failed_response_counts_as_wrong_and_leaves_length_alone():
    engine = FakeEngine(fails=lambda request: "timeout: x" if request.prompt.id == "0" else None)
    results, _ = ask(FakeScorer(lambda g: [1.0]), engine=engine)
    figures = results["long"]
    assert (figures.accuracy, figures.unscored, figures.tokens_mean) == (0.75, 1, 4.0)


def test_a_mode_that_answers_nothing_says_why():
    engine = FakeEngine(fails=lambda request: "request_refused: too long")
    with pytest.raises(NothingAnswered, match=r"all 4 responses .* request_refused: too long"):
        ask(FakeScorer(), engine=engine)


def test_half_width_of_the_confidence_interval_by_hand():
    results, _ = ask(FakeScorer(lambda g: [float(g.request.prompt.id in "01")]))
    assert results["short"].half_width == pytest.approx(1.96 * math.sqrt(0.25 / 4))


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_with_one_sample_the_interval_is_the_binomial_one(right):
    share = sum(right) / len(right)
    binomial = 1.96 * math.sqrt(share * (1 - share) / len(right))
    assert half_width([float(one) for one in right]) == pytest.approx(binomial, abs=1e-9)


def test_the_interval_is_over_prompts_however_many_samples_agree():
    """Copies of a response add nothing: two prompts are two draws."""
    once = summarize(of_prompts([1.0], [0.0]))
    eight_times = summarize(of_prompts([1.0] * 8, [0.0] * 8))
    assert eight_times.half_width == once.half_width == pytest.approx(1.96 * math.sqrt(0.25 / 2))
    spread = summarize(of_prompts([1.0, 0.0], [1.0, 0.0]))
    assert (spread.accuracy, spread.half_width) == (0.5, 0.0)


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(responses):
    for k, chance in summarize(of_prompts(map(float, responses))).pass_at.items():
        draws = [any(draw) for draw in itertools.combinations(responses, k)]
        assert chance == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    figures = summarize(of_prompts([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]))
    # 1 of 4 right: 1/4, 3/6, 1. 2 of 4 right: 2/4, 5/6, 1.
    assert figures.pass_at == pytest.approx({1: 3 / 8, 2: 2 / 3, 4: 1.0})
    assert (figures.accuracy, figures.count, figures.samples) == (3 / 8, 2, 4)


def test_k_doubles_up_to_the_number_of_samples():
    asked = [list(summarize(of_prompts([1.0] * n)).pass_at) for n in (1, 2, 6, 8)]
    assert asked == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_probabilities_stay_out_of_pass_at_k_and_in_the_accuracy():
    rules = of_prompts([1.0, 0.0])
    probable = [sample("p", 0.5, n, "probability/1") for n in range(2)]
    figures = summarize([*rules, *probable])
    assert figures.pass_at == {1: 0.5, 2: 1.0}
    assert (figures.accuracy, figures.count) == (0.5, 2)
    assert summarize(probable).pass_at == {}


def test_truncation_length_and_leaks_are_measured():
    samples = [
        sample("0", 1.0, tokens=6, finish_reason="length", leak=1.0),
        sample("1", 1.0, tokens=2),
    ]
    figures = summarize(samples)
    assert (figures.truncated, figures.tokens_mean, figures.leak) == (0.5, 4.0, 0.5)


def test_the_metrics_of_training_keep_their_keys():
    keys = ModeResult(0.5, 0.1, 3.0, 0.0, 0, 4, leak=0.25).as_metrics("long")
    names = ("accuracy", "half_width", "tokens_mean", "truncated", "leak", "unscored")
    assert list(keys) == [f"eval/long/{name}" for name in names]
    assert keys["eval/long/leak"] == 0.25


def test_a_mixture_has_its_figures_by_source():
    mix = {name: {"kind": "chain_sum", "weight": 1} for name in ("a", "ab", "never")}
    prompts = [Prompt(f"{source}/chain_sum/{n}", (), "12") for source in ("a", "ab") for n in "012"]
    right = FakeScorer(lambda group: [float(group.request.prompt.id.startswith("ab/"))])
    encode = lambda prompt, mode: (1,)  # noqa: E731
    run = evaluate(config(data={"mix": mix}), encode, FakeEngine(), right, prompts)
    figures = asyncio.run(run)["long"]
    assert figures.accuracy == 0.5
    assert {name: (of.accuracy, of.count) for name, of in figures.by_source.items()} == {
        "a": (0.0, 3),
        "ab": (1.0, 3),
    }
    metrics = figures.as_metrics("long")
    assert metrics["eval/long/accuracy_of_ab"] == 1.0
    assert metrics["eval/long/half_width_of_a"] == 0.0


def test_a_source_that_answers_nothing_does_not_end_the_evaluation():
    mix = {name: {"kind": "chain_sum"} for name in ("a", "b")}
    prompts = [Prompt(f"{source}/chain_sum/0", (), "12") for source in "ab"]
    engine = FakeEngine(fails=lambda r: "timeout: x" if r.prompt.id.startswith("b/") else None)
    encode = lambda prompt, mode: (1,)  # noqa: E731
    run = evaluate(config(data={"mix": mix}), encode, engine, FakeScorer(lambda g: [1.0]), prompts)
    figures = asyncio.run(run)["long"]
    assert list(figures.by_source) == ["a"]
    assert (figures.accuracy, figures.unscored) == (0.5, 1)


def test_greedy_copies_are_refused():
    with pytest.raises(ValidationError, match=r"eval.samples=2 greedy responses would be copies"):
        config(eval={"samples": 2, "temperature": 0.0})


def test_token_ids_are_kept_only_where_they_are_asked_for():
    for asked, expected in ((False, None), (True, (3, 4, 5, 6))):
        kept = []
        ask(FakeScorer(), keep=kept.append, token_ids=asked)
        assert {one.token_ids for one in kept} == {expected}


class Scores:
    """Finds every token of sample 1 impossible, fails for sample 2, else says -0.5 a token."""

    def __init__(self):
        self.requests = []

    async def reference_logprobs(self, request):
        self.requests.append(request)
        number = request.id.split("/")[-2]
        if number == "2":
            raise GenerationFailed("request_refused", "too long")
        return tuple(-math.inf if number == "1" else -0.5 for _ in request.reference_token_ids)


def scored(by="policy"):
    prompts = [Prompt("p", (), "12")]
    asked = questions(config(eval={"samples": 3}), prompts)
    responses = [
        (q, Sample(*q.key, text="12", asked=q.digest, token_ids=(7, 8, q.sample))) for q in asked
    ]
    scores, kept = Scores(), []
    encode = lambda prompt, mode: (1, 2) if mode == "long" else (1,)  # noqa: E731
    asyncio.run(score_responses(config(), encode, scores, by, responses, kept.append))
    return [sample for _, sample in responses], scores.requests, kept


def test_responses_are_scored_at_temperature_1_after_the_prompt_of_their_mode():
    _, requests, kept = scored()
    assert {request.temperature for request in requests} == {1.0}
    assert {(r.context_token_ids, r.reference_token_ids) for r in requests} == {
        (context, (7, 8, number)) for context in ((1,), (1, 2)) for number in range(3)
    }
    assert len({request.id for request in requests}) == 6
    by_number = {one.sample: one for one in kept if one.mode == "long"}
    assert (by_number[0].logprob, by_number[0].failure) == (-1.5, None)
    assert (by_number[1].logprob, by_number[1].failure) == (None, "its logprob is -inf")
    assert (by_number[2].logprob, by_number[2].failure) == (None, "request_refused: too long")


def test_a_score_is_of_one_model_and_of_the_response_that_it_was_given_for():
    samples, _, kept = scored()
    assert scored_before(samples, kept, "reference") == {}
    known = scored_before(samples, kept, "policy")
    assert known == {("p", "long", 0): -1.5, ("p", "short", 0): -1.5}
    again = [Sample(*one.key, "12", asked=one.asked, token_ids=(9,)) for one in samples]
    edited = [Sample(*one.key, "12", asked="x", token_ids=one.token_ids) for one in samples]
    assert scored_before(again, kept, "policy") == scored_before(edited, kept, "policy") == {}
    failed = next(one for one in samples if one.key == ("p", "long", 2))
    later = ResponseLogprob(*failed.key, "policy", failed.digest, -9.0)
    assert scored_before(samples, [*kept, later], "policy") == known | {failed.key: -9.0}


def test_an_error_of_the_engine_ends_the_scoring():
    class Dead:
        async def reference_logprobs(self, request):
            raise RuntimeError("engine 0: its process died")

    question = Question(0, Prompt("p", (), "12"), "long", 0)
    response = Sample(*question.key, text="12", token_ids=(7,))
    scoring = score_responses(
        config(), lambda prompt, mode: (1,), Dead(), "policy", [(question, response)], print
    )
    with pytest.raises(RuntimeError, match="its process died"):
        asyncio.run(scoring)
