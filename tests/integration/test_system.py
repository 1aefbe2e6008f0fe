"""The running parts of one system, with two engines: publish proofs, staleness, a dead engine."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections import Counter

import pytest
import ray

from rl.assembly import gather_inputs, open_training
from rl.config.recipe import load
from rl.launch.usage import usage_metrics
from rl.loop.interfaces import GenerationFailed
from rl.loop.loop import Parts, TrainingLoop, train_request
from rl.loop.modes import draw_step, shares_at
from rl.loop.publish import CanaryCheck, UnprovenWeights, publish

STEPS = 5
PROMPTS = 6
SETTINGS = [
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    "rollout.workers=2",
    f"steps={STEPS}",
    f"rollout.prompts_per_step={PROMPTS}",
    "rollout.group_size=4",
    "rollout.max_staleness=2",
    "eval.prompts=4",
]


class SlowLong:
    """The engine with long groups held back, as they are when reasoning is really long."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.pause, self.resume, self.prove = engine.pause, engine.resume, engine.prove
        self.watch = engine.watch

    async def generate(self, request):
        group = await self._engine.generate(request)
        await asyncio.sleep(0.5 if request.mode == "long" else 0.0)
        return group


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    run = tmp_path_factory.mktemp("system")
    return gather_inputs(load([*SETTINGS, f"run={run}"]).config)


@pytest.fixture(scope="module")
def system(loop, material):
    opened = open_training(material, print)
    yield loop.run(opened.__aenter__())
    loop.run(opened.__aexit__(None, None, None))


def publish_version(loop, material, system, version):
    return loop.run(
        publish(system.learner, system.engine, version, CanaryCheck.of(material.config))
    )


def test_every_publish_is_proven_on_both_engines(loop, material, system):
    metrics = publish_version(loop, material, system, 0)
    assert metrics["sync/canary_max_abs_diff"] <= 1e-4
    proofs = loop.run(system.engine.prove(0))
    assert len(proofs) == 2
    assert proofs[0].digests == proofs[1].digests
    assert len(proofs[0].digests) > 20


def test_a_request_that_the_engine_refuses_is_a_drop_with_its_reason(loop, material, system):
    publish_version(loop, material, system, 0)
    prompt = material.heldout[0]
    request = train_request(material.config, material.encode, "too/long", prompt, "short")
    request = dataclasses.replace(request, prompt_token_ids=request.prompt_token_ids * 20)
    with pytest.raises(GenerationFailed, match=r"^request_refused: "):
        loop.run(system.engine.generate(request))
    assert loop.run(system.engine.prove(0))


def spoil(rank, change):
    """Run `change(name, tensor)` between the learner's gather and the wire; None drops it."""
    source = rank.sender.source
    original = type(source).__iter__

    class Spoiled(type(source)):
        def __iter__(self):
            for name, tensor in original(self):
                if (changed := change(name, tensor)) is not None:
                    yield name, changed

    source.__class__ = Spoiled


def mend(rank):
    rank.sender.source.__class__ = type(rank.sender.source).__mro__[1]


def with_spoiled_rank(system, change, body):
    actor = system.learner.ranks[0]
    ray.get(actor.__ray_call__.remote(spoil, change))
    try:
        body()
    finally:
        ray.get(actor.__ray_call__.remote(mend))


TENSOR = "model.layers.1.mlp.down_proj.weight"


def test_a_tensor_that_is_not_sent_stops_the_run_by_name(loop, material, system):
    def drop(name, tensor):
        return None if name == TENSOR else tensor

    def body():
        with pytest.raises(UnprovenWeights, match=f"did not receive {TENSOR}"):
            publish_version(loop, material, system, 0)

    with_spoiled_rank(system, drop, body)


def test_a_stale_tensor_stops_the_run_by_name(loop, material, system):
    def stale(name, tensor):
        return tensor * 0.5 if name == TENSOR else tensor

    def body():
        with pytest.raises(UnprovenWeights, match=f"{TENSOR}: stale"):
            publish_version(loop, material, system, 0)

    with_spoiled_rank(system, stale, body)


