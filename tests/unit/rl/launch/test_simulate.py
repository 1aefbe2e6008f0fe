"""The simulator: its clock, its queues and whole runs, against times computed by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math

import pytest
import rich.console

from rl.config import recipe
from rl.launch import __main__ as launch
from rl.launch.simulate.clock import run_in_virtual_time
from rl.launch.simulate.engines import EngineQueue, QueuedGroup, SimulatedEngines
from rl.launch.simulate.hardware import (
    SHAPES,
    EngineSpeed,
    LearnerSpeed,
    engine_speed,
    learner_speed,
    shape_of,
)
from rl.launch.simulate.lengths import Lengths, drawn_lengths, ledger_lengths
from rl.launch.simulate.report import print_simulation
from rl.launch.simulate.simulation import Death, simulate
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, Score, ScoredGroup
from rl.run.ledger import ledger_rows, write_step
from tests.fakes import config, trajectory

SECOND = EngineSpeed(1.0, 0, 0, 0, 0, 0, math.inf, 1000)
"""A step takes a second, whatever runs."""


def in_virtual_time(main):
    return run_in_virtual_time(main())


# Clock


def test_sleeps_end_in_their_order_and_an_hour_takes_no_time():
    order = []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        order.append((seconds, asyncio.get_running_loop().time()))

    async def main():
        await asyncio.gather(*(sleeper(seconds) for seconds in (3600, 0.25, 7, 0.5)))

    in_virtual_time(main)
    assert order == [(0.25, 0.25), (0.5, 0.5), (7, 7.0), (3600, 3600.0)]


def test_a_deadline_passes_at_its_time():
    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=86400 * 3)
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == 86400 * 3


def test_what_can_never_happen_ends_the_simulation():
    async def main():
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing can ever happen"):
        in_virtual_time(main)


# Engines


def request(name="0/0/0", n=2, budget=100, prompt=4):
    return RolloutRequest(name, Prompt("p", (), ""), "long", (0,) * prompt, n, budget, 1.0, None)


def lengths_of(*lengths):
    """Of every group the same."""
    return Lengths({"long": [lengths], "short": [lengths]}, "said by the test")


def run_requests(speed, lengths, requests, num_engines=1, before=lambda engines: None):
    """Ends of all requests; busy seconds, sampled and lost tokens; the groups."""

    async def main():
        engines = SimulatedEngines(num_engines, speed, lengths)
        before(engines)
        ends = {}

        async def ask(request):
            group = await engines.generate(request)
            ends[request.group_id] = asyncio.get_running_loop().time()
            return group

        groups = await asyncio.gather(*map(ask, requests))
        figures = *engines.totals(), engines.lost_tokens
        return ends, figures, groups

    return in_virtual_time(main)


def test_a_group_ends_with_its_longest_response():
    ends, figures, (group,) = run_requests(SECOND, lengths_of(3, 8), [request()])
    assert ends == {"0/0/0": 8.0}
    assert [t.num_response_tokens for t in group.trajectories] == [3, 8]
    assert [t.num_tokens for t in group.trajectories] == [7, 12]
    assert figures == (8.0, 11.0, 0.0)


def test_steps_cost_what_is_cached_and_how_many_run():
    """Two responses of 4 and 2 tokens over 10 of prompt each, by hand, step by step.

    Cached before each step: 20, 22, then only the longer one: 12, 13.
    """
    speed = EngineSpeed(1.0, 0.5, 0.125, 0.25, 0.0625, 0, math.inf, 1000)
    ends, *_ = run_requests(speed, lengths_of(4, 2), [request(prompt=10)])
    # 1 + a quarter each + the 0.5 s of the weights, which hides the arithmetic of up to four.
    two = 1 + 2 * 0.25 + 0.5
    one = 1 + 0.25 + 0.5
    assert ends["0/0/0"] == 2 * two + 2 * one + 0.0625 * (20 + 22 + 12 + 13)


def test_much_arithmetic_outweighs_the_reading_of_weights():
    speed = EngineSpeed(0, 0.5, 0.125, 0, 0, 0, math.inf, 1000)
    ends, *_ = run_requests(speed, lengths_of(*[2] * 8), [request(n=8)])
    assert ends["0/0/0"] == 2 * 8 * 0.125


def test_a_prompt_is_computed_once_for_its_group():
    speed = EngineSpeed(1.0, 0, 0, 0, 0, 0.5, math.inf, 1000)
    ends, *_ = run_requests(speed, lengths_of(3), [request(n=2, prompt=4)])
    assert ends["0/0/0"] == 4 * 0.5 + 3


def test_responses_wait_for_a_place():
    """Three responses of 5 tokens on two places: the last one begins at 5."""
    speed = EngineSpeed(1.0, 0, 0, 0, 0, 0, math.inf, 2)
    names = ["0/0/0", "0/1/0", "0/2/0"]
    ends, *_ = run_requests(speed, lengths_of(5), [request(name, n=1) for name in names])
    assert list(ends.values()) == [5.0, 5.0, 10.0]


def test_responses_wait_for_room_in_the_cache():
    """A prompt of 4 and half of 8 tokens each: 8 of 15, so the second one does not fit."""
    speed = EngineSpeed(1.0, 0, 0, 0, 0, 0, 15, 1000)
    ends, *_ = run_requests(speed, lengths_of(8), [request("0/0/0", 1), request("0/1/0", 1)])
    assert list(ends.values()) == [8.0, 16.0]


def test_groups_go_to_the_engine_of_the_least_budget():
    """Budgets 100, 30, 30 on two engines: the two small ones share one."""
    speed = EngineSpeed(0, 0, 0, 1.0, 0, 0, math.inf, 1000)
    requests = [request("0/0/0", 1, 100), request("0/1/0", 1, 30), request("0/2/0", 1, 30)]
    ends, *_ = run_requests(speed, lengths_of(10), requests, num_engines=2)
    # A step takes a second per response that runs on the same engine.
    assert ends == {"0/0/0": 10.0, "0/1/0": 20.0, "0/2/0": 20.0}


def test_a_request_that_comes_later_finds_the_engine_as_it_then_is():
    """A step takes a second per response: one alone for 4 s, then both of them together."""
    speed = EngineSpeed(0, 0, 0, 1.0, 0, 0, math.inf, 1000)

    async def main():
        engines, clock = SimulatedEngines(1, speed, lengths_of(10)), asyncio.get_running_loop()
        first = asyncio.create_task(engines.generate(request("0/0/0", 1)))
        await asyncio.sleep(4)
        second = asyncio.create_task(engines.generate(request("0/1/0", 1)))
        await first
        between = clock.time()
        await second
        return between, clock.time(), engines.totals()[0]

    # 4 alone, 6 steps of two: 16. The second then has 4 left: 20.
    assert in_virtual_time(main) == pytest.approx((16, 20, 20), abs=1e-9)


def test_a_pause_freezes_what_runs_and_the_version_is_that_of_the_end():
    async def main():
        engines, clock = SimulatedEngines(1, SECOND, lengths_of(10)), asyncio.get_running_loop()
        group = asyncio.create_task(engines.generate(request(n=1)))
        await asyncio.sleep(4)
        await engines.pause()
        await asyncio.sleep(100)
        await engines.resume(1)
        (trajectory,) = (await group).trajectories
        return clock.time(), trajectory.versions, engines.totals()[0]

    assert in_virtual_time(main) == (110.0, (0, 1), 10.0)


def test_without_kept_keys_and_values_a_publish_computes_them_again():
    speed = EngineSpeed(1.0, 0, 0, 0, 0, 0.5, math.inf, 1000)

    async def main():
        engines = SimulatedEngines(1, speed, lengths_of(10), keep_kv_cache=False)
        group = asyncio.create_task(engines.generate(request(n=1, prompt=4)))
        await asyncio.sleep(2 + 4)
        await engines.pause()
        await engines.resume(1)
        await group
        return asyncio.get_running_loop().time()

    # 2 s of prompt, 10 steps, and 8 tokens again after the fourth step.
    assert in_virtual_time(main) == 2 + 10 + 4


def test_a_dead_engine_gives_its_groups_to_the_others():
    """It dies at 6 of 10 steps: both groups begin again or go on elsewhere, 6 tokens are lost."""

    def kill(engines):
        asyncio.get_running_loop().call_at(6.0, engines.die, 0, 100.0)

    names = ["0/0/0", "0/1/0"]
    ends, (_, _, lost), _ = run_requests(
        SECOND, lengths_of(10), [request(name, 1) for name in names], 2, kill
    )
    assert sorted(ends.values()) == [10.0, 16.0]
    assert lost == 6


def test_without_any_engine_groups_wait_for_the_next_one():
    def kill(engines):
        asyncio.get_running_loop().call_at(6.0, engines.die, 0, 100.0)

    ends, *_ = run_requests(SECOND, lengths_of(10), [request(n=1)], 1, kill)
    assert ends["0/0/0"] == 6 + 100 + 10


def test_a_copy_moves_on_alone():
    async def main():
        queue = EngineQueue(SECOND)
        queue.add(QueuedGroup(4, [5], 0, 100))
        twin = queue.copy()
        assert twin.advance() is not None
        return queue.time, twin.time, len(queue.groups), len(twin.groups)

    assert in_virtual_time(main) == (0.0, 5.0, 1, 0)


# Runs

CONSTANT = lengths_of(10)
UPDATE = LearnerSpeed(token_s=1.0 / 8, pair_s=0, publish_s=2.0)
"""Of four groups of two trajectories with 16 + 10 tokens: 26 s."""


def constant_run(staleness, workers=1, learner=UPDATE, deaths=(), lengths=CONSTANT, steps=12):
    cfg = config(
        steps=steps,
        rollout__max_staleness=staleness,
        rollout__workers=workers,
        # A third of the room for the prompt: 16 tokens.
        rollout__max_model_length=64,
        modes__short__max_tokens=16,
    )
    return simulate(cfg, SECOND, learner, lengths, deaths)


def test_a_synchronous_step_is_sampling_and_update_and_publish():
    outcome = constant_run(0)
    assert outcome.step_s == pytest.approx(10 + 26 + 2)
    assert outcome.learner_waits == pytest.approx(10 / 38)
    assert outcome.updating == pytest.approx(26 / 38)
    assert outcome.publishing == pytest.approx(2 / 38)
    assert outcome.engines_idle == pytest.approx(28 / 38)
    assert outcome.tokens_per_second == pytest.approx(80 / 38)
    assert outcome.total_s == pytest.approx(12 * 38)


def test_staleness_samples_beside_the_update():
    """Sampling takes 10 s of the update's 26, so the learner never waits."""
    outcome = constant_run(1)
    assert outcome.step_s == pytest.approx(26 + 2)
    assert outcome.learner_waits == pytest.approx(0, abs=1e-9)
    assert outcome.engines_idle == pytest.approx(18 / 28)


