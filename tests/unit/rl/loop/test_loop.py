import asyncio
import time
from collections import Counter

import pytest

from rl.loop.loop import GROUPS_A_TURN, MAX_ATTEMPTS, Parts, TrainingLoop, sampling_seed
from rl.loop.modes import draw_step, shares_at
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config


def encode(prompt, mode):
    return (1, 2, 3)


def run(cfg, engine=None, scorer=None, prompts=None, version=0, learner=None, on_step=None):
    """Run the loop with fakes; returns (results, learner, engine)."""
    engine = engine or FakeEngine()
    engine.version = version
    learner = learner or FakeLearner()
    prompts = prompts or FakePrompts(cfg.rollout.prompts_per_step)
    parts = Parts(prompts, encode, engine, scorer or FakeScorer(), learner)
    results = []

    async def keep(result):
        results.append(result)
        return on_step is None or on_step(result)

    asyncio.run(TrainingLoop(cfg, parts, version).run(keep))
    return results, learner, engine


def trained_ids(results):
    return [[g.group.request.group_id for g in result.groups] for result in results]


def long_is_slow(request):
    return 0.02 if request.mode == "long" else 0.0


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_every_step_trains_its_own_groups_in_order(staleness):
    results, *_ = run(config(rollout__max_staleness=staleness), FakeEngine(long_is_slow))
    assert trained_ids(results) == [[f"{s}/{p}/0" for p in range(4)] for s in range(4)]


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_sample_is_staler_than_allowed_and_the_bound_is_reached(staleness):
    cfg = config(steps=8, rollout__max_staleness=staleness)
    results, *_ = run(cfg, FakeEngine(lambda r: 0.001), learner=FakeLearner(0.005))
    worst = [
        max(r.step - 1 - t.versions[0] for g in r.groups for t in g.group.trajectories)
        for r in results
    ]
    assert max(worst) == staleness


def test_the_trained_share_is_the_drawn_share_though_long_groups_finish_last():
    cfg = config(steps=6, rollout__max_staleness=2, rollout__prompts_per_step=6)
    results, *_ = run(cfg, FakeEngine(long_is_slow))
    for step, result in enumerate(results):
        drawn = draw_step(cfg.seed, step, shares_at(cfg, step + 1), [None] * 6, "stratified")
        assert [g.group.request.mode for g in result.groups] == drawn
        assert Counter(drawn) == {"short": 3, "long": 3}


def test_no_more_groups_are_in_flight_than_slots():
    cfg = config(steps=6, rollout__max_staleness=1)
    engine = FakeEngine()
    most = 0

    def count(request):
        nonlocal most
        step = int(request.group_id.split("/")[0])
        most = max(most, step - engine.version)
        return 0.0

    engine._delay = count
    run(cfg, engine)
    assert most == 1


def test_batches_are_numbered_from_one_as_the_learning_rate_counts_steps():
    _, learner, _ = run(config())
    assert [batch.step for batch in learner.batches] == [1, 2, 3, 4]


def test_long_prompts_of_a_step_are_dispatched_first():
    _, _, engine = run(config(steps=1))
    assert [r.mode for r in engine.requests] == ["long", "long", "short", "short"]


def test_a_large_step_is_prepared_and_scored_in_batches_between_which_others_have_their_turn():
    cfg = config(steps=1, rollout__prompts_per_step=5 * GROUPS_A_TURN + 1)
    turns, prepared, scored = 0, Counter(), Counter()

    async def main():
        nonlocal turns

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        def counted(prompt, mode):
            prepared[turns] += 1
            return (1, 2, 3)

        class Scorer(FakeScorer):
            async def score(self, group):
                scored[turns] += 1
                return await super().score(group)

        class Engine(FakeEngine):
            async def generate(self, request):
                await everything_is_asked.wait()
                return await super().generate(request)

        everything_is_asked = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, everything_is_asked.set)
        waiting = asyncio.create_task(others())
        prompts = FakePrompts(cfg.rollout.prompts_per_step)
        parts = Parts(prompts, counted, Engine(), Scorer(), FakeLearner())
        await TrainingLoop(cfg, parts).step()
        waiting.cancel()

    asyncio.run(main())
    assert list(prepared.values()) == [GROUPS_A_TURN] * 5 + [1]
    assert list(scored.values()) == [GROUPS_A_TURN] * 5 + [1]


