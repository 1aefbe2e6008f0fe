"""The two probability scorers, engine and learner, on the same requests; a policy of any script."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from rewards.probability import ProbabilityReward
from rl.assembly import gather_inputs
from rl.config.recipe import load
from rl.config.reward import ProbabilityConfig
from rl.loop.loop import train_request
from rl.loop.stages import (
    Prompt,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    Trajectory,
    split_response,
)
from rollout.engines.worker import RolloutWorker
from rollout.splice import Splice
from tests.bpe_policy import make_policy
from tests.engine_parity import open_worker
from tests.integration.ranks import Rank, ask, close, open_ranks

MAX_LENGTH = 1536
REFERENCES = ["Paris", "42", "the answer is Paris, not London", "四十二", "🙂🙃", " x", "{4", "é"]
ENDS = list(range(100, 200))
ANSWERS = {
    "short": ["London", r"the answer is \boxed{44}", "答案：四十三", "Answer: 42"],
    "long": [
        "two and two</think>\n\nLondon",
        "二加二🙂</think>\n\n答案：四十三",
        "so</think>so the answer is <answer>London</answer>",
        r"x</think>" + "\n\n" + r"so the answer is \boxed{42}",
        "a" * 1000 + "</think>\n\nParis",
    ],
}


class RankScorer:
    """Implements ReferenceScorer by a single rank."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        (answers,) = ask([self._rank], "reference_logprobs", [request])
        return answers[0]


@dataclass(frozen=True)
class System:
    engine: RolloutWorker
    learner: RankScorer
    runner: asyncio.Runner


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    model = make_policy(tmp_path_factory.mktemp("bpe"), MAX_LENGTH)
    # Beside a generation_config.json that names the tokenizer's end alone, which vLLM would follow.
    stored = json.loads((model / "config.json").read_text())
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] not in ENDS
    (model / "config.json").write_text(json.dumps(stored | {"eos_token_id": ENDS}))
    settings = [
        "config=hybrid_50_50.yaml",
        "scale=cpu_tiny",
        f"policy.model={model}",
        f"rollout.max_model_length={MAX_LENGTH}",
        "modes.short.temperature=0.7",
        "reward.preference=null",
        "rollout.prompts_per_step=4",
        "eval.prompts=4",
        f"run={tmp_path_factory.mktemp('run')}",
    ]
    return gather_inputs(load(settings).config)


@pytest.fixture(scope="module")
def system(material):
    (rank,) = open_ranks(material.config, material.model)
    # On CPU vLLM cannot rewind a seeded generator, which it does for prompts cut in chunks.
    engine = {"max_model_length": MAX_LENGTH, "enable_chunked_prefill": False}
    with open_worker(material.model, **engine) as (worker, runner):
        yield System(worker, RankScorer(rank), runner)
    close([rank])


@pytest.fixture(scope="module")
def loop(system):
    return system.runner


def group(material, mode, texts, reference, name="0"):
    """A group that answered `texts`, token by token as its tokenizer writes them."""
    prompt = Prompt(f"{mode}/{name}", ({"role": "user", "content": "Which?"},), reference)
    prompt_ids = material.encode(prompt, mode)
    trajectories = []
    for text in texts:
        ids = np.array([*prompt_ids, *material.chat.token_ids(text)], np.int32)
        mask = np.arange(len(ids)) >= len(prompt_ids)
        reasoning, answer = split_response(text, mode == "long")
        logprobs = np.zeros(len(ids), np.float32)
        trajectories.append(
            Trajectory(ids, mask, logprobs, (0, 0), "stop", text, reasoning, answer)
        )
    temperature = material.config.modes[mode].temperature
    request = RolloutRequest(name, prompt, mode, prompt_ids, len(texts), 9, temperature, None)
    return RolloutGroup(request, tuple(trajectories))