@pytest.mark.parametrize(
    ("staleness", "step_s"),
    [
        (0, 15 + 3.125 + 2),
        # Groups are asked for one publish earlier, which freezes them for 2 s: two steps share it.
        (1, (15 + 2 + 3.125 + 2) / 2),
        (2, (15 + 2 * 2 + 3.125 + 2) / 3),
        (4, (15 + 4 * 2 + 3.125 + 2) / 5),
        # Now the learner is all that takes time.
        (8, 3.125 + 2),
    ],
)
def test_staleness_hides_a_tail(staleness, step_s):
    """Half of the groups take 15 s and the others 3; an update of 200 tokens takes 3.125 s."""
    lengths = Lengths({"long": [[15]], "short": [[3]]}, "said by the test")
    steps = 3 + staleness + 3 * (staleness + 1)
    learner = LearnerSpeed(token_s=1 / 64, pair_s=0, publish_s=2.0)
    outcome = constant_run(staleness, learner=learner, lengths=lengths, steps=steps)
    assert outcome.step_s == pytest.approx(step_s)


def test_what_dead_engines_cost_is_seen_in_the_whole():
    calm, killed = constant_run(0, 2), constant_run(0, 2, deaths=[Death(0, 5.0, 1000.0)])
    # The first step's groups begin again after 5 of 10 steps.
    assert killed.total_s - calm.total_s == pytest.approx(5)
    assert killed.lost_tokens == 4 * 5


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="more than 3 steps, got 3"):
        constant_run(0, steps=3)