def test_trained_share_is_the_drawn_share_with_stale_samples_and_slow_long_groups(
    loop, material, system
):
    publish_version(loop, material, system, 0)
    config, results = material.config, []

    async def keep(result):
        results.append(result)
        return True

    parts = Parts(
        material.stream, material.encode, SlowLong(system.engine), system.scorer, system.learner
    )
    loop.run(TrainingLoop(config, parts).run(keep))
    assert len(results) == STEPS
    for step, result in enumerate(results):
        pins = [None] * PROMPTS
        drawn = draw_step(config.seed, step, shares_at(config, step + 1), pins, config.rollout.draw)
        modes = [g.group.request.mode for g in result.groups]
        assert modes == drawn
        assert Counter(modes) == {"short": PROMPTS / 2, "long": PROMPTS / 2}
    stalest = [
        result.step - 1 - t.versions[0]
        for result in results
        for g in result.groups
        for t in g.group.trajectories
    ]
    assert max(stalest) == 2


def sampled_group(loop, material, system, name):
    request = train_request(material.config, material.encode, name, material.heldout[0], "long")
    return loop.run(system.engine.generate(request))


def test_each_engine_says_what_it_did_since_it_was_last_asked(loop, material, system):
    loop.run(system.engine.statistics())
    group = sampled_group(loop, material, system, "counted")
    statistics = loop.run(system.engine.statistics())
    assert set(statistics) == {0, 1}
    sampled = [one.sampled_tokens for one in statistics.values()]
    assert sum(sampled) == sum(trajectory.num_response_tokens for trajectory in group.trajectories)
    # One group goes to one engine, and the other one does nothing.
    busy = next(one for one in statistics.values() if one.sampled_tokens)
    assert busy.running >= busy.iterations > 0
    assert busy.busy_s > 0
    assert 0 < busy.most_cache_use <= 1
    assert busy.queried_tokens >= len(group.request.prompt_token_ids)
    assert min(sampled) == 0


def test_a_stopped_engine_is_left_out_and_holds_nobody_up(loop, material, system):
    process = ray.get(system.engine.actors[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        metrics = loop.run(usage_metrics(system, material.config))
    finally:
        os.kill(process, signal.SIGCONT)
    assert metrics["memory/rss_engine_gib"] > metrics["memory/rss_driver_gib"] / 100
    assert set(loop.run(system.engine.statistics())) == {0, 1}


def test_all_five_parts_are_in_a_score(loop, material, system):
    scores = loop.run(system.scorer.score(sampled_group(loop, material, system, "parts")))
    weighed = {"accuracy", "format", "repetition", "preference"}
    assert all(weighed <= set(score.parts) for score in scores)
    prompt = dataclasses.replace(material.heldout[0], id="asked/probability", task="probability")
    request = train_request(material.config, material.encode, "probability", prompt, "long")
    group = loop.run(system.engine.generate(request))
    for score in loop.run(system.scorer.score(group)):
        assert score.route.name == "probability"
        if score.parts["format"]:
            gain = score.parts["probability"] - score.parts["baseline"]
            assert score.parts["accuracy"] == pytest.approx(min(1.0, max(0.0, gain)))
    assert "asked/probability@1" in system.scorer.state["probability"]["baselines"]


def preference_actor(system):
    return system.scorer.preference.model.actors[0]


def test_a_killed_preference_model_comes_back_with_the_same_scores(loop, material, system):
    group = sampled_group(loop, material, system, "killed")
    before = loop.run(system.scorer.score(group))
    process = ray.get(preference_actor(system).__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGKILL)
    after = loop.run(system.scorer.score(group))
    # A response without an answer has none, which is up to the policy.
    before, after = ([s.parts.get("preference_raw") for s in scores] for scores in (before, after))
    assert any(score is not None for score in before)
    assert after == pytest.approx(before)
    assert ray.get(preference_actor(system).__ray_call__.remote(lambda _: os.getpid())) != process


def test_a_preference_model_that_is_gone_ends_the_run_with_its_name(loop, material, system):
    group = sampled_group(loop, material, system, "gone")
    ray.kill(preference_actor(system), no_restart=True)
    with pytest.raises(RuntimeError, match="preference model 0: its process died"):
        loop.run(system.scorer.score(group))