def test_a_failed_group_is_replaced_by_another_prompt_of_the_same_mode():
    failing = "1/2/0"
    results, *_ = run(
        config(), FakeEngine(fails=lambda r: "empty" if r.group_id == failing else None)
    )
    replaced = results[1].groups[2].group.request
    assert replaced.group_id == "1/2/1"
    assert replaced.prompt.id == "1/2/replacement1"
    drawn = draw_step(0, 1, {"short": 0.5, "long": 0.5}, [None] * 4, "stratified")
    assert replaced.mode == drawn[2]
    assert sum((r.dropped for r in results), Counter()) == {(drawn[2], "empty"): 1}


def test_a_trajectory_without_a_score_leaves_the_batch():
    scorer = FakeScorer(lambda g: [1.0, None, 0.0])
    results, learner, _ = run(config(steps=1, rollout__group_size=3), scorer=scorer)
    assert len(learner.batches[0].samples) == 4 * 2
    assert all(a[1] is None for a in results[0].advantages)


def test_a_group_mostly_without_scores_is_dropped_under_its_reason():
    scorer = FakeScorer(lambda g: [None, None] if g.request.group_id.endswith("/0") else [1.0, 0.0])
    results, *_ = run(config(steps=1), scorer=scorer)
    assert all(i.endswith("/1") for i in trained_ids(results)[0])
    assert sum(results[0].dropped.values()) == 4
    assert {reason for _, reason in results[0].dropped} == {"unscored"}


def test_the_mismatches_of_a_batch_go_to_their_trajectories():
    """The fake learner numbers its samples; a trajectory without a score is none."""
    (result,), *_ = run(config(steps=1), scorer=FakeScorer(lambda group: [None, 1.0]))
    assert result.mismatches == tuple((None, float(index)) for index in range(4))


def test_zero_variance_groups_are_replaced_only_when_asked():
    scorer = FakeScorer(lambda g: [1.0, 1.0 if g.request.group_id.endswith("/0") else 0.0])
    kept, *_ = run(config(steps=1), scorer=scorer)
    assert all(i.endswith("/0") for i in trained_ids(kept)[0])
    replaced, *_ = run(config(steps=1, algorithm__drop_zero_variance=True), scorer=scorer)
    assert all(i.endswith("/1") for i in trained_ids(replaced)[0])


def test_where_every_group_is_constant_the_last_one_is_trained_on():
    cfg = config(steps=1, algorithm__drop_zero_variance=True)
    results, *_ = run(cfg, scorer=FakeScorer(lambda g: [1.0, 1.0]))
    assert all(i.endswith(f"/{MAX_ATTEMPTS - 1}") for i in trained_ids(results)[0])


def test_a_run_in_which_nothing_survives_ends_with_the_reasons():
    with pytest.raises(RuntimeError, match=rf"{MAX_ATTEMPTS} groups in a row.*timeout"):
        run(config(steps=1), FakeEngine(fails=lambda r: "timeout: slow"))


def test_a_dead_engine_ends_the_run_with_its_own_error():
    def die(request):
        raise RuntimeError("engine 0: its process died")

    with pytest.raises(RuntimeError, match="engine 0: its process died"):
        run(config(rollout__max_staleness=2), FakeEngine(delay=die))


def test_samples_of_an_unproven_version_are_refused():
    engine = FakeEngine()
    original = engine.generate

    async def from_the_future(request):
        engine.version = 5
        return await original(request)

    engine.generate = from_the_future
    with pytest.raises(RuntimeError, match="outside what may be trained"):
        run(config(steps=1), engine)