# Sizes and speeds


def of_scale(scale, *settings):
    return recipe.load(["config=hybrid_50_50.yaml", f"scale={scale}", "run=runs/none", *settings])


@pytest.mark.parametrize(
    ("scale", "settings", "running", "tokens", "expected"),
    [
        ("one_gpu", ["rollout.engine.max_num_seqs=128"], 128, 1200, 15_100),
        ("node_8gpu", [], 120, 3200, 4_500),
        ("node_8gpu", ["rollout.engine.kv_cache_dtype=fp8"], 240, 3200, 9_100),
        ("cluster", [], 128, 3200, 8_900),
    ],
)
def test_decoding_of_known_engines(scale, settings, running, tokens, expected):
    """Of 1.7B with 0.4 of a GPU, of 8B, with a small cache, and over two GPUs."""
    loaded = of_scale(scale, *settings).config
    speed = engine_speed(loaded, shape_of(loaded.policy.model))
    assert running / speed.seconds(running, running * tokens) == pytest.approx(expected, rel=0.05)


def test_an_engine_has_room_for_as_many_responses_as_vllm_reports():
    loaded = of_scale("node_8gpu").config
    assert engine_speed(loaded, SHAPES["Qwen/Qwen3-8B"]).room_tokens / 3200 == pytest.approx(
        110, abs=10
    )