def test_an_end_that_only_config_json_names_stops_a_response_and_is_kept_out_of_its_text(
    loop, material, system
):
    prompt = Prompt("ends", ({"role": "user", "content": "Which?"},), "Paris")
    request = train_request(material.config, material.encode, "ends", prompt, "long")
    sampled = loop.run(system.engine.generate(request)).trajectories
    assert {each.end_token for each in sampled} & {*ENDS}
    for each in sampled:
        ids, is_ended = each.response_token_ids.tolist(), each.finish_reason == "stop"
        assert each.end_token == (ids[-1] if is_ended else None)
        before = ids[:-1] if is_ended else ids
        assert not {*before} & {*ENDS}
        assert each.text == material.chat.raw_text(before)


@pytest.mark.parametrize("mode", ["short", "long"])
def test_engine_and_learner_agree(loop, material, system, mode):
    splice = Splice(material.chat, MAX_LENGTH)
    groups = [
        group(material, mode, ANSWERS[mode], reference, str(place))
        for place, reference in enumerate(REFERENCES)
    ]

    async def both():
        scored = []
        for scorer in (system.engine, system.learner):
            reward = ProbabilityReward(ProbabilityConfig(), scorer, splice)
            scored.append(
                await asyncio.gather(*(reward.accuracies(one, mode == "long") for one in groups))
            )
        return scored

    by_engine, by_learner = loop.run(both())
    compared = 0
    for ours, theirs in zip(by_engine, by_learner, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.failure is None
            assert one.made_of.keys() == other.made_of.keys() != set()
            for part, value in one.made_of.items():
                assert value == pytest.approx(other.made_of[part], abs=1e-5)
                compared += 1
    assert compared == len(REFERENCES) * len(ANSWERS[mode]) * (2 if mode == "long" else 1)


def test_the_forced_tokens_are_scored_at_the_modes_temperature(loop, material, system):
    splice = Splice(material.chat, MAX_LENGTH)
    cold = splice.without_reasoning(Prompt("p", ({"role": "user", "content": "?"},), ""), "42", 0.5)
    warm = dataclasses.replace(cold, id="warm", temperature=2.0)

    async def ask(request):
        return [await s.reference_logprobs(request) for s in (system.engine, system.learner)]

    for request in (cold, warm):
        engine, learner = loop.run(ask(request))
        assert engine == pytest.approx(learner, abs=1e-5)
    assert loop.run(ask(cold)) != loop.run(ask(warm))


def test_forced_and_sampled_requests_share_batches_and_disturb_nobody(loop, material, system):
    """Sampled log-probabilities are those of the learner though forced requests run beside them."""
    splice = Splice(material.chat, MAX_LENGTH)
    sampled = [
        train_request(material.config, material.encode, f"mixed/{n}", prompt, "long")
        for n, prompt in enumerate(material.stream.prompts(0))
    ]
    forced = [
        dataclasses.replace(
            splice.without_reasoning(material.heldout[n % 4], REFERENCES[n % 8], 1.0), id=f"f/{n}"
        )
        for n in range(40)
    ]

    async def run():
        generating = asyncio.gather(*(system.engine.generate(request) for request in sampled))
        scoring = asyncio.gather(*(system.engine.reference_logprobs(one) for one in forced))
        return await generating, await scoring

    groups, scored = loop.run(run())
    assert all(len(s) == len(f.reference_token_ids) for s, f in zip(scored, forced, strict=True))
    for one in groups:
        for trajectory in one.trajectories:
            first = len(one.request.prompt_token_ids)
            again = dataclasses.replace(
                forced[0],
                id="again",
                context_token_ids=tuple(trajectory.token_ids[:first].tolist()),
                reference_token_ids=tuple(trajectory.token_ids[first:].tolist()),
            )
            learner = loop.run(system.learner.reference_logprobs(again))
            assert trajectory.rollout_logprobs[first:].tolist() == pytest.approx(learner, abs=1e-4)
            assert all(math.isfinite(value) for value in learner)