def test_resumed_loop_trains_what_the_uninterrupted_one_would():
    cfg = config(steps=6, rollout__max_staleness=1)
    whole, *_ = run(cfg)
    stopped, *_ = run(cfg, on_step=lambda result: result.step < 3)
    resumed, *_ = run(cfg, version=3)
    both = stopped + resumed
    assert trained_ids(both) == trained_ids(whole)
    requests = [g.group.request for r in both for g in r.groups]
    assert requests == [g.group.request for r in whole for g in r.groups]


def test_idle_time_of_the_engines_is_measured():
    results, *_ = run(config(steps=2), FakeEngine(lambda r: 0.01), learner=FakeLearner(0.05))
    assert 0.05 <= results[1].seconds["engines_idle"] < results[1].seconds["step"]


def test_steps_add_up_to_the_time_of_the_run_with_what_is_done_between_them():
    async def main():
        cfg, results = config(steps=3), []
        parts = Parts(FakePrompts(4), encode, FakeEngine(), FakeScorer(), FakeLearner(0.01))
        loop = TrainingLoop(cfg, parts)
        # As a run does, whose first weights are evaluated before its first step.
        await asyncio.sleep(0.1)

        async def write(result):
            results.append(result)
            await asyncio.sleep(0.05)
            return True

        started = time.monotonic()
        await loop.run(write)
        return [result.seconds for result in results], time.monotonic() - started

    seconds, took = asyncio.run(main())
    assert [part["record"] >= 0.05 for part in seconds] == [False, True, True]
    parts = ("record", "wait_for_groups", "update", "publish")
    for step in seconds:
        assert step["step"] == pytest.approx(sum(step[part] for part in parts))
        assert step["scoring"] + step["engines_idle"] <= step["step"] + 1e-3
    # Only the writing of the last step comes after the last step.
    assert sum(step["step"] for step in seconds) <= took - 0.05


def test_sampling_seeds_differ_by_group_and_by_run():
    seeds = {sampling_seed(seed, f"0/{p}/0") for seed in (0, 1) for p in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_next_groups_are_sampled_while_a_step_is_written_down():
    asked = {}

    async def main():
        cfg = config(steps=3)
        engine = FakeEngine()
        parts = Parts(FakePrompts(4), encode, engine, FakeScorer(), FakeLearner())

        async def write(result):
            # What a disk takes; here a turn of the event loop is enough.
            await asyncio.sleep(0)
            asked[result.step] = {request.group_id.split("/")[0] for request in engine.requests}
            return True

        await TrainingLoop(cfg, parts).run(write)

    asyncio.run(main())
    assert asked == {1: {"0", "1"}, 2: {"0", "1", "2"}, 3: {"0", "1", "2"}}


def test_engines_on_the_learners_gpus_sleep_from_the_last_group_to_the_publish():
    events = []

    class Watched(FakeEngine):
        async def generate(self, request):
            assert not self.asleep
            group = await super().generate(request)
            events.append("group")
            return group

        async def sleep(self):
            await super().sleep()
            events.append("sleep")

        async def resume(self, version):
            await super().resume(version)
            events.append(f"version {version}")

    engine, learner = Watched(), FakeLearner()
    update, send = learner.update, learner.send_weights

    async def watched_update(batch):
        events.append(f"update, asleep {engine.asleep}")
        return await update(batch)

    async def watched_send(version):
        events.append("send")
        return await send(version)

    learner.update, learner.send_weights = watched_update, watched_send
    gpus = {"gpus": 1, "colocate": True}
    run(config(steps=2, resources=gpus), engine, learner=learner)
    step = [*["group"] * 4, "sleep", "update, asleep True", "send"]
    assert events == [*step, "version 1", *step, "version 2"]
    events.clear()
    run(config(steps=2, resources=gpus, rollout__max_staleness=1), Watched(), learner=learner)
    assert "sleep" not in events