def test_a_learner_of_eight_billion_parameters():
    """About 6,000 tokens/s and GPU at 8,192 tokens, before what the ranks send each other."""
    loaded = of_scale("node_8gpu", "policy.ranks=1").config
    speed = learner_speed(loaded, SHAPES["Qwen/Qwen3-8B"])
    seconds = speed.update_seconds([8192])
    assert 8192 / seconds == pytest.approx(6_000, rel=0.15)


def test_weights_that_fill_the_gpu_are_refused():
    loaded = of_scale("node_8gpu", "rollout.engine.gpu_memory_utilization=0.8").config
    with pytest.raises(ValueError, match=r"rollout\.tensor_parallel"):
        engine_speed(loaded, SHAPES["Qwen/Qwen3-32B"])


def test_an_unknown_model_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="Qwen/Qwen3-8B"):
        shape_of("nobody/knows")


# Lengths and the command


def test_drawn_lengths_keep_to_the_budget_and_are_the_same_again():
    cfg = config()
    ours, again = drawn_lengths(cfg), drawn_lengths(cfg)
    assert ours(request(n=2, budget=16)) == again(request(n=2, budget=16))
    cut = [length == 16 for group in ours.groups["long"] for length in group]
    assert all(1 <= length <= 16 for group in ours.groups["long"] for length in group)
    assert 0.02 < sum(cut) / len(cut) < 0.12


def test_the_groups_of_a_ledger_keep_their_lengths_together(tmp_path):
    def scored(name, mode, *lengths):
        group = RolloutGroup(
            dataclasses.replace(request(name), mode=mode),
            tuple(trajectory(num_response=length) for length in lengths),
        )
        return ScoredGroup(group, (Score(1.0),) * len(lengths))

    groups = [scored("0/0/0", "short", 2, 3), scored("0/1/0", "long", 9, 30)]
    none = [(None, None)] * 2
    write_step(tmp_path, 1, ledger_rows(1, groups, none, none))
    lengths = ledger_lengths(config(), tmp_path)
    assert lengths is not None
    assert lengths.groups == {"short": [[2, 3]], "long": [[9, 30]]}
    # A larger group than those of the ledger, and a smaller budget.
    assert lengths(request(n=3, budget=16)) == [9, 16, 9]


def test_a_directory_without_a_ledger_gives_no_lengths(tmp_path):
    assert ledger_lengths(config(), tmp_path / "ledger") is None


def test_the_report_says_what_a_step_takes_and_what_a_lost_engine_costs():
    screen = io.StringIO()
    loaded = of_scale("node_8gpu", "rollout.prompts_per_step=4", "rollout.group_size=2").config
    print_simulation(loaded, rich.console.Console(file=screen, width=120))
    said = screen.getvalue()
    assert "a step takes" in said and "feeds on" in said and "taken away" in said
    assert [line for line in said.splitlines() if line.startswith("│")][-1].split()[1] == "6"


def test_the_command_simulates_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["rollout.prompts_per_step=4", "rollout.group_size=2"]
    arguments = ["config=hybrid_50_50.yaml", "scale=node_8gpu", "simulate=true", *settings]
    assert launch.main(arguments) == 0
    assert "a step takes" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
